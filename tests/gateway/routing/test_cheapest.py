"""`cost_optimized` against a brute force: of random price tables, what a request really costs at each deployment."""

import json
import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing import pricing
from billing.models.prices import Source
from billing.pricebook import ALWAYS, Book, PriceRow
from gateway import affinity, tokens
from gateway.circuits_memory import MemoryCircuits
from gateway.doors.chat import ChatDoor
from gateway.planning import Health, plan
from gateway.registry import Route, _pool
from gateway.types import Usage
from tests.gateway.routing.contract import candidate

TABLES = 1000
OWNER = "user:alice"
MODEL = "gpt-test"
WORDS = ("the", "a", "routing", "of", "requests", "deployment", "cheap", "answer", "42", "größer", "然后", "…", "\n\n")
LONGEST = 8_000  # bytes of a prompt that is counted; a longer one is estimated


@pytest.fixture(autouse=True, scope="module")
def _tokenizer():
    tokens.preload(MODEL)


def rate(dice, low=0.02, high=60.0):
    """Dollars per million tokens, as prices are spread: by their logarithms."""
    return Decimal(str(round(low * (high / low) ** dice.random(), 4)))


def tiers_of(dice):
    """Context tiers near the prompts' lengths; dearer mostly, as they are, and now and then cheaper."""
    borders = sorted(dice.sample(range(20, 3000), dice.randint(1, 3)))
    return [{"above": above, "input": str(rate(dice)), "output": str(rate(dice))} for above in borders]


def row(dice, number, name, *, tiers):
    def sometimes(share):
        return rate(dice) if dice.random() < share else None

    return PriceRow(
        id=number, provider="demo", model=name, deployment="", match=None, source=Source.FINANCE,
        effective_from=ALWAYS, effective_until=None, daily_from=None, daily_until=None,
        input=rate(dice), output=rate(dice), cached_input=sometimes(0.6), cache_write_5m=sometimes(0.2),
        cache_write_1h=None, reasoning=sometimes(0.2), audio_input=None, audio_output=None,
        request=Decimal(str(round(dice.random() / 100, 4))) if dice.random() < 0.2 else Decimal(0),
        tiers=tiers_of(dice) if tiers and dice.random() < 0.5 else [],
        service_tiers={"flex": "0.5", "priority": "2"} if dice.random() < 0.3 else {},
    )  # fmt: skip


