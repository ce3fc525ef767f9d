"""Requests through the gateway's planner and circuits, as `gateway.attempts` takes them, without a wire or a wait."""

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import msgspec

from billing import pricing
from billing.pricebook import Book
from gateway import retries
from gateway.affinity import Holders
from gateway.capabilities import needs
from gateway.circuits import Circuit, Pass
from gateway.circuits_memory import MemoryCircuits
from gateway.errors import NoHealthyDeployment, RateLimited
from gateway.planning import Health, Plan, Planner, undrained
from gateway.rates import RateCards
from gateway.registry import Pool, Route
from gateway.retries import AGAIN, FAILOVERS, RetryBudget
from gateway.simulation.outcome import Outcome
from gateway.simulation.timeline import Timeline
from gateway.simulation.upstream import Answer, Upstream
from gateway.types import ChatRequest, Deployment, Usage
from keys.limits.base import Admission
from keys.limits.memory import MemoryLimits

T = TypeVar("T")

_WORD = " the"  # four bytes, and one token of every encoding: so long is a token on the average


class Asked(msgspec.Struct, frozen=True):
    """A request as far as routing can tell: its answer's length is given, whoever answers."""

    at: float
    route: Route
    prompt_tokens: int
    completion_tokens: int
    stream: bool = False
    session: str | None = None
    owner: str = ""
    cached_tokens: int = 0
    """Of its prompt, where the provider knows it; see `Simulator`."""
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    served_by: str | None = None
    """The deployment that answered it in truth, if anybody has."""
    served_model: str | None = None
    """What that deployment then called its model: prices may go by it."""


class QuietCircuits(MemoryCircuits):
    """Tells nobody: what opens here is no alarm. Every deployment counts as proven: it served before the simulation."""

    def _of(self, deployment: Deployment) -> Circuit:
        circuit = super()._of(deployment)
        circuit.proven = True
        return circuit

    def _note_opened(self, circuit: Circuit, *, elsewhere: bool = False) -> None:
        self.troubled.add(circuit.deployment.name)

    def _note_closed(self, circuit: Circuit, reason: str) -> None:
        self.troubled.discard(circuit.deployment.name)


