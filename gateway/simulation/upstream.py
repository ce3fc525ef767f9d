"""How a deployment answers: a model of it, and what befalls it."""

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

import msgspec

_STEPS = 100  # of a distribution: a percent each


class Quantiles(msgspec.Struct, frozen=True):
    """A distribution by its values at evenly spaced quantiles, the least first."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float], weights: Sequence[float] | None = None) -> "Quantiles":
        """Of samples, at least one; of two weights the greater counts for more."""
        ranked = sorted(zip(samples, weights or [1.0] * len(samples), strict=True))
        edges = list(accumulate(weight for _, weight in ranked))
        last = len(ranked) - 1
        return cls(tuple(ranked[min(bisect(edges, edges[-1] * n / _STEPS), last)][0] for n in range(_STEPS + 1)))

    @classmethod
    def around(cls, middle: float, spread: float = 0.0) -> "Quantiles":
        """Evenly within `spread` (a share) of `middle`."""
        return cls((middle * (1 - spread), middle * (1 + spread)))

    @property
    def median(self) -> float:
        return self.at(0.5)

    def at(self, quantile: float) -> float:
        """The value at a quantile in [0, 1]."""
        place = quantile * (len(self.values) - 1)
        below = min(int(place), len(self.values) - 2) if len(self.values) > 1 else 0
        if len(self.values) == 1:
            return self.values[0]
        lower, upper = self.values[below : below + 2]
        return lower + (upper - lower) * (place - below)


FAILING = Quantiles((0.05,))
"""A connection refused, or an error told at once, where nothing else is known."""


class Service(msgspec.Struct, frozen=True):
    """How a deployment answers while nothing befalls it. Seconds."""

    first: Quantiles
    """To the first token."""
    token: Quantiles
    """A token."""
    error_rate: float = 0.0
    failing: Quantiles = FAILING
    """Until a failure is known."""
    room: int | None = None
    """Requests that it works at with all its speed; with twice as many each token takes twice as long."""


class Spell(msgspec.Struct, frozen=True):
    """What befalls a deployment from one moment until another."""

    since: float
    until: float
    slower: float = 1.0
    """Times as long as otherwise."""
    error_rate: float | None = None
    """1: it is dead."""


class Answer(msgspec.Struct, frozen=True):
    """How one call goes. Seconds from its start."""

    first: float
    whole: float
    failed: bool = False


class Upstream:
    """One deployment's other side."""

    def __init__(self, service: Service, spells: Sequence[Spell] = ()) -> None:
        self._service = service
        self._spells = spells

    def answer(self, now: float, tokens: int, in_flight: int, rng: random.Random) -> Answer:
        """To a call that begins now and wants so many tokens; `in_flight` counts it."""
        service = self._service
        spell = next((spell for spell in self._spells if spell.since <= now < spell.until), None)
        error_rate = spell.error_rate if spell is not None and spell.error_rate is not None else service.error_rate
        if error_rate and rng.random() < error_rate:
            seconds = service.failing.at(rng.random())
            return Answer(seconds, seconds, failed=True)
        slower = spell.slower if spell is not None else 1.0
        crowded = max(in_flight / service.room, 1.0) if service.room else 1.0
        first = service.first.at(rng.random()) * slower
        return Answer(first, first + service.token.at(rng.random()) * tokens * slower * crowded)
