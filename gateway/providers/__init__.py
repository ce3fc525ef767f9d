"""Upstream vendors, one file each.

To add one:

1. Put `gateway/providers/<slug>.py` here; the module's name is the provider's kind.
2. Derive `Vendor` in it from a dialect (`openai.Compatible` for an OpenAI-compatible server) or from `base.Provider`.
3. Set `slug` to the module's name, and what differs: `default_base_url`, `price_book`, `auth_headers`.
4. Where the environment can define it, set `env_prefix` and add its settings to `ailb_project.env`.
5. Add `tests/gateway/providers/test_<slug>.py` with a subclass of `ProviderContract`.

Nothing else is edited: kinds are discovered, and `kind` has its choices from here without a migration.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.providers.base import Provider

_NOT_VENDORS = frozenset({"base", "reading", "ndjson", "sse", "waits"})


class RegistryError(Exception):
    """A module here does not keep the rule `slug == module name`: the start stops."""


def kinds() -> list[str]:
    """The vendors there are, by slug; reads no module."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_VENDORS)


def kind_choices() -> list[tuple[str, str]]:
    return [(kind, kind) for kind in kinds()]


@cache
def vendor(kind: str) -> type[Provider]:
    """The class of a vendor. Raises `RegistryError`."""
    if kind not in kinds():
        raise RegistryError(f"no provider of kind {kind!r}; there are: {', '.join(kinds())}")
    found: type[Provider] = importlib.import_module(f"{__name__}.{kind}").Vendor
    if found.slug != kind:
        raise RegistryError(f"gateway/providers/{kind}.py: its slug is {found.slug!r}")
    return found


def check() -> None:
    """Load every vendor, so that a broken one stops the start and not a request."""
    for kind in kinds():
        vendor(kind)
