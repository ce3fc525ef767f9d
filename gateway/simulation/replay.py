"""The ledger's requests once more, through other strategies or at other prices."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial

import msgspec

from billing.history import Closed, Try
from billing.pricebook import Book
from gateway.errors import ModelNotAllowed, ModelNotFound
from gateway.registry import Catalog, Route, resolve
from gateway.simulation.fitting import Observations, completed
from gateway.simulation.outcome import Outcome
from gateway.simulation.simulator import Asked, Simulator, price
from gateway.simulation.timeline import Timeline
from gateway.simulation.upstream import Service, Upstream
from gateway.types import Usage

HAPPENED = "what happened"
_STRETCHES = 100  # of the whole time, in each of which a deployment's load is counted

Requests = Callable[[], Iterator[Closed]]
"""Reads the ledger anew, in the order of arrival."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be tried, and with what."""

    since: datetime
    until: datetime
    strategies: Sequence[str]
    catalog: Catalog
    allowed: Mapping[str, frozenset[str] | None]
    """By key, the models that it may use."""
    book: Book
    prices: Book | None = None
    """Other prices than the book's."""
    default: str = "load_balanced"
    again: int = 1
    seed: int = 0


class Replayed(msgspec.Struct, frozen=True):
    """What came of it."""

    terms: Terms
    happened: Outcome
    """Of the requests that were replayed: of them alone, so that the others can be held against it."""
    repriced: Outcome | None
    """The same answers by the same deployments, at the other prices."""
    simulated: Sequence[Outcome]
    services: Mapping[str, Service]
    guessed: Sequence[str]
    """Deployments of which nothing is known."""
    unanswered: int
    """Requests that nobody answered: how long their answers would have been nobody knows, so they are left out."""
    unroutable: Mapping[str, int]
    """By what was asked for, requests that are left out since nothing of that name is configured any more."""


def replay(requests: Requests, terms: Terms) -> Replayed:
    """Reads the ledger twice: to learn how deployments answer, then through all strategies at once."""
    routes = _Routes(terms)
    services, guessed = _services(requests(), routes, terms)
    happened = _Past(HAPPENED, terms)
    repriced = _Past(f"{HAPPENED}, at these prices", terms, terms.prices) if terms.prices is not None else None
    simulators = [_simulator(strategy, services, terms) for strategy in terms.strategies] if services else []
    unanswered, unroutable = 0, Counter[str]()
    for request in requests():
        if not request.settled:
            unanswered += 1
        elif (route := routes.of(request)) is None:
            unroutable[request.model] += 1
        else:
            for past in (happened, repriced):
                if past is not None:
                    past.add(request)
            asked = _asked(request, route)
            for simulator in simulators:
                simulator.ask(asked)
    return Replayed(
        terms,
        happened.finish(),
        repriced.finish() if repriced is not None else None,
        [simulator.finish() for simulator in simulators],
        services,
        guessed,
        unanswered,
        dict(unroutable),
    )


def stretch_of(terms: Terms) -> float:
    """Seconds."""
    return max((terms.until - terms.since).total_seconds() / _STRETCHES, 1.0)


class _Routes:
    """What names mean, for each key: looked up once."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._found: dict[tuple[str, frozenset[str] | None], Route | None] = {}

    def of(self, request: Closed) -> Route | None:
        """None where nothing of that name is there for the key."""
        allowed = self._terms.allowed.get(request.key_id)
        key = (request.model, allowed)
        if key not in self._found:
            self._found[key] = self._look_up(request.model, allowed)
        return self._found[key]

    def _look_up(self, name: str, allowed: frozenset[str] | None) -> Route | None:
        try:
            return resolve(self._terms.catalog, name, allowed)
        except (ModelNotFound, ModelNotAllowed):
            return None

    def pools(self) -> Iterator[list[str]]:
        """The deployments of each pool that was looked up."""
        for route in self._found.values():
            for pool in route.pools if route is not None else ():
                yield [d.name for d in pool.deployments]


def _services(requests: Iterable[Closed], routes: _Routes, terms: Terms) -> tuple[dict[str, Service], list[str]]:
    """How the deployments of all routes answer, and of which of them that is guessed. Empty where nobody answered."""
    observations = Observations(terms.seed)
    for request in requests:
        observations.add(request)
        routes.of(request)
    services = observations.services()
    return completed(services, routes.pools()) if services else ({}, [])


def _simulator(strategy: str, services: Mapping[str, Service], terms: Terms) -> Simulator:
    return Simulator(
        strategy,
        {name: Upstream(service) for name, service in services.items()},
        terms.prices if terms.prices is not None else terms.book,
        strategy=strategy,
        default=terms.default,
        again=terms.again,
        seed=terms.seed,
        start=terms.since.timestamp(),
        stretch=stretch_of(terms),
    )


def _asked(request: Closed, route: Route) -> Asked:
    return Asked(
        at=request.at,
        route=route,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        stream=request.stream,
        session=request.session,
        owner=request.owner,
        cached_tokens=request.cached_tokens,
        cache_write_tokens=request.cache_write_tokens,
        reasoning_tokens=request.reasoning_tokens,
        served_by=request.deployment,
        served_model=request.served_model,
    )


class _Past:
    """What happened, counted as what is simulated is; at other prices, where there are any."""

    def __init__(self, name: str, terms: Terms, prices: Book | None = None) -> None:
        self._timeline = Timeline(terms.since.timestamp())
        self._catalog = terms.catalog
        self._prices = prices
        self._outcome = Outcome(name, self._timeline.clock, stretch_of(terms))

    def add(self, request: Closed) -> None:
        self._timeline.run_until(request.at)
        outcome, seconds = self._outcome, request.seconds
        outcome.requests += 1
        cost = request.cost if self._prices is None else self._cost(request, self._prices)
        for made in request.tries or (_only_call(request),):
            self._called(request, made)
        outcome.of(request.deployment).paid(cost)
        if request.status == 200:
            outcome.answered(seconds=seconds, first=request.first, cost=cost)
        else:
            outcome.failures += 1
            outcome.paid(cost)

    def _called(self, request: Closed, made: Try) -> None:
        load, began = self._outcome.of(made.deployment), request.at + made.started
        self._timeline.at(began, load.started)
        if made.failed:
            ended: Callable[[], None] = partial(load.failed, made.seconds)
        elif made.answered:
            ended = partial(load.answered, made.seconds)
        else:
            ended = partial(load.ended, made.seconds)
        self._timeline.at(began + made.seconds, ended)

    def finish(self) -> Outcome:
        self._timeline.run_out()
        return self._outcome

    def _cost(self, request: Closed, prices: Book) -> Decimal | None:
        deployment = self._catalog.deployments.get(request.deployment)
        if deployment is None:
            return None
        usage = Usage(
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            cached_tokens=request.cached_tokens,
            cache_write_tokens=request.cache_write_tokens,
            reasoning_tokens=request.reasoning_tokens,
        )
        return price(prices, deployment, request.served_model, usage, datetime.fromtimestamp(request.at, UTC))


def _only_call(request: Closed) -> Try:
    """Of a request whose attempts are not on the ledger."""
    return Try(request.deployment, "ok", 0.0, request.seconds or 0.0)
