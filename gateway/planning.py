"""Which deployments a request is tried at, and in what order.

Left out, in this order: versions that are drained, what cannot do what the request needs, what its circuit keeps away.
What is left of a pool is put in order by the strategy; the next pool (a group's fallback) begins where the one before
it had nothing that answered.
"""

import math
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import msgspec

from billing.holds import counted
from billing.pricebook import Book
from gateway import affinity, tokens
from gateway.capabilities import CAPABILITIES, needs
from gateway.circuits_memory import MemoryCircuits
from gateway.errors import ContextLengthExceeded, InvalidRequest, NoHealthyDeployment, UnsupportedParameter
from gateway.rates import RateCard, RateCards
from gateway.registry import Pool, Route
from gateway.routing import strategy
from gateway.routing.signals import Occasion, Signals
from gateway.types import ChatRequest, Deployment

CONTEXT = "context"
OUTPUT = "output"
_UNWEIGHED = 100  # a version's share where nobody said
_ORDINARY = 200.0  # tokens of an answer where nothing is known
_NEWEST = 0.05  # weight of the newest answer's length: lengths vary, their mean moves slowly
_BYTES = 4  # a token, on the average
_COUNTED = 8192  # bytes of a prompt up to which counting it (0.2 ms a kilobyte) may hold up the event loop
_NAMED = 10  # deployments that a refusal names
_PARAMETERS = {"tools": "tools", "json_schema": "response_format", "streaming": "stream", "chat": "model"}
"""Where a request says that it needs a capability; the others are parts of its messages."""


class Health(Signals, kw_only=True):
    """What a plan knows of deployments: the strategies' signals, which may be tried at all, who served what."""

    circuits: MemoryCircuits
    holders: affinity.Holders = msgspec.field(default_factory=affinity.Holders)
    rates: RateCards = msgspec.field(default_factory=RateCards)
    lengths: dict[str, float] = {}
    """By what was asked for, a moving average of the answers' tokens."""

    def answered(self, route: str, completion_tokens: int) -> None:
        before = self.lengths.get(route, _ORDINARY)
        self.lengths[route] = before + (completion_tokens - before) * _NEWEST

    def expected_output(self, route: str, most: int | None) -> float:
        """Tokens of the next answer."""
        expected = self.lengths.get(route, _ORDINARY)
        return expected if most is None else min(expected, most)


class Choice(msgspec.Struct, frozen=True):
    """How a pool's order came about."""

    pool: Pool
    strategy: str
    occasion: Occasion
    version: str | None = None
    """The one that traffic weights chose."""


class Planner:
    """Puts the deployments of one request's route in order. Touches nothing but the strategies' own turns."""

    def __init__(
        self, route: Route, request: ChatRequest, owner: str, *, signals: Health, book: Book, default: str
    ) -> None:
        """`owner` is whose sessions the request's is one of; `default` the installation's strategy."""
        self.route = route
        self._request = request
        self._signals = signals
        self._book = book
        self._default = default
        self.circuits = signals.circuits
        self.key = None if route.size == 1 else affinity.key_of(request, owner)
        self.choice: Choice | None = None
        """Of the pool that was put in order last."""

    def order(self, pool: Pool, able: Sequence[Deployment]) -> Iterator[Deployment]:
        """The `able` ones of a pool, of which none is of a drained version, that may be tried, best first."""
        circuits = self._signals.circuits
        healthy, spare = (able, []) if circuits.all_well else circuits.sorted_out(able)
        if pool.draining and (serving := [d for d in healthy if d.weight]):
            spare = [d for d in healthy if not d.weight] + spare
            healthy = serving
        if not healthy:
            healthy, spare = spare, []
        if not healthy:
            return iter(())
        groups: Sequence[Sequence[Deployment]] = [healthy]
        version = None
        if pool.weights:
            groups, version = self._split(healthy, pool.weights)
        name = self._request.routing_strategy or pool.strategy or self._default
        if len(groups) == 1 and len(groups[0]) == 1:
            self.choice = Choice(pool, name, Occasion(pool.name), version)
            return chain(groups[0], spare)
        occasion = self._occasion(pool, healthy, name, parted=groups[0] is not healthy)
        self.choice = Choice(pool, name, occasion, version)
        first = strategy(name).order(groups[0], self._signals, occasion)
        return chain(first, *(_later(name, group, self._signals, occasion) for group in groups[1:]), spare)

    def _split(
        self, candidates: Sequence[Deployment], weights: Mapping[str, int]
    ) -> tuple[list[list[Deployment]], str | None]:
        """The candidates of the version that the weights choose, then the others.

        A session always meets the same version, while the weights stay as they are.
        """
        shares = {
            version: weights.get(version, _UNWEIGHED) for version in sorted({d.version or "" for d in candidates})
        }
        edges = list(accumulate(shares.values()))
        key = self.key if self._request.session_id is not None else None
        point = affinity.point_of(key, b"version") if key is not None else self._signals.rng.random()
        chosen = list(shares)[bisect(edges, point * edges[-1])]
        first = [d for d in candidates if (d.version or "") == chosen]
        others = [d for d in candidates if (d.version or "") != chosen]
        return [first, others] if others else [first], chosen or None

    def _occasion(self, pool: Pool, candidates: Sequence[Deployment], name: str, *, parted: bool) -> Occasion:
        """`parted`: only some of the candidates are put in order first."""
        key, signals = self.key, self._signals
        if key is None and name not in ("cost_optimized", "latency_optimized"):
            return Occasion(pool.name)
        held = signals.holders.of(key) if key is not None else ()
        length = signals.expected_output(self.route.name, self._request.max_output)
        occasion = Occasion(
            pool=pool.name,
            held=held,
            point=affinity.point_of(key, b"home") if key is not None else None,
            tokens=length,
        )
        if name != "cost_optimized":
            return occasion
        costs = _Costs(self._request, signals.rates.of(pool, candidates, self._book), occasion)
        if parted:
            return msgspec.structs.replace(occasion, cost=costs.exactly())
        rough = costs.roughly()
        return msgspec.structs.replace(occasion, listed=(candidates, rough), cost=costs.cost, count=costs.exactly)


