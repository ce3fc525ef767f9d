"""`manage.py simulate_routing`, on a ledger made here."""

import io
import json
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from billing import history, pricebook, pricing
from billing.rows import insert_sql, parameters
from gateway.types import Attempt, Usage
from tests.support.ledger import make_row
from tests.support.world import make_deployment, make_group, make_key, make_price, make_provider

pytestmark = pytest.mark.django_db

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
DURING = ("--since", "2026-03-01", "--until", "2026-03-02")
SECONDS = {"fast": (0.2, 0.004), "slow": (0.8, 0.010)}  # to the first token, and a token


def write(*rows) -> None:
    with connection.cursor() as cursor:
        for row in rows:
            cursor.execute(insert_sql(1, "%s"), parameters(row, connection.vendor))


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("simulate_routing", *arguments, stdout=out)
    return out.getvalue()


def as_json(*arguments: str) -> dict:
    return json.loads(run(*DURING, *arguments, "--format", "json"))


def outcome(told: dict, name: str) -> dict:
    (found,) = (one for one in told["outcomes"] if one["name"] == name)
    return found


@pytest.fixture
def world():
    provider = make_provider("http://127.0.0.1:9/v1")
    fast, slow = (make_deployment(provider, name) for name in ("fast", "slow"))
    make_price("fast", input=Decimal(10), output=Decimal(40), effective_from=LONG_AGO)
    make_price("slow", input=Decimal(1), output=Decimal(4), effective_from=LONG_AGO)
    make_group("chat", fast, slow, strategy="round_robin")


def served(number: int, deployment: str, dice: random.Random, failed: str | None = None, **fields):
    """A settlement as the gateway writes it, half of them streams; `failed` was tried in vain for 50 ms before."""
    first, token = (seconds * dice.uniform(0.8, 1.2) for seconds in SECONDS[deployment])
    prompt, tokens, wait = dice.randint(10, 3000), dice.randint(20, 400), 50.0 if failed else 0.0
    whole, stream = (first + token * tokens) * 1000, number % 4 < 2
    price = pricebook.load().find("upstream", deployment, deployment, BEGAN)
    attempts = [Attempt("upstream", failed, "upstream_error", 500, 1.0, wait)] if failed else []
    attempts.append(Attempt("upstream", deployment, "ok", 200, 1.0 + wait, whole))
    return make_row(
        "settlement",
        **{
            "request_id": f"req_{number}", "created_at": (BEGAN + timedelta(seconds=number / 5)).timestamp(),
            "deployment": deployment, "routed_model": deployment, "served_model": deployment,
            "requested_model": "chat", "stream": stream, "prompt_tokens": prompt, "completion_tokens": tokens,
            "cost_usd": pricing.cost(price, Usage(prompt, tokens)), "latency_ms": 1.0 + wait + whole,
            "ttft_ms": 1.0 + wait + first * 1000 if stream else None, "attempts": tuple(attempts), **fields,
        },
    )  # fmt: skip


@pytest.fixture
def ledger(world):
    """600 requests by turns."""
    dice = random.Random(1)
    rows = [served(number, ("fast", "slow")[number % 2], dice) for number in range(600)]
    write(*rows)
    return rows


