"""Requests that cannot be taken: malformed, wrong types, too long, half sent."""

import json
import socket
import struct

import pytest

from gateway.consumers import LONGEST_BODY
from tests.support.answers import assert_error
from tests.support.waiting import eventually

MESSAGES = [{"role": "user", "content": "Hi"}]
GOOD = {"model": "gpt-test", "messages": MESSAGES}


def post(gateway, key, content, **headers):
    return gateway.send(
        "POST", "/v1/chat/completions", key=key, content=content,
        headers={"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_goes_upstream(upstream, gateway):
    """What is refused at the door is refused before a hold and before a call."""
    yield
    assert not upstream.requests


class TestMalformedJson:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"nonsense",
            b'{"model": "gpt-test",}',
            b"\xff\xfe",
            b'{"model": NaN}',
            b'{"a": "\xc3\x28"}',
            b"[]",
            b'"x"',
            b"null",
        ],
    )
    def test_it_is_refused(self, gateway, model, alice, content):
        assert_error(post(gateway, alice, content), 400, "invalid_request_error", None)

    @pytest.mark.parametrize("depth", [1_000, 100_000, 5_000_000])
    def test_nesting_beyond_measure(self, gateway, model, alice, depth):
        nested = b'{"model": "gpt-test", "messages": [], "x": ' + b"[" * depth + b"]" * depth + b"}"
        assert_error(post(gateway, alice, nested), 400, "invalid_request_error", None)

    @pytest.mark.parametrize("opening", [b'{"a":', b'[{"b":'])
    def test_nesting_of_objects_without_an_end(self, gateway, model, alice, opening):
        assert_error(post(gateway, alice, opening * 100_000), 400, "invalid_request_error", None)


class TestWrongTypes:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"messages": None}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": "Hi"}, "messages"),
            ({"messages": ["Hi"]}, "messages[0]"),
            ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
            ({"messages": [{"role": 1, "content": "Hi"}]}, "messages[0].role"),
            ({"messages": [*MESSAGES, {"role": "wizard", "content": "Hi"}]}, "messages[1].role"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"text": "no type"}]}]}, "messages[0].content[0].type"),
            ({"model": 5}, "model"),
            ({"model": ""}, "model"),
            ({"model": None}, "model"),
            ({"model": "x" * 201}, "model"),
            ({"stream": "yes"}, "stream"),
            ({"stream": 1}, "stream"),
            ({"stream": True, "stream_options": True}, "stream_options"),
            ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"n": 0}, "n"),
            ({"n": 129}, "n"),
            ({"n": "2"}, "n"),
            ({"n": 1.5}, "n"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": -5}, "max_tokens"),
            ({"max_tokens": "10"}, "max_tokens"),
            ({"max_tokens": True}, "max_tokens"),
            ({"max_completion_tokens": 1e99}, "max_completion_tokens"),
            ({"max_completion_tokens": 10**30}, "max_completion_tokens"),
            ({"tools": {}}, "tools"),
            ({"tools": [{}]}, "tools[0].type"),
            ({"user": 5}, "user"),
            ({"session_id": ""}, "session_id"),
            ({"session_id": 7}, "session_id"),
            ({"rag_top_k": 0}, "rag_top_k"),
            ({"rag_top_k": 51}, "rag_top_k"),
            ({"rag_collection": ["a"]}, "rag_collection"),
            ({"routing_strategy": "fastest"}, "routing_strategy"),
            ({"tags": "a,b"}, "tags"),
            ({"tags": [""]}, "tags[0]"),
            ({"tags": [str(n) for n in range(51)]}, "tags"),
        ],
        ids=str,
    )
    def test_the_field_is_named(self, gateway, model, alice, fields, param):
        body = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
        answer = post(gateway, alice, json.dumps(body).encode())
        assert_error(answer, 400, "invalid_request_error", None, param=param)

    def test_what_was_sent_is_not_repeated(self, gateway, model, alice):
        answer = post(gateway, alice, json.dumps({**GOOD, "n": "a secret of mine"}).encode())
        assert "secret" not in answer.raw.decode()

    @pytest.mark.parametrize(
        ("name", "value", "param"),
        [
            ("x-session-id", "x" * 201, "x-session-id"),
            ("x-routing-strategy", "fastest", "routing_strategy"),
            ("x-ailb-tags", ",".join(map(str, range(51))), "tags"),
            ("x-session-id", b"\xff", "x-session-id"),
        ],
    )
    def test_a_wrong_header_is_named(self, gateway, model, alice, name, value, param):
        answer = gateway.chat(alice, headers={name: value})
        assert_error(answer, 400, "invalid_request_error", None, param=param)

    @pytest.mark.parametrize("text", ["\\ud800", "\\udc00 tail", "a\\ud83d", "\\ude00\\ud83d"])
    def test_half_a_surrogate_pair_is_the_clients_mistake(self, gateway, model, alice, text):
        content = f'{{"model": "gpt-test", "messages": [{{"role": "user", "content": "{text}"}}]}}'
        assert_error(post(gateway, alice, content.encode()), 400, "invalid_request_error", None)


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity"])
    def test_compressed_bodies_are_refused(self, gateway, model, alice, encoding):
        answer = post(gateway, alice, b"\x1f\x8b\x08\x00", content_encoding=encoding)
        assert_error(answer, 400, "invalid_request_error", None, param="content-encoding")