class _Costs:
    """What a request costs at each candidate, in 1e-18 US dollars: the prompt, cached where its provider holds it, and
    the answer.
    """

    def __init__(self, request: ChatRequest, rates: RateCard, occasion: Occasion) -> None:
        self._request = request
        self._rates = rates
        self._held = occasion.held
        self._output = int(occasion.tokens) * request.n
        self._tier: str | None = request.body.get("service_tier") or None
        self._bound = tokens.bound_prompt(request.body)
        self._found: list[float] = []

    def roughly(self) -> list[float]:
        """In the candidates' order. The prompt is counted only where its length decides: cost rises with it in a
        straight line at each of them, so whoever is the cheapest for no tokens and for the most that it can be is so in
        between.
        """
        none, most = self._at(0), self._at(self._bound)
        if self._rates.straight(self._tier) and none.index(min(none)) == most.index(min(most)):
            self._found = most
        else:
            self._found = self._at(self._counted())
        return self._found

    def cost(self, name: str) -> float:
        """One of those; infinity for any other deployment."""
        place = self._rates.place(name)
        return math.inf if place is None else self._found[place]

    def exactly(self) -> Callable[[str], float]:
        self._found = self._at(self._counted())
        return self.cost

    def _at(self, prompt: int) -> list[float]:
        return self._rates.costs(prompt, self._output, self._held, self._tier)

    def _counted(self) -> int:
        """The prompt's tokens; an estimate where counting would hold up the event loop."""
        model = self._rates.candidates[0].upstream_model
        if self._bound <= _COUNTED and tokens.ready(model):
            return tokens.count_prompt(self._request.body, model)
        return self._bound // _BYTES


class Plan:
    """A request's way through a route: iterates over its candidates, best first. A pool's order is made when it is
    reached, so that what was learnt meanwhile counts.
    """

    def __init__(self, planner: Planner, pools: Sequence[tuple[Pool, Sequence[Deployment]]]) -> None:
        self._planner = planner
        self.route = planner.route
        self.key = planner.key
        """What the request shares with others that belong with it."""
        self.candidates = (
            pools[0][1] if len(pools) == 1 else list({d.name: d for _, able in pools for d in able}.values())
        )
        """All that it may be tried at, in no order."""
        if self.route.size == 1 and planner.circuits.all_well:
            self._order: Iterator[Deployment] = iter(())  # there is nothing to decide
            self.first = self.candidates[0]
            return
        self._order = _through(planner, pools)
        first = next(self._order, None)
        if first is None:
            raise unhealthy(self.route.name, self.candidates, planner.circuits)
        self.first = first

    def __iter__(self) -> Iterator[Deployment]:
        return chain((self.first,), self._order)

    def decision(self) -> dict[str, Any]:
        """For the ledger: how the deployment that served was chosen. Empty where there was nothing to choose."""
        choice = self._planner.choice
        if choice is None or self.route.size == 1:
            return {}
        told: dict[str, Any] = {"pool": choice.pool.name, "strategy": choice.strategy, "of": len(self.candidates)}
        if choice.version is not None:
            told["version"] = choice.version
        if choice.occasion.held:
            told["held"] = sorted(choice.occasion.held)
        return {"routing": told}


# Functions, since a generator that knows the plan, which knows it, is garbage that only a collection finds.


