"""OpenAI's own client at our door, whatever dialect the provider behind it speaks.

What is of the door alone, statuses and retries, is in `test_openai_sdk`; a real model behind it in
`test_sdks_real_model`.
"""

import asyncio
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.dialect_registry import PROVIDERS, serve
from tests.support.dialects import BONN, CASES, CITY, KOELN, TIME, Say, Thought, Tokens
from tests.support.world import make_key

HI = [{"role": "user", "content": "Hi there"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, CLOCK]

SAID = {
    **{name: CASES[name].say for name in ("text", "tools", "parallel tools", "thinking", "refusal", "length stop")},
    "words before thoughts and calls": Say(
        thought=Thought("Two calls.", "c2lnbmVk"), text="Let me look.", calls=(KOELN, BONN, TIME), stop="tools"
    ),
    "nothing": Say(),
    "a call alone": Say(calls=(TIME,), stop="tools"),
}


RAISED = {"length": openai.LengthFinishReasonError, "content_filter": openai.ContentFilterFinishReasonError}


class Place(BaseModel):
    city: str


@pytest.fixture(params=PROVIDERS)
def kind(request):
    return request.param


@pytest.fixture
def served(gateway, upstream, kind):
    """`the-model`, at a scripted provider of each kind."""
    return serve(upstream, kind)


def configured(gateway, key, **options) -> dict[str, Any]:
    return {"api_key": key.secret, "base_url": f"{gateway.url}/v1", "max_retries": 0, "timeout": 20, **options}


@pytest.fixture
def client(gateway, alice):
    with openai.OpenAI(**configured(gateway, alice)) as client:
        yield client


def asynchronously(gateway, key, ask):
    """Run `ask(client)` with the asynchronous client."""

    async def run():
        async with openai.AsyncOpenAI(**configured(gateway, key)) as client:
            return await ask(client)

    return asyncio.run(run())


def asked(**fields) -> dict[str, Any]:
    return {"model": "the-model", "messages": HI, **fields}


def told(message) -> dict[str, Any]:
    """A message as a client sees it, without what only one of the SDK's classes has."""
    found = message.model_dump(exclude_none=True)
    for call in found.get("tool_calls", ()):
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    for block in found.get("thinking_blocks", ()):
        block.pop("index", None)
    return {name: value for name, value in found.items() if value not in ("", []) and name != "parsed"}


class TestAnswers:
    @pytest.mark.parametrize("case", SAID)
    def test_a_stream_comes_to_the_same_as_a_plain_answer(self, client, upstream, served, kind, case):
        say = SAID[case]
        upstream.will(served.says(say), served.says(say))
        plain = client.chat.completions.create(**asked(tools=TOOLS))
        usage = {"include_usage": True}
        with client.chat.completions.stream(**asked(tools=TOOLS, stream_options=usage)) as stream:
            events = list(stream)
            final = stream.current_completion_snapshot
            if raised := RAISED.get(plain.choices[0].finish_reason):
                with pytest.raises(raised):  # by the SDK's own rule
                    stream.get_final_completion()
            else:
                assert stream.get_final_completion().choices[0].message.content == final.choices[0].message.content
        (choice,), (streamed,) = plain.choices, final.choices
        assert choice.finish_reason == streamed.finish_reason
        assert final.usage == plain.usage
        assert final.usage.total_tokens == sum(say_tokens(served, say))
        assert final.model == plain.model
        message, whole = told(streamed.message), told(choice.message)
        if say.refusal:
            # Of Anthropic's the text has gone out before it says what it was; Ollama has no word for it.
            assert {message.get("refusal"), message.get("content")} == {say.refusal, None}
            assert {whole.get("refusal"), whole.get("content")} == {say.refusal, None}
        else:
            assert message == whole
            assert whole.get("content", "") == say.text
        assert [call["id"] for call in whole.get("tool_calls", ())] == [call.id for call in say.calls]
        if say.thought:
            assert whole["reasoning_content"] == say.thought.text
        assert "tool_calls.function.arguments.done" in {event.type for event in events} or not say.calls

    @pytest.mark.parametrize("case", SAID)
    def test_plain_iteration(self, client, upstream, served, case):
        upstream.will(served.says(SAID[case]))
        chunks = list(client.chat.completions.create(**asked(stream=True, stream_options={"include_usage": True})))
        *others, last = chunks
        assert last.choices == []
        assert last.usage.total_tokens == sum(say_tokens(served, SAID[case]))
        assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in others)
        assert [chunk.choices[0].finish_reason for chunk in others].count(None) == len(others) - 1
        assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
        firsts = [call for chunk in others for call in chunk.choices[0].delta.tool_calls or () if call.id]
        assert [(call.index, call.id, call.type) for call in firsts] == [
            (index, call.id, "function") for index, call in enumerate(SAID[case].calls)
        ]

    def test_no_usage_where_none_was_asked_for(self, client, upstream, served):
        upstream.will(served.says(SAID["text"]))
        chunks = list(client.chat.completions.create(**asked(stream=True)))
        assert all("usage" not in chunk.model_fields_set and chunk.choices for chunk in chunks)

    def test_parsed(self, client, upstream, served):
        upstream.will(*[served.says(CASES["JSON schema"].say)] * 2)
        answer = client.chat.completions.parse(**asked(response_format=Place))
        assert answer.choices[0].message.parsed == Place(city="Köln")
        with client.chat.completions.stream(**asked(response_format=Place)) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == Place(city="Köln")

    def test_parsed_tools(self, client, upstream, served):
        tool = openai.pydantic_function_tool(Place, name="get_weather")
        upstream.will(*[served.says(CASES["tools"].say)] * 2)
        answer = client.chat.completions.parse(**asked(tools=[tool]))
        assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Place(city="Köln")
        with client.chat.completions.stream(**asked(tools=[tool])) as stream:
            (call,) = stream.get_final_completion().choices[0].message.tool_calls
        assert call.function.parsed_arguments == Place(city="Köln")

    def test_an_answer_that_was_cut_short_does_not_parse(self, client, upstream, served):
        upstream.will(served.says(Say(text='{"ci', stop="length")))
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(**asked(response_format=Place))

    def test_the_next_turn(self, client, upstream, served):
        """What the SDK has of an answer can be given back as it is."""
        say = SAID["words before thoughts and calls"]
        upstream.will(served.says(say), served.says(SAID["text"]))
        with client.chat.completions.stream(**asked(tools=TOOLS)) as stream:
            answer = stream.get_final_completion().choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in answer.tool_calls]
        history = [*HI, answer.model_dump(exclude_none=True), *results]
        client.chat.completions.create(**asked(messages=history, tools=TOOLS))
        received = served.read(upstream.last).items
        assert [item for item in received if item in say.calls] == list(say.calls)
        assert (say.thought in received) is served.signs, "signed thoughts go back to who signed them"

    def test_a_field_whose_name_no_header_could_hold(self, client, upstream, served):
        """What a translation leaves out is named in a header: the name is the client's own."""
        upstream.will(served.says(SAID["text"]))
        answer = client.chat.completions.create(**asked(), extra_body={"odd\r\nset-cookie: a": 1, "x" * 20_000: 1})
        assert answer.choices[0].message.content == SAID["text"].text

    def test_raw_responses(self, client, gateway, upstream, served):
        raw = client.chat.completions.with_raw_response.create(**asked())
        assert raw.headers["x-ailb-provider"] == "upstream"
        assert raw.headers["x-ailb-model"] == "the-model"
        assert raw.headers["x-ailb-attempts"] == "1"
        assert raw.headers["x-request-id"] == raw.request_id == raw.parse()._request_id
        assert gateway.settlement(raw.request_id).status == 200

    @pytest.fixture(autouse=True)
    def _says_something(self, upstream, served):
        upstream.always(served.says(SAID["text"]))

    def test_a_raw_stream(self, client, gateway, served):
        with client.chat.completions.with_streaming_response.create(**asked(stream=True)) as raw:
            assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert sum(len(chunk.choices) for chunk in raw.parse()) > 2
        assert gateway.settlement(raw.headers["x-request-id"]).stream


