"""Anthropic's Messages: what is read of a client, written for an upstream, read of it, and written for a client."""

import json
import re
from contextlib import suppress
from typing import Any

import anthropic as sdk
import httpx2
import msgspec
import pytest
from anthropic.types import Message as SdkMessage
from anthropic.types import MessageParam, ToolUnionParam
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.translate import claude
from gateway.translate.anthropic import (
    ANSWER_TOOL,
    Events,
    StreamWriter,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from gateway.translate.anthropic_answer import RAW_ARGUMENTS
from gateway.translate.anthropic_schema import Inexpressible, closed
from gateway.translate.events import ErrorEvent
from gateway.types import (
    Answer,
    Audio,
    BlockEnd,
    ChatRequest,
    Completion,
    Dialect,
    Document,
    Finish,
    Foreign,
    Frame,
    Image,
    Message,
    OutputFormat,
    Prompt,
    RedactedThinking,
    RedactedThinkingDelta,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Stop,
    StreamEvent,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
    ToolChoice,
    ToolResult,
    Usage,
)

OLD = "claude-sonnet-4-20250514"  # budgets, no output formats
BUDGET = "claude-haiku-4-5"  # budgets and output formats
SAMPLING = "claude-sonnet-4-6"  # adaptive, and takes a temperature
ADAPTIVE = "claude-opus-4-8"  # thinks where it is asked to
UNASKED = "claude-opus-5"  # thinks unless it is asked not to
NEWEST = "claude-opus-5-5"  # always thinks, is not made to call tools
SDK_TURN, SDK_TOOL = TypeAdapter(MessageParam), TypeAdapter(ToolUnionParam)
FRAME = Frame(id="1", created=1, model="model-of-the-frame", input_tokens=9)
WEATHER = Tool("weather", "Of a city", {"type": "object", "properties": {"city": {"type": "string"}}})


def asked(body: dict[str, Any] | None = None, **fields: Any) -> ChatRequest:
    """A client's request as the door hands it on."""
    full = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}], **(body or {}), **fields}
    return ChatRequest(
        body=full, model="m", stream=bool(full.get("stream")), include_usage=False, n=1,
        max_output=full["max_tokens"], session_id=None, rag_collection=None, rag_top_k=3, routing_strategy=None,
        tags=(), end_user=None, dialect=Dialect.ANTHROPIC,
    )  # fmt: skip


def prompt(*messages: Message, **fields: Any) -> Prompt:
    return Prompt(messages=messages or (Message("user", (Text("Hi"),)),), **fields)


