"""Lines of JSON: the same ones at every chunking, with both line endings."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.providers.ndjson import LineDecoder
from gateway.providers.sse import EventTooLong

objects = st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3)
endings = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \n"])


def written(value):
    """As Go and Python write it, with UTF-8 of every length in it."""
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def decoded(chunks):
    decoder = LineDecoder()
    found = [line for chunk in chunks for line in decoder.feed(chunk)]
    return found + decoder.end()


def cut(whole, places):
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]


@given(lines=st.lists(st.tuples(objects, endings), max_size=6), places=st.lists(st.integers(0, 10_000), max_size=30))
def test_every_chunking_gives_the_same_lines(lines, places):
    whole = b"".join(written(value) + ending for value, ending in lines)
    assert decoded(cut(whole, places)) == [written(value) for value, _ in lines]


def test_it_may_be_cut_at_any_byte_inside_a_character_too():
    lines = [written({"content": "žluťoučký 🦊 “quoted”"}), written({"done": True})]
    whole = b"\n".join(lines) + b"\n"
    for place in range(len(whole) + 1):
        assert decoded([whole[:place], whole[place:]]) == lines
    assert decoded([bytes([byte]) for byte in whole]) == lines


@given(whole=st.binary(max_size=200), places=st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_at_all_give_the_same_however_they_come(whole, places):
    assert decoded(cut(whole, places)) == decoded([whole])


def test_a_line_is_given_as_soon_as_it_ends():
    decoder = LineDecoder()
    assert decoder.feed(b'{"a"') == []
    assert decoder.feed(b": 1}\r\n{") == [b'{"a": 1}']


def test_what_has_no_line_end_comes_at_the_end():
    decoder = LineDecoder()
    assert decoder.feed(b'{"done": true}') == []
    assert decoder.end() == [b'{"done": true}']
    assert decoder.end() == []


def test_blank_lines_are_none():
    assert decoded([b"\n", b"\r\n \n", b"{}\n", b"", b"\n  "]) == [b"{}"]


def test_a_line_without_an_end_is_given_up():
    decoder = LineDecoder()
    for _ in range(16):
        decoder.feed(b"x" * 2**20)
    with pytest.raises(EventTooLong):
        decoder.feed(b"x")


def test_a_long_line_in_small_pieces_costs_linear_time():
    """Each piece is looked at once, and not all that came before it again: this runs on the event loop."""

    def seconds(pieces):
        decoder, started = LineDecoder(), time.process_time()
        for _ in range(pieces):
            decoder.feed(b"x" * 500)
        return time.process_time() - started

    seconds(1000)
    # Four times as much takes four times as long; sixteen times where it is quadratic.
    assert seconds(4000) < 9 * min(seconds(1000) for _ in range(3)) + 0.05