def say_tokens(provider, say: Say) -> tuple[int, int]:
    tokens = provider.reported(say.tokens or Tokens(0, 0))
    return tokens.prompt, tokens.completion


class TestAsynchronously:
    def test_a_plain_answer(self, gateway, alice, upstream, served):
        upstream.will(served.says(SAID["parallel tools"]))
        answer = asynchronously(gateway, alice, lambda client: client.chat.completions.create(**asked(tools=TOOLS)))
        assert [call.id for call in answer.choices[0].message.tool_calls] == [KOELN.id, BONN.id, TIME.id]

    def test_a_stream(self, gateway, alice, upstream, served):
        async def ask(client):
            stream = await client.chat.completions.create(**asked(stream=True))
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        upstream.will(served.says(SAID["text"]))
        assert asynchronously(gateway, alice, ask) == SAID["text"].text

    def test_the_helper(self, gateway, alice, upstream, served):
        async def ask(client):
            async with client.chat.completions.stream(**asked(tools=TOOLS)) as stream:
                return [event.type async for event in stream], await stream.get_final_completion()

        upstream.will(served.says(SAID["tools"]))
        types, final = asynchronously(gateway, alice, ask)
        assert {"content.delta", "content.done", "tool_calls.function.arguments.done"} <= set(types)
        assert final.choices[0].message.tool_calls[0].function.name == "get_weather"

    def test_parsed(self, gateway, alice, upstream, served):
        upstream.will(served.says(CASES["JSON schema"].say))
        answer = asynchronously(gateway, alice, lambda c: c.chat.completions.parse(**asked(response_format=Place)))
        assert answer.choices[0].message.parsed == Place(city="Köln")

    def test_an_error(self, gateway, alice, upstream, served):
        upstream.will(served.refuses(400, "Too hot."))
        with pytest.raises(openai.BadRequestError, match=r"Too hot\."):
            asynchronously(gateway, alice, lambda client: client.chat.completions.create(**asked()))


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
class TestErrors:
    """Each is the SDK's own class, with the contract's type and code."""

    def caught(self, client, kind, **fields) -> Any:
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**asked(**fields))
        assert type(caught.value) is kind
        assert caught.value.request_id.startswith("req_")
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        return caught.value

    def test_a_key_that_is_none(self, client, served, stream):
        error = self.caught(client.with_options(api_key="sk-wrong"), openai.AuthenticationError, stream=stream)
        assert (error.type, error.code) == ("authentication_error", "invalid_api_key")

    def test_an_unknown_model(self, client, served, stream):
        assert self.caught(client, openai.NotFoundError, model="nobody", stream=stream).code == "model_not_found"

    def test_too_often(self, client, upstream, served, stream):
        limited = client.with_options(api_key=make_key(rate_limit_rpm=1).secret)
        upstream.will(served.says(SAID["text"]))
        limited.chat.completions.create(**asked())
        error = self.caught(limited, openai.RateLimitError, stream=stream)
        assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")
        assert float(error.response.headers["retry-after"]) > 0

    def test_our_refusal(self, client, served, stream):
        error = self.caught(client, openai.BadRequestError, messages=[{"role": "nobody"}], stream=stream)
        assert (error.type, error.param) == ("invalid_request_error", "messages[0].role")

    def test_the_upstreams_refusal(self, client, upstream, served, stream):
        upstream.will(served.refuses(400, "Too hot."))
        error = self.caught(client, openai.BadRequestError, stream=stream)
        assert error.type == "invalid_request_error"
        assert "Too hot." in error.message

    def test_a_prompt_that_is_too_long(self, client, upstream, served, stream):
        upstream.will(served.refuses(400, served.too_long))
        error = self.caught(client, openai.BadRequestError, stream=stream)
        assert error.code == "context_length_exceeded"

    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_our_own_credentials(self, client, upstream, served, stream, status):
        upstream.will(served.refuses(status))
        error = self.caught(client, openai.InternalServerError, stream=stream)
        assert (error.status_code, error.code) == (502, "upstream_credentials_rejected")

    @pytest.mark.parametrize("status", [429, 500, 503, 529])
    def test_an_upstream_that_cannot(self, client, upstream, served, stream, status):
        upstream.will(served.refuses(status))
        error = self.caught(client, openai.InternalServerError, stream=stream)
        assert (error.status_code, error.type, error.code) == (502, "upstream_error", "upstream_error")


