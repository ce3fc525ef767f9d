"""Bytes on a socket that are no HTTP, or hardly: paths, methods, heads, half bodies, chunks, pipelines, slow clients.

Whatever comes, other clients are answered, each answer that does come is one, and the process does not grow.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

from gateway.consumers import LONGEST_BODY
from tests.fuzz.explore import explore, shares
from tests.fuzz.target import MODELS, Target
from tests.fuzz.wire import Answer, Broken, Wire, request
from tests.support.waiting import eventually

Draw = Callable[[st.SearchStrategy[Any]], Any]

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "Hi"}]}).encode()
NOT_HTTP = b"The request is not HTTP."
"""The words for who does not speak HTTP, and has asked none of our surfaces."""


@dataclass(frozen=True)
class Spoken:
    """What one connection is sent, in pieces, and how it ends. `target`: of the first request, where it is known."""

    pieces: tuple[bytes, ...]
    target: bytes
    ending: str
    head: bool = False
    whole: bool = False
    """It is a request as HTTP has it: an answer is owed."""


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────────────

_PATHS = [
    CHAT, "/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/gpt-5.1", "/v1/embeddings", "/v1",
    "/api/keys", "/api/users/x", "/api/billing/usage", "/api/schema", "/api", "/livez", "/readyz", "/healthz",
    "/metrics", "/", "/admin/", "/admin/login/", "/static/x", "/favicon.ico", "/nothing",
]  # fmt: skip
_TAILS = [
    "", "/", "//", "/..", "/../..", "/%2e%2e/", "/%2e%2e%2f%2e%2e%2fetc/passwd", "/%00", "%00", "/%ff%fe", "/%c0%af",
    "/%", "/%zz", "/%u0041", "/" + "x" * 7_000, "/" + "%41" * 3_000, "/" + "a/" * 2_000, "?", "?a=%00", "?limit=1",
    "?limit=%ff", "?" + "a=b&" * 2_000, "?cursor=%00", "#x", "/;x=y", "/\\..\\", "/~", "/.git/config", "/%0d%0ax:%20y",
    "/%F0%9F%92%A9", "?limit=1&limit=2", "?start_date=%00", "?tz=/etc/passwd", "/a:b", "/@", "/*",
]  # fmt: skip
_TARGETS = [
    b"*", b"http://localhost/livez", b"http://evil.example/v1/models", b"//evil.example/v1/models", b"localhost:80",
    b"",
    b"\xff\xfe", b"/\x7f", b"/v1/models\xc3\xa4", b"/ /", b"x", b"?", b"http://", b"http://[::1", b"/" + b"x" * 100_000,
    b"javascript:alert(1)", b"/v1/../admin/", b"/./v1/models", b"/v1//models", b"/V1/MODELS",
]  # fmt: skip
_METHODS = [
    b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"HEAD", b"PURGE", b"PROPFIND",
    b"get", b"G\0T", b"", b"X" * 5_000, b"PRI", b"QUERY", b"GET GET",
]  # fmt: skip
_VERSIONS = [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"HTTP/1.1 x", b"", b"http/1.1", b"HTTP/", b"ICY"]
_LINES = [
    b"host: evil.example", b"host:", b"host: a\r\nhost: b", b"host: localhost:99999999", b"host: \xff", b"host: a b",
    b"content-length: 0", b"content-length: 5", b"content-length: -1", b"content-length: +5", b"content-length: 0x10",
    b"content-length: 5\r\ncontent-length: 6", b"content-length: 5\r\ncontent-length: 5", b"content-length: 5, 5",
    b"content-length: 99999999999999999999", b"content-length: 18446744073709551616", b"content-length: ",
    b"content-length: 20971521", b"content-length: 20971520", b"content-length : 5", b"content-length: 5 ",
    b"content-length: \xd9\xa5", b"transfer-encoding: chunked", b"transfer-encoding: identity", b"transfer-encoding: x",
    b"transfer-encoding: chunked, identity", b"transfer-encoding: gzip, chunked", b"transfer-encoding:\x0bchunked",
    b"transfer-encoding: chunked\r\ncontent-length: 5", b"connection: close", b"connection: keep-alive, close",
    b"connection: upgrade\r\nupgrade: websocket", b"connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMA",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAA",
    b"expect: 100-continue", b"expect: 200-ok", b"expect: x", b"upgrade-insecure-requests: 1", b"te: trailers",
    b"no colon here", b": no name", b" folded: line", b"x: a\r\n folded", b"x: \0", b"x\0: y", b"x\xff: y",
    b"x: \xff\xfe",
    b"x: " + b"y" * 60_000, b"x" * 60_000 + b": y", b"\r\n".join([b"x: y"] * 500), b"cookie: sessionid=x; csrftoken=y",
    b"cookie: " + b"a=b; " * 2_000, b"cookie: \xff=\x80", b"x-forwarded-for: 1.2.3.4", b"range: bytes=0-0,0-0",
    b"if-none-match: *", b"if-modified-since: x", b"accept: application/xml", b"accept: \xff", b"accept: */*;q=x",
    b"accept-language: \xff", b"accept-language: " + b"a-" * 500, b"accept-encoding: gzip", b"origin: null",
    b"x-http-method-override: DELETE", b"x-user-id: alice", b"x-user-id: \xff", b"authorization: Bearer \xff",
    b"authorization: Basic eA==", b"authorization:", b"content-encoding: gzip", b"content-type: multipart/form-data",
]  # fmt: skip
_CHUNKS = [
    b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello", b"zz\r\nhello\r\n", b"-5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"ffffffffffffffff\r\n", b"fffffffffffffffff\r\n", b"5;x=y\r\nhello\r\n0\r\n\r\n",
    b"5" + b";x" * 5_000 + b"\r\nhello\r\n",
    b"0\r\nx: y\r\n\r\n", b"0\r\nx: y", b"0\r\n" + b"x: y\r\n" * 1_000 + b"\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"\r\n",
    b"",
    b"1" * 5_000 + b"\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n",
]  # fmt: skip
_GARBAGE = [
    b"\0" * 100, b"\r\n" * 1_000, b"\xff" * 500, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0", b"SSH-2.0-x\r\n", b"GET /livez\r\n", b"GET /livez\n\n",
    b"GET",
    b"GET / HTTP/1.1\n\n", b"HTTP/1.1 200 OK\r\n\r\n", b"*1\r\n$4\r\nPING\r\n", b"{}\n", b"GET / HTTP/1.1\r\nhost: x",
]  # fmt: skip
ENDINGS = ["wait", "shut", "close", "reset"]

_TARGET = st.builds(lambda path, tail: (path + tail).encode(), st.sampled_from(_PATHS), st.sampled_from(_TAILS))
_ANY_TARGET = _TARGET | _TARGET | st.sampled_from(_TARGETS) | st.binary(max_size=30).map(lambda more: b"/v1/" + more)


@st.composite
def _head(draw: Draw, secret: bytes) -> tuple[bytes, bytes, bool]:
    """A head (without the blank line), its target, and whether its answer has no body."""
    method = draw(st.sampled_from([b"GET", b"POST"]) | st.sampled_from(_METHODS))
    target = draw(_ANY_TARGET)
    version = draw(st.just(b"HTTP/1.1") | st.just(b"HTTP/1.1") | st.sampled_from(_VERSIONS))
    lines = [b"%b %b %b" % (method, target, version)]
    lines += draw(st.just([b"host: localhost"]) | st.just([]))
    lines += draw(st.just([b"authorization: Bearer " + secret]) | st.just([]))
    lines += draw(st.lists(st.sampled_from(_LINES), max_size=3))
    return draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"])).join(lines), target, method == b"HEAD"


@st.composite
def malformed(draw: Draw, secret: bytes) -> Spoken:
    """A request of odd parts, whole or cut, in up to three pieces."""
    head, target, is_head = draw(_head(secret))
    body = draw(st.just(b"") | st.sampled_from(_CHUNKS) | st.just(GOOD) | st.binary(max_size=50))
    data = head + b"\r\n\r\n" + body
    match draw(st.integers(0, 9)):
        case 0:
            data = data[: draw(st.integers(0, len(data)))]
        case 1:
            at = draw(st.integers(0, len(data) - 1))
            data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
        case 2:
            data, target = draw(st.sampled_from(_GARBAGE)) + data, b"/"
        case 3:
            data += draw(st.sampled_from(_GARBAGE))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=2)))
    pieces = tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True))
    return Spoken(pieces, target, draw(st.sampled_from(ENDINGS)), is_head)


@st.composite
def half_sent(draw: Draw, secret: bytes) -> Spoken:
    """A good head with a body that does not come, or not whole."""
    bearer = [(b"authorization", b"Bearer " + secret)]
    path = draw(
        st.sampled_from([CHAT, "/v1/messages", "/v1/messages/count_tokens", "/api/keys", "/v1/embeddings", "/livez"])
    )
    sent = GOOD[: draw(st.integers(0, len(GOOD)))]
    if draw(st.booleans()):
        declared = len(sent) + draw(st.sampled_from([1, 100, 2**20, LONGEST_BODY, LONGEST_BODY + 1, 2**40]))
        data = request(path, headers=[*bearer, (b"content-length", b"%d" % declared)]) + sent
    else:
        chunks = b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""
        end = draw(st.sampled_from([b"", *_CHUNKS]))
        data = request(path, headers=[*bearer, (b"transfer-encoding", b"chunked")]) + chunks + end
    return Spoken((data,), path.encode(), draw(st.sampled_from(ENDINGS)))


@st.composite
def pipelined(draw: Draw, secret: bytes) -> Spoken:
    """Several good requests in one breath, and then perhaps garbage."""
    bearer = [(b"authorization", b"Bearer " + secret)]
    chat = request(CHAT, headers=bearer, body=GOOD)
    probe, models = request("/livez", method="GET"), request("/v1/models", method="GET", headers=bearer)
    asked = draw(st.lists(st.sampled_from([chat, probe, models]), min_size=2, max_size=8))
    garbage = draw(st.just(b"") | st.sampled_from(_GARBAGE))
    return Spoken((b"".join(asked) + garbage,), b"/v1/models", draw(st.sampled_from(ENDINGS)))


@st.composite
def whole(draw: Draw, secret: bytes) -> Spoken:
    """A request as HTTP has it, to an odd but legal place: an answer is owed."""
    method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD"]))
    target = draw(_TARGET)
    headers = draw(st.just([(b"authorization", b"Bearer " + secret)]) | st.just([]))
    headers += draw(st.just([(b"content-type", b"application/json")]) | st.just([]))
    body = draw(st.none() | st.just(b"{}") | st.just(GOOD) | st.binary(max_size=30))
    data = request(target, method=method, headers=headers, body=body)
    return Spoken((data,), target, "wait", method == b"HEAD", whole=b"\\" not in target)


def spoken(secret: bytes) -> st.SearchStrategy[Spoken]:
    return malformed(secret) | malformed(secret) | half_sent(secret) | pipelined(secret) | whole(secret)


# ── what comes back ─────────────────────────────────────────────────────────────────────────────────────────────────


def speak(target: Target, said: Spoken) -> None:
    """Say it, judge all that comes back, and leave."""
    with Wire(target.port) as wire:
        for piece in said.pieces:
            if not wire.send(piece, 5):
                break
        if said.ending in ("shut", "wait"):
            if said.ending == "shut":
                wire.stop_sending()
            first = hear(target, wire, said, 20 if said.whole else 0.1)
            assert first is not None or not said.whole, "no answer"
        elif said.ending == "reset":
            wire.reset()


def hear(target: Target, wire: Wire, said: Spoken, within: float) -> Answer | None:
    """The first answer; of all of them what must hold."""
    first = None
    for number in range(12):
        try:
            answer = wire.read(head=said.head, within=within if number == 0 else 0.05)
        except TimeoutError:
            return first
        if answer is None:
            return first
        first = first or answer
        if NOT_HTTP in answer.raw:
            assert (answer.status, answer.headers.get("connection")) == (400, "close")
            assert not said.whole
        elif number == 0 and said.whole:
            target.judge(answer, said.target, head=said.head, sent=b"".join(said.pieces))
            return answer
        else:
            # Which of the requests it answers is not known.
            assert answer.status not in (500, 502, 504), answer
            assert b"Traceback" not in answer.raw
    return first


@shares(200, 2600)
def test_whatever_is_said_others_are_answered(target: Target, seed: int, cases: int):
    def one(said: Spoken) -> None:
        target.asked += 1
        with contextlib.suppress(ConnectionError):
            speak(target, said)
        target.assert_alive()

    explore(seed, cases, spoken(target.member.encode()), one)


# ── many, slow, large ───────────────────────────────────────────────────────────────────────────────────────────────


_HEAD = b"POST %b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n"
SLOW = [
    (b"", b"G"),
    (b"GET /livez", b"x"),
    (_HEAD + b"x-slow: ", b"y"),
    (_HEAD, b"x: y\r\n"),
    (_HEAD + b"content-length: 100000\r\n\r\n", b" "),
    (_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    (_HEAD + b"transfer-encoding: chunked\r\n\r\n100;x=", b"y"),
]
"""What a client has sent at once, and what it then sends twenty times a second: in its method, path, headers, body."""


@contextlib.contextmanager
def dribbling(target: Target, number: int) -> Iterator[None]:
    """That many slow clients of each kind; leaving the block they all hang up."""
    clients: list[tuple[socket.socket, bytes]] = []
    for begun, drop in SLOW * number:
        client = socket.create_connection(("127.0.0.1", target.port), timeout=10)
        client.sendall(begun % (CHAT.encode(), target.member.encode()) if begun.startswith(b"POST") else begun)
        clients.append((client, drop))
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            for client, drop in clients:
                with contextlib.suppress(OSError):
                    client.send(drop)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for client, _ in clients:
            client.close()


@shares(10, 100)
def test_slow_clients_keep_nobody_waiting(target: Target, cases: int):
    with dribbling(target, cases):
        until = time.monotonic() + cases / 10
        while time.monotonic() < until:
            began = time.monotonic()
            # By a key of its own: who is slow is in nobody's way but their own key's.
            target.assert_answered()
            assert time.monotonic() - began < 5
    eventually(lambda: target.metric("ailb_active_requests") == 0, 10)


def test_a_request_a_byte_at_a_time_is_answered(target: Target):
    data = request(CHAT, headers=target.bearer(), body=GOOD)
    with Wire(target.port) as wire:
        for at in range(len(data)):
            assert wire.send(data[at : at + 1])
        answer = wire.read()
    assert answer is not None
    assert answer.status == 200, answer


@pytest.mark.parametrize(
    ("begun", "flood"),
    [
        (b"GET /livez HTTP/1.1\r\n", b"x: y\r\n"),
        (b"GET /livez HTTP/1.1\r\n", b"x: " + b"y" * 1_000 + b"\r\n"),
        (b"GET /livez HTTP/1.1\r\nx: ", b"y" * 1_000),
        (b"GET /", b"x" * 1_000),
    ],
    ids=["short headers", "long headers", "one header", "path"],
)
def test_a_head_without_end_is_not_read(target: Target, begun: bytes, flood: bytes):
    """A server stops somewhere (nginx at 32 KiB, Node at 16): 8 MiB of it are not taken, or not kept."""
    with Wire(target.port) as wire:
        wire.send(begun, 5)
        taken = sum(wire.send(flood * (2**20 // len(flood)), 10) for _ in range(8))
        target.assert_alive()
        refused = taken < 8 or wire.rest(1) != b""
    target.began_with = target.memory()  # what was freed is not given back at once
    assert refused, f"{taken} MiB of a head were taken"


@shares(3, 12)
def test_many_large_bodies_that_never_end_are_not_kept(target: Target, cases: int):
    """Each within the limit, and then nothing more: the memory goes with the client."""
    head = request(CHAT, headers=[*target.bearer(), (b"content-length", b"%d" % LONGEST_BODY)])
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(cases):
                wire = stack.enter_context(Wire(target.port))
                wire.send(head + b" " * (LONGEST_BODY - 1))
            target.assert_alive()
        eventually(lambda: target.metric("ailb_active_requests") == 0, 10)
    # Judged by the fixture: what is left when they have gone.


def test_a_client_that_pipelines_and_leaves_is_one_that_leaves(target: Target):
    chat, probe = request(CHAT, headers=target.bearer(), body=GOOD), request("/livez", method="GET")
    target.new_lines()
    for _ in range(20):
        with Wire(target.port) as wire:
            wire.send(chat + probe)
            wire.reset()
    assert not [line for line in target.new_lines() if '"level":"error"' in line]


@pytest.mark.parametrize("host", [b"evil.example", b"a b"])
def test_a_host_that_is_not_ours_is_no_traceback(target: Target, host: bytes):
    target.new_lines()
    answer = target.ask(b"GET /nothing HTTP/1.1\r\nhost: %b\r\n\r\n" % host)
    assert answer.status == 400
    for line in target.new_lines():
        json.loads(line)


@shares(40, 300)
def test_clients_that_leave_at_once_leave_nothing(target: Target, cases: int):
    """While sending, before the answer, in the middle of the stream."""
    body = json.dumps({**json.loads(GOOD), "stream": True}).encode()
    data = request(CHAT, headers=target.bearer(), body=body)
    for number in range(cases):
        with Wire(target.port) as wire:
            wire.send(data[: len(data) - number % 3])
            if number % 2:
                with contextlib.suppress(TimeoutError, Broken):
                    wire.rest(0.002 * (number % 7))
            if number % 5 == 0:
                wire.reset()
