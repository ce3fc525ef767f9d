"""Anthropic's own client at our door, whatever dialect the provider behind it speaks."""

import asyncio
from typing import Any

import anthropic
import pytest
from pydantic import BaseModel

from tests.support.dialect_registry import PROVIDERS, serve
from tests.support.dialects import BONN, CASES, CITY, KOELN, SIGNATURE, TIME, Say, Thought
from tests.support.upstream import DONE, answers, delta, sends
from tests.support.world import make_budget, make_key

HI = [{"role": "user", "content": "Hi there"}]
TOOLS = [
    {"name": "get_weather", "description": "The weather of a city.", "input_schema": CITY},
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
]

SAID = {
    **{name: CASES[name].say for name in ("text", "tools", "parallel tools", "thinking", "refusal", "length stop")},
    "words before thoughts and calls": Say(
        thought=Thought("Two calls.", SIGNATURE), text="Let me look.", calls=(KOELN, BONN, TIME), stop="tools"
    ),
    "nothing": Say(),
    "a call alone": Say(calls=(TIME,), stop="tools"),
}
STOPS = {"end": "end_turn", "length": "max_tokens", "tools": "tool_use", "refusal": "refusal"}


class Place(BaseModel):
    city: str


@pytest.fixture(params=PROVIDERS)
def kind(request):
    return request.param


@pytest.fixture
def served(gateway, upstream, kind):
    """`the-model`, at a scripted provider of each kind."""
    return serve(upstream, kind)


def configured(gateway, key) -> dict[str, Any]:
    return {"api_key": key.secret, "base_url": gateway.url, "max_retries": 0, "timeout": 20}


@pytest.fixture
def client(gateway, alice):
    with anthropic.Anthropic(**configured(gateway, alice)) as client:
        yield client


def asynchronously(gateway, key, ask):
    """Run `ask(client)` with the asynchronous client."""

    async def run():
        async with anthropic.AsyncAnthropic(**configured(gateway, key)) as client:
            return await ask(client)

    return asyncio.run(run())


def asked(**fields) -> dict[str, Any]:
    return {"model": "the-model", "messages": HI, "max_tokens": 1000, **fields}


def told(message) -> dict[str, Any]:
    """A message as a client sees it, without its id and what only one of the SDK's classes has."""
    found = message.model_dump(exclude_none=True)
    for block in found["content"]:
        block.pop("parsed_output", None)
    # Of a stream, the beginning's counts are kept where the end has others.
    usage = {name: found["usage"].get(name, 0) for name in ("input_tokens", "output_tokens")}
    return {**found, "id": None, "usage": usage}


