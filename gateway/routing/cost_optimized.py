"""The cheapest first, by what this request is expected to cost there, what its provider's cache saves included."""

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.routing.signals import Occasion, Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """By expected cost; unpriced ones last, since unknown is not free; equal ones by priority."""
    cost, listed = occasion.cost, occasion.listed
    scores: list[Any] = listed[1] if listed and listed[0] is candidates else [cost(d.name) for d in candidates]
    least = min(scores)
    if scores.count(least) > 1:
        scores = [(score, d.priority) for score, d in zip(scores, candidates, strict=True)]
        least = min(scores)
    cheapest = candidates[scores.index(least)]
    yield cheapest
    cost = occasion.counted()
    yield from sorted((d for d in candidates if d is not cheapest), key=lambda d: (cost(d.name), d.priority))


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """In 1e-18 US dollars, infinity where unpriced."""
    return occasion.cost(deployment.name)