def written(
    *messages: Message, model: str = ADAPTIVE, most: int | None = None, **fields: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The upstream's body, which the SDK's own types take, and what was left out."""
    result = write_request(prompt(*messages, **fields), model, max_output=most)
    body = msgspec.json.decode(msgspec.json.encode(result.body))
    for turn in body["messages"]:
        SDK_TURN.validate_python(turn)
        list(turn["content"])
    for tool in body.get("tools", ()):
        SDK_TOOL.validate_python(tool)
    return body, result.dropped


def user(*blocks: Any) -> Message:
    return Message("user", tuple(Text(block) if isinstance(block, str) else block for block in blocks))


def assistant(*blocks: Any) -> Message:
    return Message("assistant", tuple(Text(block) if isinstance(block, str) else block for block in blocks))


# ── a client's request ──────────────────────────────────────────────────────────────────────────────────────────────


class TestReadRequest:
    def test_the_system_is_the_first_message(self):
        assert read_request(asked(system="Be brief.")).messages[0] == Message("system", (Text("Be brief."),))

    def test_its_blocks_keep_their_cache_borders(self):
        blocks = [{"type": "text", "text": "Long", "cache_control": {"type": "ephemeral"}}]
        assert read_request(asked(system=blocks)).messages[0].content == (Text("Long", cached=True),)

    def test_a_system_turn_in_the_conversation_stays_where_it_is(self):
        turns = [{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}]
        assert [message.role for message in read_request(asked(messages=turns)).messages] == ["user", "system"]

    @pytest.mark.parametrize(
        ("block", "read"),
        [
            ({"type": "text", "text": "x"}, Text("x")),
            ({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}, Text("x", cached=True)),
            ({"type": "text", "text": "x", "cache_control": None}, Text("x")),
            (
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                Image("image/png", "aGk="),
            ),
            ({"type": "image", "source": {"type": "url", "url": "https://x/y"}}, Image(url="https://x/y")),
            ({"type": "image", "source": {"type": "file", "file_id": "f"}}, Foreign("image")),
            (
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "t"},
                Document(media_type="text/plain", text="x", title="t"),
            ),
            (
                {"type": "document", "source": {"type": "content", "content": "x"}, "title": "t", "context": "c"},
                Document(media_type="text/plain", text="x", title="t: c"),
            ),
            (
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}},
                Document(media_type="application/pdf", data="x"),
            ),
            ({"type": "document", "source": {"type": "url", "url": "u"}}, Document(url="u")),
            ({"type": "document", "source": {"type": "file", "file_id": "f"}}, Document(file_id="f")),
            ({"type": "document", "source": {"type": "content", "content": []}}, Foreign("document")),
            ({"type": "thinking", "thinking": "hm", "signature": "s"}, Thinking("hm", "s")),
            ({"type": "thinking", "thinking": "hm", "signature": ""}, Thinking("hm")),
            ({"type": "redacted_thinking", "data": "d"}, RedactedThinking("d")),
            ({"type": "tool_use", "id": "i", "name": "n", "input": {"a": [1]}}, ToolCall("i", "n", '{"a":[1]}')),
            ({"type": "tool_use", "id": "i", "name": "n", "input": {}}, ToolCall("i", "n", "{}")),
            ({"type": "tool_result", "tool_use_id": "i"}, ToolResult("i", ())),
            (
                {"type": "tool_result", "tool_use_id": "i", "content": "x", "is_error": True},
                ToolResult("i", (Text("x"),), is_error=True),
            ),
            (
                {
                    "type": "tool_result", "tool_use_id": "i", "cache_control": {"type": "ephemeral"},
                    "content": [
                        {"type": "text", "text": "x"}, {"type": "image", "source": {"type": "url", "url": "u"}},
                    ],
                },
                ToolResult("i", (Text("x"), Image(url="u")), cached=True),
            ),
            ({"type": "server_tool_use", "id": "i", "name": "n", "input": {}}, Foreign("server_tool_use")),
            ({"type": "search_result", "source": "x"}, Foreign("search_result")),
        ],
    )  # fmt: skip
    def test_a_block(self, block, read):
        assert read_request(asked(messages=[{"role": "user", "content": [block]}])).messages[0].content == (read,)

    def test_results_come_before_text(self):
        content = [{"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "i"}]
        (message,) = read_request(asked(messages=[{"role": "user", "content": content}])).messages
        assert message.content == (ToolResult("i", ()), Text("x"))

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
            ({"messages": ["x"]}, "messages[0].role"),
            ({"messages": [{"role": "user"}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
            ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
            ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
                "messages[0].content[0].source",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
                "messages[0].content[0].source",
            ),
            (
                {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n"}]}]},
                "messages[0].content[0]",
            ),
            ({"system": 1}, "system"),
            ({"system": [{"type": "image", "source": {"type": "url", "url": "u"}}]}, "system[0]"),
            ({"tools": [1]}, "tools[0]"),
            ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
            ({"tools": [{"name": "n", "input_schema": 1}]}, "tools[0].input_schema"),
            ({"tools": {}}, "tools"),
            ({"tool_choice": {"type": "tool"}}, "tool_choice"),
            ({"tool_choice": "auto"}, "tool_choice"),
            ({"thinking": {"type": "deep"}}, "thinking.type"),
            ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
            ({"stop_sequences": "x"}, "stop_sequences"),
            ({"stop_sequences": [1]}, "stop_sequences"),
            ({"temperature": "1"}, "temperature"),
            ({"temperature": True}, "temperature"),
            ({"top_k": 1.5}, "top_k"),
            ({"metadata": {"user_id": 7}}, "user_id"),
        ],
    )
    def test_what_is_none_is_refused_by_name(self, fields, param):
        with pytest.raises(InvalidRequest) as caught:
            read_request(asked(fields))
        assert caught.value.param == param

    @given(
        st.dictionaries(
            st.sampled_from(
                ["system", "tools", "tool_choice", "thinking", "output_config", "metadata", "stop_sequences", "x"]
            ),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(["type", "text", "source", "content", "input", "name", "format", "effort"]),
                        inner | st.sampled_from(["text", "image", "tool_use", "tool_result", "adaptive", "tool"]),
                        max_size=4,
                    )
                ),
                max_leaves=12,
            ),
        )
    )
    def test_nonsense_is_refused_and_breaks_nothing(self, fields):
        content = fields.pop("x", "x")
        with suppress(InvalidRequest):
            read_request(asked({**fields, "messages": [{"role": "user", "content": content}]}))

    def test_tools(self):
        tools = [
            {"name": "a", "description": "d", "input_schema": {"type": "object"}, "strict": True},
            {"type": "custom", "name": "b", "input_schema": {}, "cache_control": {"type": "ephemeral"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ]
        read = read_request(asked(tools=tools))
        assert read.tools == (Tool("a", "d", {"type": "object"}, strict=True), Tool("b", None, {}, cached=True))
        assert read.vital == ("tools[2]",)

    @pytest.mark.parametrize(
        ("choice", "read", "parallel"),
        [
            ({"type": "auto"}, ToolChoice("auto"), None),
            ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
            ({"type": "tool", "name": "a", "disable_parallel_tool_use": False}, ToolChoice("named", "a"), None),
            ({"type": "none"}, ToolChoice("none"), None),
            (None, None, None),
        ],
    )
    def test_the_choice_of_tools(self, choice, read, parallel):
        found = read_request(asked(tool_choice=choice))
        assert (found.tool_choice, found.parallel_tools) == (read, parallel)

    @pytest.mark.parametrize(
        ("fields", "effort", "budget"),
        [
            ({}, None, None),
            ({"thinking": {"type": "disabled"}}, "none", None),
            ({"thinking": {"type": "between_tools"}, "output_config": {"effort": "high"}}, "none", None),
            ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, None, 2000),
            ({"thinking": {"type": "adaptive"}}, "high", None),
            ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}, "xhigh", None),
            ({"output_config": {"effort": "low"}}, "low", None),
        ],
    )
    def test_thinking(self, fields, effort, budget):
        read = read_request(asked(fields))
        assert (read.effort, read.thinking_budget) == (effort, budget)

    @pytest.mark.parametrize("field", ["output_config", "output_format"])
    def test_the_answers_format(self, field):
        format_ = {"type": "json_schema", "schema": {"type": "object"}}
        fields = {field: {"format": format_} if field == "output_config" else format_}
        assert read_request(asked(fields)).output == OutputFormat({"type": "object"})

    def test_the_rest(self):
        read = read_request(
            asked(
                stream=True, max_tokens=7, temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["x"],
                metadata={"user_id": "u"}, service_tier="standard_only",
            )
        )  # fmt: skip
        assert read == prompt(
            stream=True, max_output=7, temperature=0.5, top_p=0.9, top_k=3, stop=("x",), end_user="u",
            service_tier="default",
        )  # fmt: skip

    def test_what_only_anthropic_has_is_told(self):
        read = read_request(
            asked(
                context_management={"edits": []}, diagnostics=None, betas=[], container="c", mcp_servers=[{}],
                output_config={"task_budget": {}}, tools=[{"name": "a", "defer_loading": True}],
            )
        )  # fmt: skip
        assert read.others == ("context_management", "output_config.task_budget", "tools[0].defer_loading")
        assert read.vital == ("container", "mcp_servers")


# ── an upstream's request ───────────────────────────────────────────────────────────────────────────────────────────


class TestWriteRequest:
    def test_system_messages_are_hoisted_in_order(self):
        body, _ = written(
            Message("system", (Text("a"),)), user("Hi"), Message("system", (Text("b", cached=True), Text("")))
        )
        assert body["system"] == [
            {"type": "text", "text": "a"},
            {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
        ]
        assert [turn["role"] for turn in body["messages"]] == ["user"]

    def test_neighbours_of_one_role_are_one_turn(self):
        body, _ = written(user("a"), user("b"), assistant("c"), assistant("d"), user("e"))
        assert [(turn["role"], len(turn["content"])) for turn in body["messages"]] == [
            ("user", 2), ("assistant", 2), ("user", 1),
        ]  # fmt: skip

    def test_text_without_a_character_is_dropped_and_no_turn_is_left_empty(self):
        body, dropped = written(user("a", "", " \n"), assistant("", Thinking("hm")), user("b"))
        assert [turn["content"] for turn in body["messages"]] == [
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        ]
        assert dropped == ("messages.reasoning_content",)

    def test_no_message_at_all_is_refused(self):
        with pytest.raises(InvalidRequest) as caught:
            written(user(""))
        assert caught.value.param == "messages"

    def test_tool_calls_and_their_results(self):
        body, _ = written(
            user("Weather?"),
            assistant("Let me see.", ToolCall("call_1", "weather", '{"city": "Rome"}'), ToolCall("call_2", "now", "")),
            Message("user", (ToolResult("call_1", (Text("Sun"),)), ToolResult("call_2", (), is_error=True))),
            user("And?"),
            tools=(WEATHER,),
        )
        _, said, results = body["messages"]
        assert said["content"] == [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
        ]
        assert results["content"] == [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "Sun"}]},
            {"type": "tool_result", "tool_use_id": "call_2", "is_error": True},
            {"type": "text", "text": "And?"},
        ]

    def test_results_come_first_even_where_text_came_before(self):
        body, _ = written(user("x"), assistant(ToolCall("a", "f", "{}")), user("y"), user(ToolResult("a", ())))
        assert [block["type"] for block in body["messages"][-1]["content"]] == ["tool_result", "text"]

    def test_ids_of_other_vendors_keep_belonging_together(self):
        body, _ = written(
            user("x"), assistant(ToolCall("functions.f:0", "f", "{}")), user(ToolResult("functions.f:0", ()))
        )
        id_ = body["messages"][1]["content"][0]["id"]
        assert re.fullmatch(r"functions_f_0_[0-9a-f]{8}", id_)
        assert body["messages"][2]["content"][0]["tool_use_id"] == id_
        other, _ = written(user("x"), assistant(ToolCall("functions:f.0", "f", "{}")))
        assert other["messages"][1]["content"][0]["id"] != id_

    @pytest.mark.parametrize("arguments", ["[]", "1", "{", "not json", "null"])
    def test_arguments_that_are_no_object_are_refused(self, arguments):
        with pytest.raises(InvalidRequest) as caught:
            written(user("x"), assistant(ToolCall("a", "f", arguments)))
        assert caught.value.param == "messages"

    @pytest.mark.parametrize(
        ("block", "source"),
        [
            (Image("image/webp", "aGk="), {"type": "base64", "media_type": "image/webp", "data": "aGk="}),
            (Image(url="https://x/y.png"), {"type": "url", "url": "https://x/y.png"}),
            (
                Document(media_type="application/pdf", data="aGk="),
                {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            ),
            (Document(text="hi"), {"type": "text", "media_type": "text/plain", "data": "hi"}),
            (
                Document(media_type="text/csv", data="aGk="),
                {"type": "text", "media_type": "text/plain", "data": "hi"},
            ),
            (Document(url="https://x"), {"type": "url", "url": "https://x"}),
            (Document(file_id="f"), {"type": "file", "file_id": "f"}),
        ],
    )
    def test_images_and_documents(self, block, source):
        body, dropped = written(user(block))
        assert body["messages"][0]["content"][0]["source"] == source
        assert not dropped

    @pytest.mark.parametrize(
        "block",
        [
            Image("image/svg+xml", "aGk="), Image(url="ftp://x"), Image(), Document(media_type="audio/wav", data="x"),
            Document(), Audio("wav", "x"), Foreign("server_tool_use"),
        ],
    )  # fmt: skip
    def test_what_it_cannot_take_is_refused(self, block):
        with pytest.raises(UnsupportedParameter):
            written(user(block))

    def test_an_images_detail_is_told(self):
        _, dropped = written(user(Image(url="https://x", detail="high"), Image(url="https://x", detail="auto")))
        assert dropped == ("messages.image_url.detail",)

    @pytest.mark.parametrize("data", ["%%%", "/w=="])
    def test_a_text_file_that_is_none_is_refused(self, data):
        with pytest.raises(InvalidRequest):
            written(user(Document(media_type="text/plain", data=data)))

    def test_signed_thinking_is_given_back_and_no_other(self):
        body, dropped = written(
            user("x"), assistant(Thinking("hm", "sig"), RedactedThinking("d"), Thinking("unsigned"), "y"), user("z")
        )
        assert body["messages"][1]["content"] == [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "y"},
        ]
        assert dropped == ("messages.reasoning_content",)

    def test_a_refusal_is_text_again(self):
        body, _ = written(user("x"), assistant(Refusal("No.")), user("y"))
        assert body["messages"][1]["content"] == [{"type": "text", "text": "No."}]

    def test_a_beginning_to_go_on_from_does_not_end_in_a_space(self):
        body, _ = written(user("x"), assistant("The answer is "), model=OLD)
        assert body["messages"][-1]["content"] == [{"type": "text", "text": "The answer is"}]

    @pytest.mark.parametrize(
        ("model", "asked_for", "most", "cap"),
        [
            (NEWEST, None, None, 128_000),
            (OLD, None, None, 64_000),
            ("some-other", None, None, 4096),
            (NEWEST, 50, None, 50),
            (NEWEST, None, 1000, 1000),
            (NEWEST, 5000, 1000, 1000),
            (OLD, 100_000, None, 64_000),
        ],
    )
    def test_there_is_always_a_cap(self, model, asked_for, most, cap):
        assert written(model=model, most=most, max_output=asked_for)[0]["max_tokens"] == cap

    @pytest.mark.parametrize(
        ("model", "fields", "kept", "dropped"),
        [
            (OLD, {"temperature": 0.5, "top_p": 0.5, "top_k": 5}, {"temperature": 0.5, "top_p": 0.5, "top_k": 5}, ()),
            (OLD, {"temperature": 1.7}, {}, ("temperature",)),
            (OLD, {"temperature": 1.0, "top_p": 1.0}, {}, ()),
            (SAMPLING, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ("top_p",)),
            (SAMPLING, {"temperature": 1.0, "top_p": 0.5}, {"top_p": 0.5}, ()),
            (SAMPLING, {"temperature": 0.5, "effort": "low"}, {}, ("temperature",)),
            (BUDGET, {"top_p": 0.97, "effort": "low"}, {"top_p": 0.97}, ()),
            (BUDGET, {"top_p": 0.9, "top_k": 2, "effort": "low"}, {}, ("top_p", "top_k")),
            (ADAPTIVE, {"temperature": 0.5, "top_p": 0.5, "top_k": 5}, {}, ("temperature", "top_p", "top_k")),
            (NEWEST, {"temperature": 1, "top_p": 1}, {}, ()),
        ],
    )
    def test_sampling(self, model, fields, kept, dropped):
        body, told = written(model=model, **fields)
        assert {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body} == kept
        assert told == dropped

    def test_what_has_no_equivalent_is_told(self):
        body, dropped = written(
            Message("user", (Text("x"),), name="Ann"), seed=0, frequency_penalty=0.5, presence_penalty=0.0,
            stop=("a", " ", "b"), service_tier="flex", others=("logit_bias",),
        )  # fmt: skip
        assert body["stop_sequences"] == ["a", "b"]
        assert set(dropped) == {"logit_bias", "messages.name", "stop", "service_tier", "seed", "frequency_penalty"}

    @pytest.mark.parametrize(("fields", "param"), [({"n": 2}, "n"), ({"vital": ("logprobs",)}, "logprobs")])
    def test_what_the_answer_depends_on_is_refused(self, fields, param):
        with pytest.raises(UnsupportedParameter) as caught:
            written(**fields)
        assert caught.value.param == param

    def test_the_rest(self):
        body, dropped = written(stream=True, end_user="u", service_tier="default", model=NEWEST)
        assert (body["stream"], body["metadata"], body["service_tier"]) == (True, {"user_id": "u"}, "standard_only")
        assert body["model"] == NEWEST
        assert not dropped

    # ── tools ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def test_a_tool(self):
        body, _ = written(tools=(WEATHER, Tool("now", cached=True), Tool("loose", parameters={"properties": {}})))
        assert body["tools"] == [
            {"name": "weather", "description": "Of a city", "input_schema": WEATHER.parameters},
            {
                "name": "now", "input_schema": {"type": "object", "properties": {}},
                "cache_control": {"type": "ephemeral"},
            },
            {"name": "loose", "input_schema": {"type": "object", "properties": {}}},
        ]  # fmt: skip

    def test_a_strict_tool_is_strict_where_that_is_known(self):
        strict = Tool("f", None, {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}}, True)
        body, dropped = written(tools=(strict,))
        assert body["tools"][0]["strict"] is True
        assert body["tools"][0]["input_schema"]["additionalProperties"] is False
        assert not dropped
        body, dropped = written(tools=(strict,), model=OLD)
        assert body["tools"][0] == {"name": "f", "input_schema": strict.parameters}
        assert dropped == ("tools.function.strict",)

    @pytest.mark.parametrize(
        ("choice", "parallel", "told"),
        [
            (None, None, None),
            (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
            (None, True, None),
            (ToolChoice("auto"), None, {"type": "auto"}),
            (ToolChoice("required"), None, {"type": "any"}),
            (ToolChoice("required"), False, {"type": "any", "disable_parallel_tool_use": True}),
            (ToolChoice("none"), False, {"type": "none"}),
            (
                ToolChoice("named", "weather"),
                False,
                {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            ),
        ],
    )
    def test_the_choice_of_tools(self, choice, parallel, told):
        body, _ = written(tools=(WEATHER,), tool_choice=choice, parallel_tools=parallel)
        assert body.get("tool_choice") == told

    def test_without_tools_nothing_is_chosen(self):
        body, dropped = written(tool_choice=ToolChoice("none"), parallel_tools=False)
        assert "tool_choice" not in body
        assert not dropped
        with pytest.raises(InvalidRequest):
            written(tool_choice=ToolChoice("required"))

    def test_a_model_that_is_not_made_to_call_a_tool_is_not_asked(self):
        with pytest.raises(UnsupportedParameter) as caught:
            written(tools=(WEATHER,), tool_choice=ToolChoice("required"), model=NEWEST)
        assert caught.value.param == "tool_choice"

    # ── the answer's format ─────────────────────────────────────────────────────────────────────────────────────────

    SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}

    @pytest.mark.parametrize("model", [BUDGET, SAMPLING, ADAPTIVE, UNASKED, NEWEST])
    def test_a_schema_is_an_output_format(self, model):
        body, _ = written(output=OutputFormat(self.SCHEMA), effort="high", tools=(WEATHER,), model=model)
        format_ = body["output_config"]["format"]
        assert format_ == {"type": "json_schema", "schema": {**self.SCHEMA, "additionalProperties": False}}
        assert "tool_choice" not in body

    def test_on_an_older_model_it_is_a_tool_that_is_called(self):
        body, dropped = written(output=OutputFormat(self.SCHEMA), model=OLD, effort="high")
        (tool,) = body["tools"]
        assert (tool["name"], tool["input_schema"]) == (ANSWER_TOOL, self.SCHEMA)
        assert body["tool_choice"] == {"type": "tool", "name": ANSWER_TOOL}
        assert "thinking" not in body
        assert dropped == ("reasoning_effort",)

    def test_beside_other_tools_any_of_them_is_called(self):
        body, _ = written(output=OutputFormat(self.SCHEMA), model=OLD, tools=(WEATHER,))
        assert [tool["name"] for tool in body["tools"]] == ["weather", ANSWER_TOOL]
        assert body["tool_choice"] == {"type": "any"}

    def test_where_a_tool_is_to_be_called_the_answer_has_no_format(self):
        choice = ToolChoice("named", "weather")
        body, _ = written(output=OutputFormat(self.SCHEMA), model=OLD, tools=(WEATHER,), tool_choice=choice)
        assert [tool["name"] for tool in body["tools"]] == ["weather"]
        assert body["tool_choice"] == {"type": "tool", "name": "weather"}

    @pytest.mark.parametrize("model", [OLD, ADAPTIVE, UNASKED])
    def test_any_object_is_a_tool_too(self, model):
        body, _ = written(output=OutputFormat(), model=model)
        assert body["tools"][0]["input_schema"]["additionalProperties"] is True
        assert "format" not in body.get("output_config", {})

    @pytest.mark.parametrize("schema", [None, {"type": "object", "additionalProperties": {"type": "string"}}])
    def test_what_the_newest_cannot_say_is_refused(self, schema):
        with pytest.raises(UnsupportedParameter) as caught:
            written(output=OutputFormat(schema), model=NEWEST)
        assert caught.value.param == "response_format"

    # ── thinking ────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize(
        ("model", "fields", "thinking", "effort", "dropped"),
        [
            (OLD, {"effort": "medium", "max_output": 10_000}, {"type": "enabled", "budget_tokens": 5000}, None, ()),
            (OLD, {"effort": "low", "max_output": 2000}, {"type": "enabled", "budget_tokens": 1024}, None, ()),
            (OLD, {"effort": "high"}, {"type": "enabled", "budget_tokens": 32_000}, None, ()),
            (OLD, {"effort": "low", "max_output": 1024}, None, None, ("reasoning_effort",)),
            (OLD, {"thinking_budget": 3000}, {"type": "enabled", "budget_tokens": 3000}, None, ()),
            (
                OLD, {"thinking_budget": 3000, "max_output": 2000}, {"type": "enabled", "budget_tokens": 1999}, None,
                (),
            ),
            (OLD, {"thinking_budget": 10}, None, None, ("reasoning_effort",)),
            (OLD, {"effort": "none"}, None, None, ()),
            (OLD, {"effort": "ultra"}, None, None, ("reasoning_effort",)),
            ("claude-3-5-haiku-latest", {"effort": "low"}, None, None, ("reasoning_effort",)),
            ("claude-3-5-haiku-latest", {"effort": "none"}, None, None, ()),
            (ADAPTIVE, {"effort": "high"}, {"type": "adaptive"}, "high", ()),
            (ADAPTIVE, {"effort": "minimal"}, {"type": "adaptive"}, "low", ()),
            (ADAPTIVE, {"effort": "none"}, None, None, ()),
            (ADAPTIVE, {"effort": "ultra"}, None, None, ("reasoning_effort",)),
            (ADAPTIVE, {"thinking_budget": 2000, "max_output": 10_000}, {"type": "adaptive"}, "low", ()),
            (ADAPTIVE, {"thinking_budget": 9000, "max_output": 10_000}, {"type": "adaptive"}, "high", ()),
            (SAMPLING, {"effort": "max"}, {"type": "adaptive"}, "max", ()),
            (SAMPLING, {"effort": "xhigh"}, {"type": "adaptive"}, "high", ("reasoning_effort",)),
            (UNASKED, {}, None, None, ()),
            (UNASKED, {"effort": "none"}, {"type": "disabled"}, None, ()),
            ("claude-sonnet-5-5", {"effort": "none"}, {"type": "between_tools"}, None, ()),
            (NEWEST, {"effort": "none"}, None, "low", ("reasoning_effort",)),
            (NEWEST, {"effort": "max"}, {"type": "adaptive"}, "max", ()),
        ],
    )  # fmt: skip
    def test_thinking_is_asked_for_as_the_model_has_it(self, model, fields, thinking, effort, dropped):
        body, told = written(model=model, **fields)
        assert body.get("thinking") == thinking
        assert body.get("output_config", {}).get("effort") == effort
        assert told == dropped

    @pytest.mark.parametrize(
        ("model", "effort", "dropped"),
        [(OLD, None, ("reasoning_effort",)), (ADAPTIVE, None, ("reasoning_effort",)), (UNASKED, "high", ())],
    )
    def test_a_call_that_is_forced_is_not_thought_about(self, model, effort, dropped):
        body, told = written(model=model, effort="high", tools=(WEATHER,), tool_choice=ToolChoice("required"))
        assert "thinking" not in body
        assert body.get("output_config", {}).get("effort") == effort
        assert told == dropped

    @pytest.mark.parametrize(
        ("before", "thinks"),
        [
            ((), False),
            ((Thinking("hm"),), False),
            ((Thinking("hm", "sig"),), True),
            ((RedactedThinking("d"),), True),
        ],
    )
    def test_a_call_without_its_signed_thinking_leaves_thinking_out(self, before, thinks):
        turns = user("x"), assistant(*before, ToolCall("a", "f", "{}")), user(ToolResult("a", ()))
        body, dropped = written(*turns, model=OLD, effort="high", tools=(WEATHER,))
        assert ("thinking" in body) is thinks
        assert ("reasoning_effort" in dropped) is not thinks

    def test_an_adaptive_model_does_not_mind(self):
        turns = user("x"), assistant(ToolCall("a", "f", "{}")), user(ToolResult("a", ()))
        assert written(*turns, model=ADAPTIVE, effort="high")[0]["thinking"] == {"type": "adaptive"}

    def test_earlier_calls_do_not_matter(self):
        turns = user("x"), assistant(ToolCall("a", "f", "{}")), user(ToolResult("a", ())), assistant("y"), user("z")
        assert "thinking" in written(*turns, model=OLD, effort="high")[0]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("claude-opus-4-5-20251101", BUDGET),
        ("us.anthropic.claude-opus-4-8-v1:0", ADAPTIVE),
        ("anthropic/claude-sonnet-4.6", SAMPLING),
        ("claude-sonnet-4@20250514", OLD),
        ("claude-sonnet-4-5-20250929", BUDGET),
        ("claude-opus-4-9", ADAPTIVE),
        ("claude-opus-7", NEWEST),
        ("claude-fable-5-2", NEWEST),
        ("claude-something-6", NEWEST),
        ("claude-haiku-5-5", UNASKED),
    ],
)
def test_a_name_says_which_model_it_is(name, like):
    assert claude.model(name) == claude.model(like)


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        (
            {"type": "integer", "minimum": 1, "description": "N"},
            {"type": "integer", "description": "N\n\n{minimum: 1}"},
        ),
        ({"type": "string", "format": "date", "pattern": "x"}, {"type": "string", "format": "date",
                                                                 "description": "{pattern: x}"}),
        ({"type": "string", "format": "hex"}, {"type": "string", "description": "{format: hex}"}),
        ({"enum": ["a", 1, None]}, {"enum": ["a", 1, None]}),
        ({"type": "string", "const": "a"}, {"const": "a"}),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, {"anyOf": [{"type": "null"}, {"type": "boolean"}]}),
        (
            {"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1},
            {"anyOf": [{"type": "array", "items": {"type": "string"}, "minItems": 1}, {"type": "null"}]},
        ),
        (
            {"$schema": "x", "$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {}}}},
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "object", "properties": {}, "additionalProperties": False}},
            },
        ),
        (
            {"type": "array", "minItems": 2, "items": {"type": "number"}},
            {"type": "array", "items": {"type": "number"}, "description": "{minItems: 2}"},
        ),
    ],
)  # fmt: skip
def test_a_schema_is_made_one_that_anthropic_takes(schema, made):
    before = json.dumps(schema)
    assert closed(schema) == made
    assert json.dumps(schema) == before
    if "$schema" not in schema and not isinstance(schema.get("type"), list):  # the SDK knows neither
        assert sdk.transform_schema(schema) == made


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"type": "object"}, {"type": "object", "additionalProperties": {"type": "string"}}, {"type": "file"},
        {"anyOf": [True]}, {"type": "array", "items": True}, {"enum": [{}]},
    ],
)  # fmt: skip
def test_a_schema_that_would_lose_its_meaning_is_inexpressible(schema):
    with pytest.raises(Inexpressible):
        closed(schema)


def test_a_schema_without_a_bottom_is_inexpressible():
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(900):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Inexpressible):
        closed(schema)


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(min_size=1, max_size=20).filter(lambda text: text.strip() != "")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
inputs = st.dictionaries(st.text(max_size=8), values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(["f", "g"]), inputs), min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Turns that alternate, each with calls followed by a turn with their results."""
    messages = [Message("user", (Text(draw(texts)),))]
    for round_ in range(draw(st.integers(0, 3))):
        told = [
            ToolCall(f"call_{round_}_{i}", name, json.dumps(input_)) for i, (name, input_) in enumerate(draw(calls))
        ]
        said = [Text(text) for text in draw(st.lists(texts, max_size=2))]
        signed = [Thinking(draw(texts), "sig")] if draw(st.booleans()) else []
        messages.append(Message("assistant", (*signed, *said, *told)))
        results = [ToolResult(call.id, (Text(draw(texts)),), draw(st.booleans())) for call in told]
        messages.append(Message("user", (*results, *(Text(text) for text in draw(st.lists(texts, max_size=1))))))
    return tuple(messages)


def comparable(messages: tuple[Message, ...]) -> list[Any]:
    """Arguments as what they mean: how they are spaced is nobody's business."""
    blocks = [(message.role, block) for message in messages for block in message.content]
    return [
        (role, block.id, block.name, json.loads(block.arguments or "{}")) if isinstance(block, ToolCall)
        else (role, block)
        for role, block in blocks
    ]  # fmt: skip


@given(conversations(), st.sampled_from([OLD, BUDGET, SAMPLING, ADAPTIVE, UNASKED, NEWEST]))
def test_a_conversation_survives_the_way_there_and_back(messages, model):
    body, dropped = written(*messages, model=model, tools=(WEATHER,), max_output=50)
    read = read_request(asked(body))
    assert comparable(read.messages) == comparable(messages)
    assert (read.tools, read.max_output) == ((WEATHER,), 50)
    assert not dropped


# ── an upstream's answer ────────────────────────────────────────────────────────────────────────────────────────────


def message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A plain answer, as Anthropic gives it."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content),
        "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5, "service_tier": "standard"}, **fields,
    }  # fmt: skip


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def tool_use(id_: str, name: str, input_: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": input_}


def read(body: dict[str, Any]) -> Answer:
    answer = read_answer(json.dumps(body).encode(), native=False).answer
    assert answer is not None
    return answer


USAGES = [
    ({"input_tokens": 10, "output_tokens": 5}, Usage(10, 5)),
    (
        # lesson 6: the whole input is 172k, and the figures price to $0.166250
        {"input_tokens": 14_000, "cache_read_input_tokens": 155_000, "cache_creation_input_tokens": 3_000,
         "output_tokens": 1},
        Usage(172_000, 1, cached_tokens=155_000, cache_write_tokens=3_000),
    ),
    (
        {"input_tokens": 1, "cache_creation_input_tokens": 30, "output_tokens": 2,
         "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}},
        Usage(31, 2, cache_write_tokens=10, cache_write_1h_tokens=20),
    ),
    (
        {"input_tokens": 1, "cache_creation_input_tokens": 5, "output_tokens": 2,
         "cache_creation": {"ephemeral_1h_input_tokens": 20}},
        Usage(6, 2, cache_write_1h_tokens=5),
    ),
    (
        {"input_tokens": 1, "output_tokens": 482, "output_tokens_details": {"thinking_tokens": 448}},
        Usage(1, 482, reasoning_tokens=448),
    ),
    (
        {"input_tokens": 1, "output_tokens": None, "cache_creation": None, "cache_read_input_tokens": None,
         "output_tokens_details": None},
        Usage(1, 0),
    ),
    ({}, None),
    (None, None),
    ({"output_tokens": 5}, None),
]  # fmt: skip


class TestReadAnswer:
    def test_a_native_one_is_passed_as_it_is(self):
        body = json.dumps(message(text("Hi"), {"type": "brand_new"}), indent=1).encode()
        completion = read_answer(body, native=True)
        assert completion.body is body
        assert completion.answer is None
        assert (completion.text, completion.served_model, completion.service_tier) == ("Hi", "claude-x", "standard")
        assert completion.finish_reason == "end_turn"

    def test_blocks(self):
        answer = read(
            message(
                {"type": "thinking", "thinking": "hm", "signature": "sig"}, {"type": "redacted_thinking", "data": "d"},
                text("Hi"), {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": 1}},
                tool_use("t", "f", {"a": 1}), tool_use("u", "g", {}), {"type": "brand_new"},
                stop_reason="tool_use",
            )
        )  # fmt: skip
        assert answer.content == (
            Thinking("hm", "sig"), RedactedThinking("d"), Text("Hi"), ToolCall("t", "f", '{"a": 1}'),
            ToolCall("u", "g", "{}"),
        )  # fmt: skip
        assert answer.stop is Stop.TOOL_CALLS

    def test_the_model_that_served(self):
        assert read_answer(json.dumps(message(text("Hi"))).encode(), native=False).served_model == "claude-x"

    def test_everything_that_costs_is_text(self):
        body = message({"type": "thinking", "thinking": "hm "}, text("Hi "), tool_use("t", "f", {"a": 1}))
        assert read_answer(json.dumps(body).encode(), native=True).text == 'hm Hi f{"a": 1}'

    @pytest.mark.parametrize(
        ("reason", "stop"),
        [
            ("end_turn", Stop.END), ("stop_sequence", Stop.SEQUENCE), ("max_tokens", Stop.LENGTH),
            ("model_context_window_exceeded", Stop.CONTEXT_WINDOW), ("pause_turn", Stop.PAUSE),
            ("refusal", Stop.REFUSAL), ("brand_new", Stop.UNKNOWN), (None, Stop.END),
        ],
    )  # fmt: skip
    def test_why_it_stopped(self, reason, stop):
        body = message(text("x"), stop_reason=reason, stop_sequence="END")
        assert read(body).stop is stop
        assert read(body).stop_sequence == "END"
        assert read_answer(json.dumps(body).encode(), native=False).finish_reason == reason

    def test_a_refusal(self):
        details = {"type": "refusal", "category": "cyber", "explanation": "Because."}
        answer = read(message(text("I will not"), stop_reason="refusal", stop_details=details))
        assert answer.content == (Refusal("I will not"),)
        assert answer.stop_category == "cyber"
        assert read(message(stop_reason="refusal", stop_details=details)).content == (Refusal("Because."),)
        assert read(message(stop_reason="refusal", stop_details=None)).content == ()

    def test_an_answer_by_the_tool_is_text(self):
        answer = read(message(tool_use("t", ANSWER_TOOL, {"a": 1}), stop_reason="tool_use"))
        assert (answer.content, answer.stop) == ((Text('{"a": 1}'),), Stop.END)

    @pytest.mark.parametrize(("told", "usage"), USAGES)
    def test_usage(self, told, usage):
        assert read_answer(json.dumps(message(usage=told)).encode(), native=False).usage == usage

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"type":"error","error":{}}', b'{"content":"x"}', b"\xff"])
    def test_what_is_no_answer(self, body):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            read_answer(body, native=True)

    def test_nulls_are_nothing(self):
        nothing = dict.fromkeys(["text", "thinking", "signature", "id", "name", "input"])
        body = message({"type": "text", **nothing}, {"type": "tool_use", **nothing}, model=None, usage=None)
        assert read(body).content == (Text(""), ToolCall("", "", "{}"))
        assert read({"content": None}).content == ()


# ── an upstream's stream ────────────────────────────────────────────────────────────────────────────────────────────


def started(**usage: Any) -> dict[str, Any]:
    told = {"input_tokens": 10, "output_tokens": 1, **usage}
    return {"type": "message_start", "message": message(stop_reason=None, usage=told)}


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def finished(reason: str | None = "end_turn", usage: Any = None, **fields: Any) -> dict[str, Any]:
    delta = {"stop_reason": reason, "stop_sequence": None, **fields}
    return {"type": "message_delta", "delta": delta, "usage": usage or {"output_tokens": 5}}


STOPPED = {"type": "message_stop"}


def said(part: str) -> dict[str, Any]:
    return {"type": "text_delta", "text": part}


def given_json(part: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": part}


def events(*payloads: dict[str, Any], native: bool = False) -> tuple[list[StreamEvent], Events]:
    reader = Events(native=native)
    found = [reader.read(json.dumps(payload).encode()) for payload in payloads]
    return [event for event in found if event is not None], reader


def deltas(*payloads: dict[str, Any]) -> list[Any]:
    return [delta for event in events(*payloads)[0] for delta in event.deltas]


class TestEvents:
    WHOLE = [
        started(),
        {"type": "ping"},
        *block(0, text(""), said("Hel"), said("lo")),
        *block(1, tool_use("t", "f", {}), given_json(""), given_json('{"a":'), given_json(" 1}")),
        *block(2, tool_use("u", "g", {})),
        finished("tool_use"),
        STOPPED,
    ]

    def test_deltas(self):
        assert deltas(*self.WHOLE) == [
            TextDelta("Hel"), TextDelta("lo"), BlockEnd(),
            ToolCallStart(0, "t", "f"), ToolCallDelta(0, '{"a":'), ToolCallDelta(0, " 1}"), BlockEnd(),
            ToolCallStart(1, "u", "g"), ToolCallDelta(1, "{}"), BlockEnd(),
            Finish(Stop.TOOL_CALLS),
        ]  # fmt: skip

    def test_every_native_event_is_passed_as_it_is(self):
        found, reader = events(*self.WHOLE, native=True)
        assert [json.loads(event.data) for event in found] == self.WHOLE
        assert [event.event for event in found] == [payload["type"] for payload in self.WHOLE]
        assert not any(event.deltas for event in found)
        assert reader.done

    def test_a_native_event_is_on_one_line(self):
        event = Events(native=True).read(json.dumps(started(), indent=1).encode())
        assert b"\n" not in event.data

    @pytest.mark.parametrize("native", [False, True])
    def test_text_is_everything_that_costs_and_content_what_is_waited_for(self, native):
        found, _ = events(*self.WHOLE, native=native)
        assert "".join(event.text for event in found) == 'Hellof{"a": 1}g'
        first = next(event for event in found if event.content)
        assert first.text == "Hel"

    @pytest.mark.parametrize("native", [False, True])
    def test_what_it_says_of_itself(self, native):
        found, _ = events(*self.WHOLE, native=native)
        assert [event.served_model for event in found if event.served_model] == ["claude-x"]
        assert [event.finish_reason for event in found if event.finish_reason] == ["tool_use"]

    @pytest.mark.parametrize("native", [False, True])
    def test_usage_is_of_the_whole_answer_so_far(self, native):
        start = started(
            cache_read_input_tokens=100, cache_creation_input_tokens=7, service_tier="priority",
            cache_creation={"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 3},
        )  # fmt: skip
        told = {"output_tokens": 50, "input_tokens": None, "output_tokens_details": {"thinking_tokens": 20}}
        found, _ = events(start, finished(usage=told), native=native)
        first, last = (event.usage for event in found)
        before = Usage(117, 1, cached_tokens=100, cache_write_tokens=3, cache_write_1h_tokens=4)
        assert first == before
        assert last == msgspec.structs.replace(before, completion_tokens=50, reasoning_tokens=20)
        assert found[0].service_tier == "priority"

    def test_a_later_input_replaces_the_first(self):
        found, _ = events(started(), finished(usage={"output_tokens": 9, "input_tokens": 99}), finished(None))
        assert [event.usage for event in found] == [Usage(10, 1), Usage(99, 9), Usage(99, 5)]

    def test_thinking(self):
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        parts = {"type": "thinking_delta", "thinking": "hm"}, {"type": "signature_delta", "signature": "sig"}
        hidden = {"type": "redacted_thinking", "data": "d"}
        assert deltas(started(), *block(0, thinking, *parts), *block(1, hidden)) == [
            ThinkingDelta("hm"), SignatureDelta("sig"), BlockEnd(), RedactedThinkingDelta("d"), BlockEnd(),
        ]  # fmt: skip

    def test_unknown_blocks_deltas_and_events_are_skipped(self):
        server = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
        found = deltas(
            started(), {"type": "brand_new", "delta": {"x": 1}}, *block(0, server, given_json('{"q":1}')),
            *block(1, text(""), {"type": "citations_delta", "citation": {}}, said("x")),
        )  # fmt: skip
        assert found == [TextDelta("x"), BlockEnd()]

    def test_a_server_that_streams_no_input_gives_it_at_the_start(self):
        assert deltas(started(), *block(0, tool_use("t", "f", {"a": 1}))) == [
            ToolCallStart(0, "t", "f"), ToolCallDelta(0, '{"a": 1}'), BlockEnd(),
        ]  # fmt: skip

    def test_an_answer_by_the_tool_is_text(self):
        found = deltas(
            started(), *block(0, tool_use("t", ANSWER_TOOL, {}), given_json('{"a"'), given_json(":1}")),
            finished("tool_use"),
        )  # fmt: skip
        assert found == [TextDelta('{"a"'), TextDelta(":1}"), BlockEnd(), Finish(Stop.END)]

    def test_calls_beside_it_keep_their_own_count(self):
        found = deltas(
            started(), *block(0, tool_use("t", ANSWER_TOOL, {}), given_json("{}")),
            *block(1, tool_use("u", "f", {}), given_json("{}")), finished("tool_use"),
        )  # fmt: skip
        assert ToolCallStart(0, "u", "f") in found
        assert found[-1] == Finish(Stop.TOOL_CALLS)

    def test_a_refusal_says_why_where_nothing_was_said(self):
        details = {"type": "refusal", "category": "bio", "explanation": "Because."}
        finish = finished("refusal", stop_details=details)
        assert deltas(started(), finish) == [RefusalDelta("Because."), Finish(Stop.REFUSAL, None, "bio")]
        told = deltas(started(), *block(0, text(""), said("I")), finish)
        assert told == [TextDelta("I"), BlockEnd(), Finish(Stop.REFUSAL, None, "bio")]

    def test_an_unknown_reason_is_an_unknown_stop(self):
        (event,) = events(started(), finished("brand_new"))[0][1:]
        assert (event.finish_reason, event.deltas) == ("brand_new", (Finish(Stop.UNKNOWN),))

    def test_an_error(self):
        error = {"type": "overloaded_error", "message": "Overloaded"}
        with pytest.raises(ErrorEvent) as caught:
            events(started(), {"type": "error", "error": error})
        assert caught.value.error == error

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type":1}', b"\xff", b"[DONE]"])
    def test_what_is_no_event(self, data):
        with pytest.raises((msgspec.MsgspecError, ValueError)):
            Events(native=True).read(data)

    def test_it_is_done_when_it_says_so(self):
        _, reader = events(started(), finished())
        assert not reader.done
        reader.end()
        assert reader.done, "a stop reason says as much"
        _, reader = events(started())
        reader.end()
        assert not reader.done


# ── a client's answer ───────────────────────────────────────────────────────────────────────────────────────────────


class TestWriteAnswer:
    def told(
        self, *content: Any, stop: Stop = Stop.END, usage: Usage | None = None, served: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        answer = Answer(content=content, stop=stop, **fields)
        completion = Completion(answer=answer, usage=usage, text="", served_model=served)
        body = write_answer(completion, FRAME)
        SdkMessage.model_validate(body)
        decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
        return decoded

    def test_a_message(self):
        body = self.told(Text("Hi"), usage=Usage(10, 5))
        assert body == {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "model-of-the-frame",
            "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {
                "input_tokens": 10, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "output_tokens": 5,
            },
        }  # fmt: skip

    def test_blocks(self):
        body = self.told(
            Thinking("hm"), Thinking("so", "sig"), RedactedThinking("d"), Text(""), ToolCall("t", "f", '{"a":1}'),
            ToolCall("u", "g", ""), served="served",
        )  # fmt: skip
        assert body["content"] == [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "thinking", "thinking": "so", "signature": "sig"},
            {"type": "redacted_thinking", "data": "d"},
            tool_use("t", "f", {"a": 1}),
            tool_use("u", "g", {}),
        ]
        assert body["model"] == "served"

    @pytest.mark.parametrize("arguments", ["[1]", '{"a":', "hello"])
    def test_arguments_that_are_no_object_are_not_lost(self, arguments):
        assert self.told(ToolCall("t", "f", arguments))["content"][0]["input"] == {RAW_ARGUMENTS: arguments}

    @pytest.mark.parametrize(
        ("content", "stop", "reason"),
        [
            ((), Stop.END, "end_turn"), ((), Stop.SEQUENCE, "stop_sequence"), ((), Stop.LENGTH, "max_tokens"),
            ((), Stop.CONTEXT_WINDOW, "model_context_window_exceeded"), ((), Stop.REFUSAL, "refusal"),
            ((), Stop.PAUSE, "pause_turn"), ((), Stop.UNKNOWN, "end_turn"), ((), Stop.TOOL_CALLS, "end_turn"),
            ((ToolCall("t", "f", ""),), Stop.TOOL_CALLS, "tool_use"), ((ToolCall("t", "f", ""),), Stop.END, "tool_use"),
            ((ToolCall("t", "f", "{"),), Stop.LENGTH, "max_tokens"), ((Refusal("No."),), Stop.END, "refusal"),
        ],
    )  # fmt: skip
    def test_why_it_stopped(self, content, stop, reason):
        assert self.told(*content, stop=stop)["stop_reason"] == reason

    def test_a_refusal_says_of_what_kind(self):
        body = self.told(Refusal("No."), stop=Stop.REFUSAL, stop_category="cyber")
        assert body["content"] == [{"type": "text", "text": "No."}]
        assert body["stop_details"]["category"] == "cyber"

    @pytest.mark.parametrize(("told", "usage"), [pair for pair in USAGES if pair[1] is not None])
    def test_usage_is_as_anthropic_had_it(self, told, usage):
        back = self.told(usage=usage)["usage"]
        assert read_answer(json.dumps(message(usage=back)).encode(), native=False).usage == usage
        assert back["input_tokens"] == told["input_tokens"]

    def test_without_usage_the_input_is_the_estimate(self):
        assert self.told()["usage"]["input_tokens"] == 9


# ── a client's stream ───────────────────────────────────────────────────────────────────────────────────────────────


def accumulated(wire: bytes) -> SdkMessage:
    """What Anthropic's SDK makes of the bytes."""

    def serve(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=wire)

    with (
        httpx2.Client(transport=httpx2.MockTransport(serve)) as http,
        sdk.Anthropic(api_key="k", base_url="http://x", http_client=http) as client,
        client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}]) as stream,
    ):
        return stream.get_final_message()


