"""The demo provider: answers without an account or a network, so that a first start can be tried.

A small real model where its packages are installed (`requirements-demo.txt`), run on loopback by the gateway itself
from the first request on; elsewhere, or with AILB_DEMO=echo, an echo that says so.
"""

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from time import time
from typing import Any

import msgspec
from django.conf import settings
from yarl import URL

from ailb_project.loopback import LoopbackServer, LoopbackServerError
from gateway import demo_server, tokens, translate
from gateway.demo_server import MODEL
from gateway.errors import UnsupportedParameter, UpstreamError
from gateway.providers import openai
from gateway.providers.base import Prepared, Provider, UpstreamMessage
from gateway.types import (
    Answer,
    ChatRequest,
    Completion,
    Deployment,
    Dialect,
    Finish,
    Json,
    ProviderConfig,
    Stop,
    StreamEvent,
    Text,
    TextDelta,
    Usage,
)
from gateway.upstream_http import Response

__all__ = ["MODEL", "Vendor", "model_server"]

_encode = msgspec.json.Encoder().encode
_WORD = re.compile(r"\S+\s*")
_PAUSE = 0.01  # seconds between two words of the echo's stream: slow enough to be seen, fast enough for tests


class Vendor(Provider):
    """The model or the echo, whichever there is."""

    slug = "demo"
    price_book = "demo"

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        real = settings.ENV.AILB_DEMO != "echo" and demo_server.is_available()
        self._speaker: Provider = _Model(config) if real else _Echo(config)

    def prepare(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        return self._speaker.prepare(request, deployment)

    async def complete(self, call: Prepared) -> Completion:
        return await self._speaker.complete(call)

    def stream(self, call: Prepared) -> AsyncGenerator[list[StreamEvent], None]:
        return self._speaker.stream(call)

    async def count_tokens(self, request: ChatRequest, deployment: Deployment) -> int | None:
        return await self._speaker.count_tokens(request, deployment)

    async def close(self) -> None:
        await self._speaker.close()


# ── the model ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Count(msgspec.Struct):
    input_tokens: int


_count = msgspec.json.Decoder(_Count)


class _Model(openai.Compatible):
    """SmolLM2 on llama.cpp's server, which speaks the OpenAI dialect."""

    slug = "demo"
    price_book = "demo"

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(msgspec.structs.replace(config, base_url="http://127.0.0.1/v1", trusted_network=True))
        self._count_url = self._url.with_path("/v1/messages/count_tokens")
        self._server: LoopbackServer | None = None

    def prepare(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        if request.n > 1:
            # llama.cpp answers up to its slots' number, and reports the usage of one.
            raise UnsupportedParameter("n: ailb-demo gives one answer.", param="n")
        return super().prepare(request, deployment)

    async def count_tokens(self, request: ChatRequest, deployment: Deployment) -> int | None:
        if request.dialect is not Dialect.ANTHROPIC:
            return None
        body = await self._plain(Prepared(request, deployment, _encode(request.body)), self._count_url)
        try:
            return _count.decode(body).input_tokens
        except msgspec.MsgspecError:
            raise UpstreamError("The provider's answer was not one.", upstream_status=200) from None

    async def _post(self, call: Prepared, url: URL) -> Response:
        # Asked anew for each call: a server that fell is started again, on another port.
        if self._server is None:
            self._server = _servers.lent()
        try:
            server = URL(await self._server.url())
        except LoopbackServerError as error:
            raise UpstreamError(str(error)) from None
        return await super()._post(call, url.with_port(server.port))

    def read_error(self, body: bytes) -> UpstreamMessage:
        error = super().read_error(body)
        if b'"exceed_context_size_error"' in body:
            return msgspec.structs.replace(error, code="context_length_exceeded")
        return error

    async def close(self) -> None:
        await super().close()
        if self._server is not None:
            self._server = None
            await asyncio.to_thread(_servers.given_back)


def model_server(folder: Path) -> LoopbackServer:
    """The model's server of a data folder; not started yet."""
    command = [sys.executable, "-m", "gateway.demo_server", "{port}"]
    return LoopbackServer(folder, "demo", command, title="The demo model")


class _Servers:
    """This process's handle on the model's server: stopped with the last provider that uses it.

    When the provider is configured anew there are two for a while, and the server stays.
    """

    def __init__(self) -> None:
        self._server: LoopbackServer | None = None
        self._users = 0

    def lent(self) -> LoopbackServer:
        if self._server is None:
            self._server = model_server(settings.DATA_DIR)
        self._users += 1
        return self._server

    def given_back(self) -> None:
        self._users -= 1
        if not self._users and self._server is not None:
            server, self._server = self._server, None
            server.stop()


_servers = _Servers()


# ── the echo ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Echo(Provider):
    """Repeats the last user message, saying plainly that it is an echo and no model."""

    slug = "demo"
    price_book = "demo"

    def prepare(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        return Prepared(request, deployment, native=request.dialect is Dialect.OPENAI)

    async def complete(self, call: Prepared) -> Completion:
        request = call.request
        text, finish, usage = await _answered(request)
        if not call.native:
            answer = Answer(content=(Text(text),), stop=_stop(finish))
            return Completion(answer=answer, usage=usage, text=text, served_model=MODEL, finish_reason=finish)
        message = {"role": "assistant", "content": text, "refusal": None}
        choices = [
            {"index": i, "message": message, "finish_reason": finish, "logprobs": None} for i in range(request.n)
        ]
        body = _encode({**_head("chat.completion"), "choices": choices, "usage": _wire(usage)})
        return Completion(body=body, usage=usage, text=text * request.n, served_model=MODEL, finish_reason=finish)

    async def stream(self, call: Prepared) -> AsyncGenerator[list[StreamEvent], None]:
        text, finish, usage = await _answered(call.request)
        events = _native_events if call.native else _neutral_events
        for together in events(call.request, _WORD.findall(text), finish, usage):
            yield together
            if together[0].content:
                await asyncio.sleep(_PAUSE)


def _native_events(request: ChatRequest, words: list[str], finish: str, usage: Usage) -> Iterator[list[StreamEvent]]:
    """The stream as OpenAI's chunks."""
    head = _head("chat.completion.chunk")
    indices = range(request.n)
    yield [_event(head, i, {"role": "assistant", "content": ""}) for i in indices]
    for word in words:
        yield [_event(head, i, {"content": word}, text=word) for i in indices]
    yield [_event(head, i, {}, finish=finish) for i in indices]
    data = _encode({**head, "choices": [], "usage": _wire(usage)})
    yield [StreamEvent(data, usage=usage, usage_only=True, served_model=MODEL)]


def _neutral_events(request: ChatRequest, words: list[str], finish: str, usage: Usage) -> Iterator[list[StreamEvent]]:
    """The stream for a client of another dialect."""
    for word in words:
        yield [StreamEvent(text=word, content=True, served_model=MODEL, deltas=(TextDelta(word),))]
    stop = Finish(_stop(finish))
    yield [StreamEvent(finish_reason=finish, usage=usage, served_model=MODEL, deltas=(stop,))]


async def _answered(request: ChatRequest) -> tuple[str, str, Usage]:
    """`_answer`, the first time on a thread: loading the tokenizer takes a moment."""
    return _answer(request) if tokens.ready(MODEL) else await asyncio.to_thread(_answer, request)


def _answer(request: ChatRequest) -> tuple[str, str, Usage]:
    """Text, finish reason and usage, the output cap honoured."""
    text = f"This is AILB's demo provider: an echo, not a model. You said: {_last_user_text(request)[:2000]}"
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


def _stop(finish: str) -> Stop:
    return Stop.LENGTH if finish == "length" else Stop.END


def _last_user_text(request: ChatRequest) -> str:
    if request.dialect is not Dialect.OPENAI:
        messages = translate.read_request(request).messages
        said = next((message.content for message in reversed(messages) if message.role == "user"), ())
        return " ".join(block.text for block in said if isinstance(block, Text))
    # An OpenAI client's own words, read so leniently that whatever is asked gets its echo.
    for message in reversed(request.body.get("messages") or []):
        if message.get("role") == "user":
            content: Any = message.get("content")
            if isinstance(content, str):
                return content
            return " ".join(part.get("text") or "" for part in content or [] if part.get("type") == "text")
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
