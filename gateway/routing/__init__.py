"""Routing strategies, one file each: the order in which a model's deployments are tried.

To add one:

1. Put `gateway/routing/<slug>.py` here; the module's name is the strategy's.
2. In it, define `order(candidates, signals, occasion)`: an iterator over every candidate once, best first, that does
   no more work for the first than it must, since the first mostly answers; and `score(deployment, signals, occasion)`,
   the number that it goes by, for whoever asks why.
3. Read nothing but the arguments; what it needs to know of the past is a field of `signals.Signals`, what of the
   request one of `signals.Occasion`.
4. Add `tests/gateway/routing/test_<slug>.py` with a subclass of `StrategyContract` and an input it reorders.
5. Add the name to `ROUTING_STRATEGY`'s values in `ailb_project.env`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.routing.signals import Occasion, Signals
    from gateway.types import Deployment

_NOT_STRATEGIES = frozenset({"signals"})


class Strategy(Protocol):
    """A module of this package."""

    def order(self, candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]: ...

    def score(self, deployment: Deployment, signals: Signals, occasion: Occasion) -> float: ...


def strategies() -> list[str]:
    """The strategies there are; reads no module."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_STRATEGIES)


def strategy_choices() -> list[tuple[str, str]]:
    return [(name, name.replace("_", " ")) for name in strategies()]


@cache
def strategy(name: str) -> Strategy:
    """A strategy; `KeyError` where there is none of that name."""
    if name not in strategies():
        raise KeyError(name)
    found: Strategy = importlib.import_module(f"{__name__}.{name}")
    return found
