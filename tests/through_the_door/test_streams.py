"""Streams as upstreams really send them, and what a client makes of what is passed on."""

import time

import pytest

from tests.support.answers import assert_error, assert_stream_error
from tests.support.upstream import (
    DONE,
    USAGE,
    answers,
    bytes_of,
    contents,
    data,
    delta,
    drops,
    frame,
    hangs,
    refuses,
    says,
    sends,
)
from tests.support.world import CREDENTIAL

CHUNKS = [delta(role="assistant", content=""), delta("Hello"), delta(" wörld 🌍"), delta(finish="stop")]
WHOLE = (
    b"".join(data({**frame(), **chunk}) for chunk in CHUNKS) + data({**frame(), "choices": [], "usage": USAGE}) + DONE
)


class TestLineEndings:
    @pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_any_ending_at_any_chunking(self, gateway, model, alice, upstream, ending, size):
        whole = WHOLE.replace(b"\n", ending)
        upstream.will(sends(*(whole[at : at + size] for at in range(0, len(whole), size))))
        answer = gateway.chat(alice, stream=True)
        assert answer.text == "Hello wörld 🌍"
        assert answer.done
        assert gateway.settlement(answer.id).completion_tokens == USAGE["completion_tokens"]

    def test_a_line_ending_split_between_two_reads(self, gateway, model, alice, upstream):
        first = b"data: " + data({**frame(), **delta("a")})[6:].rstrip() + b"\r"
        upstream.will(sends(first, 0.05, b"\n\r", 0.05, b"\n", data({**frame(), **delta(finish="stop")}) + DONE))
        assert gateway.chat(alice, stream=True).text == "a"

    def test_ids_event_names_retries_and_comments_are_dropped(self, gateway, model, alice, upstream):
        event = data({**frame(), **delta("Hi")})
        upstream.will(
            sends(
                b": welcome\n\n",
                b"id: 7\nevent: message\nretry: 10\n" + event,
                b": ping\n\n",
                b"event: nothing\n\n",
                data({**frame(), **delta(finish="stop")}),
                DONE,
            )
        )
        answer = gateway.chat(alice, stream=True)
        assert answer.text == "Hi"
        # An `id:` line makes the OpenAI SDK choke on the next keep-alive (wire.md section 1).
        assert b"id: 7" not in answer.raw
        assert b"event:" not in answer.raw
        assert b"retry:" not in answer.raw
        assert answer.done

    def test_no_space_after_the_colon(self, gateway, model, alice, upstream):
        upstream.will(sends(WHOLE.replace(b"data: ", b"data:")))
        answer = gateway.chat(alice, stream=True)
        assert answer.text == "Hello wörld 🌍"
        assert answer.done

    def test_data_on_several_lines_is_one_event_on_one(self, gateway, model, alice, upstream):
        event = b'data: {"id": "x",\ndata: "choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n'
        upstream.will(sends(event, delta(finish="stop"), DONE))
        assert gateway.chat(alice, stream=True).text == "Hi"


