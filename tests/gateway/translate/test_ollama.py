"""Ollama's dialect: what a prompt is on its wire, and what its answers are in the neutral form."""

import base64
import json
from itertools import pairwise

import msgspec
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.providers.ndjson import LineDecoder
from gateway.translate.events import ErrorEvent
from gateway.translate.ollama import Events, read_answer, write_request
from gateway.types import (
    Audio,
    BlockEnd,
    Document,
    Finish,
    Foreign,
    Image,
    Message,
    OutputFormat,
    Prompt,
    RedactedThinking,
    Refusal,
    Stop,
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

AT = "2026-10-01T12:00:00.123456789Z"
HELLO = (Message("user", (Text("Hello"),)),)
SUM = Tool("sum", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}})
NOW = Tool("now")


def written(*messages, model="llama3.2", context_window=None, **fields):
    return write_request(Prompt(messages=messages or HELLO, **fields), model, context_window=context_window)


def messages_of(*messages):
    return written(*messages).body["messages"]


def user(*blocks):
    return Message("user", blocks)


def assistant(*blocks):
    return Message("assistant", blocks)


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


class TestRequests:
    def test_a_plain_one_says_nothing_that_the_client_did_not(self):
        # `stream` is said, since Ollama streams where nobody says anything.
        assert written().body == {
            "model": "llama3.2",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": False,
            "truncate": False,
            "shift": False,
        }
        assert written().dropped == ()

    def test_a_prompt_that_is_too_long_is_an_error_and_is_not_cut(self):
        body = written(stream=True).body
        assert (body["truncate"], body["shift"], body["stream"]) == (False, False, True)

    @pytest.mark.parametrize(
        ("fields", "option"),
        [
            ({"max_output": 7}, {"num_predict": 7}),
            ({"temperature": 0.0}, {"temperature": 0.0}),
            ({"top_p": 0.5}, {"top_p": 0.5}),
            ({"top_k": 40}, {"top_k": 40}),
            ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
            ({"seed": 0}, {"seed": 0}),
            ({"frequency_penalty": 0.25}, {"frequency_penalty": 0.25}),
            ({"presence_penalty": -1.0}, {"presence_penalty": -1.0}),
            ({"context_window": 8192}, {"num_ctx": 8192}),
        ],
    )
    def test_options_have_their_names(self, fields, option):
        told = written(**fields)
        assert told.body["options"] == option
        assert told.dropped == ()
        assert ollama.Options(**option), "a name that the client knows"

    @pytest.mark.parametrize(
        ("output", "format_"),
        [
            (OutputFormat(), "json"),
            (OutputFormat({"type": "object"}, "answer", True), {"type": "object"}),
            (OutputFormat({}), {}),
        ],
    )
    def test_a_format_is_a_schema_or_json(self, output, format_):
        assert written(output=output).body["format"] == format_

    @pytest.mark.parametrize(
        ("model", "fields", "think", "dropped"),
        [
            ("qwen3", {}, None, ()),
            ("qwen3", {"effort": "none"}, False, ()),
            ("qwen3", {"effort": "minimal"}, False, ("reasoning_effort",)),
            ("qwen3", {"effort": "low"}, True, ("reasoning_effort",)),
            ("qwen3", {"effort": "high"}, True, ("reasoning_effort",)),
            ("qwen3", {"thinking_budget": 2048}, True, ("thinking.budget_tokens",)),
            ("gpt-oss:20b", {"effort": "none"}, "low", ("reasoning_effort",)),
            ("gpt-oss:20b", {"effort": "low"}, "low", ()),
            ("gpt-oss", {"effort": "medium"}, "medium", ()),
            ("someone/gpt-oss:120b-cloud", {"effort": "high"}, "high", ()),
            ("gpt-oss", {"effort": "max"}, "high", ("reasoning_effort",)),
            ("gpt-oss", {"thinking_budget": 2048}, True, ("thinking.budget_tokens",)),
        ],
    )
    def test_thinking_is_asked_for_in_the_models_own_words(self, model, fields, think, dropped):
        told = written(model=model, **fields)
        assert told.body.get("think") is think or told.body["think"] == think
        assert told.dropped == dropped

    @pytest.mark.parametrize(
        ("fields", "dropped"),
        [
            ({"others": ("logit_bias", "metadata")}, ("logit_bias", "metadata")),
            ({"end_user": "alice"}, ()),
            ({"service_tier": "auto"}, ()),
            ({"service_tier": "priority"}, ("service_tier",)),
            ({"parallel_tools": False}, ()),  # of no tools there are no parallel calls
            ({"parallel_tools": False, "tools": (NOW,)}, ("parallel_tool_calls",)),
            ({"parallel_tools": True, "tools": (NOW,)}, ()),
            ({"tools": (Tool("now", strict=True),)}, ("tools.strict",)),
        ],
    )
    def test_what_cannot_be_said_is_named_unless_it_changes_nothing(self, fields, dropped):
        assert written(**fields).dropped == dropped

    @pytest.mark.parametrize(
        ("fields", "param"), [({"n": 2}, "n"), ({"vital": ("logprobs",)}, "logprobs"), ({"vital": ("a", "b")}, "a")]
    )
    def test_what_the_answer_would_be_wrong_without_is_refused(self, fields, param):
        with pytest.raises(UnsupportedParameter) as caught:
            written(**fields)
        assert caught.value.param == param


