"""The demo provider: answers without an account or a network, so that a first start can be tried. A labelled echo."""

import asyncio
import re
from collections.abc import AsyncGenerator
from time import time
from typing import Any

import msgspec

from gateway import tokens
from gateway.providers.base import Completion, Provider, StreamEvent
from gateway.types import ChatRequest, Deployment, Json, Usage

MODEL = "ailb-demo"
_encode = msgspec.json.Encoder().encode
_WORD = re.compile(r"\S+\s*")
_PAUSE = 0.01  # seconds between two words of a stream: slow enough to be seen, fast enough for tests


class Vendor(Provider):
    """Repeats the last user message, saying plainly that it is an echo and no model."""

    slug = "demo"
    price_book = "demo"

    async def complete(self, request: ChatRequest, deployment: Deployment) -> Completion:
        text, finish, usage = await _answered(request)
        message = {"role": "assistant", "content": text, "refusal": None}
        choices = [
            {"index": i, "message": message, "finish_reason": finish, "logprobs": None} for i in range(request.n)
        ]
        body = {**_head("chat.completion"), "choices": choices, "usage": _wire(usage)}
        return Completion(_encode(body), usage, text * request.n, MODEL, None, finish)

    async def stream(self, request: ChatRequest, deployment: Deployment) -> AsyncGenerator[list[StreamEvent], None]:
        text, finish, usage = await _answered(request)
        head = _head("chat.completion.chunk")
        indices = range(request.n)
        yield [_event(head, i, {"role": "assistant", "content": ""}) for i in indices]
        for word in _WORD.findall(text):
            yield [_event(head, i, {"content": word}, text=word) for i in indices]
            await asyncio.sleep(_PAUSE)
        yield [_event(head, i, {}, finish=finish) for i in indices]
        data = _encode({**head, "choices": [], "usage": _wire(usage)})
        yield [StreamEvent(data, usage=usage, usage_only=True, served_model=MODEL)]


async def _answered(request: ChatRequest) -> tuple[str, str, Usage]:
    """`_answer`, the first time on a thread: loading the tokenizer takes a moment."""
    return _answer(request) if tokens.ready(MODEL) else await asyncio.to_thread(_answer, request)


def _answer(request: ChatRequest) -> tuple[str, str, Usage]:
    """Text, finish reason and usage, the output cap honoured."""
    said = _last_user_text(request.body.get("messages"))
    text = f"This is AILB's demo provider: an echo, not a model. You said: {said}"
    finish = "stop"
    if request.max_output is not None:
        words = _WORD.findall(text)
        kept = ""
        for word in words:
            if tokens.count(kept + word, MODEL) > request.max_output:
                finish = "length"
                break
            kept += word
        text = kept
    prompt = tokens.count_prompt(request.body, MODEL)
    return text, finish, Usage(prompt, tokens.count(text, MODEL) * request.n)


def _last_user_text(messages: Any) -> str:
    for message in reversed(messages or []):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content[:2000]
            return " ".join(part.get("text") or "" for part in content or [] if part.get("type") == "text")[:2000]
    return ""


def _head(kind: str) -> Json:
    now = time()
    return {"id": f"chatcmpl-demo-{int(now * 1e6):x}", "object": kind, "created": int(now), "model": MODEL}


def _event(head: Json, index: int, delta: Json, *, text: str = "", finish: str | None = None) -> StreamEvent:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    data = _encode({**head, "choices": [choice], "usage": None})
    return StreamEvent(data, text=text, content=bool(text), finish_reason=finish, null_usage=True, served_model=MODEL)


def _wire(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
