"""The simulator: the same by the same seed, and the gateway's routing as it promises to be, minutes in a second."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing import pricing
from billing.pricebook import Book, PriceRow
from gateway.registry import Pool, Route
from gateway.routing import strategies
from gateway.simulation.outcome import Outcome
from gateway.simulation.simulator import Asked, Simulator
from gateway.simulation.timeline import Timeline
from gateway.simulation.upstream import Quantiles, Service, Spell, Upstream
from gateway.types import Deployment, Limit, Usage
from tests.gateway.providers.contract import configured
from tests.gateway.routing.contract import candidate

BOOK = configured("demo").price_book


def priced(model: str, rate: int) -> PriceRow:
    return PriceRow(
        id=rate, provider=BOOK, model=model, deployment="", match=None, source="config",
        effective_from=datetime(1960, 1, 1, tzinfo=UTC), effective_until=None, daily_from=None, daily_until=None,
        input=Decimal(rate), output=Decimal(4 * rate), cached_input=Decimal(rate) / 10, cache_write_5m=None,
        cache_write_1h=None, reasoning=None, audio_input=None, audio_output=None, request=Decimal(0), tiers=[],
        service_tiers={},
    )  # fmt: skip


PRICES = Book([priced("a", 3), priced("b", 1), priced("c", 2)])


def service(first: float = 0.3, token: float = 0.005, **fields) -> Service:
    return Service(Quantiles.around(first, 0.2), Quantiles.around(token, 0.2), **fields)


def simulated(
    strategy: str,
    services: dict[str, Service],
    *,
    spells: Sequence[Spell] = (),
    seconds: float = 60.0,
    rps: float = 100.0,
    seed: int = 0,
    stretch: float = 1.0,
    **fields,
) -> Outcome:
    """Of a Poisson stream; the spells befall `a`. `fields` are the deployments'."""
    deployments = tuple(candidate(name, **fields) for name in services)
    upstreams = {name: Upstream(s, spells if name == "a" else ()) for name, s in services.items()}
    simulator = Simulator(strategy, upstreams, PRICES, strategy=strategy, seed=seed, stretch=stretch)
    route, dice, at = Route("chat", (Pool("chat", deployments),)), random.Random(seed), 0.0
    while (at := at + dice.expovariate(rps)) < seconds:
        simulator.ask(Asked(at, route, dice.randint(10, 2000), dice.randint(1, 300), stream=dice.random() < 0.5))
    return simulator.finish()


def calls(outcome: Outcome, name: str, since: float, until: float) -> int:
    return sum(cell.tries for at, cell in outcome.of(name).cells.items() if since <= at < until)


def figures(outcome: Outcome) -> object:
    loads = {name: (load.tries, load.failures, load.cost, load.busy) for name, load in outcome.loads.items()}
    return outcome.requests, outcome.failures, outcome.cost, outcome.latency.counts, loads


class TestTimeline:
    def test_what_happens_happens_in_order_and_the_clock_says_when(self):
        timeline, seen = Timeline(), []
        for moment in (3.0, 1.0, 2.0, 1.0):
            timeline.at(moment, lambda moment=moment: seen.append((moment, timeline.now)))
        timeline.run_until(2.5)
        assert (seen, timeline.now) == ([(1.0, 1.0), (1.0, 1.0), (2.0, 2.0)], 2.5)
        timeline.run_out()
        assert seen[-1] == (3.0, 3.0)

    def test_nothing_happens_in_the_past(self):
        timeline = Timeline(10.0)
        timeline.at(5.0, lambda: None)
        timeline.run_out()
        assert timeline.now == 10.0


class TestQuantiles:
    def test_are_the_samples(self):
        quantiles = Quantiles.of(range(1, 102))
        assert (quantiles.at(0.0), quantiles.median, quantiles.at(0.955), quantiles.at(1.0)) == (1, 51, 96.5, 101)

    def test_weights_count(self):
        assert Quantiles.of([1.0, 2.0], [1.0, 9.0]).median == 2.0

    def test_one_sample_is_all(self):
        assert {Quantiles.of([4.0]).at(q) for q in (0.0, 0.3, 1.0)} == {4.0}
        assert Quantiles((4.0,)).at(0.7) == 4.0