class TestTools:
    def test_they_are_functions(self):
        assert written(tools=(SUM, NOW)).body["tools"] == [
            {"type": "function", "function": {"name": "sum", "description": "Adds.", "parameters": SUM.parameters}},
            {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
        ]

    @pytest.mark.parametrize(
        ("choice", "names", "dropped"),
        [
            (ToolChoice("auto"), ["sum", "now"], ()),
            (ToolChoice("none"), None, ()),
            (ToolChoice("required"), ["sum", "now"], ("tool_choice",)),
            (ToolChoice("named", "now"), ["now"], ("tool_choice",)),
        ],
    )
    def test_a_choice_is_made_as_likely_as_can_be(self, choice, names, dropped):
        told = written(tools=(SUM, NOW), tool_choice=choice)
        found = told.body.get("tools")
        assert (found and [tool["function"]["name"] for tool in found]) == names
        assert told.dropped == dropped

    def test_a_choice_of_a_tool_that_is_not_there_is_no_request(self):
        with pytest.raises(InvalidRequest, match="not among"):
            written(tools=(SUM,), tool_choice=ToolChoice("named", "other"))

    def test_calls_and_results_are_messages_in_order(self):
        told = messages_of(
            user(Text("What time?")),
            assistant(
                Thinking("A clock.", "sig"),
                Text("Let me see."),
                ToolCall("c1", "now", ""),
                ToolCall("c2", "sum", '{"a": 1}'),
            ),
            user(ToolResult("c1", (Text("noon"),)), ToolResult("c2", (Text("no"),), is_error=True), Text("So?")),
        )
        assert told == [
            {"role": "user", "content": "What time?"},
            {
                "role": "assistant",
                "content": "Let me see.",
                "thinking": "A clock.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "now", "arguments": {}}},
                    {"id": "c2", "type": "function", "function": {"name": "sum", "arguments": {"a": 1}}},
                ],
            },
            {"role": "tool", "content": "noon", "tool_call_id": "c1", "tool_name": "now"},
            {"role": "tool", "content": "Error: no", "tool_call_id": "c2", "tool_name": "sum"},
            {"role": "user", "content": "So?"},
        ]

    def test_the_client_library_takes_them(self):
        told = messages_of(assistant(ToolCall("c1", "now", "{}")), user(ToolResult("c1", (Text("noon"),))))
        call, result = [ollama.Message(**message) for message in told]
        assert call.tool_calls is not None
        assert (call.tool_calls[0].function.name, result.tool_name) == ("now", "now")

    def test_results_without_their_call_have_no_name(self):
        (told,) = messages_of(user(ToolResult("c9", (Text("noon"),))))
        assert told == {"role": "tool", "content": "noon", "tool_call_id": "c9"}

    def test_images_of_a_result_are_shown_by_the_user_that_follows(self):
        result = ToolResult("c1", (Text("a plot"), Image("image/png", "QQ==")))
        assert messages_of(user(result))[1:] == [{"role": "user", "content": "", "images": ["QQ=="]}]
        both = messages_of(user(result, Text("What is it?"), Image("image/png", "Qg==")))
        assert both[1:] == [{"role": "user", "content": "What is it?", "images": ["QQ==", "Qg=="]}]

    @pytest.mark.parametrize("arguments", ["{", "[1]", "1", "null", '"a"', "[" * 100_000])
    def test_arguments_that_are_no_object_are_refused(self, arguments):
        with pytest.raises(InvalidRequest, match="no JSON object"):
            written(assistant(ToolCall("c1", "now", arguments)))