def _through(planner: Planner, pools: Sequence[tuple[Pool, Sequence[Deployment]]]) -> Iterator[Deployment]:
    """Pool after pool; one that is in several is tried in the first of them."""
    seen: set[str] = set()
    for pool, able in pools:
        new = [d for d in able if d.name not in seen] if seen else able
        if new:
            yield from planner.order(pool, new)
        if len(pools) > 1:
            seen.update(d.name for d in able)


def _later(name: str, candidates: Sequence[Deployment], signals: Signals, occasion: Occasion) -> Iterator[Deployment]:
    """The strategy's order, which has its effects on the turns of others only when it is reached."""
    yield from strategy(name).order(candidates, signals, occasion)


async def plan(route: Route, request: ChatRequest, owner: str, *, signals: Health, book: Book, default: str) -> Plan:
    """The route's deployments that can serve `request` now. The request's strategy beats the pool's, that the
    installation's.

    Raises `InvalidRequest` where no deployment can do what the request needs, `NoHealthyDeployment` where those that
    can are failing.
    """
    pools = [(pool, serving) for pool in route.pools if (serving := undrained(pool))]
    if not pools:
        raise NoHealthyDeployment(f"Every deployment of '{route.name[:200]}' is drained.", retry_after=5)
    if route.picky and (lacking := await unable([d for _, serving in pools for d in serving], request)):
        pools = [(pool, able) for pool, all_ in pools if (able := [d for d in all_ if d.name not in lacking])]
        if not pools:
            raise _unservable(route, lacking)
    return Plan(Planner(route, request, owner, signals=signals, book=book, default=default), pools)


def undrained(pool: Pool) -> Sequence[Deployment]:
    """Those whose version has a share of the traffic."""
    weights = pool.weights
    if not weights:
        return pool.deployments
    return [d for d in pool.deployments if weights.get(d.version or "", _UNWEIGHED)]


async def unable(everyone: Sequence[Deployment], request: ChatRequest) -> dict[str, str]:
    """Those that cannot serve the request, each with what it lacks: a capability, `context` or `output`."""
    wanted = needs(request)
    lacking = {d.name: min(missing) for d in everyone if (missing := wanted & d.lacks)}
    lacking.update(await _too_long(request, [d for d in everyone if d.name not in lacking]))
    if request.max_output is not None:
        # What a provider makes of a longer answer than it has is its own affair, unless another has it.
        short = [d.name for d in everyone if d.max_output is not None and d.max_output < request.max_output]
        if any(d.name not in lacking and d.name not in short for d in everyone):
            lacking.update((name, OUTPUT) for name in short if name not in lacking)
    return lacking


async def _too_long(request: ChatRequest, candidates: Sequence[Deployment]) -> dict[str, str]:
    """Those whose context the prompt does not fit into: counted where its bound comes near."""
    sizes: dict[str, int] = {}
    counted_for: set[str] = set()
    found: dict[str, str] = {}
    for d in candidates:
        window, model = d.context_window, d.upstream_model
        if window is None:
            continue
        if model not in sizes:
            sizes[model] = tokens.bound_prompt(request.body, model)
        if sizes[model] > window and model not in counted_for:
            sizes[model] = await _counted_prompt(request, model)
            counted_for.add(model)
        if sizes[model] > window:
            found[d.name] = CONTEXT
    return found


async def _counted_prompt(request: ChatRequest, model: str) -> int:
    size = tokens.bound_prompt(request.body, model)
    return await counted(tokens.count_prompt, request.body, model, size=size)


def _unservable(route: Route, lacking: Mapping[str, str]) -> InvalidRequest:
    told = "; ".join(f"{name}: {_lack(need)}" for name, need in list(lacking.items())[:_NAMED])
    message = f"No deployment of '{route.name[:200]}' can serve this request ({told})."
    needed = set(lacking.values())
    if needed == {CONTEXT}:
        return ContextLengthExceeded(message, param="messages")
    return UnsupportedParameter(message, param=_PARAMETERS.get(min(needed - {CONTEXT}), "messages"))


def _lack(need: str) -> str:
    return "the prompt is longer than its context" if need == CONTEXT else f"not capable of {CAPABILITIES[need]}"


def unhealthy(name: str, candidates: Sequence[Deployment], circuits: MemoryCircuits) -> NoHealthyDeployment:
    """The refusal where all circuits are open, with the time at which the first may be tried."""
    wait = circuits.wait(candidates)
    return NoHealthyDeployment(
        f"Every deployment of '{name[:200]}' is failing at the moment. Try again in {wait} s.", retry_after=wait
    )


def smallest_window(candidates: Sequence[Deployment]) -> int | None:
    """The smallest known context window among the candidates, in tokens."""
    return min((d.context_window for d in candidates if d.context_window is not None), default=None)
