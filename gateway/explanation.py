"""Where a request would go, and why: what `POST /api/routing/explain` shows. Sends nothing, changes nothing."""

import asyncio
import random
from collections.abc import Mapping

import msgspec

from gateway import lifespan, planning, registry
from gateway.errors import Unavailable
from gateway.plane import Plane
from gateway.planning import Health, Planner
from gateway.registry import Pool, Route
from gateway.routing import strategy
from gateway.routing.signals import Occasion
from gateway.types import ChatRequest, Deployment

_LONGEST = 10.0  # seconds that the event loop may take to get to it
DRAINED = "drained"
CIRCUIT = "circuit"


class Candidate(msgspec.Struct, frozen=True):
    """One deployment of the route."""

    deployment: str
    provider: str
    pool: str
    position: int | None
    """From 1, in the order in which they would be tried; None: not at all."""
    left_out: str | None
    """A capability that it lacks, `context`, `output`, `circuit` or `drained`."""
    score: float | None
    """What its pool's strategy goes by: see `strategy`."""
    circuit: str
    in_flight: int
    has_room: bool
    """Its own limits, as far as this process knows, leave something."""
    holds_cache: bool
    """It served the same session or prompt prefix lately."""
    weight: int
    version: str | None


class Explanation(msgspec.Struct, frozen=True):
    model: str
    chosen: str | None
    strategy: str | None
    """Of the first pool that is tried. Its score is: in-flight work for its weight (load_balanced), turns
    (round_robin: the highest is next), 1e-18 US dollars (cost_optimized), seconds (latency_optimized), priority
    (failover) or weight (random)."""
    version: str | None
    """The one that traffic weights choose, where they do."""
    candidates: list[Candidate]
    """In the order in which they would be tried, then those left out."""


def explain(request: ChatRequest, owner: str) -> Explanation:
    """Asks the data plane of this process, on its event loop. `owner` is whose sessions the request's is one of.

    Raises `ModelNotFound`, `Unavailable` where this process has no data plane, or a busy one.
    """
    plane = lifespan.open_now()
    if plane is None:
        raise Unavailable("This process serves no inference requests: ask one that does.", retry_after=1)
    explained = asyncio.run_coroutine_threadsafe(_explained(plane, request, owner), plane.loop)
    try:
        return explained.result(_LONGEST)
    except TimeoutError:
        explained.cancel()
        raise Unavailable("The gateway is too busy to say.", retry_after=5) from None


async def _explained(plane: Plane, request: ChatRequest, owner: str) -> Explanation:
    snapshot = plane.snapshot()
    route = registry.resolve(snapshot.catalog, request.model, None)
    lacking = await planning.unable([d for pool in route.pools for d in planning.undrained(pool)], request)
    default = plane.env.ROUTING_STRATEGY
    planner = Planner(
        route, request, owner, signals=_copied(plane.signals), book=snapshot.prices, default=default
    )  # fmt: skip
    return _of(route, planner, lacking, plane.signals)


def _copied(signals: Health) -> Health:
    """Strategies move what they go by: turns, dice, what may be spent on exploring."""
    rng = random.Random()  # noqa: S311  # routing, no secret
    rng.setstate(signals.rng.getstate())
    turns = {pool: dict(totals) for pool, totals in signals.turns.items()}
    return msgspec.structs.replace(signals, turns=turns, rng=rng)


def _of(route: Route, planner: Planner, lacking: Mapping[str, str], signals: Health) -> Explanation:
    tried: list[Candidate] = []
    left_out: list[Candidate] = []
    first: planning.Choice | None = None
    seen: set[str] = set()
    for pool in route.pools:
        planner.choice = None
        new = [d for d in pool.deployments if d.name not in seen]
        serving = [d for d in planning.undrained(pool) if d in new]
        able = [d for d in serving if d.name not in lacking]
        order = list(planner.order(pool, able)) if able else []
        first = first or planner.choice
        shown = _Shown(pool, planner.choice, signals)
        tried += [shown.candidate(d, len(tried) + at) for at, d in enumerate(order, 1)]
        left_out += [
            shown.candidate(d, None, lacking.get(d.name, CIRCUIT) if d in serving else DRAINED)
            for d in new
            if d not in order
        ]
        seen.update(d.name for d in able)
    return Explanation(
        model=route.name,
        chosen=tried[0].deployment if tried else None,
        strategy=first.strategy if first is not None else None,
        version=first.version if first is not None else None,
        candidates=tried + left_out,
    )


class _Shown:
    """Tells of one pool's deployments."""

    def __init__(self, pool: Pool, choice: planning.Choice | None, signals: Health) -> None:
        self._pool = pool
        self._choice = choice
        occasion = choice.occasion if choice is not None else Occasion()
        self._occasion = msgspec.structs.replace(occasion, cost=occasion.counted())
        self._signals = signals
        self._states = signals.circuits.states_of(pool.deployments)

    def candidate(self, deployment: Deployment, position: int | None, left_out: str | None = None) -> Candidate:
        signals, choice, name = self._signals, self._choice, deployment.name
        score = None
        if choice is not None and left_out is None:
            score = _finite(strategy(choice.strategy).score(deployment, signals, self._occasion))
        return Candidate(
            deployment=name,
            provider=deployment.provider.slug,
            pool=self._pool.name,
            position=position,
            left_out=left_out,
            score=score,
            circuit=self._states[name],
            in_flight=signals.in_flight.get(name, 0),
            has_room=not signals.full(deployment),
            holds_cache=choice is not None and name in choice.occasion.held,
            weight=deployment.weight,
            version=deployment.version,
        )


def _finite(score: float) -> float | None:
    """JSON has no infinity: what is unpriced has no score."""
    return score if abs(score) < 1e300 else None
