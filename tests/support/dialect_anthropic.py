"""Anthropic's dialect, of providers and of clients. Shapes: anthropic 2.12."""

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import anthropic.types
from pydantic import TypeAdapter

from tests.support.dialect_bases import Door, Provider, check_words, function_of, in_pieces, sse, text_of
from tests.support.dialects import (
    Ask,
    Called,
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
from tests.support.world import CREDENTIAL

# ── the provider ────────────────────────────────────────────────────────────────────────────────────────────────────


class Anthropic(Provider):
    kind, model, path = "anthropic", "claude-sonnet-4-5", "/v1/messages"
    streams = "text/event-stream; charset=utf-8"
    stops: ClassVar = {
        "end": "end_turn", "sequence": "stop_sequence", "length": "max_tokens", "tools": "tool_use",
        "refusal": "refusal", "window": "model_context_window_exceeded", "pause": "pause_turn",
    }  # fmt: skip
    signs = takes_thoughts = tells_failures = True
    too_long = "prompt is too long: 210000 tokens > 200000 maximum"

    def plain(self, say: Say) -> Json:
        body = {
            **self._message(say),
            "content": [block for block, _ in self._blocks(say)],
            **({"usage": self.usage(say.tokens, whole=True)} if say.tokens else {}),
            **self._stopped(say),
        }
        if say.stop in self.stops and say.tokens is not None:
            anthropic.types.Message.model_validate(body, strict=True)
        return body

    def _message(self, say: Say) -> Json:
        return {"id": "msg_9", "type": "message", "role": "assistant", "model": self.model}

    def _stopped(self, say: Say) -> Json:
        return {
            "stop_reason": self.stops.get(say.stop, say.stop),
            "stop_sequence": "STOP" if say.stop == "sequence" else None,
            **({"stop_details": {"type": "refusal", "category": "bio", "explanation": None}} if say.refusal else {}),
        }

    def _blocks(self, say: Say) -> Iterator[tuple[Json, list[Json]]]:
        """Each block, and the deltas that make it."""
        if say.thought is not None:
            block = {"type": "thinking", "thinking": say.thought.text, "signature": say.thought.signature}
            parts = [{"type": "thinking_delta", "thinking": part} for part in in_pieces(say.thought.text)]
            yield block, [*parts, {"type": "signature_delta", "signature": say.thought.signature}]
        if text := say.text or say.refusal:
            yield {"type": "text", "text": text}, [{"type": "text_delta", "text": part} for part in in_pieces(text)]
        for call in say.calls:
            texts = ["", *(in_pieces(json.dumps(call.arguments)) if call.arguments else [])]
            deltas = [{"type": "input_json_delta", "partial_json": text} for text in texts]
            yield {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}, deltas

    def pieces(self, say: Say) -> list[bytes]:
        start: Json = {**self._message(say), "content": [], "stop_reason": None, "stop_sequence": None}
        if say.tokens is not None:
            start["usage"] = self.usage(say.tokens, whole=False)
        events = [self.event("message_start", message=start)]
        for index, (block, deltas) in enumerate(self._blocks(say)):
            empty: Json = {
                "text": {"text": ""},
                "thinking": {"thinking": "", "signature": ""},
                "tool_use": {"input": {}},
            }
            began = {**block, **empty[block["type"]]}
            events.append(self.event("content_block_start", index=index, content_block=began))
            events += [self.event("ping")] if index == 0 else []
            events += [self.event("content_block_delta", index=index, delta=delta) for delta in deltas]
            events.append(self.event("content_block_stop", index=index))
        usage: Json = {}
        if say.tokens is not None:
            # Cumulative; what the start said of the input may be left out.
            usage["usage"] = {"output_tokens": say.tokens.completion}
            if say.tokens.reasoning:
                usage["usage"]["output_tokens_details"] = {"thinking_tokens": say.tokens.reasoning}
        events.append(self.event("message_delta", delta=self._stopped(say), **usage))
        return [*events, self.event("message_stop")]

    @staticmethod
    def event(type: str, **fields: Any) -> bytes:
        return sse({"type": type, **fields}, type)

    @staticmethod
    def usage(tokens: Tokens, *, whole: bool) -> Json:
        told = {
            "input_tokens": tokens.prompt - tokens.cached - tokens.written,
            "cache_creation_input_tokens": tokens.written,
            "cache_read_input_tokens": tokens.cached,
            "cache_creation": {"ephemeral_5m_input_tokens": tokens.written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": tokens.completion if whole else 1,
            "service_tier": "standard",
        }
        if whole and tokens.reasoning:
            told["output_tokens_details"] = {"thinking_tokens": tokens.reasoning}
        return told

    def reported(self, tokens: Tokens) -> Tokens:
        return tokens

    def error(self, status: int, message: str, type: str | None = None) -> Json:
        error = {"type": type or "invalid_request_error", "message": message}
        return {"type": "error", "error": error, "request_id": "req_011"}

    def error_event(self, message: str) -> bytes:
        return sse(self.error(500, message, "api_error"), "error")

    def begun(self, pieces: list[bytes]) -> int:
        return 5  # message_start, the block's, a ping, two deltas

    def check_headers(self, headers: dict[str, str]) -> None:
        assert headers["x-api-key"] == CREDENTIAL
        assert headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in headers

    def read_body(self, body: Json) -> Ask:
        system = body.get("system", [])
        items: list[Item] = []
        if system:
            items.append(System(text_of(system)))
        roles = [message["role"] for message in body["messages"]]
        assert roles[0] == "user"
        assert all(one != other for one, other in pairwise(roles)), f"turns alternate: {roles}"
        for message in body["messages"]:
            content = message["content"]
            blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
            kinds = [block["type"] for block in blocks]
            assert kinds == sorted(kinds, key=lambda kind: kind != "tool_result"), "results of tools come first"
            items += [self._item(block, message["role"]) for block in blocks]
        choice = body.get("tool_choice")
        thinking = body.get("thinking", {"type": "disabled"})
        if thinking["type"] == "enabled":
            assert 1024 <= thinking["budget_tokens"] < body["max_tokens"]
        format_ = body.get("output_config", {}).get("format")
        words = {"auto": "auto", "any": "required", "none": "none"}
        return Ask(
            items=tuple(items),
            tools=tuple(function_of(tool, "input_schema") for tool in body.get("tools", ())),
            choice=choice and words.get(choice["type"], choice.get("name")),
            schema=format_ and format_["schema"],
            max_output=body["max_tokens"],
            thinks=thinking["type"] != "disabled",
            model=body["model"],
            stream=body.get("stream", False),
        )

    @staticmethod
    def _item(block: Json, role: str) -> Item:
        match block:
            case {"type": "text", "text": text}:
                assert text.strip(), "Anthropic refuses empty text"
                return Said(text) if role == "user" else Spoke(text)
            case {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}:
                return Picture(media_type, data)
            case {"type": "thinking", "thinking": text, "signature": signature}:
                return Thought(text, signature)
            case {"type": "tool_use", "id": id, "name": name, "input": dict(arguments)}:
                return Called(id, name, arguments)
            case {"type": "tool_result", "tool_use_id": id}:
                return Result(id, text_of(block.get("content", "")), block.get("is_error", False))
        raise AssertionError(f"no block of {role}'s: {block}")


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────────

_EVENTS: dict[str, TypeAdapter[Any]] = {
    "message_start": TypeAdapter(anthropic.types.RawMessageStartEvent),
    "message_delta": TypeAdapter(anthropic.types.RawMessageDeltaEvent),
    "message_stop": TypeAdapter(anthropic.types.RawMessageStopEvent),
    "content_block_start": TypeAdapter(anthropic.types.RawContentBlockStartEvent),
    "content_block_delta": TypeAdapter(anthropic.types.RawContentBlockDeltaEvent),
    "content_block_stop": TypeAdapter(anthropic.types.RawContentBlockStopEvent),
}
_DELTAS = {
    "text": {"text_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
    "redacted_thinking": set(),
}
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip
"""wire.md's last table; from 500 on the rest are api_error. 503 is http-api.md's overloaded_error."""


class AnthropicDoor(Door):
    kind, path = "anthropic", "/v1/messages"
    stops: ClassVar = {
        "end": "end_turn", "sequence": "stop_sequence", "length": "max_tokens", "tools": "tool_use",
        "window": "model_context_window_exceeded", "refusal": "refusal", "pause": "pause_turn",
    }  # fmt: skip
    tells_failures = True

    def write(self, ask: Ask) -> Json:
        system = "\n".join(item.text for item in ask.items if isinstance(item, System))
        turns = [(role, turn) for role, turn in in_turns(ask.items) if role != "system"]
        body: Json = {
            "model": ask.model,
            "max_tokens": ask.max_output,
            "messages": [{"role": role, "content": self._content(turn)} for role, turn in turns],
        }
        if system:
            body["system"] = system
        if ask.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.schema} for tool in ask.tools
            ]
        if ask.choice is not None:
            words = {"auto": {"type": "auto"}, "required": {"type": "any"}, "none": {"type": "none"}}
            body["tool_choice"] = words.get(ask.choice, {"type": "tool", "name": ask.choice})
        if ask.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": ask.schema}}
        if ask.thinks:
            body["thinking"] = {"type": "enabled", "budget_tokens": 2048}
        if ask.stream:
            body["stream"] = True
        return body

    def _content(self, turn: list[Item]) -> str | list[Json]:
        if len(turn) == 1 and isinstance(turn[0], Said | Spoke):
            return turn[0].text
        return [self._block(item) for item in turn]

    @staticmethod
    def _block(item: Item) -> Json:
        match item:
            case Said(text) | Spoke(text):
                return {"type": "text", "text": text}
            case Picture(media_type, data):
                return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
            case Thought(text, signature):
                return {"type": "thinking", "thinking": text, "signature": signature}
            case Called(id, name, arguments):
                return {"type": "tool_use", "id": id, "name": name, "input": arguments}
            case Result(id, text, failed):
                error = {"is_error": True} if failed else {}
                content = [{"type": "text", "text": text}]
                return {"type": "tool_result", "tool_use_id": id, "content": content, **error}
        raise AssertionError(item)

    # ── a plain answer ──────────────────────────────────────────────────────────────────────────────────────────────

    def hear_plain(self, heard: Heard) -> None:
        body = heard.body
        anthropic.types.Message.model_validate(body, strict=True)
        assert (body["type"], body["role"]) == ("message", "assistant")
        assert body["id"]
        assert {"stop_reason", "stop_sequence"} <= set(body)
        heard.model = body["model"]
        heard.stop, heard.stop_sequence = body["stop_reason"], body["stop_sequence"]
        for block in body["content"]:
            self._hear_block(heard, block)
        heard.tokens = self.tokens(body["usage"])

    @staticmethod
    def _hear_block(heard: Heard, block: Json) -> None:
        match block["type"]:
            case "text":
                assert block["text"], "no empty block"
                heard.text += block["text"]
            case "thinking":
                heard.thinking += block["thinking"]
                if block["signature"]:
                    heard.signed.append(Thought(block["thinking"], block["signature"]))
            case "tool_use":
                assert isinstance(block["input"], dict)
                heard.calls.append(Called(block["id"], block["name"], block["input"]))

    @staticmethod
    def tokens(usage: Json) -> Tokens:
        cached, written = usage.get("cache_read_input_tokens") or 0, usage.get("cache_creation_input_tokens") or 0
        details = usage.get("output_tokens_details") or {}
        return Tokens(
            usage["input_tokens"] + cached + written,
            usage["output_tokens"],
            cached,
            written,
            details.get("thinking_tokens") or 0,
        )

    # ── a stream ────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear_stream(self, heard: Heard, *, usage: bool) -> None:
        for event in heard.raw.removesuffix(b"\n\n").split(b"\n\n"):
            if event.startswith(b":"):
                continue
            name, data = event.split(b"\n")  # two lines an event, and no more
            payload = json.loads(data.removeprefix(b"data: "))
            assert name == b"event: " + payload["type"].encode(), "the event's name and its type agree"
            if payload["type"] == "error":
                heard.error = payload
                continue
            assert heard.error is None, f"after an error came {payload}"
            if payload["type"] != "ping":
                _EVENTS[payload["type"]].validate_python(payload)
                heard.events.append(payload)
        self._tell(heard)

    def _tell(self, heard: Heard) -> None:
        if not heard.events:
            return
        start, *events = heard.events
        assert start["type"] == "message_start"
        message = start["message"]
        assert message["usage"]["input_tokens"] > 0, "clients show it at once (lesson 39)"
        assert (message["content"], message["stop_reason"], message["stop_sequence"]) == ([], None, None)
        assert message["role"] == "assistant"
        heard.model = message["model"]
        counted = dict(message["usage"])
        open_: Json | None = None
        blocks: list[Json] = []
        parts: dict[str, list[str]] = defaultdict(list)
        for event in events:
            assert not heard.ended, f"after message_stop came {event}"
            assert heard.stop is None or event["type"] == "message_stop", f"after message_delta came {event}"
            match event["type"]:
                case "content_block_start":
                    assert open_ is None, f"one block at a time: {event}"
                    assert event["index"] == len(blocks), f"no gap: {event}"
                    open_, parts = self._begun(event["content_block"]), defaultdict(list)
                    blocks.append(open_)
                case "content_block_delta":
                    assert open_ is not None, f"no block is open: {event}"
                    assert event["index"] == len(blocks) - 1
                    delta = event["delta"]
                    assert delta["type"] in _DELTAS[open_["type"]], f"in {open_['type']}: {event}"
                    (field,) = set(delta) - {"type"}
                    parts[field].append(delta[field])
                case "content_block_stop":
                    assert open_ is not None
                    assert event["index"] == len(blocks) - 1
                    self._ended(open_, parts)
                    open_ = None
                case "message_delta":
                    assert open_ is None, "every start has its stop"
                    heard.stop, heard.stop_sequence = event["delta"]["stop_reason"], event["delta"]["stop_sequence"]
                    assert heard.stop is not None
                    counted |= {name: value for name, value in event["usage"].items() if value is not None}
                    heard.tokens = self.tokens(counted)
                case "message_stop":
                    assert heard.stop is not None, "message_delta comes first"
                    heard.ended = True
                case other:
                    raise AssertionError(f"no event of Anthropic's: {other}")
        if heard.ended:
            for block in blocks:
                self._hear_block(heard, block)
        else:
            heard.text = "".join(block.get("text", "") for block in blocks) + "".join(parts["text"] if open_ else ())

    @staticmethod
    def _begun(block: Json) -> Json:
        empty: Json = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}, "tool_use": {"input": {}}}
        expected = empty.get(block["type"], {})
        assert {name: block[name] for name in expected} == expected, f"a block begins empty: {block}"
        if block["type"] == "tool_use":
            assert block["id"]
            assert block["name"]
        return dict(block)

    @staticmethod
    def _ended(block: Json, parts: dict[str, list[str]]) -> None:
        whole = {field: "".join(pieces) for field, pieces in parts.items()}
        if block["type"] == "tool_use":
            block["input"] = json.loads(whole.get("partial_json") or "{}")
        else:
            block.update(whole)

    # ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_error(self, heard: Heard) -> None:
        assert heard.error is not None
        assert set(heard.error) == {"type", "error", "request_id"}
        assert heard.error["type"] == "error"
        assert heard.error["request_id"] == heard.id
        assert {"type", "message"} <= set(heard.error["error"])
        check_words(heard.error["error"])
        assert heard.error["error"]["type"] in _ERROR_TYPES

    def error_of(self, status: int, type: str, code: str | None, param: Any) -> Json:
        if status == 503:
            return {"type": "overloaded_error"}
        return {"type": _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")}


_ERROR_TYPES = {*_TYPES.values(), "api_error"}
