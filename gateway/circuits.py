"""The circuit of one deployment: closed, open, half-open. Pure: no I/O, and the clock is an argument (seconds).

Closed, it is tried. Open, it is left alone until a moment; from then on it is half-open: one request at a time tries it
(the probe), whose outcome closes it or opens it for longer. Michael Nygard's circuit breaker ("Release It!", 2007),
with the outlier ejection of Envoy: consecutive failures, or a share of them.

It opens early where another deployment can answer in its stead: being put aside then costs nobody anything. As long as
it is open only for that reason, a request that has nowhere else to go still tries it, up to the fifth failure.

The figures: a dead deployment of a group gets the two requests that open it early and probes after 7, 21, 35 and 49
seconds, six in its first minute and at most five in any later one; one that recovers is found by a probe within 14
seconds. (With five to open and any 15 seconds probed nobody stays below eight in the first minute: hence the two.)
"""

from collections.abc import Callable
from enum import IntEnum

from gateway.types import Deployment

FAILURES = 5  # in a row: one may be chance, five in a row at an error rate of 10 % come once in 100 000 requests
FAILURES_WITH_ANOTHER = 2  # in a row, where another deployment can answer instead: see the figures above
_RATE = 0.5  # share of failures from which on every second answer is none: worse than trying elsewhere
_LEAST = 20  # requests in the window below which a share says nothing
_WINDOW = 10.0  # seconds of one of its two halves: the share is of the last 10 to 20 s
OPEN = 7.0  # seconds that it stays open at first, doubled by each probe that fails
LONGEST_OPEN = 14.0  # and at most: one that recovers must be back within 15 s
THROTTLED = 2.0  # seconds after a 429 that does not say how long, doubled likewise: most limits refill by the second
REJECTED = 60.0  # seconds after 401, 402 or 403: a person has to mend that, and a changed configuration closes at once
LONGEST_WAIT = 3600.0  # of an upstream's own wish: beyond an hour it is a mistake more often than a plan


