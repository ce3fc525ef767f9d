"""What is common to the dialects of tests: of providers, that answer and read requests, and of doors' clients."""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar
from unittest.mock import ANY

import httpx2

from tests.support.dialects import Ask, Function, Heard, Json, Result, Say, Thought, Tokens
from tests.support.gateway import Gateway
from tests.support.upstream import Call, Received, Script, Upstream, answers
from tests.support.world import CREDENTIAL, Key

_FAILED = re.compile(r"(?i)\W*error\W*")
_STREAM = "text/event-stream; charset=utf-8"


# ── providers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Provider(ABC):
    """One dialect of providers."""

    kind: ClassVar[str]
    model: ClassVar[str]
    path: ClassVar[str]
    streams: ClassVar[str]
    """The content type of its streams."""
    stops: ClassVar[dict[str, str]]
    """Its words for why it stopped; a case that is not here it has no word for."""
    signs: ClassVar[bool] = False
    """It signs its thoughts, and takes them back."""
    takes_thoughts: ClassVar[bool] = False
    tells_failures: ClassVar[bool] = False
    """A tool's result has a field for that it failed."""
    chooses: ClassVar[bool] = True
    """It knows `tool_choice`."""

    def url(self, upstream: Upstream) -> str:
        return f"http://127.0.0.1:{upstream.port}"

    # ── answering ───────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def plain(self, say: Say) -> Json:
        """A whole answer."""

    @abstractmethod
    def pieces(self, say: Say) -> list[bytes]:
        """A stream, an event each."""

    @abstractmethod
    def error(self, status: int, message: str, type: str | None = None) -> Json:
        """An error's body."""

    @abstractmethod
    def error_event(self, message: str) -> bytes:
        """An error inside a stream."""

    @abstractmethod
    def reported(self, tokens: Tokens) -> Tokens:
        """What of these it has words for."""

    too_long: ClassVar[str]
    """What it says, with status 400, of a prompt that is too long."""

    def says(self, say: Say) -> Script:
        return self.plays(self.plain(say), *self.pieces(say))

    def plays(self, plain: Json, *pieces: bytes | float, end: str = "orderly") -> Script:
        """The plain answer, or these pieces where a stream was asked for; numbers are pauses. `end` may be `stall`."""

        async def script(call: Call) -> None:
            if not call.wants_stream:
                await call.json(200, plain)
                return
            await call.head(200, content_type=self.streams)
            for piece in pieces:
                await (call.chunk(piece) if isinstance(piece, bytes) else asyncio.sleep(piece))
            if end == "stall":
                await call.left()
            await call.end()

        return script

    def refuses(self, status: int, message: str = "No.", type: str | None = None, **headers: str) -> Script:
        return answers(self.error(status, message, type), status, **headers)

    def breaks_off(self, say: Say) -> Script:
        """A plain answer that is cut in the middle, a stream that ends in an error after the first content."""
        body = json.dumps(self.plain(say)).encode()
        pieces = self.pieces(say)
        begun = pieces[: self.begun(pieces)]
        # A pause, so that what was said is read before what ends it.
        stream = self.plays({}, *begun, 0.05, self.error_event("The machine caught fire."))

        async def script(call: Call) -> None:
            if call.wants_stream:
                await stream(call)
                return
            await call.head(200, content_type="application/json", content_length=str(len(body)))
            await call.send(body[: len(body) // 2])
            call.close()

        return script

    @abstractmethod
    def begun(self, pieces: list[bytes]) -> int:
        """How many pieces it is up to and with the second of the content."""

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def read(self, received: Received) -> Ask:
        """What it was asked, and that it was asked as it wants to be."""
        assert (received.method, received.path) == ("POST", self.path)
        assert received.headers["content-type"] == "application/json"
        assert "sk-ailb_" not in f"{received.headers}{received.raw!r}", "the client's key is nobody else's"
        self.check_headers(received.headers)
        body = received.body
        assert not set(body) & {"session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags"}
        return self.read_body(body)

    def check_headers(self, headers: dict[str, str]) -> None:
        assert headers["authorization"] == f"Bearer {CREDENTIAL}"

    @abstractmethod
    def read_body(self, body: Json) -> Ask: ...

    def expected(self, ask: Ask, *, native: bool) -> Ask:
        """What it should read of a client's request; `native`: the client speaks the same dialect."""
        items = tuple(
            replace(item, signature="") if isinstance(item, Thought) and not self.signs and not native else item
            for item in ask.items
            if not isinstance(item, Thought) or self.takes_thoughts or native
        )
        return replace(ask, items=items, model=self.model, choice=ask.choice if self.chooses else None)


# ── clients ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Door(ABC):
    """One dialect of clients."""

    kind: ClassVar[str]
    path: ClassVar[str]
    stops: ClassVar[dict[str, str]]
    tells_failures: ClassVar[bool]
    """A tool's result has a field for that it failed."""

    @abstractmethod
    def write(self, ask: Ask) -> Json:
        """A request's body."""

    @abstractmethod
    def hear_plain(self, heard: Heard) -> None: ...

    @abstractmethod
    def hear_stream(self, heard: Heard, *, usage: bool) -> None: ...

    @abstractmethod
    def check_error(self, heard: Heard) -> None:
        """The one shape of an error at this door."""

    @abstractmethod
    def error_of(self, status: int, type: str, code: str | None, param: Any) -> Json:
        """What an error of http-api.md's table is here, without its message."""

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def ask(self, gateway: Gateway, key: Key | None, ask: Ask, *, headers: Json | None = None, **more: Any) -> Heard:
        """Ask, and hear the answer to its end. `more` are fields of the body; None takes one out."""
        return self.send(gateway, key, self.body(ask, **more), headers=headers)

    def body(self, ask: Ask, **more: Any) -> Json:
        return {name: value for name, value in {**self.write(ask), **more}.items() if value is not None}

    def send(
        self, gateway: Gateway, key: Key | None, body: Any, *, headers: Json | None = None, path: str | None = None
    ) -> Heard:
        bearer = key.bearer if key is not None else {}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
            response = client.post(path or self.path, content=content, headers={**bearer, **(headers or {})})
        asked = body if isinstance(body, dict) else {}
        return self.hear(response, usage=bool((asked.get("stream_options") or {}).get("include_usage")))

    @contextmanager
    def asking(self, gateway: Gateway, key: Key, ask: Ask) -> Iterator[httpx2.Response]:
        """An answer that is still coming in; leaving the block leaves the gateway."""
        with (
            httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client,
            client.stream("POST", self.path, headers=key.bearer, json=self.write(ask)) as response,
        ):
            yield response

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, response: httpx2.Response, *, usage: bool = False) -> Heard:
        """Any response, whole."""
        heard = Heard(response.status_code, response.headers, response.content)
        assert heard.id.startswith("req_")
        assert heard.headers["request-id"] == heard.id
        assert "content-encoding" not in heard.headers
        if heard.headers["content-type"] == _STREAM:
            assert heard.status == 200
            assert heard.headers["cache-control"] == "no-cache"
            assert heard.headers["x-accel-buffering"] == "no"
            assert heard.raw.endswith(b"\n\n")
            self.hear_stream(heard, usage=usage)
        else:
            assert heard.headers["content-type"] == "application/json", "no page of HTML, whatever happens"
            assert int(heard.headers["content-length"]) == len(heard.raw)
            heard.body = json.loads(heard.raw)
            if heard.status == 200:
                self.hear_plain(heard)
            else:
                heard.error = heard.body
        if heard.error is not None:
            self.check_error(heard)
        return heard

    def assert_error(
        self,
        heard: Heard,
        status: int,
        type: str,
        code: str | None,
        *,
        param: Any = ANY,
        says: str = "",
        in_stream: bool = False,
    ) -> None:
        """An error of http-api.md's table; `in_stream`: it came after a stream's headers."""
        assert heard.status == (200 if in_stream else status), (heard.status, heard.raw)
        assert heard.error is not None, heard.raw
        assert not heard.ended
        told = heard.error["error"]
        expected = self.error_of(status, type, code, param)
        assert {name: told.get(name) for name in expected} == expected
        assert says in told["message"]


# ── what they share ─────────────────────────────────────────────────────────────────────────────────────────────────


def in_pieces(text: str) -> list[str]:
    """In several pieces, where there is something to cut."""
    third = max(len(text) // 3, 1)
    return [part for part in (text[:third], text[third : 2 * third], text[2 * third :]) if part]


def sse(payload: Json, event: str | None = None) -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(payload)}\n\n".encode()


def result_in_words(id: str, text: str) -> Result:
    """Of a dialect without a field for failures: they begin with the word."""
    prefix = _FAILED.match(text)
    return Result(id, text[prefix.end() :], failed=True) if prefix else Result(id, text)


def text_of(content: Any) -> str:
    """A message's text, as a string or in parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def function_of(function: Json, schema: str) -> Function:
    return Function(function["name"], function.get("description", ""), function[schema])


def check_words(error: Json) -> None:
    assert isinstance(error["message"], str)
    assert error["message"].strip()
    assert isinstance(error["type"], str)
    assert is_symbolic(error["type"]), error


def is_symbolic(name: str) -> bool:
    """A word for programs: no number, and not the name of nothing (lesson 43)."""
    return name.isidentifier() and name.islower() and name not in ("none", "null", "undefined")
