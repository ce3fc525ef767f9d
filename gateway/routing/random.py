"""A weighted draw: no state, fair over many requests."""

from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate

from gateway.routing.signals import Occasion, Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """A holder of the prompt, then draws without putting back in which weights are odds; weight 0 comes last. Where
    requests of its kind meet at one that has more than its share, that one comes last too.
    """
    first = signals.holder(candidates, occasion)
    if first is not None:
        yield first
    late: Deployment | None = None
    for at, deployment in enumerate(draws(candidates, signals, occasion)):
        if at == 0 and occasion.point is not None and signals.overloaded(deployment, candidates):
            late = deployment
        elif deployment is not first:
            yield deployment
    if late is not None and late is not first:
        yield late


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """Its odds."""
    return deployment.weight


def draws(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """Every candidate once. The first draw falls on the occasion's own point, where it has one: what belongs together
    then meets at one deployment, in every process, without their telling each other.
    """
    left = list(candidates)
    point = occasion.point if occasion.point is not None else signals.rng.random()
    while left:
        edges = list(accumulate(d.weight for d in left))
        total = edges[-1]
        yield left.pop(bisect(edges, point * total) if total else int(point * len(left)))
        point = signals.rng.random()
