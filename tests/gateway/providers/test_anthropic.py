"""Anthropic: what it sends, what it makes of what comes. What is translated how is in tests/gateway/translate."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from gateway.errors import (
    InvalidRequest,
    StreamCut,
    UnsupportedParameter,
    UpstreamCredentialsRejected,
    UpstreamError,
)
from gateway.providers import vendor
from gateway.types import Stop, ToolCall, Usage
from tests.gateway.providers.contract import KEY, ProviderContract, asked, completed, configured, deployed, gathered
from tests.support.upstream import answers, sends

STARTED = {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}


def event(type_, **fields):
    return f"event: {type_}\ndata: {json.dumps({'type': type_, **fields})}\n\n".encode()


def message(model, content, **fields):
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": None, "stop_sequence": None, "usage": STARTED, **fields,
    }  # fmt: skip


def text(part, index=0):
    return event("content_block_delta", index=index, delta={"type": "text_delta", "text": part})


def begins(model="claude-x"):
    return event("message_start", message=message(model, []))


def ends(reason="end_turn"):
    delta = event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 4})
    return delta + event("message_stop")


def says(*words):
    """A well-behaved answer, streamed a word an event where asked."""

    async def script(call):
        model = call.received.body["model"]
        if not call.wants_stream:
            content = [{"type": "text", "text": "".join(words)}]
            usage = {**STARTED, "output_tokens": 4}
            await call.json(200, message(model, content, stop_reason="end_turn", usage=usage))
            return
        await call.head(200, content_type="text/event-stream")
        start = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for part in (begins(model), event("ping"), start, *map(text, words)):
            await call.chunk(part)
        await call.chunk(event("content_block_stop", index=0) + ends())
        await call.end()

    return script


def fails(status, message_="No.", type_="invalid_request_error", **headers):
    """An error in Anthropic's envelope."""
    return answers({"type": "error", "error": {"type": type_, "message": message_}}, status, **headers)


class TestAnthropic(ProviderContract):
    kind = "anthropic"

    def prepare(self, upstream):
        upstream.always(says("Hello", " there", "."))

    async def test_it_says_who_we_are_and_which_version_we_speak(self, provider, deployment, upstream, door):
        await completed(provider, asked(door=door), deployment)
        headers = upstream.only.headers
        assert headers["x-api-key"] == KEY
        assert headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in headers
        assert upstream.only.path.endswith("/v1/messages")
        assert upstream.only.body["model"] == "gpt-upstream"

    async def test_another_version_may_be_configured(self, upstream):
        config = configured("anthropic", upstream.url, headers={"anthropic-version": "2026-10-21"})
        upstream.always(says("Hello"))
        provider = vendor("anthropic")(config)
        await completed(provider, asked(), deployed(config))
        await provider.close()
        assert upstream.only.headers["anthropic-version"] == "2026-10-21"

    async def test_the_clients_betas_are_its_own_dialects(self, provider, deployment, upstream):
        betas = {"betas": "a-2025-01-01,b-2025-01-01"}
        for door in ("messages", "chat"):
            request = asked(door=door)
            await completed(provider, replace(request, **betas), deployment)
        native, translated = upstream.requests
        assert native.headers["anthropic-beta"] == betas["betas"]
        assert "anthropic-beta" not in translated.headers

    async def test_a_request_of_its_own_dialect_is_passed_as_it_is(self, provider, deployment, upstream, stream):
        more = {"thinking": {"type": "adaptive"}, "brand_new": [1], "system": [{"type": "text", "text": "x"}]}
        request = asked(stream, door="messages", **more)
        before = json.dumps(request.body)
        await (gathered(provider, request, deployment) if stream else completed(provider, request, deployment))
        assert upstream.only.body == {**json.loads(before), "model": "gpt-upstream"}
        assert json.dumps(request.body) == before

    async def test_a_native_answer_is_passed_as_it_is(self, provider, deployment, upstream):
        body = json.dumps(message("m", [{"type": "brand_new"}]), indent=2).encode()
        upstream.will(answers(body))
        assert (await completed(provider, asked(door="messages"), deployment)).body == body

    @pytest.mark.parametrize(
        ("fields", "most", "sent"),
        [
            ({"max_tokens": 50}, 20, {"max_tokens": 20}),
            ({"max_tokens": 50}, 80, {"max_tokens": 50}),
            (
                {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 5000}},
                2000,
                {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1999}},
            ),
            (
                {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 1500}},
                2000,
                {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1500}},
            ),
            (
                {"max_tokens": 9000, "thinking": {"type": "enabled", "budget_tokens": 1500}},
                1024,
                {"max_tokens": 1024, "thinking": {"type": "disabled"}},
            ),
            (
                {"max_tokens": 9000, "thinking": {"type": "adaptive"}},
                100,
                {"max_tokens": 100, "thinking": {"type": "adaptive"}},
            ),
        ],
    )
    async def test_the_gateways_cap_is_kept(self, provider, deployment, upstream, fields, most, sent):
        await completed(provider, replace(asked(door="messages", **fields), max_output=most), deployment)
        assert {name: upstream.only.body[name] for name in sent} == sent

    async def test_a_chat_request_is_translated_and_what_is_left_out_is_told(self, provider, deployment, upstream):
        call = provider.prepare(asked(seed=7, max_tokens=30, stop="x"), deployment)
        assert call.dropped == ("seed",)
        assert not call.native
        await provider.complete(call)
        assert upstream.only.body == {
            "model": "gpt-upstream", "max_tokens": 30, "stop_sequences": ["x"],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Say it."}]}],
        }  # fmt: skip

    async def test_the_deployments_most_is_the_cap_where_nobody_named_one(self, provider, upstream):
        await completed(provider, asked(), deployed(provider.config, max_output=777))
        assert upstream.only.body["max_tokens"] == 777

    async def test_what_it_cannot_take_is_refused_before_it_is_sent(self, provider, deployment, upstream):
        with pytest.raises(UnsupportedParameter):
            provider.prepare(asked(n=2), deployment)
        assert not upstream.requests

    async def test_a_call_of_a_tool(self, provider, deployment, upstream):
        content = [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]
        upstream.will(answers(message("m", content, stop_reason="tool_use", usage={**STARTED, "input_tokens": 3})))
        completion = await completed(provider, asked(), deployment)
        assert completion.answer.content == (ToolCall("t", "f", '{"a": 1}'),)
        assert completion.answer.stop is Stop.TOOL_CALLS
        assert completion.usage == Usage(3, 1)

    async def test_a_stream_that_is_left_drops_its_connection(self, provider, deployment, upstream):
        upstream.will(sends(begins(), text("Hi"), end="stall"))
        source = provider.stream(provider.prepare(asked(True), deployment))
        await anext(source)
        await source.aclose()
        assert await asyncio.to_thread(upstream.only.was_dropped)


