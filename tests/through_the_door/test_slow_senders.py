"""Clients that send slowly, too much, or two requests at once: before anything is known of them."""

import json
import socket
import time
from contextlib import contextmanager, suppress

import pytest

from ailb_project import http_protocol
from tests.support.gateway import chat_body
from tests.support.upstream import delta, sends


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(http_protocol, "BODY_SILENCE", 0.5)


@contextmanager
def connected(gateway):
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])), timeout=10) as connection:
        yield connection


def heard(connection) -> bytes:
    """Everything up to the end of the connection."""
    told = b""
    while piece := connection.recv(65536):
        told += piece
    return told


def request(key, body: bytes, length: int | None = None) -> bytes:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key.secret}\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    "begun", [b"", b"GET /livez HTTP/1.1\r\n", b"GET /li"], ids=["nothing", "a line", "half a line"]
)
def test_a_head_that_does_not_come_is_not_waited_for(gateway, begun):
    with connected(gateway) as connection:
        connection.sendall(begun)
        began = time.monotonic()
        assert heard(connection) == b""
        assert time.monotonic() - began < 5


def test_a_head_that_comes_by_and_by_is_not_waited_for_either(gateway):
    """Each byte in time, and the whole never."""
    sent = 0
    with connected(gateway) as connection, suppress(OSError):  # reset, or a broken pipe
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        while sent < 50:
            time.sleep(0.1)
            connection.sendall(b"x: y\r\n")
            sent += 1
    assert sent < 50


def test_a_body_that_stops_coming_is_not_waited_for(gateway, model, alice):
    with connected(gateway) as connection:
        connection.sendall(request(alice, b'{"model": ', 500))
        began = time.monotonic()
        heard(connection)
        assert time.monotonic() - began < 5


def test_a_body_that_comes_slowly_and_comes_is_read(gateway, model, alice):
    body = json.dumps(chat_body()).encode()
    with connected(gateway) as connection:
        data = request(alice, body)
        at = len(data) - len(body)
        connection.sendall(data[:at])
        for start in range(at, len(data), len(body) // 5 + 1):
            time.sleep(0.2)
            connection.sendall(data[start : start + len(body) // 5 + 1])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_the_next_request_of_a_connection_has_its_own_time(gateway, model, alice):
    data = request(alice, json.dumps(chat_body()).encode())
    with connected(gateway) as connection:
        for _ in range(3):
            connection.sendall(data)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.7)  # between two requests it is the keep-alive's, 75 seconds


def test_a_head_that_is_too_long_is_told_so(gateway):
    with connected(gateway) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        connection.sendall((b"x: " + b"y" * 1019 + b"\r\n") * 64)
        answer = heard(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"x-request-id: req_" in head
    assert json.loads(body)["error"]["code"] == "request_too_large"


def test_what_is_no_http_is_told_so_in_our_words(gateway):
    with connected(gateway) as connection:
        connection.sendall(b"\0\1\2\r\n\r\n")
        head, _, body = heard(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_stream_in_front_of_another_request_ends_with_its_client(gateway, model, alice, upstream):
    """uvicorn tells of a client that left the newest request alone."""
    upstream.will(sends(delta("Hi"), end="stall"))
    body = json.dumps(chat_body(stream=True)).encode()
    with connected(gateway) as connection:
        connection.sendall(request(alice, body) + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"Hi" in connection.recv(65536)
    assert upstream.only.was_dropped(5)
    entry = gateway.only_closing()
    assert (entry.status, entry.estimated) == (499, True)
