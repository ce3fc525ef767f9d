"""The cheapest first, by what this request is expected to cost there."""

from collections.abc import Sequence
from decimal import Decimal

from gateway.routing.signals import Signals
from gateway.types import Deployment

_UNPRICED = Decimal("Infinity")  # unknown is not free


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """By expected cost; unpriced ones last, equal ones by priority."""

    def key(deployment: Deployment) -> tuple[Decimal, int]:
        cost = signals.cost(deployment.name)
        return (_UNPRICED if cost is None else cost, deployment.priority)

    return sorted(candidates, key=key)
