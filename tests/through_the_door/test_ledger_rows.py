"""What is on the ledger after a request: a hold, and one closing entry that says what it cost."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.utils import timezone

from billing import ledger, pricebook
from billing.models import LedgerEntry
from billing.pricing import Rates
from gateway import tokens
from tests.support.gateway import asking
from tests.support.upstream import USAGE, answers, refuses, says
from tests.support.world import make_deployment, make_group, make_key, make_price


class TestASettlement:
    def test_says_who_what_and_where(self, gateway, provider, alice, upstream, stream):
        make_price("gpt-test-2026")
        make_group("smart", make_deployment(provider, "fast", "gpt-test-2026"))
        upstream.will(says(model="gpt-test-2026-11-01"))
        before = timezone.now()
        answer = gateway.chat(
            alice, model="smart", stream=stream, session_id="s-1", tags=["invoice", "eu"], user="end-user-7"
        )
        hold, row = gateway.entries(answer.id)
        for entry in (hold, row):
            assert entry.key_id == alice.id
            assert (entry.user_id, entry.team) == ("alice", "red")
            assert (entry.provider, entry.deployment) == ("upstream", "fast")
            assert (entry.requested_model, entry.routed_model) == ("smart", "gpt-test-2026")
            assert (entry.stream, entry.session_id, entry.tags) == (stream, "s-1", ["invoice", "eu"])
            assert entry.detail["end_user"] == "end-user-7"
            assert entry.process_id == gateway.plane.process_id
            assert before <= entry.created_at <= entry.written_at <= timezone.now()
        assert (hold.kind, hold.status, hold.served_model, hold.cost_usd) == ("hold", None, None, None)
        assert (row.kind, row.status, row.served_model) == ("settlement", 200, "gpt-test-2026-11-01")
        assert row.created_at == hold.created_at
        assert row.detail["finish_reason"] == "stop"

    def test_costs_to_the_last_digit(self, gateway, provider, alice, upstream, stream):
        # 1 token at 0.000123457 dollars a million, 3 at 0.1, 7 cached at 0.033333333333: more than twelve places.
        make_deployment(provider)
        make_price(input=Decimal("0.1"), output=Decimal("0.000123457"), cached_input=Decimal("0.033333333333"))
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 7}}
        upstream.will(says(usage=usage))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        exact = (3 * Decimal("0.1") + 7 * Decimal("0.033333333333") + Decimal("0.000123457")) / 10**6
        assert row.cost_usd == exact.quantize(Decimal(1).scaleb(-12))
        assert row.cost_usd == Decimal("0.000000533457")

    def test_knows_its_price(self, gateway, provider, alice):
        make_deployment(provider)
        price = make_price()
        assert gateway.settlement(gateway.chat(alice).id).price_id == price.pk

    def test_the_usual_sum(self, gateway, model, alice, stream):
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert (row.prompt_tokens, row.completion_tokens) == (USAGE["prompt_tokens"], USAGE["completion_tokens"])
        assert row.cost_usd == Decimal("0.0000675")
        assert (row.unpriced, row.estimated) == (False, False)

    def test_a_million_dollars_are_exact_too(self, gateway, provider, alice, upstream):
        make_deployment(provider)
        make_price(input=Decimal("123456.789012345678"), output=Decimal("0"))
        upstream.will(says(usage={"prompt_tokens": 9_999_999, "completion_tokens": 0}))
        row = gateway.settlement(gateway.chat(alice).id)
        assert row.cost_usd == Decimal("1234567.766666667768")

    def test_reasoning_is_billed_once(self, gateway, model, alice, upstream, stream):
        # LiteLLM#10567 and others: ignored, alone or twice.
        usage = {"prompt_tokens": 0, "completion_tokens": 482, "completion_tokens_details": {"reasoning_tokens": 448}}
        upstream.will(says(usage=usage))
        assert gateway.settlement(gateway.chat(alice, stream=stream).id).cost_usd == 482 * Decimal("10") / 10**6

    def test_cached_tokens_are_billed_at_their_rate_once(self, gateway, provider, alice, upstream, stream):
        # The figures of LiteLLM#35127: 0.860 dollars where 0.166250 were due.
        make_deployment(provider)
        make_price(input=5, output=25, cached_input=Decimal("0.5"), cache_write_5m=Decimal("6.25"))
        details = {"cached_tokens": 155_000, "cache_write_tokens": 3_000}
        usage = {"prompt_tokens": 172_000, "completion_tokens": 0, "prompt_tokens_details": details}
        upstream.will(says(usage=usage))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert row.cost_usd == Decimal("0.16625")

    def test_the_service_tier_that_answered_sets_the_price(self, gateway, provider, alice, upstream, stream):
        make_deployment(provider)
        pricebook.set_price(
            provider="upstream", model="gpt-test", rates=Rates(input=Decimal(2), output=Decimal(2)),
            service_tiers={"flex": "0.5", "priority": {"input": "4", "output": "4"}},
        )  # fmt: skip
        costs = {}
        for tier in (None, "default", "flex", "priority", "unheard-of"):
            upstream.will(says(service_tier=tier))
            costs[tier] = gateway.settlement(gateway.chat(alice, stream=stream).id).cost_usd * 10**6
        assert costs == {None: 30, "default": 30, "flex": 15, "priority": 60, "unheard-of": 30}

    def test_the_model_that_answered_sets_the_price(self, gateway, model, alice, upstream, stream):
        make_price("gpt-dear", input=100, output=100)
        upstream.will(says(model="gpt-dear"))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert (row.served_model, row.cost_usd) == ("gpt-dear", Decimal("0.0015"))

    def test_an_unheard_of_snapshot_costs_what_its_deployment_does(self, gateway, model, alice, upstream, stream):
        upstream.will(says(model="gpt-test-0613-secret"))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert (row.served_model, row.cost_usd) == ("gpt-test-0613-secret", Decimal("0.0000675"))

    def test_the_price_of_the_time_of_arrival_counts(self, gateway, provider, alice, upstream):
        make_deployment(provider)
        now = datetime.now(UTC)
        make_price(input=1, output=1, effective_from=now - timedelta(days=2))
        make_price(input=1000, output=1000, effective_from=now + timedelta(days=1))
        assert gateway.settlement(gateway.chat(alice).id).cost_usd == Decimal("0.000015")

    def test_old_rows_keep_their_cost_when_prices_change(self, gateway, model, alice):
        first = gateway.settlement(gateway.chat(alice).id)
        make_price(input=100, output=100)
        second = gateway.settlement(gateway.chat(alice).id)
        first.refresh_from_db()
        assert (first.cost_usd, second.cost_usd) == (Decimal("0.0000675"), Decimal("0.0015"))
        assert first.price_id != second.price_id


class TestUnpriced:
    def test_its_cost_is_null_and_never_zero(self, gateway, provider, alice, upstream, stream):
        make_deployment(provider)
        hold, row = gateway.entries(gateway.chat(alice, stream=stream).id)
        assert (hold.held_usd, hold.unpriced) == (None, True)
        assert (row.kind, row.status, row.cost_usd, row.price_id, row.unpriced) == ("settlement", 200, None, None, True)
        assert (row.prompt_tokens, row.completion_tokens) == (11, 4)

    def test_free_is_not_unpriced(self, gateway, provider, alice, stream):
        make_deployment(provider)
        make_price(input=0, output=0)
        answer = gateway.chat(alice, stream=stream)
        row = gateway.settlement(answer.id)
        assert (row.cost_usd, row.unpriced) == (0, False)
        if not stream:
            assert Decimal(answer.headers["x-ailb-cost-usd"]) == 0


class TestEstimated:
    def test_where_nobody_can_count_it_costs_what_was_held(self, gateway, model, alice, upstream, stream, monkeypatch):
        def no_ranks(*_):
            raise tokens.RanksMissing("o200k_base", Path("nowhere"))

        monkeypatch.setattr(tokens, "count_prompt", no_ranks)
        upstream.will(says(usage=None))
        answer = gateway.chat(alice, stream=stream)
        assert answer.status == 200
        hold, row = gateway.entries(answer.id)
        assert row.estimated
        assert (row.prompt_tokens, row.completion_tokens) == (hold.held_prompt_tokens, hold.held_output_tokens)

    @pytest.mark.parametrize("usage", [None, {}, {"completion_tokens": 4}, {"prompt_tokens": None}], ids=str)
    def test_where_the_upstream_reports_nothing_we_count(self, gateway, model, alice, upstream, stream, usage):
        upstream.will(says("One two", " three.", usage=usage))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert row.estimated
        assert (row.prompt_tokens, row.completion_tokens) == (9, 4)
        assert row.cost_usd == (9 * Decimal("2.5") + 4 * 10) / 10**6

    def test_a_null_usage_is_none(self, gateway, model, alice, upstream):
        body = {"id": "x", "choices": [{"index": 0, "message": {"content": "Hi"}}], "usage": None}
        upstream.will(answers(body))
        assert gateway.settlement(gateway.chat(alice).id).estimated

    def test_tool_calls_count(self, gateway, model, alice, upstream):
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ede"}'}}
        message = {"content": None, "tool_calls": [call]}
        upstream.will(says(usage=None, message=message))
        assert gateway.settlement(gateway.chat(alice).id).completion_tokens >= 5

    def test_every_choice_counts(self, gateway, model, alice, upstream):
        choice = {"message": {"content": " one two three"}, "finish_reason": "stop"}
        upstream.will(answers({"id": "x", "choices": [{"index": n, **choice} for n in range(3)]}))
        assert gateway.settlement(gateway.chat(alice, n=3).id).completion_tokens == 9

    def test_a_long_answer_is_counted_off_the_loop(self, gateway, model, alice, upstream, stream):
        upstream.will(says(*(["word "] * 5_000), usage=None))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert 4_900 <= row.completion_tokens <= 5_100


class TestTheHold:
    def test_is_the_most_the_request_can_cost(self, gateway, model, alice, stream):
        hold, row = gateway.entries(gateway.chat(alice, stream=stream, max_completion_tokens=100).id)
        assert hold.held_output_tokens == 100
        assert hold.held_prompt_tokens >= row.prompt_tokens - 2
        assert hold.held_usd == (hold.held_prompt_tokens * Decimal("2.5") + 100 * 10) / 10**6
        assert hold.held_usd > row.cost_usd

    def test_covers_every_choice(self, gateway, model, alice):
        hold, _ = gateway.entries(gateway.chat(alice, max_tokens=100, n=3).id)
        assert hold.held_output_tokens == 300

    def test_an_unknown_maximum_is_4096(self, gateway, model, alice):
        hold, _ = gateway.entries(gateway.chat(alice).id)
        assert hold.held_output_tokens == 4096

    def test_a_known_one_is_taken(self, gateway, provider, alice):
        make_deployment(provider, max_output=1234)
        hold, _ = gateway.entries(gateway.chat(alice).id)
        assert hold.held_output_tokens == 1234

    def test_of_several_candidates_the_dearest_counts(self, gateway, provider, alice):
        make_price("cheap", input=1, output=1)
        make_price("dear", input=100, output=100)
        make_group("pair", make_deployment(provider, "cheap"), make_deployment(provider, "dear"))
        hold, _ = gateway.entries(gateway.chat(alice, model="pair", max_tokens=1000).id)
        assert hold.held_usd >= Decimal("0.1")

    def test_is_on_disk_before_the_client_gets_its_first_byte(self, gateway, model, alice, upstream):
        # Looked up from here, without asking the writer to hurry.
        upstream.always(says(*["word"] * 5, delay=0.02))
        for _ in range(5):
            with gateway.chatting(alice, stream=True) as response:
                request_id = response.headers["x-request-id"]
                assert LedgerEntry.objects.filter(request_id=request_id, kind="hold").exists()
        for _ in range(5):
            request_id = gateway.chat(alice).id
            assert LedgerEntry.objects.filter(request_id=request_id, kind="hold").exists()
        gateway.wait_until_quiet()

    def test_nothing_leaves_while_it_is_not(self, gateway, model, alice, upstream, stream, monkeypatch):
        go_on, insert = threading.Event(), ledger.insert

        def slowly(rows):
            assert go_on.wait(10)
            insert(rows)

        monkeypatch.setattr(ledger, "insert", slowly)
        with asking(gateway, alice, stream=stream) as connection:
            assert upstream.wait_for_requests(1)[0].was_ended()
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert not LedgerEntry.objects.exists()
            go_on.set()
            connection.settimeout(10)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            while b"Hello" not in connection.recv(65536):
                pass
            assert LedgerEntry.objects.filter(kind="hold").exists()
            gateway.only_closing()


class TestWhatIsNotServed:
    @pytest.mark.parametrize("status", [400, 401, 500])
    def test_is_released(self, gateway, model, alice, upstream, stream, status):
        upstream.will(refuses(status))
        hold, row = gateway.entries(gateway.chat(alice, stream=stream).id)
        assert row.kind == "release"
        assert (row.prompt_tokens, row.completion_tokens, row.cost_usd) == (0, 0, 0)
        assert not row.unpriced
        assert not row.estimated
        assert hold.held_usd > 0

    def test_what_is_refused_at_the_door_is_not_written(self, gateway, model, alice):
        gateway.chat(None)
        gateway.chat(alice, model="nobody")
        gateway.chat(alice, n=0)
        gateway.wait_until_quiet()
        assert not LedgerEntry.objects.exists()


class TestAttempts:
    def test_each_is_kept_with_its_times(self, gateway, provider, alice, upstream, stream):
        make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
        upstream.will(refuses(429, "Slow down."), model="a")
        upstream.will(says(delay=0.02), model="b")
        row = gateway.settlement(gateway.chat(alice, model="pair", stream=stream).id)
        first, second = row.attempts
        assert first["provider"] == second["provider"] == "upstream"
        assert (first["deployment"], first["outcome"], first["status"]) == ("a", "upstream_error", 429)
        assert "Slow down." in first["error"]
        assert (second["deployment"], second["outcome"], second["status"]) == ("b", "ok", 200)
        assert 0 <= first["started_ms"] <= second["started_ms"]
        assert second["latency_ms"] >= 20
        assert row.latency_ms >= second["started_ms"] + 20

    def test_the_gateways_own_time_is_told_apart(self, gateway, model, alice, upstream, stream):
        upstream.will(says(delay=0.1))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert row.latency_ms >= 100
        assert 0 < row.overhead_ms < row.latency_ms - 90

    def test_the_time_to_first_content_is_a_streams(self, gateway, model, alice, upstream, stream):
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert (row.ttft_ms is not None) is stream


class TestTags:
    def test_the_keys_come_first(self, gateway, model, stream):
        key = make_key(tags=["team-a"])
        row = gateway.settlement(gateway.chat(key, stream=stream, tags=["mine"]).id)
        assert row.tags == ["team-a", "mine"]

    def test_a_header_does_too(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream, headers={"x-ailb-tags": "a, b ,,c"})
        assert gateway.settlement(answer.id).tags == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("session_id", "s\x00\u202e☃" * 5), ("tags", ["\x00☃", '"]']), ("user", "u\x00☃"), ("model", "gpt-test")],
)
def test_odd_characters_are_written_down_all_the_same(gateway, model, alice, stream, field, value):
    answer = gateway.chat(alice, stream=stream, **{field: value})
    assert answer.status == 200
    assert gateway.settlement(answer.id).status == 200


def test_odd_answers_are_written_down_all_the_same(gateway, model, alice, upstream, stream):
    upstream.will(says(model="m\x00\u2603" * 100, service_tier="t\x00", finish="stop\x00"))
    row = gateway.settlement(gateway.chat(alice, stream=stream).id)
    assert row.status == 200
    assert len(row.served_model) <= 200
