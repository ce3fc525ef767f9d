"""Holds: the most a request can cost is what is reserved, and nothing stays reserved."""

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import alerts, pricing
from billing.counters.base import Amount, Headroom
from billing.holds import Facts, Holds, Outcome, clean
from billing.models.prices import Source
from billing.pricebook import Book, PriceRow
from gateway import tokens
from gateway.doors.chat import ChatDoor
from gateway.errors import BudgetExceeded, RateLimited, UnpricedModel
from gateway.types import Attempt, BudgetTerms, Caller, Limit, Role, Usage
from tests.gateway.providers.contract import configured, deployed

D = Decimal
CONFIG = configured("openai", "http://upstream/v1", price_book="upstream")


class Writer:
    """Takes rows and is always durable."""

    def __init__(self):
        self.rows = []

    def hold(self, row):
        self.rows.append(row)
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def put(self, row):
        self.rows.append(row)


class Counters:
    """One budget's arithmetic, and a look inside."""

    def __init__(self, usd=None, tokens=None):
        self.left = Headroom(usd, tokens)
        self.held = {}
        self.settled = []
        self.wait = None

    async def headroom(self, terms, at):
        return self.left

    async def hold(self, request_id, terms, amount, at):
        if self.wait is not None:
            await self.wait
        over_usd = self.left.usd is not None and (amount.usd or 0) > self.left.usd
        over_tokens = self.left.tokens is not None and amount.tokens > self.left.tokens
        if over_usd or over_tokens:
            raise BudgetExceeded("Too little is left.")
        self.held[request_id] = amount

    def settle(self, request_id, owners, spent, at):
        self.held.pop(request_id, None)
        self.settled.append(spent)


class Limits:
    """A bucket of tokens."""

    def __init__(self, tokens=None):
        self.left = tokens

    async def take_tokens(self, request_id, limits, tokens):
        if self.left is not None and tokens > self.left:
            raise RateLimited("Wait.", retry_after=1)
        if self.left is not None:
            self.left -= tokens

    def give_back_tokens(self, limits, tokens):
        if self.left is not None:
            self.left += tokens


def book_of(**rates):
    """A book in which models cost what is said: `name=(input, output)` in dollars a million."""
    since = datetime(2020, 1, 1, tzinfo=UTC)
    rows = []
    for number, (model, (into, out)) in enumerate(rates.items(), start=1):
        values = dict.fromkeys(PriceRow._fields)
        values |= dict.fromkeys(pricing.RATE_NAMES)
        values |= {
            "id": number, "provider": "upstream", "model": model.replace("_", "-"), "deployment": "",
            "effective_from": since,
            "source": Source.FINANCE.value, "input": D(into), "output": D(out), "request": D(0),
            "tiers": [], "service_tiers": {},
        }  # fmt: skip
        rows.append(PriceRow._make(values[name] for name in PriceRow._fields))
    return Book(rows)


def terms(usd="10", tokens=None):
    return BudgetTerms(1, "user", "alice", "monthly", "UTC", None if usd is None else D(usd), tokens)


def caller(budgets=(), limits=()):
    return Caller("key_1", "a key", "alice", "red", Role.MEMBER, None, tuple(limits), tuple(budgets), ("tag",))


def facts(who):
    now = time()
    values = {
        "request_id": "req_1", "arrived": now, "at": datetime.fromtimestamp(now, UTC), "caller": who,
        "client_request_id": None, "requested_model": "gpt-test", "security_action": None,
    }  # fmt: skip
    return Facts(**{name: values[name] for name in Facts.__struct_fields__})


def asked(**body):
    full = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hi there"}], **body}
    return ChatDoor().parse(json.dumps(full).encode(), {})


def holds(counters=None, limits=None, unpriced="block"):
    return Holds(
        counters=counters or Counters(),
        limits=limits or Limits(),
        writer=Writer(),
        process_id="gw_1",
        unpriced=unpriced,
    )


def model(name="gpt-test", **fields):
    return deployed(CONFIG, name=name, upstream_model=name, **fields)


BOOK = book_of(gpt_test=("2.5", "10"))
ATTEMPT = Attempt("upstream", "gpt-test", "ok", 200, 0.0, 1.0)


def served(usage, **fields):
    return Outcome(**{"status": 200, "deployment": model(), "usage": usage, "attempts": (ATTEMPT,), **fields})


