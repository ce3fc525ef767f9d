"""Priority order: the first deployment takes everything while it answers."""

from collections.abc import Sequence

from gateway.routing.signals import Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """By priority; equal ones in the order given."""
    return sorted(candidates, key=lambda d: d.priority)