class Case:
    """A price table, a request and a past."""

    def __init__(self, seed, *, tiers=False, weights=None):
        dice = random.Random(seed)
        self.names = [f"d{number}" for number in range(dice.randint(2, 12))]
        versions = {name: dice.choice(["v1", "v2"]) for name in self.names}
        rows = [row(dice, n, name, tiers=tiers) for n, name in enumerate(self.names) if dice.random() < 0.85]
        self.book = Book(rows)
        self.deployments = tuple(
            candidate(name, priority=dice.randint(0, 3), weight=dice.randint(1, 3), version=versions[name])
            for name in self.names
        )
        text = " ".join(dice.choices(WORDS, k=int(10 ** dice.uniform(0, 3.2))))
        self.body = {"model": "group", "messages": [{"role": "user", "content": text[: LONGEST // 4]}]}
        for name, value in (
            ("max_tokens", dice.choice([None, dice.randint(1, 400), dice.randint(1, 4000)])),
            ("n", dice.choice([None, 1, dice.randint(2, 5)])),
            ("service_tier", dice.choice([None, None, "flex", "priority", "default", "auto"])),
            ("session_id", dice.choice([None, "one"])),
        ):
            if value is not None:
                self.body[name] = value
        self.request = ChatDoor().parse(json.dumps(self.body).encode(), {})
        self.signals = Health(circuits=MemoryCircuits(), rng=random.Random(seed))
        self.length = dice.choice([None, dice.randint(1, 5), dice.randint(1, 3000)])
        if self.length is not None:
            self.signals.lengths["group"] = float(self.length)
        key = affinity.key_of(self.request, OWNER)
        self.held = set(dice.sample(self.names, dice.randint(0, 2))) if key is not None else set()
        for name in self.held:
            self.signals.holders.served(key, name)
        self.route = Route("group", (_pool("group", self.deployments, None, weights),))

    async def plan(self):
        return await plan(
            self.route, self.request, OWNER, signals=self.signals, book=self.book, default="cost_optimized"
        )

    def costs(self):
        """Of each deployment that has a price, what the request costs there."""
        prompt = tokens.count_prompt(self.request.body, MODEL)
        length = 200 if self.length is None else self.length
        most = self.body.get("max_tokens")
        output = (length if most is None else min(length, most)) * self.body.get("n", 1)
        found = {}
        for deployment in self.deployments:
            price = self.book.find("demo", deployment.upstream_model, deployment.name, datetime.now(UTC))
            if price is not None:
                cached = prompt if deployment.name in self.held else 0
                usage = Usage(prompt, output, cached_tokens=cached)
                found[deployment.name] = pricing.cost(price, usage, self.body.get("service_tier"))
        return found


def told(case, chosen, costs):
    return f"{chosen} at {costs.get(chosen)} of {costs}, held {case.held}, asked {len(str(case.body))} bytes"


async def missed(tables, **kinds):
    """The tables of which not the cheapest was chosen."""
    found = {}
    for seed in range(tables):
        case = Case(seed, **kinds)
        first, costs = (await case.plan()).first.name, case.costs()
        if costs and costs.get(first) != min(costs.values()):
            found[seed] = told(case, first, costs)
    return found


async def test_the_cheapest_of_a_thousand_tables():
    found = await missed(TABLES)
    assert not found, f"{len(found)} of {TABLES}, such as {next(iter(found.items()))}"


async def test_with_context_tiers_too():
    found = await missed(TABLES, tiers=True)
    assert not found, f"{len(found)} of {TABLES}, such as {next(iter(found.items()))}"


async def test_the_tables_are_worth_it():
    """What is cheapest is not the same for every request and table, nor easily seen."""
    cases = [Case(seed, tiers=True) for seed in range(TABLES)]
    costs = [case.costs() for case in cases]
    lengths = [tokens.count_prompt(case.request.body, MODEL) for case in cases]
    assert min(lengths) < 20
    assert max(lengths) > 500
    assert sum(any(case.held) for case in cases) > 100
    assert sum(len(found) < len(case.names) for found, case in zip(costs, cases, strict=True)) > 100
    firsts = {min(found, key=found.__getitem__) for found in costs if found}
    assert len(firsts) == 12
    # The cheapest input alone, or the cheapest output alone, would be wrong of many.
    naive = 0
    for found, case in zip(costs, cases, strict=True):
        prices = {name: case.book.find("demo", name, name, datetime.now(UTC)) for name in found}
        if found and found[min(prices, key=lambda name: prices[name].rates.input)] != min(found.values()):
            naive += 1
    assert naive > 200


async def test_the_cheapest_of_the_version_that_weights_choose():
    wrong = {}
    for seed in range(TABLES):
        case = Case(seed, weights={"v1": 100, "v2": 0})
        of_v1 = {d.name for d in case.deployments if d.version == "v1"}
        if not of_v1:
            continue
        first = (await case.plan()).first.name
        assert first in of_v1
        costs = {name: cost for name, cost in case.costs().items() if name in of_v1}
        if costs and costs.get(first) != min(costs.values()):
            wrong[seed] = told(case, first, costs)
    assert not wrong, f"{len(wrong)}, such as {next(iter(wrong.items()))}"


async def test_unpriced_ones_are_last():
    for seed in range(200):
        case = Case(seed)
        costs = case.costs()
        order = [deployment.name for deployment in await case.plan()]
        assert sorted(order) == sorted(case.names)
        assert set(order[: len(costs)]) == set(costs)


async def test_where_one_fails_the_cheapest_of_the_others_is_next():
    wrong = {}
    for seed in range(TABLES):
        case = Case(seed)
        costs = case.costs()
        order = [costs[d.name] for d in await case.plan() if d.name in costs]
        if order != sorted(order):
            wrong[seed] = order
    assert not wrong, f"{len(wrong)}, such as {next(iter(wrong.items()))}"