class TestAnswers:
    @pytest.mark.parametrize("case", SAID)
    def test_a_stream_comes_to_the_same_as_a_plain_answer(self, client, upstream, served, case):
        say = SAID[case]
        upstream.will(served.says(say), served.says(say))
        plain = client.messages.create(**asked(tools=TOOLS))
        with client.messages.stream(**asked(tools=TOOLS)) as stream:
            said = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert told(final) == told(plain)
        assert said == say.text + say.refusal
        calls = [(block.id, block.name, block.input) for block in final.content if block.type == "tool_use"]
        assert calls == [(call.id, call.name, call.arguments) for call in say.calls]
        thoughts = [block.thinking for block in final.content if block.type == "thinking"]
        assert thoughts == ([say.thought.text] if say.thought else [])
        refused = say.stop == "refusal" and "refusal" not in served.stops
        assert final.stop_reason == ("end_turn" if refused else STOPS[say.stop])
        tokens = served.reported(say.tokens)
        usage = final.usage
        cached = (usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0)
        assert cached == (tokens.cached, tokens.written)
        assert usage.input_tokens + sum(cached) == tokens.prompt
        assert usage.output_tokens == tokens.completion

    @pytest.mark.parametrize("case", SAID)
    def test_plain_iteration(self, client, upstream, served, case):
        upstream.will(served.says(SAID[case]))
        with client.messages.create(**asked(stream=True)) as stream:
            events = list(stream)
        start, *others, last, stop = events
        assert (start.type, last.type, stop.type) == ("message_start", "message_delta", "message_stop")
        assert start.message.usage.input_tokens > 0, "Claude Code shows it"
        assert start.message.content == []
        indices = [event.index for event in others if event.type == "content_block_start"]
        assert indices == list(range(len(indices)))
        opened = None
        for event in others:
            assert (event.type == "content_block_start") == (opened is None)
            opened = None if event.type == "content_block_stop" else event.index
            assert opened is None or event.index == opened
        assert opened is None

    def test_parsed(self, client, upstream, served):
        upstream.will(*[served.says(CASES["JSON schema"].say)] * 2)
        assert client.messages.parse(**asked(output_format=Place)).parsed_output == Place(city="Köln")
        with client.messages.stream(**asked(output_format=Place)) as stream:
            assert stream.get_final_message().parsed_output == Place(city="Köln")

    def test_the_next_turn(self, client, upstream, served):
        """What the SDK has of an answer can be given back as it is."""
        say = SAID["words before thoughts and calls"]
        upstream.will(served.says(say), served.says(SAID["text"]))
        with client.messages.stream(**asked(tools=TOOLS)) as stream:
            content = stream.get_final_message().content
        uses = [block for block in content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": "fine"} for use in uses]
        history = [*HI, {"role": "assistant", "content": content}, {"role": "user", "content": results}]
        client.messages.create(**asked(messages=history, tools=TOOLS))
        received = served.read(upstream.last).items
        assert [item for item in received if item in say.calls] == list(say.calls)
        assert (say.thought in received) is served.signs, "signed thoughts go back to who signed them"

    def test_the_requests_id(self, client, gateway, upstream, served):
        upstream.will(served.says(SAID["text"]))
        answer = client.messages.create(**asked())
        assert gateway.settlement(answer._request_id).status == 200

    def test_a_streams_request_id(self, client, gateway, upstream, served):
        upstream.will(served.says(SAID["text"]))
        with client.messages.stream(**asked()) as stream:
            stream.until_done()
            assert gateway.settlement(stream.request_id).stream

    def test_raw_responses(self, client, upstream, served):
        upstream.will(served.says(SAID["text"]))
        raw = client.messages.with_raw_response.create(**asked())
        assert raw.headers["x-ailb-provider"] == "upstream"
        assert raw.headers["x-ailb-model"] == "the-model"
        assert raw.parse().content[0].text == SAID["text"].text

    def test_counting(self, client, upstream, served):
        upstream.always(answers({"input_tokens": 23}))
        long = [{"role": "user", "content": "word " * 100}]
        counted = client.messages.count_tokens(model="the-model", messages=long, system="Be brief.", tools=TOOLS)
        assert counted.input_tokens == 23 if served.kind == "anthropic" else counted.input_tokens > 100


def test_interleaved_fragments(client, gateway, upstream):
    """Two calls' arguments in turns, the last of them with the stop reason, and none at all."""
    serve(upstream, "openai")
    heads = [
        {"index": i, "id": f"c{i}", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
        for i in range(3)
    ]
    parts = [(0, '{"ci'), (1, '{"city": '), (0, 'ty": "Ede"'), (1, '"Bonn"}')]
    fragments = [{"index": i, "function": {"arguments": part}} for i, part in parts]
    last = delta(tool_calls=[{"index": 0, "function": {"arguments": "}"}}], finish="tool_calls")
    upstream.will(sends(*(delta(tool_calls=[each]) for each in [*heads, *fragments]), last, DONE))
    with client.messages.stream(**asked(tools=TOOLS)) as stream:
        final = stream.get_final_message()
    assert [(use.id, use.input) for use in final.content] == [
        ("c0", {"city": "Ede"}),
        ("c1", {"city": "Bonn"}),
        ("c2", {}),
    ]
    assert final.stop_reason == "tool_use"


def test_arguments_that_are_no_json_do_not_break_the_helper(client, gateway, upstream):
    """Small models write such: a plain answer has them as they were written, and a stream ends all the same."""
    serve(upstream, "openai")
    function = {"name": "get_weather", "arguments": "city=Ede"}
    call = {"index": 0, "id": "c0", "type": "function", "function": function}
    upstream.will(sends(delta(tool_calls=[call]), delta(finish="tool_calls"), DONE))
    with client.messages.stream(**asked(tools=TOOLS)) as stream:
        (use,) = stream.get_final_message().content
    assert "city=Ede" in str(use.input)


class TestAsynchronously:
    def test_a_plain_answer(self, gateway, alice, upstream, served):
        upstream.will(served.says(SAID["parallel tools"]))
        answer = asynchronously(gateway, alice, lambda client: client.messages.create(**asked(tools=TOOLS)))
        assert [block.id for block in answer.content] == [KOELN.id, BONN.id, TIME.id]

    def test_a_stream(self, gateway, alice, upstream, served):
        async def ask(client):
            stream = await client.messages.create(**asked(stream=True))
            return [event.type async for event in stream]

        upstream.will(served.says(SAID["text"]))
        types = asynchronously(gateway, alice, ask)
        assert (types[0], types[-1]) == ("message_start", "message_stop")

    def test_the_helper(self, gateway, alice, upstream, served):
        async def ask(client):
            async with client.messages.stream(**asked(tools=TOOLS)) as stream:
                return "".join([text async for text in stream.text_stream]), await stream.get_final_message()

        upstream.will(served.says(SAID["tools"]))
        said, final = asynchronously(gateway, alice, ask)
        assert said == SAID["tools"].text
        assert final.content[-1].input == KOELN.arguments

    def test_counting(self, gateway, alice, upstream, served):
        upstream.always(answers({"input_tokens": 23}))
        ask = {"model": "the-model", "messages": HI}
        counted = asynchronously(gateway, alice, lambda client: client.messages.count_tokens(**ask))
        assert counted.input_tokens > 0


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
class TestErrors:
    """Each is the SDK's own class, with the contract's type."""

    def caught(self, client, kind, **fields) -> Any:
        with pytest.raises(kind) as caught:
            client.messages.create(**asked(**fields))
        assert type(caught.value) is kind
        error = caught.value
        assert set(error.body) == {"type", "error", "request_id"}
        assert error.body["type"] == "error"
        assert error.body["request_id"] == error.request_id
        assert error.request_id.startswith("req_")
        return error

    def test_a_key_that_is_none(self, client, served, stream):
        error = self.caught(client.with_options(api_key="sk-wrong"), anthropic.AuthenticationError, stream=stream)
        assert error.type == "authentication_error"

    def test_an_unknown_model(self, client, served, stream):
        assert self.caught(client, anthropic.NotFoundError, model="nobody", stream=stream).type == "not_found_error"

    def test_a_model_that_is_not_the_keys(self, client, served, stream):
        limited = client.with_options(api_key=make_key(allowed_models=["other"]).secret)
        assert self.caught(limited, anthropic.PermissionDeniedError, stream=stream).type == "permission_error"

    def test_too_little_left(self, client, served, stream, alice):
        make_budget("key", alice.id, dollars="0")
        assert self.caught(client, anthropic.PaymentRequiredError, stream=stream).type == "billing_error"

    def test_too_often(self, client, upstream, served, stream):
        limited = client.with_options(api_key=make_key(rate_limit_rpm=1).secret)
        upstream.will(served.says(SAID["text"]))
        limited.messages.create(**asked())
        error = self.caught(limited, anthropic.RateLimitError, stream=stream)
        assert error.type == "rate_limit_error"
        assert float(error.response.headers["retry-after"]) > 0

    def test_our_refusal(self, client, served, stream):
        error = self.caught(client, anthropic.BadRequestError, messages=[{"role": "nobody"}], stream=stream)
        assert error.type == "invalid_request_error"

    def test_the_upstreams_refusal(self, client, upstream, served, stream):
        upstream.will(served.refuses(400, "Too hot."))
        error = self.caught(client, anthropic.BadRequestError, stream=stream)
        assert error.type == "invalid_request_error"
        assert "Too hot." in error.api_message

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_our_own_credentials(self, client, upstream, served, stream, status):
        upstream.will(served.refuses(status))
        error = self.caught(client, anthropic.InternalServerError, stream=stream)
        assert (error.status_code, error.type) == (502, "api_error")

    @pytest.mark.parametrize("status", [429, 500, 529])
    def test_an_upstream_that_cannot(self, client, upstream, served, stream, status):
        upstream.will(served.refuses(status))
        error = self.caught(client, anthropic.InternalServerError, stream=stream)
        assert (error.status_code, error.type) == (502, "api_error")


class TestErrorsInStreams:
    def test_is_an_exception_after_what_was_said(self, client, gateway, upstream, served):
        upstream.will(served.breaks_off(CASES["error after the first byte"].say))
        said = []
        with pytest.raises(anthropic.APIStatusError) as caught, client.messages.stream(**asked()) as stream:
            said.extend(stream.text_stream)
        assert "".join(said)
        assert CASES["error after the first byte"].say.text.startswith("".join(said))
        assert caught.value.type == "api_error"
        assert caught.value.body["request_id"].startswith("req_")
        assert gateway.only_closing().status == 502

    def test_a_stream_that_just_ends(self, client, upstream, served):
        pieces = served.pieces(SAID["text"])
        upstream.will(served.plays({}, *pieces[: served.begun(pieces)]))
        with pytest.raises(anthropic.APIStatusError), client.messages.create(**asked(stream=True)) as stream:
            list(stream)
