"""Smooth weighted round robin, as nginx does it: shares by weight, without bursts to one deployment."""

import math
from collections.abc import Iterator, Sequence

from gateway.routing.signals import Occasion, Signals, best_first
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """A holder of the prompt, else whose turn it is; the others by how near their turn is."""
    turns = signals.turns.setdefault(occasion.pool, {})
    scores, total = [], 0
    for d in candidates:
        turns[d.name] = turn = turns.get(d.name, 0.0) + d.weight
        scores.append(-turn)
        total += d.weight
    holder = signals.holder(candidates, occasion)
    if holder is not None:
        scores[candidates.index(holder)] = -math.inf
    ordered = best_first(candidates, scores)
    first = next(ordered)
    turns[first.name] -= total
    yield first
    yield from ordered


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """How near its turn is: the highest has it."""
    return signals.turns.get(occasion.pool, {}).get(deployment.name, 0.0) + deployment.weight
