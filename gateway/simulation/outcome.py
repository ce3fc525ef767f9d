"""What came of requests, made up or real: counts, times and money, in all and by deployment."""

from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal

from gateway.statistics.sketch import Sketch

_MS = 1000.0


class Cell:
    """One deployment in one stretch of time."""

    __slots__ = ("cost", "failures", "latency", "most", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.failures = 0
        self.most = 0
        """In flight at once."""
        self.cost = Decimal(0)
        self.latency = Sketch()
        """Milliseconds of the answers that ended in it."""


class Load:
    """What one deployment had to do."""

    def __init__(self, clock: Callable[[], float], stretch: float) -> None:
        self._clock = clock
        self._stretch = stretch
        self.tries = 0
        self.failures = 0
        self.answers = 0
        self.in_flight = 0
        self.most = 0
        """In flight at once."""
        self.busy = 0.0
        """Seconds of work, of all requests together."""
        self.cost = Decimal(0)
        self.latency = Sketch()
        """Milliseconds that its own answers took."""
        self.cells: defaultdict[int, Cell] = defaultdict(Cell)
        """By stretch of time, counted from the clock's 0."""

    def started(self) -> None:
        self.tries += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        cell = self._cell()
        cell.tries += 1
        cell.most = max(cell.most, self.in_flight)

    def ended(self, seconds: float) -> None:
        self.in_flight -= 1
        self.busy += seconds

    def failed(self, seconds: float) -> None:
        self.ended(seconds)
        self.failures += 1
        self._cell().failures += 1

    def answered(self, seconds: float) -> None:
        self.ended(seconds)
        self.answers += 1
        self.latency.add(seconds * _MS)
        self._cell().latency.add(seconds * _MS)

    def paid(self, cost: Decimal | None) -> None:
        if cost is not None:
            self.cost += cost
            self._cell().cost += cost

    def stretch_of(self, moment: float) -> int:
        """Which one it falls into."""
        return int(moment // self._stretch)

    def _cell(self) -> Cell:
        return self.cells[self.stretch_of(self._clock())]


class Outcome:
    """Of one way to route. `stretch` is the seconds of a `Cell`."""

    def __init__(self, name: str, clock: Callable[[], float], stretch: float) -> None:
        self.name = name
        self._clock = clock
        self._stretch = stretch
        self.requests = 0
        self.failures = 0
        """Requests that nobody answered."""
        self.unpriced = 0
        self.cost = Decimal(0)
        self.latency = Sketch()
        """Milliseconds from a request's arrival to its answer's end, failed tries included."""
        self.first = Sketch()
        """To the first token, of streams."""
        self.loads: dict[str, Load] = {}

    def of(self, deployment: str) -> Load:
        load = self.loads.get(deployment)
        if load is None:
            load = self.loads[deployment] = Load(self._clock, self._stretch)
        return load

    def answered(self, *, seconds: float | None, first: float | None, cost: Decimal | None) -> None:
        """A request came to a good end."""
        if seconds is not None:
            self.latency.add(seconds * _MS)
        if first is not None:
            self.first.add(first * _MS)
        self.paid(cost)

    def paid(self, cost: Decimal | None) -> None:
        """None: no price is known."""
        if cost is None:
            self.unpriced += 1
        else:
            self.cost += cost
