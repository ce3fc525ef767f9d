"""Power of two choices: of two drawn by weight, the one with less work in flight for its weight.

Mitzenmacher 2001: two choices keep the longest queue at log log n, and need no agreement between processes.
"""

from collections.abc import Iterator, Sequence

from gateway.routing.random import draws
from gateway.routing.signals import Occasion, Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """A holder of the prompt, else the better of two draws; those without room come last."""
    late: list[Deployment] = []
    drawn = _with_room(draws(candidates, signals, occasion), signals, late)
    first = signals.holder(candidates, occasion)
    if first is not None:
        yield first
    else:
        yield from _better_of_two(drawn, candidates, signals, occasion)
    for deployment in drawn:
        if deployment is not first:
            yield deployment
    yield from late


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """What it would have in flight with one more, for its weight."""
    return signals.load(deployment)


def _with_room(drawn: Iterator[Deployment], signals: Signals, late: list[Deployment]) -> Iterator[Deployment]:
    for deployment in drawn:
        if signals.full(deployment):
            late.append(deployment)
        else:
            yield deployment


def _better_of_two(
    drawn: Iterator[Deployment], candidates: Sequence[Deployment], signals: Signals, occasion: Occasion
) -> Iterator[Deployment]:
    one = next(drawn, None)
    if one is None:
        return
    if occasion.point is not None and not signals.overloaded(one, candidates):
        yield one  # where requests of its kind meet: the choice would part them
        return
    two = next(drawn, None)
    if two is None:
        yield one
    elif two.weight and signals.load(two) < signals.load(one):
        yield from (two, one)
    else:
        yield from (one, two)