class TestMessages:
    def test_roles_keep_their_order(self):
        told = messages_of(
            Message("system", (Text("Be brief."), Text("Be kind."))), *HELLO, assistant(Refusal("No.")), user(Text(""))
        )
        assert [(message["role"], message["content"]) for message in told] == [
            ("system", "Be brief.\n\nBe kind."),
            ("user", "Hello"),
            ("assistant", "No."),
            ("user", ""),
        ]

    def test_an_empty_turn_is_still_one(self):
        assert messages_of(user(), assistant()) == [
            {"role": "user", "content": ""},
            {"role": "assistant", "content": ""},
        ]

    def test_images_go_beside_the_text(self):
        (told,) = messages_of(user(Text("What is it?"), Image("image/png", "QQ==", detail="auto")))
        assert told == {"role": "user", "content": "What is it?", "images": ["QQ=="]}

    @pytest.mark.parametrize(
        "document",
        [
            Document(text="The text.", title="A title"),
            Document("text/plain", base64.b64encode(b"The text.").decode(), title="A title"),
            Document("text/markdown", base64.b64encode(b"The text.").decode(), title="A title"),
        ],
    )
    def test_documents_of_text_become_text(self, document):
        (told,) = messages_of(user(document, Text("Sum it up.")))
        assert told["content"] == "A title\n\nThe text.\n\nSum it up."

    @pytest.mark.parametrize(
        "block",
        [
            Image(url="https://example.com/a.png"),
            Document("application/pdf", "QQ=="),
            Document(url="https://example.com/a.txt"),
            Document(file_id="file-1"),
            Audio("wav", "QQ=="),
            Foreign("server_tool_use"),
        ],
    )
    def test_what_it_cannot_carry_is_refused_and_not_left_out(self, block):
        for message in (user(Text("Look."), block), assistant(block)):
            with pytest.raises(UnsupportedParameter) as caught:
                written(message)
            assert caught.value.param == "messages"

    @pytest.mark.parametrize("data", ["not base64!", base64.b64encode(b"\xff\xfe").decode()])
    def test_a_text_document_that_is_none_is_refused(self, data):
        with pytest.raises(InvalidRequest, match="base64"):
            written(user(Document("text/plain", data)))

    @pytest.mark.parametrize(
        ("message", "dropped"),
        [
            (Message("user", (Text("Hi"),), name="alice"), ("messages.name",)),
            (assistant(RedactedThinking("x"), Text("Hi")), ("messages.redacted_thinking",)),
            (user(Image("image/png", "QQ==", detail="low")), ("image_url.detail",)),
            (user(Text("Hi", cached=True)), ()),
        ],
    )
    def test_what_is_left_out_of_messages_is_named(self, message, dropped):
        assert written(message).dropped == dropped


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(content="Hello there.", **fields):
    message = {"role": "assistant", "content": content, **fields.pop("message", {})}
    counts = {"prompt_eval_count": 11, "eval_count": 4}
    return {"model": "m", "created_at": AT, "message": message, "done": True, "done_reason": "stop", **counts, **fields}


def called(*calls, **fields):
    return answer("", message={"tool_calls": [{"function": call} for call in calls]}, **fields)


def read(body):
    return read_answer(json.dumps(body, ensure_ascii=False).encode())


