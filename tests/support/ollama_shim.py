"""Ollama's API in front of an OpenAI-compatible server (llama.cpp's, say): a real HTTP server with real counts.

    shim = OllamaShim("http://127.0.0.1:8081/v1")
    ollama.Client(shim.url).chat(...)
    shim.close()

Serves `/api/tags`, `/api/chat` and `/api/generate` (streamed unless asked otherwise, as Ollama does), `/api/show` and
`/api/version`. For tests: nothing is pulled, loaded or unloaded, and `think`, `truncate` and `shift` are ignored.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic_ns
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]

_OPTIONS = {"num_predict": "max_tokens"}
_SAME = ("temperature", "top_p", "top_k", "seed", "stop", "frequency_penalty", "presence_penalty")
PATIENCE = 10.0  # seconds for the server to start and stop


class Refused(Exception):
    """What the server behind answered instead of 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class OllamaShim:
    """The server, on a thread and loop of its own."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ollama-shim", daemon=True)
        self._thread.start()
        self._runner: web.AppRunner = self._on_loop(self._start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def close(self) -> None:
        self._on_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _start(self) -> web.AppRunner:
        self._http = aiohttp.ClientSession()
        app = web.Application(client_max_size=64 * 2**20, middlewares=[_errors])
        app.router.add_get("/api/tags", self._tags)
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/show", self._show)
        app.router.add_post("/api/chat", self._chat)
        app.router.add_post("/api/generate", self._generate)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._http.close()

    async def _models(self) -> list[Json]:
        async with self._http.get(f"{self._base_url}/models") as response:
            listed: Json = await response.json(content_type=None)
        return [_card(model) for model in listed["data"]]

    async def _tags(self, request: web.Request) -> web.Response:
        return web.json_response({"models": await self._models()})

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.0.0-shim"})

    async def _show(self, request: web.Request) -> web.Response:
        card = await self._found((await request.json())["model"])
        info = {"general.architecture": card["details"]["family"]}
        return web.json_response({**card, "model_info": info, "capabilities": ["completion", "tools"]})

    async def _found(self, name: str) -> Json:
        for card in await self._models():
            if name in (card["name"], card["name"].removesuffix(":latest")):
                return card
        raise Refused(404, f"model '{name}' not found")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, body.get("messages") or [], "message")

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        user = {"role": "user", "content": body.get("prompt") or "", "images": body.get("images")}
        return await self._answer(request, body, [*system, user], "response")

    async def _answer(self, request: web.Request, body: Json, messages: list[Json], kind: str) -> web.StreamResponse:
        await self._found(body["model"])
        stream, started = body.get("stream", True), monotonic_ns()
        usage: Json = {}
        whole, response = _Whole(), None
        async for chunk in self._chunks(_asked(body, messages)):
            usage = chunk.get("usage") or usage
            said = whole.add(chunk)
            if stream and said:
                response = response or await _begin(request)
                await response.write(_line(_shaped(body["model"], {"role": "assistant", "content": said}, kind)))
        last = {
            **_shaped(body["model"], whole.rest() if stream else whole.message(), kind),
            "done": True,
            "done_reason": "length" if whole.finish == "length" else "stop",
            "total_duration": monotonic_ns() - started,
            **_counts(usage),
        }
        if not stream:
            return web.json_response(last)
        response = response or await _begin(request)
        await response.write(_line(last))
        return response

    async def _chunks(self, body: Json) -> AsyncIterator[Json]:
        """The chunks of a streamed chat completion; a plain answer is made of them too."""
        async with self._http.post(f"{self._base_url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise Refused(response.status, await _message(response))
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])


class _Whole:
    """An answer as it adds up."""

    def __init__(self) -> None:
        self._said = ""
        self._calls: dict[int, Json] = {}
        self.finish: str | None = None

    def add(self, chunk: Json) -> str:
        """Take a chunk in; returns what it says."""
        said = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            said += delta.get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
            for part in delta.get("tool_calls") or ():
                call = self._calls.setdefault(part["index"], {"id": None, "name": "", "arguments": ""})
                function = part.get("function") or {}
                call["id"] = call["id"] or part.get("id")
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
        self._said += said
        return said

    def message(self) -> Json:
        return {**self.rest(), "content": self._said}

    def rest(self) -> Json:
        """What is said at the end only: tool calls come whole."""
        calls = [
            {"id": call["id"], "function": {"name": call["name"], "arguments": json.loads(call["arguments"] or "{}")}}
            for call in self._calls.values()
        ]
        message: Json = {"role": "assistant", "content": ""}
        return {**message, "tool_calls": calls} if calls else message


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answered: web.StreamResponse = await handler(request)
    except Refused as refused:
        return web.json_response({"error": str(refused)}, status=refused.status)
    except aiohttp.ClientError as error:
        return web.json_response({"error": f"llama runner: {type(error).__name__}"}, status=500)
    return answered


async def _begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
    await response.prepare(request)
    return response


def _line(told: Json) -> bytes:
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"


def _shaped(model: str, message: Json, kind: str) -> Json:
    told = message if kind == "message" else message["content"]
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": model, "created_at": now, kind: told, "done": False}


def _counts(usage: Json) -> Json:
    """As Go has it, that leaves out what is 0."""
    named = {"prompt_eval_count": usage.get("prompt_tokens"), "eval_count": usage.get("completion_tokens")}
    return {name: count for name, count in named.items() if count}


def _card(model: Json) -> Json:
    """One of /v1/models as /api/tags has it; llama.cpp calls a model by its file's path."""
    name = model["id"].rpartition("/")[2].removesuffix(".gguf")
    name = name if ":" in name else f"{name}:latest"
    details = {
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "",
        "quantization_level": "",
    }
    modified = datetime.fromtimestamp(model.get("created") or 0, UTC).isoformat()
    return {"name": name, "model": name, "modified_at": modified, "size": 0, "digest": "0" * 64, "details": details}


def _asked(body: Json, messages: list[Json]) -> Json:
    """A request of Ollama's as a streamed chat completion."""
    options = body.get("options") or {}
    asked: Json = {"model": body["model"].removesuffix(":latest"), "stream": True}
    asked |= {"stream_options": {"include_usage": True}, "messages": [_message_of(message) for message in messages]}
    asked |= {theirs: options[ours] for ours, theirs in _OPTIONS.items() if ours in options}
    asked |= {name: options[name] for name in _SAME if name in options}
    if body.get("tools"):
        asked["tools"] = body["tools"]
    format_ = body.get("format")
    if isinstance(format_, dict):
        asked["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": format_}}
    elif format_ == "json":
        asked["response_format"] = {"type": "json_object"}
    return asked


def _message_of(message: Json) -> Json:
    told: Json = {"role": message["role"], "content": message.get("content") or ""}
    if message.get("images"):
        urls = [f"data:image/png;base64,{image}" for image in message["images"]]
        images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        told["content"] = [{"type": "text", "text": told["content"]}, *images]
    if message.get("tool_calls"):
        told["tool_calls"] = [_call(call, index) for index, call in enumerate(message["tool_calls"])]
    if message["role"] == "tool":
        told["tool_call_id"] = message.get("tool_call_id") or message.get("tool_name") or "call_0"
    return told


def _call(call: Json, index: int) -> Json:
    function = call["function"]
    written = {"name": function["name"], "arguments": json.dumps(function.get("arguments") or {})}
    return {"id": call.get("id") or f"call_{index}", "type": "function", "function": written}


async def _message(response: aiohttp.ClientResponse) -> str:
    text = await response.text()
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return text
