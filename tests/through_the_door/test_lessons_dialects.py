"""What the users of other gateways ran into between dialects (lessons.md), and what spares it to ours."""

from dataclasses import replace
from decimal import Decimal
from itertools import permutations, product
from unittest.mock import ANY

import pytest

from billing import pricebook
from billing.pricing import Rates
from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import CASES, CITY, KOELN, PNG, WEATHER, Ask, Say, Tokens
from tests.support.upstream import answers, drops
from tests.support.world import make_group

UNKNOWN = "ailb_unknown_stop_reasons_total"
UNMETERED = 'ailb_unmetered_requests_total{reason="no_usage"}'
PAIRS = list(product(DOORS, PROVIDERS))
TEXT = CASES["text"].say

each_pair = pytest.mark.parametrize(("door", "kind"), PAIRS)
each_door = pytest.mark.parametrize("door", DOORS)
each_kind = pytest.mark.parametrize("kind", PROVIDERS)


def priced(provider, **rates):
    """A price of the deployment's own, in dollars per million tokens."""
    rates = Rates(**{name: Decimal(rate) for name, rate in rates.items()})
    pricebook.set_price(
        provider="upstream", model=provider.model, deployment="the-model", rates=rates, confirmed=True
    )  # fmt: skip


class TestLesson4UsageOfStreamsThatNobodyAskedFor:
    @each_kind
    def test_it_is_billed_and_not_shown(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = DOORS["openai"].ask(gateway, alice, Ask(stream=True), stream_options=None)
        assert heard.ended
        assert heard.tokens is None
        provider.read(upstream.only)  # which asserts that the upstream was asked for usage
        row = gateway.settlement(heard.id)
        assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (100, 40, False)
        assert row.cost_usd > 0

    @each_kind
    def test_at_the_messages_door_it_is_always_told(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = DOORS["anthropic"].ask(gateway, alice, Ask(stream=True))
        assert heard.tokens == provider.reported(TEXT.tokens)


class TestLesson5NoUsageAtAll:
    @each_pair
    def test_an_estimate_is_billed_marked_and_counted(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        before = gateway.metric(UNMETERED)
        upstream.will(provider.says(replace(TEXT, tokens=None)))
        if door.kind == kind:
            # What the upstream said passes by as it is, without usage: nothing to be read by the rules.
            with door.asking(gateway, alice, Ask(stream=stream)) as response:
                assert b"Hel" in response.read()
            row = gateway.only_closing()
        else:
            heard = door.ask(gateway, alice, Ask(stream=stream))
            row = gateway.settlement(heard.id)
            assert heard.tokens == Tokens(row.prompt_tokens, row.completion_tokens), "the client is told the same"
        assert (row.kind, row.status, row.estimated) == ("settlement", 200, True)
        assert 5 < row.prompt_tokens < 40
        assert 5 < row.completion_tokens < 40
        assert row.cost_usd > 0
        assert gateway.metric(UNMETERED) - before == 1

    @each_pair
    def test_noughts_beside_an_answer_are_none(self, gateway, alice, upstream, stream, door, kind):
        """Servers that do not count say 0: what has words costs something."""
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(replace(TEXT, tokens=Tokens(0, 0))))
        with door.asking(gateway, alice, Ask(stream=stream)) as response:
            assert b"Hel" in response.read()
        row = gateway.only_closing()
        assert (row.kind, row.status, row.estimated) == ("settlement", 200, True)
        assert row.prompt_tokens > 0
        assert row.completion_tokens > 0
        assert row.cost_usd > 0


class TestLesson6CachedTokens:
    """172k in, 155k of it read from a cache and 3k written to it."""

    TOKENS = Tokens(172_000, 400, 155_000, 3_000)
    RATES = {"input": "5", "output": "25", "cached_input": "0.5", "cache_write_5m": "6.25"}

    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    @each_door
    def test_each_kind_of_token_at_its_own_price(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        priced(provider, **self.RATES)
        upstream.will(provider.says(replace(TEXT, tokens=self.TOKENS)))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        assert heard.tokens == self.TOKENS
        row = gateway.settlement(heard.id)
        output = 400 * Decimal("25") / 10**6
        assert row.cost_usd - output == Decimal("0.166250")
        if not stream:
            assert Decimal(heard.headers["x-ailb-cost-usd"]) == row.cost_usd

    @each_door
    def test_an_hours_write_at_the_hours_price(self, gateway, alice, upstream, stream, door):
        door, provider = DOORS[door], serve(upstream, "anthropic")
        priced(provider, **self.RATES, cache_write_1h="10")
        plain = provider.plain(replace(TEXT, tokens=Tokens(10_000, 4, 0, 3_000)))
        plain["usage"]["cache_creation"] = {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 2_000}
        start = {**plain, "content": [], "stop_reason": None}
        _, *rest = provider.pieces(replace(TEXT, tokens=Tokens(0, 4)))
        upstream.will(provider.plays(plain, provider.event("message_start", message=start), *rest))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        row = gateway.settlement(heard.id)
        assert row.cost_usd == (7_000 * 5 + 1_000 * Decimal("6.25") + 2_000 * 10 + 4 * 25) / 10**6
        assert row.cache_write_tokens == 3_000
        assert heard.tokens.written == 3_000

    @pytest.mark.parametrize("again", ["the same", "null"])
    @each_door
    def test_what_is_cumulative_is_not_added_up(self, gateway, alice, upstream, door, again):
        door, provider = DOORS[door], serve(upstream, "anthropic")
        priced(provider, **self.RATES)
        *events, _, stop = provider.pieces(replace(TEXT, tokens=self.TOKENS))
        usage = provider.usage(self.TOKENS, whole=True)
        if again == "null":
            usage = dict.fromkeys(usage) | {"output_tokens": 400}
        ended = {"stop_reason": "end_turn", "stop_sequence": None}
        # Told along the way too, of the answer so far.
        upstream.will(
            provider.plays({}, *events, provider.event("message_delta", delta=ended, usage=usage), stop)
        )  # fmt: skip
        heard = door.ask(gateway, alice, Ask(stream=True))
        assert heard.tokens == self.TOKENS
        assert gateway.settlement(heard.id).cost_usd == Decimal("0.166250") + Decimal("0.01")


class TestLesson7TotalsAndTheirParts:
    @pytest.mark.parametrize(
        "tokens", [Tokens(100, 40), Tokens(101, 40, 100), Tokens(101, 40, 0, 100), Tokens(101, 40, 60, 40, 40)]
    )
    @each_pair
    def test_the_parts_are_within_the_totals(self, gateway, alice, upstream, stream, door, kind, tokens):
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(replace(TEXT, tokens=tokens)))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        # Prompt and completion are the total, and parts are parts: the doors' readers say so of every answer.
        assert heard.tokens == provider.reported(tokens)
        row = gateway.settlement(heard.id)
        assert (row.prompt_tokens, row.completion_tokens) == (tokens.prompt, tokens.completion)
        assert row.cached_tokens + row.cache_write_tokens <= row.prompt_tokens
        assert row.reasoning_tokens <= row.completion_tokens

    def test_a_part_that_is_told_larger_than_its_whole(self, gateway, alice, upstream, stream):
        door, provider = DOORS["anthropic"], serve(upstream, "openai")
        upstream.will(provider.says(replace(TEXT, tokens=Tokens(100, 40, 200, 0, 60))))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        row = gateway.settlement(heard.id)
        assert heard.tokens.prompt == row.prompt_tokens == 100
        assert row.cached_tokens <= row.prompt_tokens
        assert row.reasoning_tokens <= row.completion_tokens


class TestLesson8ReasoningTokens:
    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    @each_door
    def test_they_are_billed_once(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        say = replace(CASES["thinking"].say, tokens=Tokens(100, 482, reasoning=448))
        upstream.will(provider.says(say))
        heard = door.ask(gateway, alice, Ask(thinks=True, stream=stream))
        assert heard.tokens == say.tokens
        row = gateway.settlement(heard.id)
        assert (row.completion_tokens, row.reasoning_tokens) == (482, 448)
        assert row.cost_usd == (100 * Decimal("2.5") + 482 * 10) / 10**6


# ── 35: fallbacks ───────────────────────────────────────────────────────────────────────────────────────────────────


def failures(provider):
    """Ways to fail before the first content, by name."""
    pieces = provider.pieces(TEXT)
    preface = pieces[: {"openai": 1, "anthropic": 2, "ollama": 0}[provider.kind]]
    return {
        "a status": provider.refuses(503, "Overloaded.", "overloaded_error"),
        "an error event": provider.plays({}, provider.error_event("Overloaded.")),
        "an error event after the preface": provider.plays({}, *preface, 0.05, provider.error_event("Overloaded.")),
        "an end after the preface": provider.plays({}, *preface),
        "nothing": drops(),
    }


class TestLesson35BrokenStreams:
    @pytest.mark.parametrize("how", failures(PROVIDERS["openai"]))
    @each_pair
    def test_before_the_first_content_the_next_one_answers(self, gateway, alice, upstream, door, kind, how):
        door, provider = DOORS[door], serve(upstream, kind, "first")
        serve(upstream, "ollama", "second", slug="other")
        make_group("the-model", *_deployments("first", "second"))
        upstream.will(failures(provider)[how], model=provider.model)
        upstream.will(PROVIDERS["ollama"].says(TEXT))
        if kind == "ollama":
            upstream.will(PROVIDERS["ollama"].says(TEXT), model=provider.model)
        heard = door.ask(gateway, alice, Ask(stream=True))
        assert (heard.status, heard.text, heard.ended) == (200, TEXT.text, True)
        row = gateway.settlement(heard.id)
        assert [attempt["deployment"] for attempt in row.attempts] == ["first", "second"]
        assert row.deployment == "second"

    @pytest.mark.parametrize("how", failures(PROVIDERS["openai"]))
    @each_pair
    def test_without_another_it_is_an_error_and_no_answer(self, gateway, alice, upstream, door, kind, how):
        door, provider = DOORS[door], serve(upstream, kind)
        script = failures(provider)[how]
        upstream.will(script, script)
        heard = door.ask(gateway, alice, Ask(stream=True))
        # The headers may be out with the first event, whatever it holds; then the error is in the stream.
        preface = "preface" in how and heard.status == 200
        door.assert_error(heard, 502, "upstream_error", "upstream_error", in_stream=preface)
        assert heard.text == ""
        assert gateway.closing(heard.id).status == 502

    @each_pair
    def test_after_the_first_content_nobody_else_is_asked(self, gateway, alice, upstream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind, "first")
        serve(upstream, "ollama", "second", slug="other")
        make_group("the-model", *_deployments("first", "second"))
        upstream.will(provider.breaks_off(TEXT))
        heard = door.ask(gateway, alice, Ask(stream=True))
        door.assert_error(heard, 502, "upstream_error", "upstream_error", in_stream=True)
        assert TEXT.text.startswith(heard.text)
        assert len(upstream.requests) == 1

    @each_pair
    def test_an_end_without_the_upstreams_own_is_none(self, gateway, alice, upstream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        pieces = provider.pieces(TEXT)
        upstream.will(provider.plays({}, *pieces[: provider.begun(pieces)]))
        heard = door.ask(gateway, alice, Ask(stream=True))
        door.assert_error(heard, 502, "upstream_error", "upstream_error", in_stream=True)
        assert TEXT.text.startswith(heard.text)
        row = gateway.settlement(heard.id)
        assert (row.status, row.estimated) == (502, True)

    @pytest.mark.parametrize(("first", "second"), list(permutations(PROVIDERS, 2)))
    @each_door
    def test_the_next_one_is_asked_in_its_own_words(self, gateway, alice, upstream, stream, door, first, second):
        door, one, other = DOORS[door], serve(upstream, first, "first"), serve(upstream, second, "second", slug="other")
        make_group("the-model", *_deployments("first", "second"))
        case = CASES["tools"]
        upstream.will(one.refuses(500), model=one.model)
        upstream.will(other.says(case.say), model=other.model)
        heard = door.ask(gateway, alice, replace(case.ask, stream=stream))
        assert heard.calls == list(case.say.calls)
        assert heard.headers["x-ailb-model"] == "second"
        asked = replace(case.ask, stream=stream)
        native = door.kind == second
        assert other.read(upstream.last) == other.expected(asked, native=native)
        # What was left out is what the one that answered was not told.
        assert ("tool_choice" in heard.dropped) is (second == "ollama")


def _deployments(*names):
    from gateway.models import Deployment

    return [Deployment.objects.get(name=name) for name in names]


# ── 42: stop reasons ────────────────────────────────────────────────────────────────────────────────────────────────


class TestLesson42StopReasons:
    @pytest.mark.parametrize("stop", PROVIDERS["anthropic"].stops)
    @each_door
    def test_each_of_anthropics_seven(self, gateway, alice, upstream, stream, door, stop):
        door, provider = DOORS[door], serve(upstream, "anthropic")
        assert len(provider.stops) == 7
        unknown = gateway.metric(UNKNOWN)
        calls = (KOELN,) if stop == "tools" else ()
        words = {"refusal": "I cannot."} if stop == "refusal" else {"text": "Well"}
        upstream.will(provider.says(Say(**words, calls=calls, stop=stop)))
        heard = door.ask(gateway, alice, Ask(tools=(WEATHER,), stream=stream))
        assert heard.stop == door.stops[stop]
        if door.kind == "anthropic":
            assert heard.stop_sequence == ("STOP" if stop == "sequence" else None)
        elif stop == "pause":
            assert b"pause_turn" in heard.raw, "told as an extension"
        elif stop == "refusal":
            assert b'"bio"' in heard.raw, "its category too"
        assert gateway.settlement(heard.id).status == 200
        assert gateway.metric(UNKNOWN) == unknown

    @each_pair
    def test_a_word_that_nobody_knows(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        unknown = gateway.metric(UNKNOWN)
        upstream.will(provider.says(Say(text="Well", stop="got_bored")))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        assert (heard.status, heard.text, heard.stop) == (200, "Well", door.stops["end"])
        assert b"got_bored" not in heard.raw
        assert gateway.settlement(heard.id).status == 200
        assert gateway.metric(UNKNOWN) == unknown + 1

    @each_door
    def test_a_filter_that_struck_in_the_middle(self, gateway, alice, upstream, stream, door):
        door, provider = DOORS[door], serve(upstream, "openai")
        upstream.will(provider.says(Say(text="Once upon", stop="refusal")))
        heard = door.ask(gateway, alice, Ask(stream=stream))
        assert (heard.text, heard.refusal, heard.stop) == ("Once upon", "", door.stops["refusal"])

    @each_pair
    def test_a_refusal_that_the_upstream_calls_an_ordinary_end(self, gateway, alice, upstream, stream, door, kind):
        """OpenAI's structured outputs: `refusal` is set and the reason is "stop"."""
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(Say(refusal="I cannot.", stop="end")))
        heard = door.ask(gateway, alice, Ask(schema=CITY, stream=stream))
        assert heard.status == 200
        assert heard.text + heard.refusal == "I cannot."


# ── 43: errors ──────────────────────────────────────────────────────────────────────────────────────────────────────


class TestLesson43ErrorBodies:
    """The doors' readers check every error's shape; here are those that upstreams and clients get wrong."""

    @pytest.mark.parametrize(
        "error",
        [
            {"error": {"message": "No.", "type": None, "param": None, "code": "429"}},
            {"error": {"message": "No.", "type": "None", "param": "None", "code": 429}},
            {"error": {"message": "No."}},
            {"error": "No."},
            {"type": "error", "error": {"type": "", "message": "No."}},
            {"detail": "No."},
            None,
        ],
    )
    @each_pair
    def test_whatever_an_upstream_says(self, gateway, alice, upstream, stream, door, kind, error):
        door, _ = DOORS[door], serve(upstream, kind)
        for status in (400, 413, 422, 404, 429, 500, 529):
            upstream.will(answers(error, status))
            gateway.forget_failures()
            heard = door.ask(gateway, alice, Ask(stream=stream))
            if status in (400, 413, 422):
                door.assert_error(heard, 400, "invalid_request_error", None)
            else:
                door.assert_error(heard, 502, "upstream_error", "upstream_error")

    @each_pair
    def test_whatever_a_client_says(self, gateway, alice, upstream, door, kind):
        door, _ = DOORS[door], serve(upstream, kind)
        said = {"model": "the-model", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        for body in (b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 100_000):
            door.assert_error(door.send(gateway, alice, body), 400, "invalid_request_error", None)
        for change, param in (
            ({"model": 5}, "model"),
            ({"model": None}, "model"),
            ({"model": ""}, "model"),
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "Hi"}, "messages"),
            ({"messages": [5]}, ANY),
            ({"messages": [{"role": "god", "content": "Hi"}]}, "messages[0].role"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
            ({"max_tokens": "5"}, "max_tokens"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"stream": "yes"}, "stream"),
        ):
            heard = door.send(gateway, alice, {**said, **change})
            assert heard.status == 400, (change, heard.raw)
            door.assert_error(heard, 400, "invalid_request_error", None, param=param)
        assert not upstream.requests

    @each_pair
    def test_content_that_no_block_is(self, gateway, alice, upstream, door, kind):
        """Well-formed JSON of the wrong shapes, deep inside: refused, and never a defect of ours."""
        door, _ = DOORS[door], serve(upstream, kind)
        upstream.always(PROVIDERS[kind].says(TEXT))
        for content in (
            [{"type": "text"}], [{"type": "text", "text": None}], [{}], [None], [[]], ["Hi"], [{"type": 5}],
            [{"type": "image_url", "image_url": "x"}], [{"type": "image_url", "image_url": {"url": "data:x"}}],
            [{"type": "image", "source": {"type": "base64", "data": PNG}}], [{"type": "image", "source": 5}],
            [{"type": "tool_result"}], [{"type": "tool_use", "id": "x", "name": "y", "input": "z"}],
        ):  # fmt: skip
            messages = [{"role": "user", "content": content}]
            heard = door.send(gateway, alice, {"model": "the-model", "messages": messages, "max_tokens": 5})
            assert heard.status in (200, 400), (content, heard.raw)
        for field in ("tools", "tool_choice", "system", "thinking", "response_format", "output_config", "stop"):
            for value in (5, "x", [5], {"type": 5}, [{"type": "function"}], [{"name": 5}], [[]], {"x": {}}):
                messages = [{"role": "user", "content": "Hi"}]
                body = {"model": "the-model", "messages": messages, "max_tokens": 5, field: value}
                heard = door.send(gateway, alice, body)
                assert heard.status in (200, 400), (field, value, heard.raw)