class TestAnswers:
    def test_a_plain_one(self):
        completion = read(answer())
        assert completion.answer is not None
        assert completion.answer.content == (Text("Hello there."),)
        assert completion.answer.stop is Stop.END
        assert completion.usage == Usage(11, 4)
        assert (completion.text, completion.served_model, completion.finish_reason) == ("Hello there.", "m", "stop")
        assert completion.body == b""

    def test_thinking_comes_first_and_is_counted(self):
        completion = read(answer(message={"thinking": "Hm. "}))
        assert completion.answer is not None
        assert completion.answer.content == (Thinking("Hm. "), Text("Hello there."))
        assert completion.text == "Hm. Hello there."

    @pytest.mark.parametrize(
        ("reason", "stop", "word"),
        [
            ("stop", Stop.END, "stop"),
            ("length", Stop.LENGTH, "length"),
            ("load", Stop.END, "load"),
            ("unload", Stop.END, "unload"),
            ("tired", Stop.UNKNOWN, "tired"),
            (None, Stop.END, "stop"),
        ],
    )
    def test_why_it_stopped(self, reason, stop, word):
        completion = read(answer(done_reason=reason))
        assert completion.answer is not None
        assert (completion.answer.stop, completion.finish_reason) == (stop, word)

    @pytest.mark.parametrize(
        ("counts", "usage"),
        [
            ({}, Usage(11, 4)),
            ({"prompt_eval_cached_count": 8}, Usage(11, 4, cached_tokens=8)),
            ({"prompt_eval_cached_count": 80}, Usage(11, 4, cached_tokens=11)),
            ({"prompt_eval_count": None}, None),  # cached, on servers up to 0.2: not free of charge
            ({"prompt_eval_count": 0}, None),
            ({"eval_count": None}, None),
            ({"eval_count": None, "message": {"content": ""}}, Usage(11, 0)),
        ],
    )
    def test_a_missing_count_is_not_billed_as_nothing(self, counts, usage):
        assert read(answer(**counts)).usage == usage

    def test_tool_calls_are_why_it_stopped_unless_it_was_cut(self):
        call = {"name": "sum", "arguments": {"a": 1, "b": "ž"}}
        completion = read(called(call))
        assert completion.answer is not None
        (block,) = completion.answer.content
        assert isinstance(block, ToolCall)
        assert (block.name, json.loads(block.arguments)) == ("sum", call["arguments"])
        assert completion.answer.stop is Stop.TOOL_CALLS
        cut_off = read(called(call, done_reason="length")).answer
        assert cut_off is not None
        assert cut_off.stop is Stop.LENGTH

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [({}, "{}"), (None, "{}"), ('{"a": 1}', '{"a": 1}'), ("", "{}"), ({"a": [1.5, None]}, '{"a": [1.5, null]}')],
    )
    def test_arguments_are_as_the_server_wrote_them(self, arguments, expected):
        completion = read(called({"name": "now", "arguments": arguments}))
        assert completion.answer is not None
        (block,) = completion.answer.content
        assert isinstance(block, ToolCall)
        assert block.arguments == expected

    def test_ids_are_the_servers_or_else_no_two_are_alike(self):
        given_ = answer(message={"tool_calls": [{"id": "call_x", "function": {"name": "now"}}]})
        first = read(given_).answer
        assert first is not None
        assert first.content[-1] == ToolCall("call_x", "now", "{}")
        twice = called({"name": "now", "arguments": {}}, {"name": "now", "arguments": {}})
        later = {**twice, "created_at": "2026-10-01T12:00:01Z"}
        answers = [read(body).answer for body in (twice, twice, later)]
        ids = [[block.id for block in one.content if isinstance(block, ToolCall)] for one in answers if one]
        assert ids[0] == ids[1], "the same answer has the same ids"
        assert len({*ids[0], *ids[2]}) == 4

    @pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"done": true}', b'{"message": 1}', b"Hello", b"\xff"])
    def test_nonsense_is_no_answer(self, body):
        with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
            read_answer(body)


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(*parts, **last):
    """A stream's lines: a message each, then the one that is done."""
    told = [{"model": "m", "created_at": f"{AT}{i}", "message": part, "done": False} for i, part in enumerate(parts)]
    return [*told, answer("", **last)]


def streamed(stream, places=()):
    """The events of these lines, cut at these places."""
    whole = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in stream)
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    decoder, events, found = LineDecoder(), Events(), []
    for start, end in pairwise(edges):
        found += [events.read(line) for line in decoder.feed(whole[start:end])]
    assert decoder.end() == []
    assert events.done
    return found


def deltas_of(found):
    return [delta for event in found for delta in event.deltas]