def payloads(wire: bytes) -> list[dict[str, Any]]:
    """The events' data, each under its own name."""
    found = []
    for event in wire.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def check_order(told: list[dict[str, Any]]) -> None:
    """The rules of the wire: contiguous indices, one open block, every start with its stop, the frame around it."""
    assert [event["type"] for event in (told[0], *told[-2:])] == ["message_start", "message_delta", "message_stop"]
    open_, index = None, -1
    for event in told[1:-2]:
        if event["type"] == "content_block_start":
            assert open_ is None
            open_ = index = index + 1
        assert event["index"] == open_
        if event["type"] == "content_block_stop":
            open_ = None
    assert open_ is None


def streamed(*deltas: Any, usage: Usage = Usage(10, 5), one_by_one: bool = True) -> bytes:  # noqa: B008
    writer = StreamWriter(FRAME)
    groups = [(delta,) for delta in deltas] if one_by_one else [deltas]
    wire = b"".join(writer.write(StreamEvent(deltas=group)) for group in groups) + writer.end(usage)
    check_order(payloads(wire))
    return wire


def contents(wire: bytes) -> list[Any]:
    found: list[Any] = []
    for part in accumulated(wire).content:
        match part.type:
            case "text":
                found.append(part.text)
            case "tool_use":
                found.append((part.id, part.name, part.input))
            case "thinking":
                found.append(("thinking", part.thinking, part.signature))
            case "redacted_thinking":
                found.append(("redacted", part.data))
    return found


