"""What strategies know of the past and the present: plain numbers about deployments, kept by the attempts."""

import random
from collections.abc import Callable
from decimal import Decimal

import msgspec

_SMOOTHING = 0.2  # weight of the newest sample in a moving average: about the last ten requests count


class Signals(msgspec.Struct):
    """One process's view. Latencies are seconds to the first content."""

    in_flight: dict[str, int] = {}
    latency: dict[str, float] = {}
    turns: dict[str, float] = {}
    """Smooth weighted round robin's running totals."""
    cost: Callable[[str], Decimal | None] = lambda _name: None
    """US dollars that this request is expected to cost at a deployment; None where unpriced."""
    rng: random.Random = msgspec.field(default_factory=random.Random)

    def started(self, deployment: str) -> None:
        self.in_flight[deployment] = self.in_flight.get(deployment, 0) + 1

    def ended(self, deployment: str) -> None:
        self.in_flight[deployment] = max(self.in_flight.get(deployment, 0) - 1, 0)

    def answered(self, deployment: str, seconds: float) -> None:
        """A first content came after `seconds`. A slower one counts at once, a faster one gradually: a deployment
        that turns slow is left quickly.
        """
        before = self.latency.get(deployment)
        slower = before is None or seconds > before
        self.latency[deployment] = seconds if slower else before + (seconds - before) * _SMOOTHING  # type: ignore[operator]
