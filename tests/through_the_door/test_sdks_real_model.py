"""Both SDKs at our doors, and behind them a model that nobody scripted: SmolLM2, by each kind of provider.

llama.cpp's server speaks OpenAI's dialect and Anthropic's; Ollama's is spoken by the shim in front of it. All that the
model says is its own: what is looked at is that it arrives, in order and counted.
"""

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.support.ollama_shim import OllamaShim
from tests.support.real_model import real_model  # noqa: F401  # a fixture
from tests.support.world import make_deployment, make_price, make_provider

QUESTION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


class City(BaseModel):
    city: str


@pytest.fixture(scope="module")
def shim(real_model):  # noqa: F811
    shim = OllamaShim(f"{real_model}/v1")
    yield shim
    shim.close()


@pytest.fixture(params=["openai", "anthropic", "ollama"])
def kind(request):
    return request.param


@pytest.fixture
def model(gateway, kind, real_model, shim):  # noqa: F811
    """Its name, served by a provider of each kind."""
    urls = {"openai": f"{real_model}/v1", "anthropic": real_model, "ollama": shim.url}
    make_price("ailb-demo", provider="real")
    provider = make_provider(urls[kind], "real", kind=kind, first_byte_timeout=60)
    make_deployment(provider, "smol", "ailb-demo", max_output=512, context_window=2048)
    return "smol"


def assert_billed(gateway, request_id, prompt, completion):
    """By the upstream's own count, which is the one that the client was told."""
    row = gateway.settlement(request_id)
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (prompt, completion, False)
    assert row.cost_usd > 0


def skip_where_nobody_holds_it(kind):
    """Output formats and forced tools, by which Anthropic's models answer in a format."""
    if kind == "anthropic":
        pytest.skip(
            "llama.cpp's Messages leave out output formats, and SmolLM2 has no tools: no schema was asked of it"
        )


class TestOpenAI:
    @pytest.fixture
    def client(self, gateway, alice):
        with openai.OpenAI(api_key=alice.secret, base_url=f"{gateway.url}/v1", max_retries=0, timeout=60) as client:
            yield client

    @pytest.fixture
    def asked(self, model):
        return {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 24}

    def test_a_plain_answer(self, client, gateway, asked):
        answer = client.chat.completions.create(**asked)
        (choice,) = answer.choices
        assert "Rome" in choice.message.content
        assert choice.finish_reason == "stop"
        assert answer.usage.prompt_tokens > 20
        assert answer.usage.completion_tokens > 1
        assert_billed(gateway, answer._request_id, answer.usage.prompt_tokens, answer.usage.completion_tokens)

    def test_a_stream(self, client, asked):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = client.chat.completions.create(**asked, **options)
        assert "Rome" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 1, "in pieces"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
        assert last.choices == []
        assert last.usage.prompt_tokens > 20
        assert last.usage.completion_tokens > 1

    def test_the_helper(self, client, asked):
        plain = client.chat.completions.create(**asked)
        with client.chat.completions.stream(**asked) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == plain.choices[0].message.content
        assert final.choices[0].finish_reason == plain.choices[0].finish_reason

    async def test_asynchronously(self, gateway, alice, asked):
        async with openai.AsyncOpenAI(api_key=alice.secret, base_url=f"{gateway.url}/v1", timeout=60) as client:
            answer = await client.chat.completions.create(**asked)
        assert "Rome" in answer.choices[0].message.content

    @pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
    def test_a_cap_by_either_name(self, client, asked, cap):
        asked = {name: value for name, value in asked.items() if name != "max_tokens"} | {cap: 3}
        answer = client.chat.completions.create(**{**asked, "messages": [{"role": "user", "content": "Tell a story."}]})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 3

    def test_a_schema(self, client, asked, kind):
        skip_where_nobody_holds_it(kind)
        schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
        answer = client.chat.completions.create(**asked, response_format=schema)
        assert City.model_validate_json(answer.choices[0].message.content).city in ("Rome", "Oslo")

    def test_a_schema_in_a_stream(self, client, asked, kind):
        skip_where_nobody_holds_it(kind)
        schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
        with client.chat.completions.stream(**asked, response_format=schema) as stream:
            final = stream.get_final_completion()
        assert City.model_validate_json(final.choices[0].message.content).city in ("Rome", "Oslo")

    def test_tools_are_taken(self, client, asked, stream):
        tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
        asked |= {"tools": [tool], "tool_choice": "auto"}
        if stream:
            with client.chat.completions.stream(**asked) as came:
                (choice,) = came.get_final_completion().choices
        else:
            (choice,) = client.chat.completions.create(**asked).choices
        assert choice.message.content or choice.message.tool_calls
        assert choice.finish_reason in ("stop", "length", "tool_calls")


