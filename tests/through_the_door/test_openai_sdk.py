"""OpenAI's own client at our door."""

import asyncio

import openai
import pytest

from tests.support.upstream import (
    DONE,
    USAGE,
    bytes_of,
    data,
    delta,
    frame,
    hangs,
    refuses,
    says,
    sends,
)
from tests.support.world import make_budget, make_key

HI = [{"role": "user", "content": "Hi there"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
def client(gateway, alice):
    with openai.OpenAI(api_key=alice.secret, base_url=f"{gateway.url}/v1", max_retries=0, timeout=20) as client:
        yield client


def in_async(gateway, key, ask):
    """Run `ask(client)` with the asynchronous client."""

    async def run():
        async with openai.AsyncOpenAI(
            api_key=key.secret, base_url=f"{gateway.url}/v1", max_retries=0, timeout=20
        ) as client:
            return await ask(client)

    return asyncio.run(run())


class TestPlain:
    def test_an_answer(self, gateway, model, client):
        answer = client.chat.completions.create(model="gpt-test", messages=HI)
        assert answer.choices[0].message.content == "Hello there."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == USAGE["total_tokens"]
        assert gateway.settlement(answer._request_id).status == 200

    def test_asynchronously(self, gateway, model, alice):
        answer = in_async(gateway, alice, lambda c: c.chat.completions.create(model="gpt-test", messages=HI))
        assert answer.choices[0].message.content == "Hello there."

    def test_tools(self, gateway, model, client, upstream):
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ede"}'}}
        upstream.will(
            says(message={"content": None, "tool_calls": [call, {**call, "id": "call_2"}]}, finish="tool_calls")
        )
        answer = client.chat.completions.create(
            model="gpt-test", messages=HI, tools=[TOOL], tool_choice="auto", parallel_tool_calls=True
        )
        assert [c.id for c in answer.choices[0].message.tool_calls] == ["call_1", "call_2"]
        assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Ede"}'
        assert upstream.only.body["tools"] == [TOOL]
        assert upstream.only.body["tool_choice"] == "auto"

    def test_the_results_of_tools(self, gateway, model, client, upstream):
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        history = [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
        ]
        client.chat.completions.create(model="gpt-test", messages=history, tools=[TOOL])
        assert upstream.only.body["messages"] == history

    def test_fields_of_ailb_go_in_the_extra_body(self, gateway, model, client):
        answer = client.chat.completions.create(model="gpt-test", messages=HI, extra_body={"tags": ["sdk"]})
        assert gateway.settlement(answer._request_id).tags == ["sdk"]

    def test_raw_responses_show_the_headers(self, gateway, model, client):
        raw = client.chat.completions.with_raw_response.create(model="gpt-test", messages=HI)
        assert raw.headers["x-ailb-provider"] == "upstream"
        assert raw.request_id == raw.headers["x-request-id"]


class TestStreams:
    def test_one(self, gateway, model, client):
        with client.chat.completions.create(model="gpt-test", messages=HI, stream=True) as stream:
            chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there."
        assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"

    def test_with_usage(self, gateway, model, client):
        chunks = list(
            client.chat.completions.create(
                model="gpt-test", messages=HI, stream=True, stream_options={"include_usage": True}
            )
        )
        *others, last = chunks
        assert last.choices == []
        assert last.usage.total_tokens == USAGE["total_tokens"]
        assert all(chunk.usage is None for chunk in others)
        assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1

    def test_with_usage_that_we_made(self, gateway, model, client, upstream):
        upstream.will(says("One two", " three.", usage=None))
        *_, last = client.chat.completions.create(
            model="gpt-test", messages=HI, stream=True, stream_options={"include_usage": True}
        )
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (9, 4, 13)

    def test_asynchronously(self, gateway, model, alice):
        async def ask(client):
            stream = await client.chat.completions.create(model="gpt-test", messages=HI, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert in_async(gateway, alice, ask) == "Hello there."

    def test_with_the_helper_that_accumulates(self, gateway, model, client):
        with client.chat.completions.stream(model="gpt-test", messages=HI) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        assert final.choices[0].message.content == "Hello there."

    def test_tool_calls_are_put_together(self, gateway, model, client, upstream):
        fragments = [
            {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"city": '}},
            {"index": 1, "id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            {"index": 0, "function": {"arguments": '"Ede"}'}},
        ]
        chunks = [delta(tool_calls=[fragment]) for fragment in fragments]
        upstream.will(sends(*chunks, delta(finish="tool_calls"), DONE))
        with client.chat.completions.stream(model="gpt-test", messages=HI, tools=[TOOL]) as stream:
            calls = stream.get_final_completion().choices[0].message.tool_calls
        assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
            ("a", "weather", '{"city": "Ede"}'),
            ("b", "time", "{}"),
        ]

    def test_an_upstream_of_odd_habits(self, gateway, model, client, upstream):
        # CR LF, ids, event names and comments: as they came, the SDK's decoder would choke on them.
        event = b"id: 1\r\nevent: x\r\ndata: " + data({**frame(), **delta("Hi")})[6:-2] + b"\r\n\r\n"
        upstream.will(sends(b": ping\r\n\r\n", event, b": ping\r\n\r\n", delta(finish="stop"), b"data: [DONE]\r\n\r\n"))
        chunks = list(client.chat.completions.create(model="gpt-test", messages=HI, stream=True))
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hi", None]

    def test_a_broken_stream_is_an_exception(self, gateway, model, client, upstream):
        upstream.will(sends(delta("Half"), 0.05, end="cut"))
        stream = client.chat.completions.create(model="gpt-test", messages=HI, stream=True)
        assert next(stream).choices[0].delta.content == "Half"
        with pytest.raises(openai.APIError) as caught:
            next(stream)
        assert caught.value.type == "upstream_error"
        assert caught.value.code == "upstream_error"

    def test_leaving_one_in_the_middle(self, gateway, model, client, upstream):
        upstream.will(sends(delta("Hello"), end="stall"))
        with client.chat.completions.create(model="gpt-test", messages=HI, stream=True) as stream:
            next(iter(stream))
        assert upstream.only.was_dropped(within=2)
        assert gateway.only_closing().status == 499


class TestErrors:
    """Each status is the SDK's own class, with our code and id."""

    def caught(self, client, kind, **body):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": "gpt-test", "messages": HI, **body})
        assert type(caught.value) is kind
        return caught.value

    def test_400(self, gateway, model, client):
        error = self.caught(client, openai.BadRequestError, n=0)
        assert (error.status_code, error.type, error.param, error.code) == (400, "invalid_request_error", "n", None)
        assert error.request_id.startswith("req_")

    def test_401(self, gateway, model, client):
        stranger = client.with_options(api_key="sk-wrong")
        assert self.caught(stranger, openai.AuthenticationError).code == "invalid_api_key"

    def test_402(self, gateway, model, client, alice):
        make_budget("key", alice.id, dollars="0")
        error = self.caught(client, openai.APIStatusError)
        assert (error.status_code, error.type, error.code) == (402, "insufficient_quota", "budget_exceeded")

    def test_403(self, gateway, model, client):
        limited = client.with_options(api_key=make_key(allowed_models=["other"]).secret)
        assert self.caught(limited, openai.PermissionDeniedError).code == "model_not_allowed"

    def test_404(self, gateway, model, client):
        assert self.caught(client, openai.NotFoundError, model="nobody").code == "model_not_found"

    def test_429(self, gateway, model, client):
        limited = client.with_options(api_key=make_key(rate_limit_rpm=1).secret)
        limited.chat.completions.create(model="gpt-test", messages=HI)
        error = self.caught(limited, openai.RateLimitError)
        assert (error.type, error.code) == ("rate_limit_error", "rate_limit_exceeded")

    @pytest.mark.parametrize("stream", [False, True])
    def test_502_and_504(self, gateway, model, provider, client, upstream, stream):
        upstream.will(refuses(500), bytes_of(b"nonsense"))
        assert self.caught(client, openai.InternalServerError, stream=stream).status_code == 502
        assert self.caught(client, openai.InternalServerError, stream=stream).status_code == 502
        provider.first_byte_timeout = 0.2
        provider.save()
        upstream.will(hangs())
        assert self.caught(client, openai.InternalServerError, stream=stream).status_code == 504

    def test_501(self, gateway, model, client):
        with pytest.raises(openai.InternalServerError) as caught:
            client.responses.create(model="gpt-test", input="Hi")
        assert (caught.value.status_code, caught.value.code) == (501, "not_implemented")


class TestRetries:
    """The SDK tries again twice by itself: only what trying again can help may let it."""

    @pytest.fixture
    def patient(self, client, monkeypatch):
        patient = client.with_options(max_retries=2)
        monkeypatch.setattr(type(patient), "_calculate_retry_timeout", lambda *args, **options: 0.01)
        return patient

    def count(self, gateway, patient, **body):
        seen = []
        patient._client.event_hooks = {"response": [lambda response: seen.append(response.status_code)]}
        with pytest.raises(openai.APIStatusError):
            patient.chat.completions.create(**{"model": "gpt-test", "messages": HI, **body})
        return seen

    def test_a_budget_is_not_asked_again(self, gateway, model, patient, alice):
        make_budget("key", alice.id, dollars="0")
        assert self.count(gateway, patient) == [402]

    def test_nor_is_a_request_that_no_bucket_could_hold(self, gateway, model, patient):
        key = make_key(rate_limit_tpm=60)
        assert self.count(gateway, patient.with_options(api_key=key.secret), max_tokens=1000) == [429]

    def test_a_rate_limit_is(self, gateway, model, patient):
        key = make_key(rate_limit_rpm=1)
        limited = patient.with_options(api_key=key.secret)
        limited.chat.completions.create(model="gpt-test", messages=HI)
        assert self.count(gateway, limited) == [429] * 3

    def test_an_upstream_that_fails_once_is_asked_again(self, gateway, model, patient, upstream):
        upstream.will(refuses(503))
        answer = patient.chat.completions.create(model="gpt-test", messages=HI)
        assert answer.choices[0].message.content == "Hello there."
        assert len(upstream.requests) == 2


def test_models_are_listed_and_found(gateway, model, client):
    assert [found.id for found in client.models.list()] == ["gpt-test"]
    assert client.models.retrieve("gpt-test").owned_by == "upstream"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