class TestErrors:
    """Raised by plain calls and by streams alike."""

    @pytest.fixture
    async def provider(self, upstream):
        provider = vendor("anthropic")(configured("anthropic", upstream.url))
        yield provider
        await provider.close()

    async def raised(self, provider, kind, stream, door="chat"):
        request, deployment = asked(stream, door=door), deployed(provider.config)
        with pytest.raises(kind) as caught:
            await (gathered(provider, request, deployment) if stream else completed(provider, request, deployment))
        return caught.value

    @pytest.mark.parametrize(
        ("said", "code"),
        [
            ("max_tokens: Field required", None),
            ("prompt is too long: 210000 tokens > 200000 maximum", "context_length_exceeded"),
            ("input length and `max_tokens` exceed context limit: 1 + 2 > 2", "context_length_exceeded"),
        ],
    )
    async def test_the_clients_fault(self, provider, upstream, said, code, stream):
        upstream.will(fails(400, said))
        error = await self.raised(provider, InvalidRequest, stream)
        assert (error.message, error.code) == (said, code)

    async def test_our_credential(self, provider, upstream, stream):
        upstream.will(fails(401, "invalid x-api-key", "authentication_error"))
        error = await self.raised(provider, UpstreamCredentialsRejected, stream)
        assert error.upstream_status == 401

    async def test_an_overload_is_for_another_to_take(self, provider, upstream, stream):
        upstream.will(fails(529, "Overloaded", "overloaded_error", retry_after="3"))
        error = await self.raised(provider, UpstreamError, stream)
        assert (error.upstream_status, error.retry_after, error.retryable) == (529, 3.0, True)
        assert "Overloaded" in error.message

    @pytest.mark.parametrize("door", ["chat", "messages"])
    async def test_an_error_in_a_stream(self, provider, upstream, door):
        told = event("error", error={"type": "overloaded_error", "message": f"Overloaded, {KEY}"})
        upstream.will(sends(begins(), told))
        error = await self.raised(provider, UpstreamError, True, door)
        assert "Overloaded" in error.message
        assert KEY not in error.message

    @pytest.mark.parametrize("rest", [b"", b"data: {}\n\n", b"data: nonsense\n\n"])
    async def test_a_stream_without_its_end(self, provider, upstream, rest):
        upstream.will(sends(begins(), text("Hi"), rest))
        await self.raised(provider, StreamCut, True)

    @pytest.mark.parametrize("body", [b"", b"{}", b"nonsense", b'{"type": "error"}'])
    async def test_an_answer_that_is_none(self, provider, upstream, body):
        upstream.will(answers(body))
        error = await self.raised(provider, UpstreamError, False)
        assert error.upstream_status == 200


class TestCount:
    @pytest.fixture
    async def provider(self, upstream):
        provider = vendor("anthropic")(configured("anthropic", upstream.url))
        yield provider
        await provider.close()

    @pytest.mark.parametrize("door", ["chat", "messages"])
    async def test_it_counts_what_a_request_would_be(self, provider, upstream, door):
        upstream.will(answers({"input_tokens": 42}))
        request = asked(door=door, temperature=0.5)
        assert await provider.count_tokens(request, deployed(provider.config)) == 42
        received = upstream.only
        assert received.path.endswith("/v1/messages/count_tokens")
        assert set(received.body) == {"model", "messages"}
        assert received.body["model"] == "gpt-upstream"
        assert received.headers["x-api-key"] == KEY

    @pytest.mark.parametrize("body", [{}, {"input_tokens": "many"}, b"nonsense"])
    async def test_a_count_that_is_none(self, provider, upstream, body):
        upstream.will(answers(body))
        with pytest.raises(UpstreamError):
            await provider.count_tokens(asked(), deployed(provider.config))

    async def test_a_refusal_is_raised_as_an_answers_is(self, provider, upstream):
        upstream.will(fails(400, "No."))
        with pytest.raises(InvalidRequest):
            await provider.count_tokens(asked(), deployed(provider.config))