class TestStreamWriter:
    def test_the_input_is_shown_at_once_and_corrected_at_the_end(self):
        wire = streamed(TextDelta("Hi"), Finish(Stop.END), usage=Usage(100, 7, cached_tokens=30, cache_write_tokens=20))
        told = payloads(wire)
        assert told[0]["message"]["usage"]["input_tokens"] == 9
        assert told[0]["message"]["usage"]["output_tokens"] == 1
        assert told[0]["message"]["content"] == []
        final = accumulated(wire)
        assert final.id == "msg_1"
        assert final.stop_reason == "end_turn"
        usage = final.usage
        assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (50, 30, 20)
        assert usage.output_tokens == 7

    def test_the_model_is_the_upstreams(self):
        writer = StreamWriter(FRAME)
        wire = writer.write(StreamEvent(served_model="served"))
        assert wire == b"", "nothing to say yet"
        wire = writer.write(StreamEvent(deltas=(TextDelta("x"),))) + writer.end(Usage(1, 1))
        assert accumulated(wire).model == "served"

    def test_a_stream_without_a_word_is_a_message_all_the_same(self):
        final = accumulated(streamed())
        assert (final.content, final.stop_reason) == ([], "end_turn")

    @pytest.mark.parametrize("one_by_one", [True, False])
    def test_blocks_follow_each_other(self, one_by_one):
        wire = streamed(
            ThinkingDelta("h"), ThinkingDelta("m"), SignatureDelta("sig"), BlockEnd(), RedactedThinkingDelta("d"),
            BlockEnd(), TextDelta("Hel"), TextDelta(""), TextDelta("lo"), ToolCallStart(0, "t", "f"),
            ToolCallDelta(0, '{"a"'), ToolCallDelta(0, ":1}"), TextDelta("done"), Finish(Stop.TOOL_CALLS),
            one_by_one=one_by_one,
        )  # fmt: skip
        assert contents(wire) == [
            ("thinking", "hm", "sig"), ("redacted", "d"), "Hello", ("t", "f", {"a": 1}), "done",
        ]  # fmt: skip

    def test_thinking_that_nobody_signed_ends_where_text_begins(self):
        assert contents(streamed(ThinkingDelta("hm"), TextDelta("x"))) == [("thinking", "hm", ""), "x"]

    def test_a_signature_without_a_word_is_a_block(self):
        assert contents(streamed(SignatureDelta("sig"), TextDelta("x"))) == [("thinking", "", "sig"), "x"]

    def test_a_call_alone_is_the_first_block(self):
        wire = streamed(ToolCallStart(0, "t", "f"), Finish(Stop.END))
        assert contents(wire) == [("t", "f", {})]
        assert accumulated(wire).stop_reason == "tool_use"

    def test_parallel_calls_are_streamed_as_they_come(self):
        writer = StreamWriter(FRAME)
        writer.write(StreamEvent(deltas=(ToolCallStart(0, "t", "f"), ToolCallDelta(0, '{"a":1}'))))
        now = writer.write(StreamEvent(deltas=(ToolCallStart(1, "u", "g"), ToolCallDelta(1, '{"b"'))))
        assert [event["type"] for event in payloads(now)] == [
            "content_block_stop", "content_block_start", "content_block_delta",
        ]  # fmt: skip

    def test_interleaved_calls_wait_for_each_other(self):
        wire = streamed(
            ToolCallStart(0, "t", "f"), ToolCallStart(1, "u", "g"), ToolCallDelta(0, '{"a":'),
            ToolCallDelta(1, '{"b":'), TextDelta("x"), ToolCallDelta(0, "1}"), ToolCallDelta(1, "2}"),
            Finish(Stop.TOOL_CALLS),
        )  # fmt: skip
        assert contents(wire) == [("t", "f", {"a": 1}), ("u", "g", {"b": 2}), "x"]

    def test_what_waited_is_sent_as_soon_as_it_may_be(self):
        writer = StreamWriter(FRAME)
        for delta in (ToolCallStart(0, "t", "f"), ToolCallStart(1, "u", "g"), ToolCallDelta(1, "{")):
            writer.write(StreamEvent(deltas=(delta,)))
        now = payloads(writer.write(StreamEvent(deltas=(ToolCallDelta(0, "{}"),))))
        assert [event["delta"]["partial_json"] for event in now if "delta" in event] == ["{}", "{"]

    def test_an_end_of_a_block_that_waits_does_not_cut_the_open_one(self):
        wire = streamed(
            ToolCallStart(0, "t", "f"), ToolCallStart(1, "u", "g"), ToolCallDelta(1, "{}"), BlockEnd(),
            ToolCallDelta(0, '{"a":1}'), BlockEnd(), Finish(Stop.TOOL_CALLS),
        )  # fmt: skip
        assert contents(wire) == [("t", "f", {"a": 1}), ("u", "g", {})]

    def test_a_call_that_was_cut_short_is_closed(self):
        wire = streamed(ToolCallStart(0, "t", "f"), ToolCallDelta(0, '{"a":"x'), Finish(Stop.LENGTH))
        (event,) = (event for event in payloads(wire) if event["type"] == "content_block_delta")
        assert event["delta"]["partial_json"] == '{"a":"x'
        assert accumulated(wire).stop_reason == "max_tokens"

    def test_a_refusal_is_text(self):
        wire = streamed(RefusalDelta("No."), Finish(Stop.END, None, "cyber"))
        assert contents(wire) == ["No."]
        final = accumulated(wire)
        assert final.stop_reason == "refusal"
        assert final.stop_details.category == "cyber"

    def test_fields_of_ours_are_in_the_last_delta(self):
        told = payloads(StreamWriter(FRAME).end(Usage(1, 1), {"citations": []}))
        assert told[-2]["ailb"] == {"citations": []}

    @given(st.lists(texts, min_size=1, max_size=5))
    def test_any_text_arrives(self, parts):
        told = payloads(streamed(*(TextDelta(part) for part in parts)))
        assert [event["delta"]["text"] for event in told if event["type"] == "content_block_delta"] == parts

    @given(
        calls,
        st.lists(st.integers(1, 6), max_size=10),
        st.randoms(use_true_random=False),
        st.lists(texts, max_size=2),
        st.booleans(),
    )
    def test_calls_arrive_however_they_are_interleaved(self, wanted, cuts, random, words, one_by_one):
        queues = []
        for index, (name, input_) in enumerate(wanted):
            whole, parts = json.dumps(input_) if input_ else "", []
            for cut in cuts:
                parts, whole = [*parts, whole[:cut]], whole[cut:]
            deltas = [ToolCallDelta(index, part) for part in (*parts, whole)]
            queues.append([ToolCallStart(index, f"t{index}", name), *deltas])
        told: list[Any] = [TextDelta(word) for word in words[:1]]
        while any(queues):
            left = [queue for queue in queues if queue]
            # A call begins after those before it have.
            first = next((queue for queue in left if isinstance(queue[0], ToolCallStart)), None)
            ready = [queue for queue in left if queue is first or not isinstance(queue[0], ToolCallStart)]
            told.append(random.choice(ready).pop(0))
        told += [TextDelta(word) for word in words[1:]]
        wire = streamed(*told, Finish(Stop.END), one_by_one=one_by_one)
        sent: dict[str, str] = {}
        open_ = ""
        for event in payloads(wire):
            if event["type"] == "content_block_start":
                open_ = event["content_block"].get("id", "")
                sent.setdefault(open_, "")
            elif event["type"] == "content_block_delta":
                sent[open_] += event["delta"].get("partial_json", event["delta"].get("text", ""))
        assert sent.pop("", "") == "".join(words)
        assert {id_: json.loads(part or "{}") for id_, part in sent.items()} == {
            f"t{index}": input_ for index, (_, input_) in enumerate(wanted)
        }

    @given(
        st.lists(
            st.builds(text, texts)
            | st.builds(tool_use, st.just("t"), st.sampled_from("fg"), inputs)
            | st.builds(lambda words: {"type": "thinking", "thinking": words, "signature": "sig"}, texts),
            max_size=5,
        ),
        st.integers(1, 7),
    )
    def test_a_stream_of_anthropics_survives_the_way_through_the_neutral_form(self, content, cut):
        told = [started()]
        for index, part in enumerate(content):
            match part["type"]:
                case "text":
                    pieces, start, name = part["text"], text(""), "text"
                case "thinking":
                    pieces, start, name = part["thinking"], {**part, "thinking": "", "signature": ""}, "thinking"
                case _:
                    pieces, start, name = json.dumps(part["input"]), {**part, "input": {}}, "partial_json"
            cuts = [pieces[at : at + cut] for at in range(0, len(pieces), cut)]
            signed = [{"type": "signature_delta", "signature": "sig"}] if name == "thinking" else []
            told += block(index, start, *({"type": "x", name: piece} for piece in cuts), *signed)
        told += [finished(), STOPPED]
        writer = StreamWriter(FRAME)
        wire = b"".join(writer.write(event) for event in events(*told)[0]) + writer.end(Usage(10, 5))
        found = payloads(wire)
        check_order(found)
        arrived: list[Any] = []
        for event in found:
            if event["type"] == "content_block_start":
                arrived.append([event["content_block"]["type"], ""])
            elif event["type"] == "content_block_delta" and event["delta"]["type"] != "signature_delta":
                arrived[-1][1] += next(value for name, value in event["delta"].items() if name != "type")
        assert [[type_, json.loads(value or "{}") if type_ == "tool_use" else value] for type_, value in arrived] == [
            [part["type"], part.get("text") or part.get("thinking") or part.get("input")] for part in content
        ]
