"""The fastest first, by a moving average of the time to first content."""

from collections.abc import Sequence

from gateway.routing.signals import Signals
from gateway.types import Deployment

_EXPLORED = 0.05  # share of requests that try another deployment first, so that a recovered one is found again


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """By latency; one that was never measured goes first, and now and then another than the best does."""
    ordered = sorted(candidates, key=lambda d: (d.weight == 0, signals.latency.get(d.name, 0.0)))
    serving = sum(1 for d in ordered if d.weight)  # weight 0 drains: it is not explored either
    if serving > 1 and signals.rng.random() < _EXPLORED:
        other = signals.rng.randrange(1, serving)
        ordered.insert(0, ordered.pop(other))
    return ordered