class State(IntEnum):
    """As `ailb_circuit_state` has it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Pass:
    """Leave to try a deployment once; given back with how it went. `trial`: the circuit was not closed."""

    __slots__ = ("circuit", "trial")

    def __init__(self, circuit: "Circuit", *, trial: bool) -> None:
        self.circuit = circuit
        self.trial = trial


Told = Callable[["Circuit", str], None]
"""Is told opened, extended, closed, probing, free (a probe ended without saying anything), trying."""


class Circuit:
    """One deployment's. It is `told` of by every change that others may want to know."""

    __slots__ = (
        "_failed", "_failed_before", "_ok", "_ok_before", "_ordinary", "_rolls_at", "_told", "deployment",
        "elsewhere_until", "failures", "firm", "opened", "probe", "proven", "reason", "trips", "trying", "until",
    )  # fmt: skip

    def __init__(self, deployment: Deployment, told: Told) -> None:
        self.deployment = deployment
        self._told = told
        self._ordinary = Pass(self, trial=False)
        self.failures = 0
        """In a row."""
        self.trips = 0
        """How often it opened since it last was well."""
        self.opened = False
        self.until = 0.0
        """When it may be probed."""
        self.firm = False
        """Open to nobody; else a request with nowhere else to go may still try."""
        self.reason = ""
        self.probe: Pass | None = None
        self.elsewhere_until = 0.0
        """Another process probes until then."""
        self.proven = False
        """It has answered once. Until then one request at a time finds out, where another deployment can answer: a
        burst would meet a dead one with all its requests before the first failure is known."""
        self.trying = 0
        """Requests that are finding out."""
        self._ok = self._failed = self._ok_before = self._failed_before = 0
        self._rolls_at = 0.0

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def state(self, now: float) -> State:
        if not self.opened:
            return State.CLOSED
        return State.OPEN if now < self.until else State.HALF_OPEN

    def offers(self, now: float) -> bool:
        """Whether a request may count on trying it: closed, or its probe is due and nobody's."""
        return not self.opened or (now >= self.until and self.probe is None and now >= self.elsewhere_until)

    def invites(self, now: float) -> bool:
        """Whether it should be tried before others."""
        return self.offers(now) and (self.proven or self.opened or not self.trying)

    def enter(self, now: float) -> Pass | None:
        """Leave to try it now; None where there is none. A probe is handed out once."""
        if not self.opened:
            if not self.proven:
                self._try(1)
            return self._ordinary
        if self.offers(now):
            self.probe = Pass(self, trial=True)
            self._told(self, "probing")
            return self.probe
        return None if self.firm else Pass(self, trial=True)

    # ── how it went ─────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, way: Pass, now: float) -> None:
        """Its first content came. A trial is passed by that, on parole: one failure before a whole success opens it
        again, since a stream may yet be cut.
        """
        if self.opened and self._decides(way):
            self._close()
        self._prove()

    def succeeded(self, way: Pass, now: float) -> None:
        """It answered to the end."""
        if self.opened:
            if not self._decides(way):
                return  # it began before the circuit opened
            self._close()
        self._prove()
        self.failures = self.trips = 0
        if now >= self._rolls_at:
            self._roll(now)
        self._ok += 1

    def failed(self, way: Pass, now: float, *, wait: float | None = None, another: bool = False) -> None:
        """It is broken: an error of its own, a cut, a timeout, no connection. `wait` is its `Retry-After`; `another`:
        another deployment can answer in its stead.
        """
        self._try(-self.trying)
        if now >= self._rolls_at:
            self._roll(now)
        self._failed += 1
        self.failures += 1
        broken = self.failures >= FAILURES or self._too_many()
        asked = min(wait or 0.0, LONGEST_WAIT)
        if way is self.probe:
            self.probe = None
            self._open(now, max(self._backoff(OPEN), asked), "failures", firm=broken or asked > 0)
        elif self.opened:
            # Begun before it opened, or for want of another: it says nothing new of when to try again.
            if asked or (broken and not self.firm):
                self._open(now, asked, self.reason, firm=True)
        elif broken or (another and self.failures >= FAILURES_WITH_ANOTHER):
            self._open(now, max(self._backoff(OPEN), asked), "failures", firm=broken or asked > 0)
        elif asked:
            self._open(now, asked, "asked_to_wait", firm=True)

    def throttled(self, way: Pass, now: float, *, wait: float | None = None) -> None:
        """It said 429: it is well, and wants to be left alone for a while."""
        known = self.opened and way is not self.probe
        asked = min(wait or 0.0, LONGEST_WAIT)
        if way is self.probe:
            self.probe = None
        if not known or asked:
            self._open(now, asked or self._backoff(THROTTLED), "rate_limited", firm=True)

    def rejected(self, way: Pass, now: float, *, wait: float | None = None) -> None:
        """It refused our credentials or our account: every other request will meet the same."""
        if way is self.probe:
            self.probe = None
        self._open(now, max(REJECTED, min(wait or 0.0, LONGEST_WAIT)), "credentials", firm=True)

    def gave_back(self, way: Pass) -> None:
        """Nothing was learnt: the client left, or its request was wrong."""
        self._try(-self.trying)
        if way is self.probe:
            self.probe = None
            self._told(self, "free")

    # ── what another process learnt ─────────────────────────────────────────────────────────────────────────────────

    def adopt(self, until: float, *, firm: bool, trips: int, reason: str, elsewhere_until: float) -> bool:
        """It is open elsewhere. A longer time counts, a shorter one does not. True where that is news."""
        news, self.opened = not self.opened, True
        self.until = until if news else max(self.until, until)
        self.firm = firm if news else self.firm or firm
        self.trips = max(self.trips, trips)
        self.elsewhere_until = elsewhere_until
        if news:
            self.reason = reason
        return news

    def release(self) -> None:
        """It was closed elsewhere."""
        self.opened = self.firm = False
        self.probe = None
        self.failures = self.trips = 0
        self._try(-self.trying)  # whoever was finding out when it opened

    # ── within ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prove(self) -> None:
        if not self.proven:
            self.proven = True
            self._try(-self.trying)

    def _try(self, more: int) -> None:
        if more:
            self.trying += more
            self._told(self, "trying")

    def _decides(self, way: Pass) -> bool:
        return way is self.probe or (way.trial and not self.firm)

    def _open(self, now: float, seconds: float, reason: str, *, firm: bool) -> None:
        before, self.opened = self.opened, True
        self.until = max(self.until, now + seconds) if before else now + seconds
        self.firm = firm or (before and self.firm)
        self.reason = reason
        self._told(self, "extended" if before else "opened")

    def _close(self) -> None:
        self.opened = self.firm = False
        self.probe = None
        self.elsewhere_until = 0.0
        self.failures = min(self.failures, FAILURES - 1)
        self._ok = self._failed = self._ok_before = self._failed_before = 0
        self._told(self, "closed")

    def _backoff(self, first: float) -> float:
        seconds = min(first * 2.0 ** min(self.trips, 10), LONGEST_OPEN)
        self.trips += 1
        return seconds

    def _roll(self, now: float) -> None:
        fresh = now < self._rolls_at + _WINDOW
        self._ok_before, self._failed_before = (self._ok, self._failed) if fresh else (0, 0)
        self._ok = self._failed = 0
        self._rolls_at = now + _WINDOW

    def _too_many(self) -> bool:
        failed = self._failed + self._failed_before
        total = failed + self._ok + self._ok_before
        return total >= _LEAST and failed >= _RATE * total
