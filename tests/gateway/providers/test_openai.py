"""The OpenAI dialect: what it sends, what it makes of what comes."""

import asyncio
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors.chat import ChatStream
from gateway.errors import InvalidRequest, StreamCut, UpstreamCredentialsRejected, UpstreamError, UpstreamTimeout
from gateway.providers import vendor
from gateway.types import Usage
from tests.gateway.providers.contract import (
    FRAME,
    KEY,
    ProviderContract,
    asked,
    completed,
    configured,
    deployed,
    gathered,
    streaming,
)  # fmt: skip
from tests.support.upstream import DONE, USAGE, answers, delta, drops, hangs, refuses, says, sends


class TestOpenAI(ProviderContract):
    kind = "openai"

    def prepare(self, upstream):
        upstream.always(says("Hello", " there", "."))

    async def test_the_upstreams_model_is_asked_for(self, provider, deployment, upstream):
        await completed(provider, asked(), deployment)
        assert upstream.only.body["model"] == "gpt-upstream"
        assert upstream.only.headers["authorization"] == f"Bearer {KEY}"

    async def test_the_request_is_not_changed(self, provider, deployment):
        request = asked(True, temperature=0.5)
        before = json.dumps(request.body)
        await gathered(provider, request, deployment)
        assert json.dumps(request.body) == before

    async def test_connections_are_used_again(self, provider, deployment, upstream):
        for _ in range(3):
            await completed(provider, asked(), deployment)
            await gathered(provider, asked(True), deployment)
        assert len(upstream._connections) == 1

    async def test_a_stream_that_is_left_drops_its_connection(self, provider, deployment, upstream):
        upstream.will(sends(delta("Hi"), end="stall"))
        source = streaming(provider, asked(True), deployment)
        await anext(source)
        await source.aclose()
        assert await asyncio.to_thread(upstream.only.was_dropped)

    async def test_compressed_answers_are_not_asked_for(self, provider, deployment, upstream):
        await completed(provider, asked(), deployment)
        assert upstream.only.headers["accept-encoding"] == "identity"


@pytest.fixture
async def provider(upstream):
    provider = vendor("openai")(configured("openai", upstream.url, first_byte_timeout=0.5, idle_timeout=0.3))
    yield provider
    await provider.close()


@pytest.fixture
def deployment(provider):
    return deployed(provider.config)


class TestUsage:
    @pytest.mark.parametrize(
        ("told", "usage"),
        [
            (USAGE, Usage(11, 4)),
            ({"prompt_tokens": 5}, Usage(5, 0)),
            ({"prompt_tokens": 5, "completion_tokens": None}, Usage(5, 0)),
            ({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(5, 2)),
            (
                {
                    "prompt_tokens": 9,
                    "completion_tokens": 8,
                    "prompt_tokens_details": {
                        "cached_tokens": 4,
                        "cache_write_tokens": 3,
                        "audio_tokens": 2,
                        "image_tokens": 1,
                    },
                    "completion_tokens_details": {
                        "reasoning_tokens": 5,
                        "audio_tokens": 1,
                        "accepted_prediction_tokens": 9,
                    },
                },
                Usage(
                    9,
                    8,
                    cached_tokens=4,
                    cache_write_tokens=3,
                    reasoning_tokens=5,
                    audio_prompt_tokens=2,
                    audio_completion_tokens=1,
                ),
            ),
            ({}, None),
            (None, None),
            ({"completion_tokens": 4}, None),
        ],
    )
    async def test_it_is_read(self, provider, deployment, upstream, told, usage):
        upstream.always(says(usage=told))
        assert (await completed(provider, asked(), deployment)).usage == usage
        events = await gathered(provider, asked(True), deployment)
        assert next((event.usage for event in events if event.usage), None) == usage


class TestErrors:
    """Raised by plain calls and by streams alike."""

    async def raised(self, provider, deployment, kind, stream):
        with pytest.raises(kind) as caught:
            await (gathered(provider, asked(True), deployment) if stream else completed(provider, asked(), deployment))
        return caught.value

    @pytest.mark.parametrize("status", [400, 413, 422])
    async def test_the_clients_fault(self, provider, deployment, upstream, status, stream):
        upstream.will(refuses(status, "No.", param="p"))
        error = await self.raised(provider, deployment, InvalidRequest, stream)
        assert (error.message, error.param) == ("No.", "p")

    @pytest.mark.parametrize("status", [401, 402, 403])
    async def test_our_credential(self, provider, deployment, upstream, status, stream):
        upstream.will(refuses(status))
        error = await self.raised(provider, deployment, UpstreamCredentialsRejected, stream)
        assert error.upstream_status == status

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [("7", 7.0), ("0.5", 0.5), ("0", 0.0), ("-1", None), ("soon", None), ("nan", None), ("inf", 3600.0),
         ("1e9", 3600.0), ("Mon, 23 Nov 2020 00:00:00 GMT", 0.0), ("Fri, 23 Nov 2096 00:00:00 GMT", 3600.0)],
    )  # fmt: skip
    async def test_their_time_to_wait(self, provider, deployment, upstream, header, seconds, stream):
        upstream.will(refuses(429, retry_after=header))
        error = await self.raised(provider, deployment, UpstreamError, stream)
        assert (error.upstream_status, error.retry_after) == (429, seconds)

    async def test_silence(self, provider, deployment, upstream, stream):
        upstream.will(hangs())
        await self.raised(provider, deployment, UpstreamTimeout, stream)
        assert await asyncio.to_thread(upstream.only.was_dropped)

    async def test_a_plain_answer_that_never_ends(self, provider, deployment, upstream):
        async def drips(call):
            await call.head(200, content_length="1000000")
            while True:
                await call.send(b" ")

        upstream.will(drips)
        error = await self.raised(provider, deployment, UpstreamTimeout, False)
        assert error.upstream_status == 200

    async def test_no_word_at_all(self, provider, deployment, upstream, stream):
        upstream.will(drops())
        error = await self.raised(provider, deployment, UpstreamError, stream)
        assert error.upstream_status is None

    @pytest.mark.parametrize("end", ["orderly", "cut", "reset"])
    async def test_a_stream_without_its_end(self, provider, deployment, upstream, end):
        upstream.will(sends(delta("Hi"), 0.05, end=end))
        error = await self.raised(provider, deployment, StreamCut, True)
        assert error.upstream_status == 200

    async def test_a_stalled_stream(self, provider, deployment, upstream):
        upstream.will(sends(delta("Hi"), end="stall"))
        await self.raised(provider, deployment, UpstreamTimeout, True)

    async def test_a_stream_that_lives_by_keep_alives_is_no_stalled_one(self, provider, deployment, upstream):
        upstream.will(sends(*[b": ping\n\n", 0.1] * 6, delta("Hi"), delta(finish="stop"), DONE))
        events = await gathered(provider, asked(True), deployment)
        assert "".join(event.text for event in events) == "Hi"

    async def test_no_error_carries_its_cause_to_a_message(self, provider, deployment, upstream, stream):
        upstream.will(answers(b"\x00\xff secret", 500))
        error = await self.raised(provider, deployment, UpstreamError, stream)
        assert "secret" not in error.message


