"""Smooth weighted round robin, as nginx does it: shares by weight, without bursts to one deployment."""

from collections.abc import Sequence

from gateway.routing.signals import Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """Whose turn it is first, the others by how near their turn is."""
    total = sum(d.weight for d in candidates)
    for d in candidates:
        signals.turns[d.name] = signals.turns.get(d.name, 0.0) + d.weight
    ordered = sorted(candidates, key=lambda d: (d.weight == 0, -signals.turns[d.name]))
    signals.turns[ordered[0].name] -= total
    return ordered