@pytest.mark.parametrize("strategy", strategies())
class TestEveryStrategy:
    def test_one_seed_one_outcome(self, strategy):
        services = {name: service(error_rate=0.1) for name in "abc"}
        first, again, other = (simulated(strategy, services, seconds=10, seed=seed) for seed in (1, 1, 2))
        assert figures(first) == figures(again) != figures(other)

    def test_a_dead_deployment_is_asked_six_times_a_minute_and_nobody_notices(self, strategy):
        dead = service(error_rate=1.0, failing=Quantiles((0.001,)))
        outcome = simulated(strategy, {"a": dead, "b": service(), "c": service()}, seconds=120)
        assert outcome.failures == 0
        assert all(calls(outcome, "a", since, since + 60) <= 6 for since in range(0, 61, 5))
        assert outcome.requests > 11_000

    def test_a_recovered_one_is_back_in_15_seconds(self, strategy):
        services = {"a": service(first=0.1, failing=Quantiles((0.001,))), "b": service(), "c": service()}
        outcome = simulated(strategy, services, spells=[Spell(5, 60, error_rate=1.0)], seconds=80)
        found = strategy == "cost_optimized"  # a is the dearest: it is nobody's choice while others are well
        assert found or calls(outcome, "a", 60, 76) > 20

    def test_all_dead_all_fail_and_stay_within_their_retries(self, strategy):
        outcome = simulated(strategy, {name: service(error_rate=1.0) for name in "abc"}, seconds=20)
        assert outcome.failures == outcome.requests
        assert sum(load.tries for load in outcome.loads.values()) < outcome.requests

    def test_its_own_limit_of_parallel_requests_is_kept(self, strategy):
        limit = Limit("deployment", "each", None, None, 20)
        outcome = simulated(strategy, {"a": service(), "b": service()}, seconds=10, limit=limit)
        assert max(load.most for load in outcome.loads.values()) <= 20
        assert outcome.failures > 0


class TestStrategies:
    def test_latency_optimized_leaves_a_slow_one_and_finds_it_again_within_a_minute(self):
        services = {"a": service(first=0.1, token=0.002), "b": service(), "c": service()}
        slow = Spell(30, 90, slower=13.0)  # five times as slow as the others
        outcome = simulated("latency_optimized", services, spells=[slow], seconds=170)
        assert calls(outcome, "a", 20, 30) > 500
        assert calls(outcome, "a", 40, 90) <= 0.05 * sum(calls(outcome, name, 40, 90) for name in "abc")
        assert calls(outcome, "a", 150, 160) > 500

    def test_cost_optimized_takes_the_cheapest_and_another_when_that_is_dead(self):
        outcome = simulated("cost_optimized", {name: service() for name in "abc"}, seconds=10)
        # Until it has answered once, one request at a time finds out whether it does.
        assert [calls(outcome, name, 2, 10) for name in "ac"] == [0, 0]
        services = {"a": service(), "b": service(error_rate=1.0), "c": service()}
        outcome = simulated("cost_optimized", services, seconds=10)
        assert calls(outcome, "a", 2, 10) == 0
        assert calls(outcome, "c", 2, 10) > 500

    def test_load_balanced_gives_a_full_one_less(self):
        outcome = simulated("load_balanced", {"a": service(room=5), "b": service(), "c": service()}, seconds=30)
        assert outcome.of("a").tries < 0.8 * outcome.of("b").tries


class TestCost:
    def one(self, *asked: Asked) -> Outcome:
        simulator = Simulator("one", {"a": Upstream(service()), "b": Upstream(service())}, PRICES, strategy="failover")
        for request in asked:
            simulator.ask(request)
        return simulator.finish()

    def route(self, *names: str) -> Route:
        candidates: tuple[Deployment, ...] = tuple(candidate(n, priority=p) for p, n in enumerate(names))
        return Route("chat", (Pool("chat", candidates),))

    def test_it_is_the_sum_of_its_requests(self):
        dice = random.Random(3)
        chosen = [dice.choice("ab") for _ in range(50)]
        usages = [Usage(dice.randint(1, 900), dice.randint(1, 90)) for _ in chosen]
        outcome = self.one(
            *(
                Asked(float(n), self.route(name), usage.prompt_tokens, usage.completion_tokens)
                for n, (name, usage) in enumerate(zip(chosen, usages, strict=True))
            )
        )
        at = datetime(2020, 1, 1, tzinfo=UTC)
        prices = [PRICES.find(BOOK, name, name, at) for name in chosen]
        expected = sum(pricing.cost(price, usage) for price, usage in zip(prices, usages, strict=True))
        assert outcome.cost == sum(load.cost for load in outcome.loads.values()) == expected

    def test_a_sessions_prompt_is_cached_where_it_was_served_and_nowhere_else(self):
        def at(moment: float, served_by: str | None) -> Asked:
            return Asked(
                moment, self.route("a", "b"), 1_000_000, 0, session="s", cached_tokens=1_000_000, served_by=served_by
            )

        assert self.one(at(0, None)).cost == 3
        assert self.one(at(0, "a")).cost == Decimal("0.3")
        assert self.one(at(0, None), at(100, None)).cost == Decimal("3.3")
        assert self.one(at(0, None), at(1000, None)).cost == 6
