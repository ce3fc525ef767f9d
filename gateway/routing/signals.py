"""What strategies know: of the past and the present (`Signals`, one a process) and of one request (`Occasion`)."""

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from time import monotonic
from typing import Any

import msgspec

from gateway.types import Deployment

_MEMORY = 10.0  # seconds in which a moving average forgets: as Finagle's peak EWMA has it
_RECENT = 200  # samples of which a percentile is taken; more would tell of another hour
_LEAST = 20  # samples below which a percentile says nothing
_CACHED_FIRST = 0.5  # of the time to the first token where the prompt's beginning is in the provider's cache
_BUSY = 8  # requests in flight below which nobody is overloaded: a handful at once is no load
_FAIR = 1.5  # times its fair share of what is in flight, and a deployment is overloaded ("Consistent Hashing with
# Bounded Loads", Mirrokni, Thorup and Zadimoghaddam 2016, has 1.25 to 2)


class Pace:
    """How fast a deployment answers. Seconds; peak-sensitive: a slower sample counts at once, a faster one gradually
    (the peak EWMA of Twitter's Finagle), so that one that turns slow is left quickly.
    """

    __slots__ = ("_recent", "_streamed", "at", "first", "token")

    def __init__(self) -> None:
        self.first = 0.0
        """To the first token; 0 while no stream has told."""
        self.token = 0.0
        """A token."""
        self.at = -math.inf
        """When it was last measured."""
        self._streamed = False
        self._recent: tuple[deque[float], deque[float]] = (deque(maxlen=_RECENT), deque(maxlen=_RECENT))

    def measured(self, now: float, *, first: float | None, whole: float, tokens: int) -> None:
        """An answer of `tokens` took `whole`; `first` is that to its first token, None for a plain one."""
        kept = math.exp((self.at - now) / _MEMORY)
        if first is not None:
            self.first = _moved(self.first, first, kept if self._streamed else 0.0)
            self._streamed = True
        began = self.first if first is None else first
        self.token = _moved(self.token, max(whole - began, 0.0) / max(tokens, 1), kept)
        self.at = now
        self._recent[first is not None].append(whole if first is None else first)

    def expected(self, tokens: float, *, cached: bool = False) -> float:
        """Seconds for an answer of `tokens`."""
        return self.first * (_CACHED_FIRST if cached else 1.0) + self.token * tokens

    def late_after(self, *, stream: bool) -> float | None:
        """The 95th percentile of the time to the first content of streams, or of whole plain answers."""
        recent = self._recent[stream]
        return sorted(recent)[int(len(recent) * 0.95)] if len(recent) >= _LEAST else None


def _moved(before: float, sample: float, kept: float) -> float:
    return sample if sample >= before else sample + (before - sample) * kept


class Occasion(msgspec.Struct, frozen=True):
    """What is particular to one request."""

    pool: str = ""
    """Whose deployments these are: round robin has its turns by it."""
    held: Collection[str] = ()
    """Deployments that served the same session or prompt prefix: their provider's cache may still hold it."""
    point: float | None = None
    """In [0, 1), the same for the same session or prefix in every process: where a draw falls without a holder."""
    tokens: float = 200.0
    """How long the answer is expected to be."""
    listed: tuple[Sequence[Deployment], list[float]] | None = None
    """Of these candidates, `cost` in their order: for a hundred of them the calls would cost more than the sums."""
    cost: Callable[[str], float] = lambda _name: math.inf
    """What it is expected to cost at a deployment, in 1e-18 US dollars; infinity where unpriced. Right as to which is
    the cheapest; `counted` is right as to all."""
    count: Callable[[], Callable[[str], float]] | None = None

    def counted(self) -> Callable[[str], float]:
        """`cost` by the prompt's tokens counted, which takes its time."""
        return self.cost if self.count is None else self.count()


