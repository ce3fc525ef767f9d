"""A clock that stands still between events."""

import heapq
from collections.abc import Callable
from itertools import count


class Timeline:
    """What is to happen, in the order of its moments (seconds); of one moment, in the order in which it was told."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._numbers = count()
        self._coming: list[tuple[float, int, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    def at(self, moment: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (max(moment, self.now), next(self._numbers), happens))

    def run_until(self, moment: float) -> None:
        """Everything up to `moment`, which it is then."""
        while self._coming and self._coming[0][0] <= moment:
            self.now, _, happens = heapq.heappop(self._coming)
            happens()
        self.now = max(self.now, moment)

    def run_out(self) -> None:
        """Everything that is still to happen."""
        while self._coming:
            self.run_until(self._coming[0][0])
