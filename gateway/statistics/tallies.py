"""Counting, on a request's own path: 1 µs a request, no lock, no clock, no I/O.

All writing is the event loop's. Other threads read: each number by itself, each dict by `copy`, which is one step of
the interpreter.
"""

from datetime import UTC, datetime
from time import time
from typing import NamedTuple

import msgspec

from gateway.statistics.sketch import Sketch

SPAN = 300  # seconds that a tally is of: how sharply an hour can be told from the one before


class LastError(msgspec.Struct, frozen=True, order=True):
    """Why a deployment did not answer: our word for it, and the upstream's status (None where it never answered)."""

    at: datetime
    code: str
    status: int | None


class Tally:
    """How requests to one deployment went. Latencies are milliseconds from arrival to the last byte, of answers: a
    refusal's would make a broken deployment look fast.
    """

    __slots__ = ("error", "failed", "failed_attempts", "latencies", "succeeded", "written")

    def __init__(self) -> None:
        self.succeeded = 0
        """Requests that it answered."""
        self.failed = 0
        """Requests that failed in the end, with this deployment as the last resort."""
        self.failed_attempts = 0
        """Times that it did not answer, whether another then did or not."""
        self.latencies = Sketch()
        self.error: LastError | None = None
        self.written = 0
        """The age that is in the database."""

    @property
    def age(self) -> int:
        """Grows with all that is counted: of two copies of one tally, the older one knows more."""
        return self.succeeded + self.failed + self.failed_attempts

    def merge(self, other: "Tally") -> None:
        self.succeeded += other.succeeded
        self.failed += other.failed
        self.failed_attempts += other.failed_attempts
        self.latencies.merge(other.latencies)
        self.error = max(filter(None, (self.error, other.error)), default=None, key=lambda error: error.at)


class Key(NamedTuple):
    """Of what and when a tally is. `start` is in seconds of the epoch; what no deployment took has empty names."""

    start: int
    provider: str
    deployment: str


class Load(msgspec.Struct, frozen=True):
    """What a process has in flight, and its circuits that are not closed (`gateway.circuits.State`), by deployment."""

    in_flight: dict[str, int] = {}
    circuits: dict[str, int] = {}


class Recorder:
    """What one process has counted, a tally a span and deployment, until it is written."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, process_id: str, in_flight: dict[str, int] | None = None) -> None:
        """Start from nothing. `in_flight` says, now and later, how many requests each deployment has."""
        self.process_id = process_id
        self.circuits: dict[str, int] = {}
        """Those that are not closed, a second ago at most."""
        self.tallies: dict[Key, Tally] = {}
        self._in_flight = {} if in_flight is None else in_flight
        self._now: dict[tuple[str, str], Tally] = {}
        self._span = _span_of(time())

    def ended(self, provider: str, deployment: str, status: int, latency_ms: float) -> None:
        """A request that was routed has ended. What ended for the client's own reasons, a wrong request (4xx) or its
        leaving (499), says nothing of how we serve and is not counted.
        """
        if status < 400:
            tally = self._now.get((provider, deployment)) or self._begun(provider, deployment)
            tally.succeeded += 1
            tally.latencies.add(latency_ms)
        elif status >= 500:
            tally = self._now.get((provider, deployment)) or self._begun(provider, deployment)
            tally.failed += 1

    def turned_away(self) -> None:
        """A request failed since no deployment could be asked."""
        self.ended("", "", 503, 0.0)

    def attempt_failed(self, provider: str, deployment: str, code: str, status: int | None) -> None:
        """A deployment did not answer. `code` is a word of ours, never an upstream's message."""
        tally = self._now.get((provider, deployment)) or self._begun(provider, deployment)
        tally.error = LastError(datetime.now(UTC), code, status)
        tally.failed_attempts += 1

    @property
    def load(self) -> Load:
        """What this process has to do at the moment."""
        return Load({name: number for name, number in self._in_flight.copy().items() if number}, self.circuits)

    def roll(self, now: float) -> None:
        """The span may have changed: begin new tallies, forget old ones that are written. Once a second is enough,
        and spares each request a look at the clock.
        """
        if (span := _span_of(now)) == self._span:
            return
        self._span = span
        self._now = {}
        for key, tally in [*self.tallies.items()]:
            if tally.written == tally.age:
                del self.tallies[key]

    def changed(self) -> dict[Key, Tally]:
        """What the database does not know yet."""
        return {key: tally for key, tally in self.tallies.items() if tally.written != tally.age}

    def _begun(self, provider: str, deployment: str) -> Tally:
        tally = self._now[provider, deployment] = self.tallies[Key(self._span, provider, deployment)] = Tally()
        return tally


def _span_of(moment: float) -> int:
    return int(moment // SPAN) * SPAN
