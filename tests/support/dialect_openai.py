"""OpenAI's dialect, of providers and of clients. Shapes: openai 3.54."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import openai.types.chat

from tests.support.dialect_bases import (
    Door,
    Provider,
    check_words,
    function_of,
    in_pieces,
    is_symbolic,
    result_in_words,
    sse,
    text_of,
)
from tests.support.dialects import (
    Ask,
    Called,
    Function,
    Heard,
    Item,
    Json,
    Picture,
    Result,
    Said,
    Say,
    Spoke,
    System,
    Thought,
    Tokens,
    in_turns,
)
from tests.support.upstream import Upstream

_CREATED = 1_760_000_000


# ── the provider ────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenAI(Provider):
    kind, model, path = "openai", "gpt-5.1", "/v1/chat/completions"
    streams = "text/event-stream; charset=utf-8"
    stops: ClassVar = {"end": "stop", "length": "length", "tools": "tool_calls", "refusal": "content_filter"}
    too_long = "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens."

    def url(self, upstream: Upstream) -> str:
        return upstream.url

    def plain(self, say: Say) -> Json:
        calls = [{**self._call(call), "type": "function"} for call in say.calls]
        message = {
            "role": "assistant",
            "content": say.text or None,
            "refusal": say.refusal or None,
            **({"reasoning_content": say.thought.text} if say.thought else {}),
            **({"tool_calls": calls} if calls else {}),
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.stops.get(say.stop, say.stop)}
        body = {"id": "chatcmpl-9", "object": "chat.completion", "created": _CREATED, "model": self.model}
        body |= {"choices": [choice]}
        if say.tokens is not None:
            body["usage"] = self.usage(say.tokens)
        if say.stop in self.stops:
            openai.types.chat.ChatCompletion.model_validate(body, strict=True)
        return body

    def pieces(self, say: Say) -> list[bytes]:
        finish = self.stops.get(say.stop, say.stop)
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning_content": part} for part in in_pieces(say.thought.text if say.thought else "")]
        deltas += [{"content": part} for part in in_pieces(say.text)]
        deltas += [{"refusal": part} for part in in_pieces(say.refusal)]
        deltas += [{"tool_calls": fragments} for fragments in self._fragments(say.calls)]
        usage = say.tokens is not None
        chunks = [self.chunk(delta, usage=usage) for delta in deltas]
        chunks.append(self.chunk({}, finish=finish, usage=usage))
        if say.tokens is not None:
            chunks.append(sse({**self._frame(), "choices": [], "usage": self.usage(say.tokens)}))
        return [*chunks, b"data: [DONE]\n\n"]

    def chunk(self, delta: Json, *, finish: str | None = None, usage: bool = True) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**self._frame(), "choices": [choice], **({"usage": None} if usage else {})})

    def _frame(self) -> Json:
        return {"id": "chatcmpl-9", "object": "chat.completion.chunk", "created": _CREATED, "model": self.model}

    @staticmethod
    def _call(call: Called) -> Json:
        return {"id": call.id, "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}

    def _fragments(self, calls: tuple[Called, ...]) -> Iterator[list[Json]]:
        """The first two calls' arguments come in turns (some servers do that), and two fragments in one chunk."""
        arguments = [in_pieces(json.dumps(call.arguments)) for call in calls]
        for index, call in enumerate(calls):
            function = {"name": call.name, "arguments": ""}
            yield [{"index": index, "id": call.id, "type": "function", "function": function}]
        for turn in range(3):
            fragments = [(index, parts[turn]) for index, parts in enumerate(arguments) if turn < len(parts)]
            told = [{"index": index, "function": {"arguments": part}} for index, part in fragments]
            yield from [told] if turn == 1 and told else [[each] for each in told]

    @staticmethod
    def usage(tokens: Tokens) -> Json:
        return {
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "total_tokens": tokens.prompt + tokens.completion,
            "prompt_tokens_details": {
                "cached_tokens": tokens.cached, "cache_write_tokens": tokens.written, "audio_tokens": 0,
            },
            "completion_tokens_details": {"reasoning_tokens": tokens.reasoning, "audio_tokens": 0},
        }  # fmt: skip

    def reported(self, tokens: Tokens) -> Tokens:
        return tokens

    def error(self, status: int, message: str, type: str | None = None) -> Json:
        code = "context_length_exceeded" if message == self.too_long else None
        param = "messages" if code else None
        return {"error": {"message": message, "type": type or "scripted", "param": param, "code": code}}

    def error_event(self, message: str) -> bytes:
        return sse(self.error(500, message, "server_error"))

    def begun(self, pieces: list[bytes]) -> int:
        return 3

    def read_body(self, body: Json) -> Ask:
        assert "max_tokens" not in body or "max_completion_tokens" not in body, "one cap, by one name"
        if body.get("stream"):
            assert body["stream_options"]["include_usage"] is True, "usage is always asked for"
        items: list[Item] = []
        called: set[str] = set()
        for message in body["messages"]:
            assert message["role"] in ("system", "developer", "user", "assistant", "tool")
            items += self._items(message, called)
        choice = body.get("tool_choice")
        format_ = body.get("response_format")
        if format_ is not None:
            assert format_["type"] == "json_schema"
            assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", format_["json_schema"]["name"])
        for tool in body.get("tools", ()):
            assert tool["type"] == "function"
        return Ask(
            items=tuple(items),
            tools=tuple(function_of(tool["function"], "parameters") for tool in body.get("tools", ())),
            choice=choice if isinstance(choice, str | None) else choice["function"]["name"],
            schema=format_["json_schema"]["schema"] if format_ else None,
            max_output=body.get("max_completion_tokens", body.get("max_tokens")),
            thinks=body.get("reasoning_effort", "none") != "none",
            model=body["model"],
            stream=body.get("stream", False),
        )

    def _items(self, message: Json, called: set[str]) -> Iterator[Item]:
        content = message.get("content")
        match message["role"]:
            case "system" | "developer":
                yield System(text_of(content))
            case "tool":
                assert message["tool_call_id"] in called, "a result follows its call"
                yield result_in_words(message["tool_call_id"], text_of(content))
            case "assistant":
                assert content is not None or message.get("tool_calls")
                blocks = message.get("thinking_blocks") or [{}]
                if thought := message.get("reasoning_content"):
                    yield Thought(thought, blocks[0].get("signature", ""))
                if content:
                    yield Spoke(text_of(content))
                for call in message.get("tool_calls", ()):
                    assert call["type"] == "function"
                    called.add(call["id"])
                    yield Called(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
            case "user":
                parts: list[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
                for part in parts:
                    if part["type"] == "text":
                        yield Said(part["text"])
                    else:
                        head, data = part["image_url"]["url"].split(";base64,")
                        yield Picture(head.removeprefix("data:"), data)


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Call:
    """A tool call as its fragments tell it."""

    id: str
    name: str
    arguments: str = ""

    def whole(self) -> Called:
        return Called(self.id, self.name, json.loads(self.arguments))


class OpenAIDoor(Door):
    kind, path = "openai", "/v1/chat/completions"
    stops: ClassVar = {
        "end": "stop", "sequence": "stop", "length": "length", "window": "length", "tools": "tool_calls",
        "refusal": "content_filter", "pause": "stop",
    }  # fmt: skip
    tells_failures = False

    def write(self, ask: Ask) -> Json:
        body: Json = {
            "model": ask.model,
            "messages": [*self._messages(ask.items)],
            "max_completion_tokens": ask.max_output,
        }
        if ask.tools:
            body["tools"] = [{"type": "function", "function": self._function(tool)} for tool in ask.tools]
        if ask.choice is not None:
            named = {"type": "function", "function": {"name": ask.choice}}
            body["tool_choice"] = ask.choice if ask.choice in ("auto", "required", "none") else named
        if ask.schema is not None:
            schema = {"name": "answer", "schema": ask.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if ask.thinks:
            body["reasoning_effort"] = "medium"
        if ask.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    @staticmethod
    def _function(tool: Function) -> Json:
        return {"name": tool.name, "description": tool.description, "parameters": tool.schema}

    def _messages(self, items: tuple[Item, ...]) -> Iterator[Json]:
        for role, turn in in_turns(items):
            if role == "assistant":
                yield self._assistant(turn)
                continue
            parts: list[Json] = []
            for item in turn:
                match item:
                    case System(text):
                        yield {"role": "system", "content": text}
                    case Result(id, text):
                        yield {"role": "tool", "tool_call_id": id, "content": text}
                    case Said(text):
                        parts.append({"type": "text", "text": text})
                    case Picture(media_type, data):
                        parts.append({"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}})
            if parts:
                yield {"role": "user", "content": parts if len(parts) > 1 else parts[0]["text"]}

    @staticmethod
    def _assistant(turn: list[Item]) -> Json:
        message: Json = {"role": "assistant", "content": None}
        for item in turn:
            match item:
                case Spoke(text):
                    message["content"] = text
                case Thought(text, signature):
                    block = {"type": "thinking", "thinking": text, "signature": signature}
                    message |= {"reasoning_content": text, "thinking_blocks": [block]}
                case Called(id, name, arguments):
                    function = {"name": name, "arguments": json.dumps(arguments)}
                    message.setdefault("tool_calls", []).append({"id": id, "type": "function", "function": function})
        return message

    # ── a plain answer ──────────────────────────────────────────────────────────────────────────────────────────────

    def hear_plain(self, heard: Heard) -> None:
        body = heard.body
        openai.types.chat.ChatCompletion.model_validate(body, strict=True)
        assert body["object"] == "chat.completion"
        assert body["id"]
        (choice,) = body["choices"]
        message = choice["message"]
        assert choice["index"] == 0
        assert message["role"] == "assistant"
        assert {"content", "refusal"} <= set(message), "both are required, and may be null"
        heard.model = body["model"]
        heard.text = message["content"] or ""
        heard.refusal = message["refusal"] or ""
        heard.thinking = message.get("reasoning_content") or ""
        heard.signed = [Thought(b["thinking"], b["signature"]) for b in message.get("thinking_blocks", ())]
        heard.stop = choice["finish_reason"]
        for call in message.get("tool_calls") or ():
            assert call["type"] == "function"
            function = call["function"]
            heard.calls.append(_Call(call["id"], function["name"], function["arguments"]).whole())
        assert message["content"] != "" or heard.stop not in ("tool_calls",), "null where nothing was said"
        heard.tokens = self.tokens(body["usage"])

    @staticmethod
    def tokens(usage: Json) -> Tokens:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        prompt = usage.get("prompt_tokens_details") or {}
        completion = usage.get("completion_tokens_details") or {}
        tokens = Tokens(
            usage["prompt_tokens"],
            usage["completion_tokens"],
            prompt.get("cached_tokens") or 0,
            prompt.get("cache_write_tokens") or 0,
            completion.get("reasoning_tokens") or 0,
        )
        assert tokens.cached + tokens.written <= tokens.prompt, "details are parts"
        assert tokens.reasoning <= tokens.completion, "details are parts"
        return tokens

    # ── a stream ────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear_stream(self, heard: Heard, *, usage: bool) -> None:
        for event in heard.raw.removesuffix(b"\n\n").split(b"\n\n"):
            assert not heard.ended, f"after [DONE] came {event!r}"
            assert heard.error is None, f"after an error came {event!r}"
            if event.startswith(b":"):
                continue
            assert event.startswith(b"data: "), f"no id, no event name, no other field: {event!r}"
            assert b"\n" not in event, f"one line an event: {event!r}"
            if event == b"data: [DONE]":
                heard.ended = True
                continue
            chunk = json.loads(event[6:])
            if "error" in chunk:
                heard.error = chunk
            else:
                heard.events.append(chunk)
        self._check_frame(heard, usage=usage)
        self._tell(heard)

    @staticmethod
    def _check_frame(heard: Heard, *, usage: bool) -> None:
        chunks = heard.events
        for chunk in chunks:
            openai.types.chat.ChatCompletionChunk.model_validate(chunk, strict=True)
            assert chunk["object"] == "chat.completion.chunk"
        frames = {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}
        assert len(frames) <= 1, f"one id, created and model a stream: {frames}"
        told = [chunk for chunk in chunks if chunk.get("usage") is not None]
        if not usage:
            assert not [chunk for chunk in chunks if "usage" in chunk], "nobody asked for usage"
            assert all(chunk["choices"] for chunk in chunks), "a chunk says something"
            return
        assert all("usage" in chunk for chunk in chunks), "null where there is none"
        assert len(told) == (1 if heard.ended else 0), f"usage comes once, at the end: {told}"
        if told:
            assert told == chunks[-1:], "usage comes last"
            assert told[0]["choices"] == []
        assert all(chunk["choices"] for chunk in chunks if chunk not in told)

    def _tell(self, heard: Heard) -> None:
        """Put the deltas together."""
        begun: set[int] = set()
        finished: dict[int, str] = {}
        calls: dict[int, _Call] = {}
        for chunk in heard.events:
            heard.model = chunk["model"]
            if chunk.get("usage"):
                heard.tokens = self.tokens(chunk["usage"])
            for choice in chunk["choices"]:
                index, delta = choice["index"], choice["delta"]
                assert index == 0
                assert index not in finished, f"after its finish came {choice}"
                assert ("role" in delta) is (index not in begun), f"the role comes first, and once: {delta}"
                assert delta.get("role", "assistant") == "assistant"
                begun.add(index)
                heard.text += delta.get("content") or ""
                heard.refusal += delta.get("refusal") or ""
                heard.thinking += delta.get("reasoning_content") or ""
                self._thinking_blocks(heard, delta)
                for fragment in delta.get("tool_calls") or ():
                    self._fragment(fragment, calls)
                if choice["finish_reason"] is not None:
                    assert delta == {}, "the last delta is empty"
                    finished[index] = choice["finish_reason"]
        heard.calls = [calls[index].whole() for index in calls] if heard.ended else []
        heard.stop = finished.get(0)
        assert not heard.ended or heard.stop or not heard.events, "a finish reason before the end"

    @staticmethod
    def _thinking_blocks(heard: Heard, delta: Json) -> None:
        for block in delta.get("thinking_blocks", ()):
            assert (block["index"], block["type"]) == (len(heard.signed), "thinking")
            heard.signed.append(Thought(block["thinking"], block["signature"]))

    @staticmethod
    def _fragment(fragment: Json, calls: dict[int, _Call]) -> None:
        index, function = fragment["index"], fragment["function"]
        if index in calls:
            assert not {"id", "type"} & set(fragment), f"told once: {fragment}"
            assert "name" not in function, f"told once: {fragment}"
            calls[index].arguments += function["arguments"]
            return
        assert index == len(calls), f"indices count the calls: {fragment}"
        assert fragment["id"]
        assert fragment["type"] == "function"
        assert function["name"]
        calls[index] = _Call(fragment["id"], function["name"], function.get("arguments", ""))

    # ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_error(self, heard: Heard) -> None:
        assert heard.error is not None
        assert set(heard.error) == {"error"}
        error = heard.error["error"]
        assert set(error) == {"message", "type", "param", "code"}
        check_words(error)
        assert error["param"] is None or error["param"].strip()
        assert error["code"] is None or is_symbolic(error["code"]), error

    def error_of(self, status: int, type: str, code: str | None, param: Any) -> Json:
        return {"type": type, "code": code, "param": param}