class Signals(msgspec.Struct):
    """One process's view, kept by the attempts."""

    in_flight: dict[str, int] = {}
    paces: dict[str, Pace] = {}
    full_until: dict[str, float] = {}
    """By `clock`, until when a deployment's limits, ours or its provider's, leave nothing."""
    turns: dict[str, dict[str, float]] = {}
    """Smooth weighted round robin's running totals, by pool and deployment."""
    _listed: dict[str, tuple[Sequence[Deployment], int, list[str], list[Pace | None]]] = {}
    exploring: float = 0.0
    """Of one request, how much may by now be spent on trying a deployment that is not the fastest."""
    rng: random.Random = msgspec.field(default_factory=random.Random)
    clock: Callable[[], float] = monotonic

    def started(self, deployment: str) -> None:
        self.in_flight[deployment] = self.in_flight.get(deployment, 0) + 1

    def ended(self, deployment: str) -> None:
        self.in_flight[deployment] = max(self.in_flight.get(deployment, 0) - 1, 0)

    def used_up(self, deployment: str, seconds: float) -> None:
        """Its limits leave nothing for so long. A longer time counts, a shorter one does not."""
        self.full_until[deployment] = max(self.full_until.get(deployment, 0.0), self.clock() + seconds)

    def measured(self, deployment: str, *, first: float | None, whole: float, tokens: int) -> None:
        """See `Pace.measured`."""
        pace = self.paces.get(deployment)
        if pace is None:
            pace = self.paces[deployment] = Pace()
        pace.measured(self.clock(), first=first, whole=whole, tokens=tokens)

    def paces_of(self, pool: str, candidates: Sequence[Deployment]) -> tuple[list[str], list[Pace | None]]:
        """The candidates' names and paces, as they were listed last where both are still the same."""
        listed = self._listed.get(pool)
        if listed is None or listed[0] is not candidates or listed[1] != len(self.paces):
            names = [d.name for d in candidates]
            listed = self._listed[pool] = (candidates, len(self.paces), names, [self.paces.get(name) for name in names])
        return listed[2], listed[3]

    def late_after(self, deployment: str, *, stream: bool) -> float | None:
        """See `Pace.late_after`; None where too little is known."""
        pace = self.paces.get(deployment)
        return pace.late_after(stream=stream) if pace is not None else None

    def load(self, deployment: Deployment) -> float:
        """What it would have in flight with one more, for its weight."""
        return (self.in_flight.get(deployment.name, 0) + 1) / max(deployment.weight, 1)

    def full(self, deployment: Deployment) -> bool:
        """Whether its limits leave nothing for one more, as far as this process knows."""
        most = deployment.limit.max_parallel if deployment.limit is not None else None
        if most is not None and self.in_flight.get(deployment.name, 0) >= most:
            return True
        until = self.full_until.get(deployment.name) if self.full_until else None
        return until is not None and self.clock() < until

    def overloaded(self, deployment: Deployment, candidates: Sequence[Deployment]) -> bool:
        """Whether it has clearly more than its share of what is in flight, or no room."""
        if self.full(deployment):
            return True
        if self.in_flight.get(deployment.name, 0) < _BUSY:
            return False
        total = sum(self.in_flight.get(d.name, 0) for d in candidates) + 1
        return self.load(deployment) > _FAIR * total / max(sum(d.weight for d in candidates), 1)

    def holder(self, candidates: Sequence[Deployment], occasion: Occasion) -> Deployment | None:
        """The least loaded of those whose provider may hold the prompt in its cache; None where all have enough."""
        if not occasion.held:
            return None
        able = [d for d in candidates if d.name in occasion.held and not self.overloaded(d, candidates)]
        return min(able, key=self.load, default=None)


def best_first(candidates: Sequence[Deployment], scores: Sequence[Any]) -> Iterator[Deployment]:
    """By their scores, least first; the others are sorted only where the first was not enough. Of equal ones the
    earlier.
    """
    best = scores.index(min(scores))
    yield candidates[best]
    for at in sorted(range(len(scores)), key=scores.__getitem__):
        if at != best:
            yield candidates[at]
