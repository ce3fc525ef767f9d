"""Ollama's dialect, of providers only. Shapes: ollama 0.6.3."""

import json
from collections.abc import Iterator
from typing import ClassVar

import ollama

from tests.support.dialect_bases import Provider, function_of, in_pieces, result_in_words
from tests.support.dialects import Ask, Called, Item, Json, Picture, Said, Say, Spoke, System, Thought, Tokens


class Ollama(Provider):
    kind, model, path = "ollama", "qwen3:8b", "/api/chat"
    streams = "application/x-ndjson"
    stops: ClassVar = {"end": "stop", "length": "length", "tools": "stop"}
    takes_thoughts = True
    chooses = False
    too_long = "the input length exceeds the context length"

    def plain(self, say: Say) -> Json:
        calls = [self._call(call) for call in say.calls]
        message = {
            "role": "assistant",
            "content": say.text or say.refusal,
            **({"thinking": say.thought.text} if say.thought else {}),
            **({"tool_calls": calls} if calls else {}),
        }
        body = {**self._line(), "message": message, **self._last(say)}
        ollama.ChatResponse.model_validate(body)
        return body

    def pieces(self, say: Say) -> list[bytes]:
        messages: list[Json] = [
            {"content": "", "thinking": part} for part in in_pieces(say.thought.text if say.thought else "")
        ]
        messages += [{"content": part} for part in in_pieces(say.text or say.refusal)]
        calls = [self._call(call) for call in say.calls]
        # One call a line, or several in one.
        messages += [{"content": "", "tool_calls": few} for few in (calls[:1], calls[1:]) if few]
        lines = [
            {**self._line(), "message": {"role": "assistant", **message}, "done": False} for message in messages
        ]  # fmt: skip
        lines.append({**self._line(), "message": {"role": "assistant", "content": ""}, **self._last(say)})
        return [json.dumps(line).encode() + b"\n" for line in lines]

    def _line(self) -> Json:
        return {"model": self.model, "created_at": "2026-08-01T12:00:00.123456Z"}

    def _last(self, say: Say) -> Json:
        counts = {"prompt_eval_count": say.tokens.prompt, "eval_count": say.tokens.completion} if say.tokens else {}
        times = {"total_duration": 5_000_000, "load_duration": 1_000_000, "eval_duration": 3_000_000}
        return {"done": True, "done_reason": self.stops.get(say.stop, say.stop), **times, **counts}

    @staticmethod
    def _call(call: Called) -> Json:
        return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}

    def reported(self, tokens: Tokens) -> Tokens:
        return Tokens(tokens.prompt, tokens.completion)

    def error(self, status: int, message: str, type: str | None = None) -> Json:
        return {"error": message}

    def error_event(self, message: str) -> bytes:
        return json.dumps(self.error(500, message)).encode() + b"\n"

    def begun(self, pieces: list[bytes]) -> int:
        return 2

    def read_body(self, body: Json) -> Ask:
        assert isinstance(body["stream"], bool), "Ollama streams where nothing is said"
        ollama._types.ChatRequest.model_validate(body)
        items: list[Item] = []
        called: dict[str, str] = {}
        for message in body["messages"]:
            assert message["role"] in ("system", "user", "assistant", "tool")
            items += self._items(message, called)
        for tool in body.get("tools", ()):
            assert tool["type"] == "function"
        return Ask(
            items=tuple(items),
            tools=tuple(function_of(tool["function"], "parameters") for tool in body.get("tools", ())),
            schema=body.get("format"),
            max_output=body.get("options", {}).get("num_predict"),
            thinks=bool(body.get("think")),
            model=body["model"],
            stream=body["stream"],
        )

    @staticmethod
    def _items(message: Json, called: dict[str, str]) -> Iterator[Item]:
        content = message["content"]
        assert isinstance(content, str)
        match message["role"]:
            case "system":
                yield System(content)
            case "tool":
                assert message["tool_name"] == called[message["tool_call_id"]], "a result names its tool"
                yield result_in_words(message["tool_call_id"], content)
            case "assistant":
                if thought := message.get("thinking"):
                    yield Thought(thought)
                if content:
                    yield Spoke(content)
                for call in message.get("tool_calls", ()):
                    function = call["function"]
                    called[call["id"]] = function["name"]
                    yield Called(call["id"], function["name"], function["arguments"])
            case "user":
                if content:
                    yield Said(content)
                for image in message.get("images", ()):
                    assert image.startswith("iVBOR"), "bare base64 of the PNG"
                    yield Picture("image/png", image)