class TestAgainstWhatHappened:
    def test_the_strategy_that_served_comes_near_to_what_happened(self, ledger):
        told = as_json("--strategy", "round_robin")
        happened, again = outcome(told, "what happened"), outcome(told, "round_robin")
        assert again["requests"] == happened["requests"] == 600
        assert again["failures"] == happened["failures"] == 0
        assert again["cost_usd"] == happened["cost_usd"]  # by the same turns, so to the last place
        for figure in ("mean", "p50", "p95"):
            assert again["latency_ms"][figure] == pytest.approx(happened["latency_ms"][figure], rel=0.1)
            assert again["ttft_ms"][figure] == pytest.approx(happened["ttft_ms"][figure], rel=0.1)
        for name, load in happened["deployments"].items():
            simulated = again["deployments"][name]
            assert simulated["calls"] == load["calls"] == 300
            assert simulated["in_flight_mean"] == pytest.approx(load["in_flight_mean"], rel=0.1)

    def test_what_happened_is_the_ledgers_own_sum(self, ledger):
        happened = outcome(as_json("--strategy", "random"), "what happened")
        assert Decimal(happened["cost_usd"]) == sum(row.cost_usd for row in ledger)
        assert happened["latency_ms"]["mean"] == pytest.approx(sum(r.latency_ms for r in ledger) / 600, abs=0.001)
        for name, load in happened["deployments"].items():
            assert Decimal(load["cost_usd"]) == sum(row.cost_usd for row in ledger if row.deployment == name)

    def test_the_cheap_one_is_cheaper_and_slower_and_costs_what_its_rows_say(self, ledger):
        told = as_json("--strategy", "cost_optimized", "--strategy", "latency_optimized")
        happened, cheap, fast = (outcome(told, n) for n in ("what happened", "cost_optimized", "latency_optimized"))
        slow = pricebook.load().find("upstream", "slow", "slow", BEGAN)
        every = sum(pricing.cost(slow, Usage(row.prompt_tokens, row.completion_tokens)) for row in ledger)
        assert list(cheap["deployments"]) == ["slow"]
        assert Decimal(cheap["cost_usd"]) == every < Decimal(happened["cost_usd"])
        assert fast["latency_ms"]["p50"] < happened["latency_ms"]["p50"] < cheap["latency_ms"]["p50"]
        assert fast["deployments"]["fast"]["calls"] > 550

    def test_the_same_seed_prints_the_same(self, ledger):
        arguments = (*DURING, "--strategy", "random", "--seed")
        assert run(*arguments, "3") == run(*arguments, "3") != run(*arguments, "4")

    def test_failures_are_an_error_rate(self, world):
        dice = random.Random(2)
        write(
            *(served(n, "slow" if n % 2 else "fast", dice, failed="slow" if n % 4 == 0 else None) for n in range(400))
        )
        told = as_json("--strategy", "round_robin")
        happened = outcome(told, "what happened")["deployments"]["slow"]
        assert (happened["calls"], happened["failures"]) == (300, 100)
        again = outcome(told, "round_robin")
        assert again["failures"] == 0
        assert 0.15 < again["deployments"]["slow"]["failures"] / again["deployments"]["slow"]["calls"] < 0.5

    def test_corrections_count(self, ledger):
        row = ledger[0]
        write(make_row("adjustment", request_id=row.request_id, created_at=row.created_at, requested_model="chat",
                       cost_usd=Decimal("0.5"), completion_tokens=100, prompt_tokens=0))  # fmt: skip
        happened = outcome(as_json("--strategy", "random"), "what happened")
        assert Decimal(happened["cost_usd"]) == sum(row.cost_usd for row in ledger) + Decimal("0.5")

    def test_the_table_says_it_in_words(self, ledger):
        lines = run(*DURING, "--strategy", "cost_optimized").splitlines()
        assert lines[0] == "600 requests from 2026-03-01 00:00 to 2026-03-02 00:00 UTC"
        assert next(line for line in lines if line.startswith("what happened")).split()[-1] == "0"
        assert any(line.startswith("cost_optimized  slow") and "100.0%" in line for line in lines)


class TestWhatIsLeftOut:
    def test_what_is_no_longer_configured_is_counted_and_named(self, ledger):
        dice = random.Random(3)
        write(*(served(n, "fast", dice, requested_model="gone") for n in range(1000, 1003)))
        told = as_json("--strategy", "random")
        assert (told["unroutable"], outcome(told, "random")["requests"]) == ({"gone": 3}, 600)
        assert "3 whose model is no longer configured: gone (3)" in run(*DURING, "--strategy", "random")

    def test_what_the_key_may_not_use_is_not_used(self, world):
        key, dice = make_key(allowed_models=["slow"]), random.Random(4)
        write(*(served(n, "slow", dice, key_id=key.id) for n in range(20)))
        told = as_json("--strategy", "latency_optimized")
        assert list(outcome(told, "latency_optimized")["deployments"]) == ["slow"]

    def test_what_nobody_answered_is_counted(self, ledger):
        write(make_row("release", created_at=BEGAN.timestamp(), requested_model="chat", status=503))
        told = as_json("--strategy", "random")
        assert (told["unanswered"], told["requests"]) == (1, 600)

    def test_one_that_was_never_seen_is_as_its_pool(self, world):
        dice = random.Random(5)
        write(*(served(n, "fast", dice) for n in range(40)))
        told = as_json("--strategy", "round_robin")
        assert told["guessed"] == ["slow"]
        loads = outcome(told, "round_robin")["deployments"]
        assert loads["slow"]["latency_ms"]["p50"] == pytest.approx(loads["fast"]["latency_ms"]["p50"], rel=0.5)
        assert "never seen, taken to be as the median of their pool: slow" in run(*DURING, "--strategy", "round_robin")

    def test_other_times_and_other_models_are(self, ledger):
        dice = random.Random(6)
        write(*(served(n, "fast", dice, requested_model="fast") for n in range(1000, 1010)))
        assert as_json("--strategy", "random", "--model", "fast")["requests"] == 10
        told = run("--since", "2026-03-01T12:01Z", "--until", "2026-03-01T12:02Z", "--strategy", "random")
        assert told.startswith("300 requests")

    def test_an_empty_ledger_says_so(self, world):
        assert "nothing was simulated" in run(*DURING, "--strategy", "random")


