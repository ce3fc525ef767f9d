"""Power of two choices: of two drawn by weight, the one with less work in flight for its weight.

Mitzenmacher 2001: two choices keep the longest queue at log log n, and need no agreement between processes.
"""

from collections.abc import Sequence

from gateway.routing import random
from gateway.routing.signals import Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """A weighted draw whose first two are put in the order of their load."""
    drawn = random.order(candidates, signals)
    if len(drawn) > 1 and drawn[1].weight and _load(drawn[1], signals) < _load(drawn[0], signals):
        drawn[0], drawn[1] = drawn[1], drawn[0]
    return drawn


def _load(deployment: Deployment, signals: Signals) -> float:
    return (signals.in_flight.get(deployment.name, 0) + 1) / max(deployment.weight, 1)