class TestAnthropic:
    @pytest.fixture
    def client(self, gateway, alice):
        with anthropic.Anthropic(api_key=alice.secret, base_url=gateway.url, max_retries=0, timeout=60) as client:
            yield client

    @pytest.fixture
    def asked(self, model):
        return {"model": model, "messages": QUESTION, "max_tokens": 24, "extra_body": {"temperature": 0}}

    def test_a_plain_answer(self, client, gateway, asked):
        answer = client.messages.create(**asked)
        (block,) = answer.content
        assert "Rome" in block.text
        assert answer.stop_reason == "end_turn"
        usage = answer.usage
        prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
        assert prompt > 20
        assert usage.output_tokens > 1
        assert_billed(gateway, answer._request_id, prompt, usage.output_tokens)

    def test_a_stream(self, client, asked):
        with client.messages.create(**asked, stream=True) as stream:
            events = list(stream)
        start, *_, last, stop = events
        assert start.message.usage.input_tokens + (start.message.usage.cache_read_input_tokens or 0) > 0
        assert (last.delta.stop_reason, stop.type) == ("end_turn", "message_stop")
        assert last.usage.output_tokens > 1
        deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
        assert len(deltas) > 1
        assert "Rome" in "".join(deltas)

    def test_the_helper(self, client, asked):
        plain = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            said = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert said == final.content[0].text == plain.content[0].text
        assert (final.stop_reason, final.model) == (plain.stop_reason, plain.model)
        assert final.usage.output_tokens == plain.usage.output_tokens

    async def test_asynchronously(self, gateway, alice, asked):
        async with anthropic.AsyncAnthropic(api_key=alice.secret, base_url=gateway.url, timeout=60) as client:
            answer = await client.messages.create(**asked)
        assert "Rome" in answer.content[0].text

    def test_a_cap(self, client, asked):
        story = [{"role": "user", "content": "Tell a story."}]
        answer = client.messages.create(**{**asked, "messages": story, "max_tokens": 3})
        assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)

    def test_a_schema(self, client, asked, kind):
        skip_where_nobody_holds_it(kind)
        config = {"format": {"type": "json_schema", "schema": SCHEMA}}
        answer = client.messages.create(**asked, output_config=config)
        assert City.model_validate_json(answer.content[0].text).city in ("Rome", "Oslo")

    def test_tools_are_taken(self, client, asked, stream):
        asked |= {"tools": [{"name": "clock", "input_schema": {"type": "object", "properties": {}}}]}
        if stream:
            with client.messages.stream(**asked) as came:
                answer = came.get_final_message()
        else:
            answer = client.messages.create(**asked)
        assert answer.content
        assert answer.stop_reason in ("end_turn", "max_tokens", "tool_use")

    def test_counting(self, client, model):
        few = client.messages.count_tokens(model=model, messages=QUESTION).input_tokens
        more = [
            *QUESTION,
            {"role": "assistant", "content": "Rome."},
            {"role": "user", "content": "Are you sure of it?"},
        ]
        many = client.messages.count_tokens(model=model, messages=more).input_tokens
        assert 0 < few < many