class TestMethods:
    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize("known", [True, False])
    def test_only_post(self, gateway, model, alice, method, known):
        answer = gateway.send(method, "/v1/chat/completions", key=alice if known else None)
        assert_error(answer, 405, "invalid_request_error", "method_not_allowed")
        assert answer.headers["allow"] == "POST"

    def test_head_has_no_body(self, gateway, model):
        answer = gateway.send("HEAD", "/v1/chat/completions")
        assert (answer.status, answer.raw) == (405, b"")

    @pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1/chat", "/v1/nothing", "/v1"])
    def test_other_paths_are_not_found_in_the_same_shape(self, gateway, model, alice, path):
        answer = gateway.send("POST", path, key=alice, json=GOOD)
        assert_error(answer, 404, "invalid_request_error", "not_found")

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/images/generations"])
    def test_openais_other_paths_say_that_they_are_to_come(self, gateway, model, alice, path):
        answer = gateway.send("POST", path, key=alice, json=GOOD)
        assert_error(answer, 501, "invalid_request_error", "not_implemented")


class TestLength:
    def test_one_that_says_so_is_refused_unread(self, gateway, model, alice):
        # Only the head is sent: the answer comes all the same.
        head = _head(alice, f"content-length: {LONGEST_BODY + 1}")
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            connection.sendall(head)
            assert_413(connection)

    def test_one_that_does_not_is_refused_while_it_comes(self, gateway, model, alice):
        piece = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            connection.sendall(_head(alice, "transfer-encoding: chunked"))
            sent = 0
            try:
                for _ in range(100):  # five times the limit: nobody may take all of this
                    connection.sendall(piece)
                    sent += 1
                    if _answered(connection):
                        break
            except OSError:
                pass  # closed on us: what was answered can still be read, or was lost with the reset
            assert sent <= 60
            assert_413(connection)

    @pytest.mark.parametrize("chunked", [False, True])
    def test_the_last_that_is_taken(self, gateway, model, alice, upstream, chunked):
        def body():
            head = b'{"model": "nobody", "messages": [{"role": "user", "content": "Hi"}]'
            yield head
            yield b" " * (LONGEST_BODY - len(head) - 1)
            yield b"}"

        answer = post(gateway, alice, body() if chunked else b"".join(body()))
        assert_error(answer, 404, "invalid_request_error", "model_not_found", param="model")

    def test_a_byte_more_is_not(self, gateway, model, alice):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            connection.sendall(_head(alice, f"content-length: {LONGEST_BODY + 1}") + b" " * 1000)
            assert_413(connection)

    def test_an_unknown_key_uploads_nothing(self, gateway, model):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {LONGEST_BODY}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


class TestHalfSent:
    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("body", [b"", b'{"model": "gpt-te'])
    def test_a_client_that_leaves_while_sending_leaves_nothing(self, gateway, model, alice, upstream, body, reset):
        connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        connection.sendall(_head(alice, "content-length: 1000") + body)
        eventually(lambda: gateway.metric("ailb_active_requests") == 1)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        eventually(lambda: gateway.metric("ailb_active_requests") == 0)
        assert gateway.chat(alice, model="nobody").status == 404

    def test_a_client_that_is_slow_is_waited_for(self, gateway, model, alice):
        content = json.dumps({**GOOD, "model": "nobody"}).encode()
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            connection.sendall(_head(alice, f"content-length: {len(content)}"))
            for byte in content:
                connection.sendall(bytes([byte]))
            assert connection.recv(100).startswith(b"HTTP/1.1 404 ")

    def test_expect_continue_is_honoured(self, gateway, model, alice):
        # curl sends it for bodies beyond a kilobyte.
        content = json.dumps({**GOOD, "model": "nobody"}).encode()
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
            connection.sendall(_head(alice, f"content-length: {len(content)}\r\nexpect: 100-continue"))
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(content)
            assert connection.recv(100).startswith(b"HTTP/1.1 404 ")


def _head(key, *lines):
    host = "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
    return (
        host + f"authorization: Bearer {key.secret}\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    ).encode()


def _answered(connection):
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(10)


def assert_413(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
        if b"request_too_large" in received:
            break
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 "), received[:500]
    error = json.loads(body)["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "request_too_large", None)
    assert b"x-request-id: req_" in head