class TestPrices:
    PRICES = """
        prices:
          - {provider: upstream, model: fast, input: "0.5", output: 2, effective_from: 2026-03-01T12:01:00Z}
    """

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "prices.yaml"
        path.write_text(self.PRICES)
        return path

    def test_what_happened_at_other_prices_from_their_day_on(self, ledger, file):
        old, slow = (pricebook.load().find("upstream", name, name, BEGAN) for name in ("fast", "slow"))
        new = pricing.Price(None, pricing.Rates(input=Decimal("0.5"), output=Decimal(2)))
        from_then = (BEGAN + timedelta(minutes=1)).timestamp()
        expected = sum(
            pricing.cost(
                slow if row.deployment == "slow" else new if row.created_at >= from_then else old,
                Usage(row.prompt_tokens, row.completion_tokens),
            )
            for row in ledger
        )  # fmt: skip
        told = as_json("--prices", str(file))
        assert [one["name"] for one in told["outcomes"]] == ["what happened", "what happened, at these prices"]
        assert Decimal(outcome(told, "what happened, at these prices")["cost_usd"]) == expected

    def test_strategies_go_by_them(self, ledger, file):
        told = as_json("--prices", str(file), "--strategy", "cost_optimized")
        loads = outcome(told, "cost_optimized")["deployments"]
        assert loads["slow"]["calls"] == pytest.approx(300, abs=6)  # the first minute of two
        assert loads["fast"]["calls"] == pytest.approx(300, abs=6)

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[]", "takes a list of prices under the name `prices`"),
            ("prices: [{provider: p, model: m, input: 1}]", "prices[0]: output is needed"),
            ("prices: [{provider: p, model: m, input: 1, output: x}]", "output is a number, not 'x'"),
            ("prices: [{provider: p, model: m, input: 1, output: -1}]", "output is zero or more, not -1"),
            ("prices: [{provider: p, model: m, input: 1, output: 1, color: red}]", "color: unknown; takes provider"),
            ("prices: [{provider: p, model: m, input: 1, output: 1, effective_from: soon}]", "effective_from is a"),
            ("prices: [{provider: p, model: m, input: 1, output: 1, tiers: [1]}]", "a tier is"),
            ("prices: [{provider: p, model: m, input: 1, output: 1, match: [1]}]", "a clause has one key"),
            ("prices: [", "takes YAML"),
        ],
    )  # fmt: skip
    def test_a_wrong_file_is_one_line(self, world, tmp_path, text, told):
        path = tmp_path / "prices.yaml"
        path.write_text(text)
        with pytest.raises(CommandError) as raised:
            run(*DURING, "--prices", str(path))
        assert told in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--since", "yesterday", "--strategy", "random"), "--since: takes a date"),
        (("--since", "24h", "--until", "tomorrow", "--strategy", "random"), "--until: takes a date"),
        (("--since", "1h", "--until", "2h", "--strategy", "random"), "--since must be before --until"),
        (("--since", "24h", "--strategy", "fastest"), "--strategy: there is no 'fastest'; there are cost_optimized,"),
        (("--since", "24h"), "nothing to try"),
        (("--since", "24h", "--prices", "/nowhere"), "takes a file that can be read"),
        (("--since", "999999w", "--strategy", "random"), "--since: takes a date"),
    ],
)
def test_wrong_arguments_are_one_line(world, arguments, told):
    with pytest.raises(CommandError) as raised:
        run(*arguments)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_ledger_is_read_in_batches(ledger, monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(history, "_BATCH", 10)
    with django_assert_num_queries(2):  # corrections, and the rows
        rows = history.closed_requests(BEGAN - timedelta(days=1), BEGAN + timedelta(days=1))
        assert next(rows).at == BEGAN.timestamp()
        assert sum(1 for _ in rows) == 599
