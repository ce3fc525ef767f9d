"""A model of each deployment, from what the ledger says of its calls."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Generic, TypeVar

import msgspec

from billing.history import Closed
from gateway.simulation.upstream import FAILING, Quantiles, Service

T = TypeVar("T")

_KEPT = 2000  # calls of a deployment that its model is made of, drawn evenly from all: a percent of them is twenty
_LEAST = 5  # calls below which a distribution says nothing


class _Call(msgspec.Struct, frozen=True):
    """One that answered. Seconds."""

    first: float | None
    """To the first token of a stream."""
    whole: float
    tokens: int


class _Drawn(Generic[T]):
    """An even sample of any number of things (reservoir sampling, Vitter's algorithm R)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.seen = 0
        self.kept: list[T] = []

    def add(self, thing: T) -> None:
        self.seen += 1
        if len(self.kept) < _KEPT:
            self.kept.append(thing)
        elif (at := self._rng.randrange(self.seen)) < _KEPT:
            self.kept[at] = thing


class _Known:
    """Of one deployment."""

    def __init__(self, rng: random.Random) -> None:
        self.tries = 0
        self.answers = _Drawn[_Call](rng)
        self.failures = _Drawn[float](rng)
        """Seconds until each was known."""

    def service(self) -> Service:
        calls, failures = self.answers.kept, self.failures
        streams = [call.first for call in calls if call.first is not None]
        first = Quantiles.of(streams) if len(streams) >= _LEAST else Quantiles((_intercept(calls),))
        shares = [call.whole - (first.median if call.first is None else call.first) for call in calls]
        sizes = [max(call.tokens, 1) for call in calls]
        return Service(
            first=first,
            # A token of a long answer counts as much as one of a short, which says little of the pace.
            token=Quantiles.of([max(s, 0.0) / n for s, n in zip(shares, sizes, strict=True)], sizes),
            error_rate=failures.seen / self.tries if self.tries else 0.0,
            failing=Quantiles.of(failures.kept) if failures.seen else FAILING,
        )


class Observations:
    """What the ledger's rows say of deployments."""

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(f"{seed} observations")  # noqa: S311  # a sample, no secret
        self._known: defaultdict[str, _Known] = defaultdict(lambda: _Known(rng))

    def add(self, request: Closed) -> None:
        for made in request.tries:
            known = self._known[made.deployment]
            known.tries += 1
            if made.failed:
                known.failures.add(made.seconds)
        call = _call_of(request)
        if call is not None:
            self._known[request.deployment].answers.add(call)

    def services(self) -> dict[str, Service]:
        """By deployment, of those that have answered often enough."""
        return {name: known.service() for name, known in self._known.items() if known.answers.seen >= _LEAST}


def _call_of(request: Closed) -> _Call | None:
    """The call that answered a request whole."""
    if not request.settled or request.seconds is None or request.status != 200:
        return None
    made = request.answered
    if made is None:  # its attempts are not on the ledger: the request was one call
        return _Call(request.first, request.seconds, request.completion_tokens) if not request.tries else None
    if made.deployment != request.deployment:
        return None
    first = request.first - made.started if request.first is not None else None
    return _Call(None if first is None else min(max(first, 0.0), made.seconds), made.seconds, request.completion_tokens)


def _intercept(calls: Sequence[_Call]) -> float:
    """What an answer takes besides its tokens, by least squares: plain answers do not tell their first token."""
    tokens, wholes = [float(call.tokens) for call in calls], [call.whole for call in calls]
    middle, mean = fmean(tokens), fmean(wholes)
    spread = sum((n - middle) ** 2 for n in tokens)
    if not spread:
        return 0.0  # all of one length: it is as well a part of each token
    slope = sum((n - middle) * (whole - mean) for n, whole in zip(tokens, wholes, strict=True)) / spread
    return min(max(mean - slope * middle, 0.0), min(wholes))


def median_of(services: Iterable[Service]) -> Service:
    """One that stands for many, at least one: the median of each of their quantiles."""
    all_ = list(services)
    return Service(
        first=_median([service.first for service in all_]),
        token=_median([service.token for service in all_]),
        error_rate=median(service.error_rate for service in all_),
        failing=_median([service.failing for service in all_]),
    )


def _median(distributions: Sequence[Quantiles]) -> Quantiles:
    steps = [n / 100 for n in range(101)]
    return Quantiles(tuple(median(one.at(step) for one in distributions) for step in steps))


def completed(services: Mapping[str, Service], pools: Iterable[Sequence[str]]) -> tuple[dict[str, Service], list[str]]:
    """The services with one for each deployment of the pools that has none, its pool's median (else that of all), and
    the names of these. Needs one service at least.
    """
    found, guessed = dict(services), list[str]()
    for pool in pools:
        known = [services[name] for name in pool if name in services] or list(services.values())
        for name in pool:
            if name not in found:
                found[name] = median_of(known)
                guessed.append(name)
    return found, guessed