class TestTheEnd:
    @pytest.mark.parametrize("end", ["orderly", "cut"])
    def test_a_finish_reason_is_enough(self, gateway, model, alice, upstream, end):
        upstream.will(sends(delta("Hi"), delta(finish="stop"), end=end))
        answer = gateway.chat(alice, stream=True)
        if end == "orderly":
            assert answer.done
            assert gateway.settlement(answer.id).status == 200
        assert answer.text == "Hi"

    def test_done_without_its_blank_line(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hi"), delta(finish="stop"), b"data: [DONE]"))
        answer = gateway.chat(alice, stream=True)
        assert (answer.text, answer.done) == ("Hi", True)

    def test_what_comes_after_done_is_nobodys(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hi"), delta(finish="stop"), DONE + data({**frame(), **delta("more")})))
        answer = gateway.chat(alice, stream=True)
        assert (answer.text, answer.done) == ("Hi", True)

    def test_an_upstream_that_stays_open_after_done_is_left(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hi"), delta(finish="stop"), DONE, end="stall"))
        assert gateway.chat(alice, stream=True).done
        assert upstream.only.was_dropped(within=1)

    @pytest.mark.parametrize("end", ["orderly", "cut", "reset"])
    @pytest.mark.parametrize("include_usage", [False, True])
    def test_one_that_breaks_off_is_an_error_and_not_an_end(self, gateway, model, alice, upstream, end, include_usage):
        upstream.will(sends(delta("Hello"), delta(" wor"), 0.05, end=end))
        answer = gateway.chat(alice, stream=True, stream_options={"include_usage": include_usage})
        assert contents(answer.chunks) == "Hello wor"
        assert_stream_error(answer, "upstream_error", "upstream_error")
        row = gateway.settlement(answer.id)
        assert (row.status, row.estimated) == (502, True)
        assert row.completion_tokens == 2
        assert row.cost_usd > 0

    def test_half_an_event_at_the_end_is_not_shown(self, gateway, model, alice, upstream):
        half = data({**frame(), **delta(" lost")})[:-20]
        upstream.will(sends(delta("Hello"), half))
        answer = gateway.chat(alice, stream=True)
        assert contents(answer.chunks) == "Hello"
        assert_stream_error(answer, "upstream_error", "upstream_error")

    @pytest.mark.parametrize(
        "body", [DONE, data({**frame(), "choices": [], "usage": USAGE}) + DONE], ids=["DONE", "usage"]
    )
    @pytest.mark.parametrize("include_usage", [False, True])
    def test_one_without_any_content_is_an_empty_answer(self, gateway, model, alice, upstream, body, include_usage):
        upstream.will(sends(body))
        answer = gateway.chat(alice, stream=True, stream_options={"include_usage": include_usage})
        assert answer.status == 200
        assert answer.done
        assert answer.text == ""
        assert (answer.usage is not None) is include_usage
        assert gateway.settlement(answer.id).status == 200

    def test_nothing_at_all_is_no_answer(self, gateway, model, alice, upstream):
        upstream.will(sends())
        answer = gateway.chat(alice, stream=True)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert gateway.closing(answer.id).kind == "release"


class TestNonsense:
    @pytest.mark.parametrize(
        "nonsense",
        [
            b"data: not json\n\n",
            b"data: [1, 2]\n\n",
            b"data: \n\n",
            b'data: {"choices": 5}\n\n',
            b"data: {\n\n",
            b"data: \xff\n\n",
        ],
    )
    @pytest.mark.parametrize("when", ["first", "later"])
    def test_an_event_that_is_no_chunk(self, gateway, model, alice, upstream, nonsense, when):
        upstream.will(sends(*([delta("Hello"), 0.05] if when == "later" else []), nonsense, delta(finish="stop"), DONE))
        answer = gateway.chat(alice, stream=True)
        if when == "first":
            assert_error(answer, 502, "upstream_error", "upstream_error")
            assert gateway.closing(answer.id).kind == "release"
        else:
            assert contents(answer.chunks) == "Hello"
            assert_stream_error(answer, "upstream_error", "upstream_error")
            assert gateway.settlement(answer.id).estimated

    def test_an_event_without_an_end_does_not_fill_the_memory(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hi"), *([b"x" * 2**20] * 20), end="stall"))
        answer = gateway.chat(alice, stream=True)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert upstream.only.was_dropped(within=2)

    def test_a_page_of_html(self, gateway, model, alice, upstream, stream):
        upstream.will(answers(b"<html>Welcome to nginx</html>", content_type="text/html"))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert "nginx" not in answer.raw.decode()

    def test_a_plain_answer_where_a_stream_was_asked(self, gateway, model, alice, upstream):
        upstream.will(answers({"id": "x", "choices": [{"index": 0, "message": {"content": "Hi"}}]}))
        assert_error(gateway.chat(alice, stream=True), 502, "upstream_error", "upstream_error")

    def test_an_error_event_after_content(self, gateway, model, alice, upstream):
        error = {"error": {"message": f"Overloaded, key {CREDENTIAL}", "type": "server_error", "code": "x"}}
        upstream.will(sends(delta("Hello"), 0.05, data(error), DONE))
        answer = gateway.chat(alice, stream=True)
        assert_stream_error(answer, "upstream_error", "upstream_error", says="Overloaded")
        assert CREDENTIAL not in answer.raw.decode()
        assert gateway.settlement(answer.id).status == 502

    def test_an_error_event_before_content(self, gateway, model, alice, upstream):
        upstream.will(sends(data({"error": {"message": "Overloaded"}})))
        answer = gateway.chat(alice, stream=True)
        assert_error(answer, 502, "upstream_error", "upstream_error", says="Overloaded")

    def test_an_error_event_that_is_a_text(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hello"), 0.05, data({"error": "Overloaded"})))
        assert_stream_error(gateway.chat(alice, stream=True), "upstream_error", "upstream_error", says="Overloaded")

    def test_a_chunk_with_nulls_where_lists_and_texts_are_usual(self, gateway, model, alice, upstream):
        loose = [
            {"choices": None},
            {"choices": [{"index": 0, "delta": None}]},
            {"choices": [{"index": 0}]},
            delta(None, role="assistant", refusal=None, tool_calls=None),
            {**delta("Hi"), "model": None, "service_tier": None},
            {"choices": [], "prompt_filter_results": []},
        ]
        upstream.will(sends(*loose, delta(finish="stop"), DONE))
        answer = gateway.chat(alice, stream=True)
        assert answer.done
        assert gateway.settlement(answer.id).status == 200


class TestWrittenByHand:
    def test_a_stream_without_chunked_encoding(self, gateway, model, alice, upstream):
        upstream.will(bytes_of(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", WHOLE, after=0.02))
        answer = gateway.chat(alice, stream=True)
        assert (answer.text, answer.done) == ("Hello wörld 🌍", True)

    def test_one_with_a_content_length(self, gateway, model, alice, upstream):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(WHOLE)}\r\n\r\n"
        upstream.will(bytes_of(head.encode() + WHOLE))
        assert gateway.chat(alice, stream=True).done

    def test_a_content_length_that_promises_too_much(self, gateway, model, alice, upstream):
        body = b"".join(data({**frame(), **chunk}) for chunk in CHUNKS[:2])
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body) + 100}\r\n\r\n"
        upstream.will(bytes_of(head.encode() + body, after=0.05))
        answer = gateway.chat(alice, stream=True)
        assert contents(answer.chunks) == "Hello"
        assert_stream_error(answer, "upstream_error", "upstream_error")

    def test_no_http_at_all(self, gateway, model, alice, upstream, stream):
        upstream.will(bytes_of(b"SSH-2.0-OpenSSH_9.2\r\n"))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert "SSH" not in answer.raw.decode()


class TestBeforeTheFirstContent:
    """The headers go out with the upstream's first event; an error after that is an event too."""

    def test_a_role_alone_is_no_content_and_opens_the_stream(self, gateway, model, alice, upstream):
        upstream.will(sends(delta(role="assistant", content=""), 0.05, end="cut"))
        answer = gateway.chat(alice, stream=True)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        closing = gateway.closing(answer.id)
        assert (closing.kind, closing.status) == ("release", 502)

    @pytest.mark.parametrize("script", [drops(), refuses(500), sends(end="reset")], ids=["dropped", "500", "reset"])
    def test_nothing_opened_is_a_status(self, gateway, model, alice, upstream, script):
        upstream.will(script)
        assert_error(gateway.chat(alice, stream=True), 502, "upstream_error", "upstream_error")

    def test_reasoning_refusals_and_tool_calls_are_content(self, gateway, model, alice, upstream):
        for told in ({"reasoning_content": "Hm"}, {"refusal": "No."}, {"tool_calls": [{"index": 0, "function": {}}]}):
            upstream.will(sends(delta(**told), 0.05, end="cut"))
            answer = gateway.chat(alice, stream=True)
            assert_stream_error(answer, "upstream_error", "upstream_error")
            assert gateway.settlement(answer.id).estimated

    def test_the_first_event_reaches_the_client_while_the_rest_is_to_come(self, gateway, model, alice, upstream):
        upstream.will(sends(delta(role="assistant", content=""), delta("Hello"), end="stall"))
        with gateway.chatting(alice, stream=True) as response:
            assert response.status_code == 200
            pieces = response.iter_raw()
            received = b""
            while b"Hello" not in received:
                received += next(pieces)
        assert upstream.only.was_dropped()

    def test_a_slow_stream_is_passed_on_as_it_comes(self, gateway, model, alice, upstream):
        upstream.will(says("a", "b", "c", delay=0.05))
        answer = gateway.chat(alice, stream=True)
        assert answer.text == "abc"
        row = gateway.settlement(answer.id)
        # The first content came with the second chunk; the gateway's own share has nothing of the waiting in it.
        assert 50 <= row.ttft_ms < row.latency_ms
        assert row.latency_ms >= 250


def test_a_stalled_stream_is_given_up(gateway, model, provider, alice, upstream):
    provider.idle_timeout = 0.3
    provider.save()
    upstream.will(sends(delta("Hello"), end="stall"))
    answer = gateway.chat(alice, stream=True)
    assert contents(answer.chunks) == "Hello"
    assert_stream_error(answer, "timeout_error", "timeout")
    assert upstream.only.was_dropped(within=1)
    assert gateway.settlement(answer.id).status == 504


def test_a_slow_reader_is_not_taken_for_a_stalled_upstream(gateway, model, provider, alice, upstream):
    provider.idle_timeout = 0.3
    provider.save()
    words = ["x" * 20_000] * 200  # four megabytes: more than all buffers on the way take
    upstream.will(says(*words))
    with gateway.chatting(alice, stream=True) as response:
        pieces = response.iter_raw()
        received = next(pieces)
        time.sleep(1)
        received += b"".join(pieces)
    assert received.endswith(DONE)
    assert received.count(b"x" * 20_000) == 200


def test_one_that_never_answers(gateway, model, provider, alice, upstream, stream):
    provider.first_byte_timeout = 0.3
    provider.save()
    upstream.will(hangs())
    answer = gateway.chat(alice, stream=stream)
    assert_error(answer, 504, "timeout_error", "timeout")
    assert upstream.only.was_dropped(within=1)
    closing = gateway.closing(answer.id)
    assert (closing.kind, closing.status, closing.cost_usd) == ("release", 504, 0)
