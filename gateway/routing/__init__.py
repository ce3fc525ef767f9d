"""Routing strategies, one file each: the order in which a model's deployments are tried.

To add one:

1. Put `gateway/routing/<slug>.py` here; the module's name is the strategy's.
2. In it, define `order(candidates, signals) -> list[Deployment]`: every candidate once, best first, pure.
3. Read nothing but its arguments; what it needs to know of the past is a field of `signals.Signals`.
4. Add `tests/gateway/routing/test_<slug>.py` with a subclass of `StrategyContract` and an input it reorders.
5. Add the name to `ROUTING_STRATEGY`'s values in `ailb_project.env`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.routing.signals import Signals
    from gateway.types import Deployment

_NOT_STRATEGIES = frozenset({"signals"})


class Order(Protocol):
    def __call__(self, candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]: ...


def strategies() -> list[str]:
    """The strategies there are; reads no module."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_STRATEGIES)


def strategy_choices() -> list[tuple[str, str]]:
    return [(name, name.replace("_", " ")) for name in strategies()]


@cache
def order(name: str) -> Order:
    """A strategy's function; `KeyError` where there is none of that name."""
    if name not in strategies():
        raise KeyError(name)
    found: Order = importlib.import_module(f"{__name__}.{name}").order
    return found
