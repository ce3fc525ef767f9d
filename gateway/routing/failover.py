"""Priority order: the first deployment takes everything while it answers."""

from collections.abc import Iterator, Sequence

from gateway.routing.signals import Occasion, Signals, best_first
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """By priority; of equal ones a holder of the prompt first, else in the order given."""
    if not occasion.held:
        return best_first(candidates, [d.priority for d in candidates])
    return best_first(candidates, [(d.priority, d.name not in occasion.held) for d in candidates])


def score(deployment: Deployment, signals: Signals, occasion: Occasion) -> float:
    """Its priority."""
    return deployment.priority
