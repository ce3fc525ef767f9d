"""The shim is Ollama to Ollama's own client, and to the gateway's provider."""

import json
from collections.abc import Iterator

import ollama
import pytest

from gateway.providers.ollama import Vendor
from gateway.types import Message, Prompt, Text, Usage
from tests.gateway.providers.contract import asked, completed, configured, deployed, gathered
from tests.support.ollama_shim import OllamaShim
from tests.support.upstream import Upstream, delta, refuses, says, sends

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def behind(upstream: Upstream) -> Upstream:
    """A llama.cpp with one model."""
    upstream.always(_served(says()))
    return upstream


def _served(script):
    async def serve(call):
        if call.received.method == "GET":
            await call.json(200, {"data": [{"id": "/models/smollm2.gguf", "created": 1_760_000_000}]})
        else:
            await script(call)

    return serve


@pytest.fixture
def shim(behind: Upstream) -> Iterator[OllamaShim]:
    shim = OllamaShim(behind.url)
    yield shim
    shim.close()


@pytest.fixture
def client(shim: OllamaShim) -> Iterator[ollama.Client]:
    client = ollama.Client(shim.url, trust_env=False)
    yield client
    client._client.close()


def test_the_client_sees_its_model(client: ollama.Client):
    assert [model.model for model in client.list().models] == ["smollm2:latest"]
    assert client.show("smollm2").capabilities == ["completion", "tools"]


def test_a_plain_answer_has_real_counts(client: ollama.Client, behind: Upstream):
    options = {"num_predict": 5, "temperature": 0.0, "stop": ["x"]}
    answer = client.chat("smollm2", HELLO, options=options)
    assert (answer.message.content, answer.done, answer.done_reason) == ("Hello there.", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (11, 4)
    body = behind.last.body
    assert (body["model"], body["max_tokens"], body["temperature"], body["stop"]) == ("smollm2", 5, 0.0, ["x"])


def test_a_stream_comes_in_pieces_and_ends_with_its_counts(client: ollama.Client):
    *parts, last = client.chat("smollm2:latest", HELLO, stream=True)
    assert [part.message.content for part in parts] == ["Hello", " there."]
    assert (last.done, last.prompt_eval_count, last.eval_count) == (True, 11, 4)


def test_a_completion_is_a_chat_of_one_turn(client: ollama.Client, behind: Upstream):
    assert client.generate("smollm2", "Hello", system="Be brief.").response == "Hello there."
    assert behind.last.texts == ["Be brief.", "Hello"]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_come_whole(client: ollama.Client, behind: Upstream, stream: bool):
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    script = sends(delta(tool_calls=[first]), delta(tool_calls=[rest], finish="tool_calls"), b"data: [DONE]\n\n")
    behind.always(_served(script))
    answered = client.chat("smollm2", HELLO, stream=stream)
    answers = list(answered) if stream else [answered]
    (call,) = [call for answer in answers for call in answer.message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("sum", {"a": 1})


def test_history_and_format_are_passed_on(client: ollama.Client, behind: Upstream):
    call = {"function": {"name": "sum", "arguments": {"a": 1}}}
    history = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "sum", "content": "1"},
    ]
    client.chat("smollm2", history, format={"type": "object"})
    body = behind.last.body
    assert json.loads(body["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_errors_have_ollamas_shape(client: ollama.Client, behind: Upstream):
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as caught:
        client.chat("nobody", HELLO)
    assert caught.value.status_code == 404
    behind.always(_served(refuses(400, "the request exceeds the available context size")))
    with pytest.raises(ollama.ResponseError, match="available context size"):
        client.chat("smollm2", HELLO, stream=False)


async def test_the_gateways_provider_takes_it_for_ollama(shim: OllamaShim):
    provider = Vendor(configured("ollama", shim.url))
    deployment = deployed(provider.config, upstream_model="smollm2")
    try:
        assert await provider.models() == ["smollm2:latest"]
        answer = await completed(provider, asked(), deployment)
        assert (answer.text, answer.usage) == ("Hello there.", Usage(11, 4))
        events = await gathered(provider, asked(True), deployment)
        assert "".join(event.text for event in events) == "Hello there."
        assert events[-1].usage == Usage(11, 4)
    finally:
        await provider.close()


def test_a_prompt_for_it_is_one_that_the_client_would_send():
    prompt = Prompt(messages=(Message("user", (Text("Hello"),)),), max_output=5)
    body = Vendor(configured("ollama")).write(prompt, deployed(configured("ollama"))).body
    known = ollama._types.ChatRequest.model_fields.keys()
    assert body.keys() - known == {"truncate", "shift"}, "which the API has, and its client does not"