class Simulator:
    """One way to route, and what comes of it. Requests are taken in the order of their arrival.

    `strategy` replaces the one that each pool has. The same seed and requests give the same outcome.

    Cached tokens are the request's own where it has no session, where the deployment answered it in truth, or where it
    lately answered another request of the session; elsewhere a session's prompt is read anew.
    """

    def __init__(
        self,
        name: str,
        upstreams: Mapping[str, Upstream],
        book: Book,
        *,
        strategy: str | None = None,
        default: str = "load_balanced",
        again: int = 1,
        seed: int = 0,
        start: float = 0.0,
        stretch: float = 60.0,
    ) -> None:
        """`again`: how often the last deployment is asked once more (`AILB_RETRIES`). `start` is in seconds since the
        epoch where prices change meanwhile.
        """
        self.timeline = Timeline(start)
        clock = self.timeline.clock
        self.outcome = Outcome(name, clock, stretch)
        self.upstreams = upstreams
        self.book = book
        self.again = again
        self.dice = random.Random(f"{seed} upstreams")  # noqa: S311  # their own: what a strategy draws leaves them alone
        self.circuits = QuietCircuits(clock=clock)
        self.limits = MemoryLimits(clock)
        self.failovers = RetryBudget(*FAILOVERS, clock=clock)
        self.retries = RetryBudget(*AGAIN, clock=clock)
        self.signals = Health(
            circuits=self.circuits,
            holders=Holders(clock),
            rates=RateCards(clock, self.date),
            rng=random.Random(f"{seed} strategy"),  # noqa: S311  # as the gateway's, but by a seed
            clock=clock,
        )
        self._strategy = strategy
        self._default = default

    def date(self) -> datetime:
        return datetime.fromtimestamp(self.timeline.now, UTC)

    def ask(self, asked: Asked) -> None:
        """Let time go by until the request arrives, and begin with it."""
        self.timeline.run_until(asked.at)
        self.outcome.requests += 1
        self.failovers.earn()
        self.retries.earn()
        try:
            plan = self._plan(asked)
        except NoHealthyDeployment:
            self.outcome.failures += 1
            return
        _Way(self, asked, plan).go_on()

    def finish(self) -> Outcome:
        """Let what is in flight come to its end."""
        self.timeline.run_out()
        return self.outcome

    def _plan(self, asked: Asked) -> Plan:
        """Raises `NoHealthyDeployment`."""
        request = self._request(asked)
        pools = _able(asked, request)
        if not pools:
            raise NoHealthyDeployment("Nobody can serve it.")
        planner = Planner(
            asked.route, request, asked.owner, signals=self.signals, book=self.book, default=self._default
        )
        return Plan(planner, pools)

    def _request(self, asked: Asked) -> ChatRequest:
        """With a prompt of the right length, and of a beginning that no other has: the ledger keeps no words."""
        text = f"{self.outcome.requests:x}" + _WORD * asked.prompt_tokens
        return ChatRequest(
            body={"messages": [{"role": "user", "content": text}]}, model=asked.route.name, stream=asked.stream,
            include_usage=False, n=1, max_output=None, session_id=asked.session, rag_collection=None, rag_top_k=0,
            routing_strategy=self._strategy, tags=(), end_user=None,
        )  # fmt: skip

    def cost(self, asked: Asked, deployment: Deployment, *, known: bool) -> Decimal | None:
        """US dollars; `known`: its provider's cache may hold the prompt."""
        usage = Usage(
            prompt_tokens=asked.prompt_tokens,
            completion_tokens=asked.completion_tokens,
            cached_tokens=asked.cached_tokens if known else 0,
            cache_write_tokens=asked.cache_write_tokens,
            reasoning_tokens=asked.reasoning_tokens,
        )
        served_model = asked.served_model if asked.served_by == deployment.name else None
        return price(self.book, deployment, served_model, usage, datetime.fromtimestamp(asked.at, UTC))


def price(book: Book, deployment: Deployment, served_model: str | None, usage: Usage, at: datetime) -> Decimal | None:
    """What an answer costs: by the model that served, else by the one that was asked upstream. None: unpriced."""
    for model in (served_model, deployment.upstream_model):
        if model is None:
            continue
        found = book.find(deployment.provider.price_book, model, deployment.name, at)
        if found is not None:
            return pricing.cost(found, usage)
    return None


def _able(asked: Asked, request: ChatRequest) -> list[tuple[Pool, Sequence[Deployment]]]:
    """The pools without what is drained and the deployments that cannot serve it, as far as the ledger tells what it
    needed: its length is known there, its tools and images are not.
    """
    pools = [(pool, serving) for pool in asked.route.pools if (serving := undrained(pool))]
    if not asked.route.picky:
        return pools
    wanted = needs(request)

    def serves(d: Deployment) -> bool:
        return not wanted & d.lacks and (d.context_window is None or asked.prompt_tokens <= d.context_window)

    return [(pool, able) for pool, serving in pools if (able := [d for d in serving if serves(d)])]