class TestErrorsInStreams:
    def test_is_an_exception_after_what_was_said(self, client, gateway, upstream, served):
        upstream.will(served.breaks_off(CASES["error after the first byte"].say))
        stream = client.chat.completions.create(**asked(stream=True))
        said = []
        with pytest.raises(openai.APIError) as caught:
            said.extend(chunk.choices[0].delta.content or "" for chunk in stream)
        assert "".join(said)
        assert CASES["error after the first byte"].say.text.startswith("".join(said))
        assert not isinstance(caught.value, openai.APIStatusError)
        assert (caught.value.type, caught.value.code) == ("upstream_error", "upstream_error")
        assert gateway.only_closing().status == 502

    def test_in_the_helper_too(self, client, upstream, served):
        upstream.will(served.breaks_off(CASES["error after the first byte"].say))
        with (
            pytest.raises(openai.APIError, match="broke off"),
            client.chat.completions.stream(**asked()) as stream,
        ):
            stream.get_final_completion()

    def test_a_stream_that_just_ends(self, client, upstream, served):
        pieces = served.pieces(SAID["text"])
        upstream.will(served.plays({}, *pieces[: served.begun(pieces)]))
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(**asked(stream=True)))


def test_models(client, served):
    assert [(model.id, model.owned_by) for model in client.models.list()] == [("the-model", "upstream")]
    assert client.models.retrieve("the-model").object == "model"
