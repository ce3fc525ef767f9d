"""Detectors, one file each: what a prompt, a passage or a recalled turn must not hold.

To add one:

1. Put `security/detectors/<name>.py` here; the module's name is the detector's.
2. In it, set `CATEGORY` (a `base.Category`) and `REPLACEMENT`, the text that stands for what is sanitised.
3. Define `find(text, policy) -> Sequence[base.Hit]`: pure, linear in the text, microseconds where nothing is there.
   Where a policy may give it nothing to look for, define `applies(policy)` too: texts are not shown to it then.
4. Read nothing but its arguments; what an admin sets is a field of `base.ScreenPolicy`, and a category that is new has
   its default in `base.BALANCED`.
5. Add `tests/security/detectors/test_<name>.py` with a subclass of `DetectorContract`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Protocol

import msgspec

from security.detectors.base import Category

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from security.detectors.base import Hit, ScreenPolicy

_NOT_DETECTORS = frozenset({"base"})


class Find(Protocol):
    def __call__(self, text: str, policy: ScreenPolicy) -> Sequence[Hit]: ...


def _always(policy: ScreenPolicy) -> bool:
    return True


class Detector(msgspec.Struct, frozen=True):
    """A module of this package, as the engine uses it."""

    name: str
    category: Category
    replacement: str
    find: Find
    applies: Callable[[ScreenPolicy], bool] = _always
    """Whether a policy gives it anything to look for; a module without `applies` always has."""


def names() -> list[str]:
    """The detectors there are; reads no module."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_DETECTORS)


@cache
def detectors() -> tuple[Detector, ...]:
    """All detectors, loaded. Raises `AttributeError` where a module lacks what the docstring above asks for."""
    return tuple(_detector(name) for name in names())


def _detector(name: str) -> Detector:
    module = importlib.import_module(f"{__name__}.{name}")
    return Detector(
        name=name,
        category=Category(module.CATEGORY),
        replacement=module.REPLACEMENT,
        find=module.find,
        applies=getattr(module, "applies", _always),
    )
