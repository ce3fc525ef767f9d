"""A weighted draw: no state, fair over many requests."""

import math
from collections.abc import Sequence

from gateway.routing.signals import Signals
from gateway.types import Deployment


def order(candidates: Sequence[Deployment], signals: Signals) -> list[Deployment]:
    """A random permutation in which weights are odds (Efraimidis and Spirakis 2006, A-ES); weight 0 comes last."""

    def key(deployment: Deployment) -> float:
        return -math.log(1.0 - signals.rng.random()) / deployment.weight if deployment.weight else math.inf

    return sorted(candidates, key=key)