async def test_an_output_cap_of_the_gateway_is_sent_where_the_client_set_none(provider, deployment, upstream):
    await completed(provider, msgspec.structs.replace(asked(), max_output=77), deployment)
    assert upstream.last.body["max_completion_tokens"] == 77
    await completed(provider, msgspec.structs.replace(asked(max_tokens=5), max_output=77), deployment)
    assert upstream.last.body["max_tokens"] == 5
    assert "max_completion_tokens" not in upstream.last.body


# Contents that could be taken for something else of a chunk: its field names and values, quotes, what JSON escapes.
tricky = st.sampled_from(
    ["a", "Hello", " world", "", "id", "model", "stop", "gpt-test", "content", "default",
     "null", '"', "\\", '","', "\n",
     "\u00a0", "\u2028", "é", "🌍", "<", "/", "\x7f", "assistant", '"content":"a"', "a" * 50]
)  # fmt: skip
deltas = st.one_of(
    tricky.map(lambda text: {"content": text}),
    st.builds(lambda text, other: {"content": text, "refusal": other}, tricky, tricky | st.none()),
    st.builds(lambda text, other: {"content": text, "reasoning_content": other}, tricky, tricky | st.none()),
    st.builds(lambda text: {"content": text, "tool_calls": [{"index": 0, "function": {"arguments": text}}]}, tricky),
    st.just({"role": "assistant", "content": ""}),
    st.just({}),
)
choices = st.lists(
    st.fixed_dictionaries(
        {"index": st.integers(0, 1), "delta": deltas},
        optional={"finish_reason": st.sampled_from([None, "stop", "length"]), "logprobs": st.none() | tricky},
    ),
    max_size=2,
)
chunks = st.fixed_dictionaries(
    {"choices": choices},
    optional={"model": st.sampled_from(["gpt-test", "a", "other"]), "usage": st.none() | st.just(USAGE),
              "service_tier": st.sampled_from(["default", None]), "id": tricky, "x": tricky},
)  # fmt: skip
spellings = st.sampled_from([{"separators": (",", ":")}, {}, {"ensure_ascii": False}])


@given(sent=st.lists(chunks, max_size=12), repeats=st.integers(1, 3), spelling=spellings)
def test_a_chunk_is_read_the_same_whatever_came_before_it(sent, repeats, spelling):
    """Chunks like the one before are read without parsing: that must never show."""
    reader = vendor("openai")(configured("openai")).reader(native=True)
    for chunk in sent * repeats:
        event = b"data: " + json.dumps(chunk, **spelling).encode() + b"\n\n"
        alone = vendor("openai")(configured("openai")).reader(native=True)
        assert reader.feed(event) == alone.feed(event)


@given(sent=st.lists(tricky, max_size=20), spelling=spellings)
def test_a_stream_of_chunks_that_differ_in_their_content_only(sent, spelling):
    reader = vendor("openai")(configured("openai")).reader(native=True)
    said = []
    for text in sent:
        chunk = {"id": "x", "model": "gpt-test", "choices": [{"index": 0, "delta": {"content": text}}], "usage": None}
        (event,) = reader.feed(b"data: " + json.dumps(chunk, **spelling).encode() + b"\n\n")
        said.append(event.text)
        assert (event.content, event.null_usage, event.finish_reason) == (bool(text), True, None)
        assert json.loads(event.data) == chunk
    assert said == sent


@given(sent=st.lists(chunks, max_size=12), repeats=st.integers(1, 4), spelling=spellings, wants=st.booleans())
def test_chunks_that_come_together_say_what_they_say_one_by_one(sent, repeats, spelling, wants):
    """Those that differ in their content only go on in one piece: the client must not be able to tell."""
    wire = [b"data: " + json.dumps(chunk, **spelling).encode() + b"\n\n" for chunk in sent for _ in range(repeats)]

    def shown(pieces):
        reader = vendor("openai")(configured("openai")).reader(native=True)
        stream = ChatStream(lambda: FRAME, include_usage=wants)
        told = b"".join(stream.render(reader.feed(piece)) for piece in pieces)
        return told, stream.text, stream.usage, stream.finish_reason, stream.served_model

    assert shown([b"".join(wire)]) == shown(wire)
