"""What is shown of an upstream's stream. Pure."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.doors.chat import DONE, ChatDoor, ChatStream
from gateway.translate.openai import usage_body
from gateway.types import Citation, Completion, Frame, StreamEvent, Usage
from keys.limits.headers import go_duration

CITATIONS = (Citation("manual", "doc_1", "Terms", 0, 1.5, "Two years."),)
names = st.sampled_from(["usage", "id", "a", 'x","usage":null,"y', 'usage":null'])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(['"usage":null', ',"usage":null', "ü"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
chunks = st.dictionaries(names, values, max_size=4)
spellings = st.sampled_from([{"separators": (",", ":")}, {"separators": (", ", ": ")}, {"ensure_ascii": False}])


def frame() -> Frame:
    return Frame(id="req-1", created=1, model="m")


def parsed(rendered):
    assert rendered.startswith(b"data: ")
    assert rendered.endswith(b"\n\n")
    return json.loads(rendered[6:])


@given(chunk=chunks, spelling=spellings)
def test_null_usage_is_taken_out_and_nothing_else(chunk, spelling):
    chunk = {**chunk, "usage": None}
    event = StreamEvent(json.dumps(chunk, **spelling).encode(), null_usage=True)
    shown = parsed(ChatStream(frame, include_usage=False).render([event]))
    del chunk["usage"]
    assert shown == chunk


@given(chunk=chunks, spelling=spellings)
def test_without_it_an_event_is_passed_on_byte_for_byte(chunk, spelling):
    data = json.dumps(chunk, **spelling).encode()
    assert ChatStream(frame, include_usage=False).render([StreamEvent(data)]) == b"data: " + data + b"\n\n"


def test_usage_alone_is_held_back_until_the_end():
    stream = ChatStream(frame, include_usage=True)
    event = StreamEvent(b'{"choices":[],"usage":{}}', usage=Usage(1, 2), usage_only=True)
    assert stream.render([event]) == b""
    assert stream.usage == Usage(1, 2)
    assert stream.end(Usage(9, 9)) == b'data: {"choices":[],"usage":{}}\n\n' + DONE


def test_who_did_not_ask_sees_the_end_alone():
    stream = ChatStream(frame, include_usage=False)
    stream.render([StreamEvent(b'{"choices":[]}', usage=Usage(1, 2), usage_only=True)])
    assert stream.end(Usage(9, 9)) == DONE


def test_what_is_made_has_the_streams_own_frame():
    stream = ChatStream(frame, include_usage=True)
    stream.render([StreamEvent(b'{"id":"x","object":"o","created":1,"model":"m","choices":[{}],"other":1}')])
    usage, end = stream.end(Usage(3, 4, cached_tokens=1, reasoning_tokens=2)).split(b"\n\n", 1)
    assert end == DONE
    assert json.loads(usage[6:]) == {
        "id": "x", "object": "o", "created": 1, "model": "m", "choices": [],
        "usage": {
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }  # fmt: skip


def test_an_empty_stream_has_an_end_too():
    assert ChatStream(frame, include_usage=True).end(Usage(1, 0)).endswith(DONE)


def test_citations_come_once_with_the_first_finish():
    stream = ChatStream(frame, include_usage=False, citations=CITATIONS)
    first = parsed(stream.render([StreamEvent(b'{"choices":[{"index":0}]}', finish_reason="stop")]))
    second = parsed(stream.render([StreamEvent(b'{"choices":[{"index":1}]}', finish_reason="stop")]))
    assert first["ailb"]["citations"][0]["quote"] == "Two years."
    assert "ailb" not in second


def test_a_plain_answer_with_none_is_the_same_bytes():
    body = b'{"id":  1}'
    completion = Completion(body=body, usage=None, text="")
    assert ChatDoor().whole(completion, Usage(1, 1), frame, ()) is body
    cited = json.loads(ChatDoor().whole(completion, Usage(1, 1), frame, CITATIONS))
    assert cited["ailb"]["citations"][0]["title"] == "Terms"


def test_what_was_delivered_is_remembered():
    stream = ChatStream(frame, include_usage=False)
    stream.render([StreamEvent(b"{}", text="a"), StreamEvent(b"{}"), StreamEvent(b"{}", text="b")])
    assert stream.text == "ab"


def test_totals_are_sums():
    body = usage_body(Usage(5, 7, cached_tokens=3, reasoning_tokens=2))
    assert body["total_tokens"] == 12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (-1, "0ms"), (0.0123, "12ms"), (0.9994, "999ms"), (0.9996, "1s"), (1, "1s"), (1.5, "1.5s"),
     (59.999, "59.999s"),
     (60, "1m0s"), (360, "6m0s"), (90.25, "1m30.25s"), (3600, "60m0s")],
)  # fmt: skip
def test_durations_are_gos(seconds, text):
    assert go_duration(seconds) == text