class TestPlacing:
    async def test_prompt_and_output_are_reserved(self):
        counters = Counters(usd=D(10))
        hold = await holds(counters).place(facts(caller([terms()])), asked(max_tokens=100), [model()], BOOK, model())
        bound = tokens.bound_prompt(asked().body, "gpt-test")
        assert counters.held == {"req_1": Amount((bound * D("2.5") + 1000) / 10**6, bound + 100)}
        assert hold.request.max_output == 100

    @pytest.mark.parametrize("first", ["gpt-test", "claude-3"])
    @pytest.mark.parametrize("is_near", [False, True])
    async def test_the_prompt_is_as_long_as_where_it_is_longest(self, first, is_near):
        """Fallbacks count otherwise: Claude's tokens are shorter, its images larger."""
        image = {"type": "image_url", "image_url": {"url": "https://images.example/cat.png"}}
        request = asked(
            max_tokens=1, messages=[{"role": "user", "content": [{"type": "text", "text": "Hi there " * 99}, image]}]
        )
        count = tokens.count_prompt if is_near else tokens.bound_prompt
        longest = count(request.body, "claude-3")
        assert longest > count(request.body, "gpt-test")
        candidates = sorted([model("gpt-test"), model("claude-3")], key=lambda d: d.name != first)
        counters = Counters(tokens=longest + 1)
        book = book_of(gpt_test=("2.5", "10"), claude_3=("1", "1"))
        await holds(counters).place(facts(caller([terms(None, 10**6)])), request, candidates, book, candidates[0])
        assert counters.held["req_1"].tokens == longest + 1

    async def test_a_refused_one_leaves_nothing(self):
        counters = Counters(usd=D("0.0000001"))
        with pytest.raises(BudgetExceeded):
            await holds(counters).place(facts(caller([terms()])), asked(max_tokens=100), [model()], BOOK, model())
        assert counters.held == {}

    async def test_one_that_a_token_limit_refuses_gives_its_budget_back(self):
        counters, who = Counters(usd=D(10)), caller([terms()], [Limit("key", "key_1", None, 60, None)])
        with pytest.raises(RateLimited):
            await holds(counters, Limits(5)).place(facts(who), asked(max_tokens=100), [model()], BOOK, model())
        assert counters.held == {}

    async def test_a_client_that_leaves_meanwhile_leaves_nothing(self):
        counters = Counters(usd=D(10))
        counters.wait = asyncio.get_running_loop().create_future()
        placing = asyncio.create_task(
            holds(counters).place(facts(caller([terms()])), asked(), [model()], BOOK, model())
        )
        await asyncio.sleep(0.01)
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        assert counters.held == {}

    async def test_an_unpriced_model_under_a_dollar_budget(self):
        with pytest.raises(UnpricedModel):
            await holds().place(facts(caller([terms()])), asked(), [model("unknown")], BOOK, model("unknown"))
        hold = await holds().place(
            facts(caller([terms(None, 1000)])), asked(max_tokens=5), [model("unknown")], BOOK, model("unknown")
        )
        assert hold.settle(served(Usage(1, 1), deployment=model("unknown"))) is None

    async def test_the_row_says_what_is_held(self):
        counted = holds(Counters(usd=D(10)))
        await counted.place(facts(caller([terms()])), asked(max_tokens=100, n=2, tags=["x"]), [model()], BOOK, model())
        (row,) = counted.writer.rows
        assert (row.kind, row.held_output_tokens, row.tags, row.process_id) == ("hold", 200, ("tag", "x"), "gw_1")
        assert row.held_usd == (row.held_prompt_tokens * D("2.5") + 2000) / 10**6


