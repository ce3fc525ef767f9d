"""The fastest first: time to the first token and per token, for an answer as long as this one is expected to be."""

from collections.abc import Iterator, Sequence

from gateway.routing.signals import Occasion, Signals, best_first
from gateway.types import Deployment

_EXPLORED = 0.04  # share of requests that may try another than the fastest: it must stay under one in twenty
_AT_ONCE = 8.0  # requests in flight that make one count as twice as slow: what was measured is a moment old, and all
# who go by it at once would go to one deployment. Finagle's peak EWMA doubles with each; an upstream of language
# models has many lanes.
_UNKNOWN = 1e9  # seconds: one of which nothing is known yet comes after all others, the least busy first
_STALE = 10.0  # seconds after which what was measured may no longer be so


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """By expected time. One that was never measured goes first, once; one that was measured long ago now and then, so
    that a recovered one is found again.
    """
    # `score` without its calls: there may be a hundred candidates.
    names, paces = signals.paces_of(occasion.pool, candidates)
    tokens = occasion.tokens
    scores = [
        (pace.first + pace.token * tokens) * (1.0 + (crowd or 0) / _AT_ONCE) if pace is not None else None
        for pace, crowd in zip(paces, map(signals.in_flight.get, names), strict=True)
    ]
    if occasion.held or None in scores:
        scores = [
            score(d, signals, occasion) if found is None or d.name in occasion.held else found
            for d, found in zip(candidates, scores, strict=True)
        ]
    ordered = best_first(candidates, scores)
    stale = _to_explore(candidates, signals)
    if stale is not None:
        yield stale
    for deployment in ordered:
        if deployment is not stale:
            yield deployment


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """Seconds that the answer is expected to take; below 0 where nothing is known and nobody is finding out."""
    pace = signals.paces.get(deployment.name)
    if pace is None:
        return _UNKNOWN + signals.in_flight[deployment.name] if signals.in_flight.get(deployment.name) else -1.0
    crowd = 1.0 + signals.in_flight.get(deployment.name, 0) / _AT_ONCE
    return pace.expected(occasion.tokens, cached=deployment.name in occasion.held) * crowd


def _to_explore(candidates: Sequence[Deployment], signals: Signals) -> Deployment | None:
    """The one whose measurement is the oldest, where that is old and enough requests have gone by."""
    signals.exploring = min(signals.exploring + _EXPLORED, 1.0)
    if signals.exploring < 1.0:
        return None
    before = signals.clock() - _STALE
    paces, in_flight = signals.paces, signals.in_flight
    stale = [
        d for d in candidates
        if d.name in paces and paces[d.name].at < before and not in_flight.get(d.name)
    ]  # fmt: skip
    if not stale:
        return None
    signals.exploring = 0.0
    return min(stale, key=lambda d: paces[d.name].at)