class TestStreams:
    def test_thinking_then_content_then_a_call_all_complete(self):
        found = streamed(
            lines(
                {"thinking": "Let me "},
                {"thinking": "think.", "content": "Here"},
                {"content": " it is."},
                {"content": "", "tool_calls": [{"function": {"name": "sum", "arguments": {"a": 1}}}]},
            )
        )
        deltas = deltas_of(found)
        (start,) = [delta for delta in deltas if isinstance(delta, ToolCallStart)]
        assert deltas == [
            ThinkingDelta("Let me "),
            ThinkingDelta("think."),
            TextDelta("Here"),
            TextDelta(" it is."),
            ToolCallStart(0, start.id, "sum"),
            ToolCallDelta(0, '{"a": 1}'),
            BlockEnd(),
            Finish(Stop.TOOL_CALLS),
        ]
        assert start.id.startswith("call_")
        assert "".join(event.text for event in found) == 'Let me think.Here it is.sum{"a": 1}'

    def test_one_line_may_say_it_all(self):
        call = {"id": "c1", "function": {"name": "now", "arguments": {}}}
        (event,) = streamed([answer("Hi", message={"thinking": "Hm", "tool_calls": [call]})])
        assert event.deltas == (
            ThinkingDelta("Hm"),
            TextDelta("Hi"),
            ToolCallStart(0, "c1", "now"),
            ToolCallDelta(0, "{}"),
            BlockEnd(),
            Finish(Stop.TOOL_CALLS),
        )
        assert (event.usage, event.content, event.finish_reason) == (Usage(11, 4), True, "stop")

    def test_content_and_the_end_are_marked(self):
        first, empty, last = streamed(lines({"content": "Hi"}, {"content": ""}))
        assert (first.content, first.text, first.usage, first.finish_reason) == (True, "Hi", None, None)
        assert (empty.content, empty.deltas) == (False, ())
        assert (last.content, last.usage, last.finish_reason) == (False, Usage(11, 4), "stop")
        assert last.deltas == (Finish(Stop.END),)
        assert {event.served_model for event in (first, empty, last)} == {"m"}
        assert not any(event.data or event.usage_only or event.null_usage for event in (first, empty, last))

    def test_calls_in_several_lines_are_counted_on(self):
        call = {"function": {"name": "now", "arguments": {}}}
        found = deltas_of(streamed(lines({"tool_calls": [call, call]}, {"tool_calls": [call]})))
        starts = [delta for delta in found if isinstance(delta, ToolCallStart)]
        assert [start.index for start in starts] == [0, 1, 2]
        assert len({start.id for start in starts}) == 3

    @pytest.mark.parametrize(("said", "usage"), [("Hi", None), ("", Usage(11, 0))])
    def test_a_missing_count_is_not_billed_as_nothing(self, said, usage):
        assert streamed(lines({"content": said}, eval_count=None))[-1].usage == usage

    def test_an_error_is_told(self):
        with pytest.raises(ErrorEvent) as caught:
            Events().read(b'{"error": "model runner has unexpectedly stopped"}')
        assert caught.value.error == "model runner has unexpectedly stopped"

    def test_a_stream_without_its_last_line_is_not_done(self):
        events = Events()
        events.read(json.dumps(lines({"content": "Hi"})[0]).encode())
        events.end()
        assert not events.done

    @pytest.mark.parametrize("data", [b"", b"[]", b"1", b'{"message": "Hi"}', b"data: {}", b"\xff"])
    def test_nonsense_is_no_event(self, data):
        with pytest.raises((msgspec.MsgspecError, ValueError)):
            Events().read(data)


# What a model may say, split as it may come.
words = st.text(max_size=12)
arguments = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers(-9, 9) | st.none(), max_size=3)
calls = st.lists(st.tuples(st.sampled_from(["sum", "now"]), arguments), max_size=4)
places = st.lists(st.integers(0, 100_000), max_size=30)


@given(thought=st.lists(words, max_size=3), said=st.lists(words, max_size=3), made=calls, places=places)
def test_however_a_stream_is_cut_it_says_what_a_plain_answer_does(thought, said, made, places):
    functions = [{"function": {"name": name, "arguments": given_}} for name, given_ in made]
    parts = (
        [{"thinking": t} for t in thought] + [{"content": s} for s in said] + [{"tool_calls": [f]} for f in functions]
    )
    found = streamed(lines(*parts), places)
    deltas = deltas_of(found)
    whole = read(answer("".join(said), message={"thinking": "".join(thought), "tool_calls": functions}))
    assert "".join(event.text for event in found) == whole.text
    assert whole.answer is not None
    assert "".join(d.text for d in deltas if isinstance(d, ThinkingDelta)) == "".join(thought)
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "".join(said)
    assert deltas[-1] == Finish(whole.answer.stop)
    blocks = [block for block in whole.answer.content if isinstance(block, ToolCall)]
    assert [d.name for d in deltas if isinstance(d, ToolCallStart)] == [block.name for block in blocks]
    assert [d.arguments for d in deltas if isinstance(d, ToolCallDelta)] == [block.arguments for block in blocks]


@given(made=calls.filter(bool))
def test_calls_that_were_read_can_be_written_back(made):
    """What a model called comes back as history: nothing of it is lost on the way."""
    functions = [{"name": name, "arguments": given_} for name, given_ in made]
    completion = read(called(*functions))
    assert completion.answer is not None
    results = [
        ToolResult(block.id, (Text("ok"),)) for block in completion.answer.content if isinstance(block, ToolCall)
    ]
    told = messages_of(Message("assistant", completion.answer.content), Message("user", tuple(results)))
    assert [call["function"] for call in told[0]["tool_calls"]] == functions
    assert [(message["tool_name"], message["tool_call_id"]) for message in told[1:]] == [
        (call["function"]["name"], call["id"]) for call in told[0]["tool_calls"]
    ]