class TestSettling:
    async def placed(self, **body):
        counters, limits = Counters(usd=D(10)), Limits(10_000)
        who = caller([terms()], [Limit("key", "key_1", None, 60_000, None)])
        counted = holds(counters, limits)
        hold = await counted.place(facts(who), asked(**{"max_tokens": 100, **body}), [model()], BOOK, model())
        return counted, hold

    async def test_what_it_cost_is_counted_and_the_rest_given_back(self):
        counted, hold = await self.placed()
        assert hold.settle(served(Usage(11, 4))) == D("0.0000675")
        assert counted.counters.held == {}
        assert counted.counters.settled == [Amount(D("0.0000675"), 15)]
        assert counted.limits.left == 10_000 - 15

    async def test_nothing_served_is_nothing_spent(self):
        counted, hold = await self.placed()
        hold.settle(served(None, status=502))
        assert counted.counters.settled == [Amount(D(0), 0)]
        assert counted.limits.left == 10_000
        assert counted.writer.rows[-1].kind == "release"

    async def test_more_than_was_held_takes_more(self):
        counted, hold = await self.placed()
        hold.settle(served(Usage(11, 5000)))
        assert counted.limits.left == 10_000 - 5011
        assert counted.counters.settled == [Amount(D("0.0500275"), 5011)]

    async def test_an_attempt_that_was_wasted_is_no_overrun(self, monkeypatch):
        raised = []
        monkeypatch.setattr(alerts, "raise_soon", lambda *told: raised.append(told))
        counted, hold = await self.placed()
        held = hold.worst
        hold.wasted(ATTEMPT, model(), held)
        cost = hold.settle(served(held))
        assert counted.counters.settled == [Amount(cost, held.total_tokens)]
        assert cost > counted.writer.rows[0].held_usd
        assert not raised
        _, hold = await self.placed()
        hold.settle(served(Usage(11, 5000)))
        assert [kind for kind, *_ in raised] == ["overrun"]

    async def test_once(self):
        _, hold = await self.placed()
        hold.settle(served(Usage(1, 1)))
        with pytest.raises(AssertionError):
            hold.settle(served(Usage(1, 1)))

    @pytest.mark.parametrize(
        ("usage", "kept"),
        [
            (Usage(-5, -1), (0, 0)),
            (Usage(10**30, 3), (10**10, 3)),
            (Usage(5, 3, cached_tokens=-4, reasoning_tokens=10**30), (5, 3)),
        ],
    )
    async def test_figures_beyond_belief_are_bounded(self, usage, kept):
        counted, hold = await self.placed()
        hold.settle(served(usage))
        row = counted.writer.rows[-1]
        assert (row.prompt_tokens, row.completion_tokens) == kept
        assert row.cost_usd >= 0
        assert 0 <= row.cached_tokens <= 10**10
        assert 0 <= row.reasoning_tokens <= 10**10

    async def test_the_closing_repeats_who_asked(self):
        counted, hold = await self.placed(tags=["x"], session_id="s", user="u")
        hold.settle(served(Usage(1, 1), served_model="gpt-test-2026", detail={"finish_reason": "stop"}))
        first, last = counted.writer.rows
        for name in (
            "request_id",
            "created_at",
            "key_id",
            "user_id",
            "team",
            "requested_model",
            "session_id",
            "tags",
            "stream",
        ):
            assert getattr(first, name) == getattr(last, name)
        assert (last.served_model, last.detail) == ("gpt-test-2026", {"end_user": "u", "finish_reason": "stop"})
        assert (last.held_usd, last.held_prompt_tokens, last.held_output_tokens) == (None, None, None)

    async def test_all_that_was_held_is_the_worst(self):
        _, hold = await self.placed(n=3)
        assert hold.worst == Usage(tokens.bound_prompt(asked().body, "gpt-test"), 300, estimated=True)


rates = st.decimals(0, 100, places=4)


class TestWhatIsHeldIsEnough:
    @given(into=rates, out=rates, cap=st.integers(1, 5000), n=st.integers(1, 5), data=st.data())
    def test_whatever_is_served_within_the_cap(self, into, out, cap, n, data):
        async def run():
            counters = Counters(usd=D(10**9))
            counted = holds(counters)
            hold = await counted.place(
                facts(caller([terms()])), asked(max_tokens=cap, n=n), [model()], book_of(gpt_test=(into, out)), model()
            )
            prompt = data.draw(st.integers(0, tokens.bound_prompt(asked().body, "gpt-test")))
            usage = Usage(
                prompt, data.draw(st.integers(0, cap * n)), cached_tokens=data.draw(st.integers(0, 20)),
                cache_write_tokens=data.draw(st.integers(0, 20)), reasoning_tokens=data.draw(st.integers(0, 20)),
            )  # fmt: skip
            (held,) = counters.held.values()
            cost = hold.settle(served(usage))
            assert cost <= held.usd
            assert usage.total_tokens <= held.tokens

        asyncio.run(run())

    @given(into=rates, out=rates, left=st.decimals("0.0001", 1, places=6), n=st.integers(1, 4))
    def test_the_cap_that_the_gateway_sets_is_the_longest_that_fits(self, into, out, left, n):
        async def run():
            counters = Counters(usd=left)
            request = asked(n=n)
            try:
                hold = await holds(counters).place(
                    facts(caller([terms()])), request, [model(max_output=3000)], book_of(gpt_test=(into, out)), model()
                )
            except BudgetExceeded:
                prompt = tokens.count_prompt(request.body, "gpt-test")
                assert (prompt * into + n * out) / 10**6 > left
                return
            (held,) = counters.held.values()
            assert held.usd <= left
            cap = hold.request.max_output
            assert 1 <= cap <= 3000
            longer = held.usd + n * out / 10**6
            assert cap == 3000 or longer > left

        asyncio.run(run())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (None, None),
        ("", ""),
        ("plain", "plain"),
        ("a\0b", "ab"),
        ("x" * 10, "xxxxx"),
        ("ü\ud800", "ü?"),
        ("é" * 10, "é" * 5),
    ],
)
def test_what_comes_from_outside_fits_its_column(text, kept):
    assert clean(text, 5) == kept
