"""Server-sent events: the same ones at every chunking, with every line ending."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.sse import EventDecoder, EventTooLong

ENDINGS = (b"\n", b"\r\n", b"\r")

# Anything but line ends, which separate lines, inside the data; UTF-8 of every length, and bytes that are none.
texts = st.text(st.characters(exclude_characters="\r\n"), max_size=30).map(lambda text: text.encode(errors="replace"))
data_lines = st.lists(
    texts | st.binary(max_size=10).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b"")), min_size=1, max_size=3
)
noise = st.sampled_from([b": ping", b":", b"id: 7", b"event: message", b"retry: 10", b"unknown: x", b"nothing"])
events = st.tuples(st.lists(noise, max_size=2), data_lines, st.lists(noise, max_size=2), st.booleans())


def written(event, ending):
    before, lines, after, spaced = event
    prefix = b"data: " if spaced else b"data:"
    # Without the space, data that begins with one would lose it.
    lines = [line if spaced else line.lstrip(b" ") for line in lines]
    return ending.join([*before, *(prefix + line for line in lines), *after, b"", b""]), b"\n".join(lines)


def decoded(chunks):
    decoder = EventDecoder()
    found = [data for chunk in chunks for data in decoder.feed(chunk)]
    return found + decoder.end()


def cut(whole, places):
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]


@given(
    events=st.lists(events, max_size=6),
    endings=st.sampled_from(ENDINGS),
    places=st.lists(st.integers(0, 10_000), max_size=30),
)
def test_every_chunking_gives_the_same_events(events, endings, places):
    pairs = [written(event, endings) for event in events]
    whole = b"".join(text for text, _ in pairs)
    assert decoded(cut(whole, places)) == [data for _, data in pairs]


@given(events=st.lists(st.tuples(events, st.sampled_from(ENDINGS)), max_size=5))
def test_byte_by_byte_with_line_endings_mixed(events):
    pairs = [written(event, ending) for event, ending in events]
    whole = b"".join(text for text, _ in pairs)
    # A CR at an event's end and a LF at the next one's start would be one ending: no event starts with LF.
    assert decoded([bytes([byte]) for byte in whole]) == [data for _, data in pairs]


@given(whole=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_at_all_give_the_same_however_they_come(whole, places):
    assert decoded(cut(whole, places)) == decoded([whole])


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_event_is_given_as_soon_as_its_blank_line_is_there(ending):
    decoder = EventDecoder()
    assert decoder.feed(b"data: a" + ending) == []
    # Of CR LF the LF may come later: the CR alone ends the line.
    assert decoder.feed(ending) == [b"a"]


def test_what_has_no_blank_line_comes_at_the_end():
    decoder = EventDecoder()
    assert decoder.feed(b"data: [DONE]") == []
    assert decoder.end() == [b"[DONE]"]
    assert decoder.end() == []


def test_events_without_data_are_none():
    assert decoded([b": ping\n\n", b"event: x\n\n", b"\n\n\n", b"data: a\n\n"]) == [b"a"]


def test_empty_data_is_data():
    assert decoded([b"data:\n\n", b"data: \n\n"]) == [b"", b""]


def test_an_event_without_an_end_is_given_up():
    decoder = EventDecoder()
    for _ in range(16):
        decoder.feed(b"x" * 2**20)
    with pytest.raises(EventTooLong):
        decoder.feed(b"x")


def test_a_long_event_in_small_pieces_costs_linear_time():
    """Each piece is looked at once, and not all that came before it again: this runs on the event loop."""

    def seconds(pieces):
        decoder, started = EventDecoder(), time.process_time()
        for _ in range(pieces):
            decoder.feed(b"x" * 500)
        return time.process_time() - started

    seconds(1000)
    # Four times as much takes four times as long; sixteen times where it is quadratic.
    assert seconds(4000) < 9 * min(seconds(1000) for _ in range(3)) + 0.05