class _Way:
    """One request's way through its candidates: `gateway.attempts`, an event at a time."""

    def __init__(self, simulator: Simulator, asked: Asked, plan: Plan) -> None:
        self._simulator = simulator
        self._asked = asked
        self._plan = plan
        self._candidates = iter(plan)
        self._last: Deployment | None = None
        self._tries = 0
        self._again = 0

    def go_on(self) -> None:
        """Ask the next candidate, else the last one again, else give up."""
        if self._tries and not self._simulator.failovers.spend():
            self._give_up()
            return
        if not any(self._asks(deployment) for deployment in self._candidates):
            self._ask_again()

    def _ask_again(self) -> None:
        simulator, last = self._simulator, self._last
        if last is None or self._again >= simulator.again or not simulator.retries.spend():
            self._give_up()
            return
        self._again += 1
        pause = retries.pause(self._again, simulator.signals.rng)
        simulator.timeline.at(simulator.timeline.now + pause, partial(self._asks_or_gives_up, last))

    def _asks_or_gives_up(self, deployment: Deployment) -> None:
        if not self._asks(deployment):
            self._give_up()

    def _give_up(self) -> None:
        self._simulator.outcome.failures += 1

    def _asks(self, deployment: Deployment) -> bool:
        """Whether a call of `deployment` has begun: its circuit and its own limits may be against it."""
        simulator = self._simulator
        way = simulator.circuits.enter(deployment)
        if way is None:
            return False
        try:
            admission = self._admitted(deployment)
        except RateLimited as full:
            simulator.circuits.gave_back(way)
            simulator.signals.used_up(deployment.name, full.retry_after or 0.0)
            return False
        self._last = deployment
        self._tries += 1
        _Call(simulator, self._asked, self._plan, deployment, way, admission, self.go_on).begin()
        return True

    def _admitted(self, deployment: Deployment) -> Admission | None:
        """Raises `RateLimited`."""
        if deployment.limit is None:
            return None
        limits, limit, asked = self._simulator.limits, deployment.limit, self._asked
        admission = _outright(limits.admit("", (limit,)))
        try:
            if limit.tpm is not None:
                _outright(limits.take_tokens("", (limit,), asked.prompt_tokens + asked.completion_tokens))
        except RateLimited:
            limits.leave(admission)
            raise
        return admission


class _Call:
    """One call of one deployment."""

    def __init__(
        self,
        simulator: Simulator,
        asked: Asked,
        plan: Plan,
        deployment: Deployment,
        way: Pass,
        admission: Admission | None,
        when_failed: Callable[[], None],
    ) -> None:
        self._simulator = simulator
        self._asked = asked
        self._plan = plan
        self._deployment = deployment
        self._way = way
        self._admission = admission
        self._when_failed = when_failed
        self._began = simulator.timeline.now
        self._load = simulator.outcome.of(deployment.name)

    def begin(self) -> None:
        simulator, name = self._simulator, self._deployment.name
        simulator.signals.started(name)
        self._load.started()
        upstream = simulator.upstreams[name]
        answer = upstream.answer(self._began, self._asked.completion_tokens, self._load.in_flight, simulator.dice)
        if answer.failed:
            simulator.timeline.at(self._began + answer.whole, partial(self._failed, answer))
            return
        if self._way.trial and self._asked.stream:
            simulator.timeline.at(self._began + answer.first, partial(simulator.circuits.answered, self._way))
        simulator.timeline.at(self._began + answer.whole, partial(self._succeeded, answer))

    def _failed(self, answer: Answer) -> None:
        circuits = self._simulator.circuits
        another = any(d is not self._deployment and circuits.offers(d) for d in self._plan.candidates)
        circuits.failed(self._way, wait=None, another=another)
        self._ended()
        self._load.failed(answer.whole)
        self._when_failed()

    def _succeeded(self, answer: Answer) -> None:
        simulator, asked, plan, name = self._simulator, self._asked, self._plan, self._deployment.name
        simulator.circuits.succeeded(self._way)
        self._ended()
        first = answer.first if asked.stream else None
        simulator.signals.measured(name, first=first, whole=answer.whole, tokens=asked.completion_tokens)
        simulator.signals.answered(plan.route.name, asked.completion_tokens)
        cost = simulator.cost(asked, self._deployment, known=self._known())
        if plan.key is not None:
            simulator.signals.holders.served(plan.key, name)
        self._load.answered(answer.whole)
        self._load.paid(cost)
        waited = self._began - asked.at
        simulator.outcome.answered(
            seconds=waited + answer.whole, first=None if first is None else waited + first, cost=cost
        )

    def _ended(self) -> None:
        self._simulator.signals.ended(self._deployment.name)
        if self._admission is not None:
            self._simulator.limits.leave(self._admission)

    def _known(self) -> bool:
        asked, key, name = self._asked, self._plan.key, self._deployment.name
        if asked.session is None or key is None or asked.served_by == name:
            return True
        return name in self._simulator.signals.holders.of(key)


def _outright(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as those of limits in memory do."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("it waits for something")
