"""Every door over every provider's dialect: each kind of answer, plain and streamed, and what it becomes on the way.

The cells are generated, so that none is forgotten. Where a dialect has no word for a case, its cell says what happens
instead.
"""

from dataclasses import replace
from itertools import product

import pytest

from gateway import providers
from gateway.types import Dialect
from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import CASES, FOLLOW_UP, Ask, Result, Said, Say, Spoke, Thought, Tokens, as_words

CELLS = list(product(DOORS, PROVIDERS, (False, True), CASES))
PAIRS = list(product(DOORS, PROVIDERS))
FAILURES = ("error before the first byte", "error after the first byte")
UNKNOWN = "ailb_unknown_stop_reasons_total"


def id_of(cell):
    return " ".join(("plain", "stream")[part] if isinstance(part, bool) else part for part in cell)


def test_the_matrix_has_no_hole():
    assert set(DOORS) == {dialect.value for dialect in Dialect} - {"ollama"}, "no client speaks Ollama's"
    assert set(PROVIDERS) == {dialect.value for dialect in Dialect}
    spoken = {providers.vendor(kind).dialect.value for kind in providers.kinds() if kind != "demo"}
    assert spoken == set(PROVIDERS)
    assert set(CASES) == {
        "text", "tools", "parallel tools", "image", "JSON schema", "thinking", "refusal", "length stop",
        "context-window stop", "error before the first byte", "error after the first byte",
    }  # fmt: skip
    assert len(CELLS) == len(set(CELLS)) == 2 * 3 * 2 * 11
    (mark,) = [mark for mark in test_a_cell.pytestmark if mark.name == "parametrize"]
    assert [tuple(cell) for cell in mark.args[1]] == CELLS


@pytest.mark.parametrize(("door", "kind", "stream", "case"), CELLS, ids=map(id_of, CELLS))
def test_a_cell(gateway, alice, upstream, door, kind, stream, case):
    door, provider = DOORS[door], serve(upstream, kind)
    ask, say = replace(CASES[case].ask, stream=stream), CASES[case].say
    unknown = gateway.metric(UNKNOWN)
    upstream.will(script_of(provider, case, say))
    heard = door.ask(gateway, alice, ask)
    if case in FAILURES or (case == "context-window stop" and "window" not in provider.stops):
        assert_failure(gateway, door, heard, case, say)
    else:
        assert_answer(gateway, door, provider, heard, say, stream)
        known = case != "refusal" or kind != "ollama"
        assert gateway.metric(UNKNOWN) - unknown == (0 if known else 1)
    native = door.kind == provider.kind
    assert provider.read(upstream.only) == provider.expected(ask, native=native)
    if heard.status == 200 and not heard.error:
        assert heard.dropped == dropped_by(door, provider, ask)


def dropped_by(door, provider, ask):
    """What an answer's header says was left out: Ollama knows no `tool_choice`, and thinking only as on or off."""
    dropped = {"tool_choice"} if ask.choice == "required" and not provider.chooses else set()
    if ask.thinks and provider.kind == "ollama":
        dropped.add("reasoning_effort" if door.kind == "openai" else "thinking.budget_tokens")
    return dropped


def script_of(provider, case, say):
    if case == "error before the first byte":
        return provider.refuses(500, "The machine is on fire.")
    if case == "error after the first byte":
        return provider.breaks_off(say)
    if case == "context-window stop" and "window" not in provider.stops:
        return provider.refuses(400, provider.too_long)
    return provider.says(say)


def assert_failure(gateway, door, heard, case, say):
    closing = gateway.closing(heard.id)
    if case == "context-window stop":
        # Not a stop but a refusal of the whole prompt: the one thing of the kind that these dialects say.
        door.assert_error(heard, 400, "invalid_request_error", "context_length_exceeded")
        assert (closing.kind, closing.status) == ("release", 400)
        return
    begun = case == "error after the first byte" and closing.stream
    door.assert_error(heard, 502, "upstream_error", "upstream_error", in_stream=begun)
    assert closing.status == 502
    assert closing.kind == ("settlement" if begun else "release")
    if begun:
        assert heard.text
        assert say.text.startswith(heard.text)
        assert heard.stop is None
        assert closing.estimated
        assert closing.prompt_tokens > 0
        assert closing.completion_tokens >= 2, "what was delivered"
        assert closing.cost_usd > 0


def assert_answer(gateway, door, provider, heard, say, stream):
    assert heard.status == 200, heard.raw
    assert heard.error is None
    assert heard.ended is stream
    assert heard.model == provider.model
    assert_words(door, provider, heard, say, stream)
    assert heard.calls == list(say.calls)
    stop = "end" if say.stop == "refusal" and provider.kind == "ollama" else say.stop
    assert heard.stop == door.stops[stop]
    assert heard.stop_sequence is None
    tokens = provider.reported(say.tokens)
    assert heard.tokens == tokens
    row = gateway.settlement(heard.id)
    assert (row.status, row.stream, row.estimated) == (200, stream, False)
    assert (row.prompt_tokens, row.completion_tokens) == (tokens.prompt, tokens.completion)
    assert (row.cached_tokens, row.cache_write_tokens) == (tokens.cached, tokens.written)
    assert row.reasoning_tokens == tokens.reasoning
    assert row.served_model == provider.model


def assert_words(door, provider, heard, say, stream):
    thought = say.thought or Thought("")
    assert heard.thinking == thought.text
    assert heard.signed == ([thought] if say.thought and provider.signs else [])
    if door.kind == "anthropic" or provider.kind == "ollama":
        assert (heard.text, heard.refusal) == (say.text or say.refusal, "")
    elif provider.kind == "anthropic" and stream and say.refusal:
        # The text has gone out before the upstream says what it was.
        assert heard.text + heard.refusal == say.refusal
    else:
        assert (heard.text, heard.refusal) == (say.text, say.refusal)


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
@pytest.mark.parametrize(("door", "kind"), PAIRS)
def test_a_stream_in_any_pieces(gateway, alice, upstream, door, kind, size):
    door, provider = DOORS[door], serve(upstream, kind)
    say = replace(CASES["parallel tools"].say, thought=CASES["thinking"].say.thought, text=CASES["text"].say.text)
    raw = b"".join(provider.pieces(say))
    upstream.will(provider.plays({}, *(raw[at : at + size] for at in range(0, len(raw), size))))
    heard = door.ask(gateway, alice, replace(CASES["parallel tools"].ask, stream=True))
    assert (heard.text, heard.calls) == (say.text, list(say.calls))
    assert heard.thinking == say.thought.text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("door", "kind"), PAIRS)
def test_an_answer_without_a_word(gateway, alice, upstream, door, kind, stream):
    door, provider = DOORS[door], serve(upstream, kind)
    upstream.will(provider.says(Say(text="", tokens=Tokens(100, 0))))
    heard = door.ask(gateway, alice, Ask(stream=stream))
    assert (heard.status, heard.text, heard.calls, heard.ended) == (200, "", [], stream)
    assert heard.stop == door.stops["end"]
    row = gateway.settlement(heard.id)
    assert (row.status, row.prompt_tokens, row.completion_tokens) == (200, 100, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(("door", "kind"), PAIRS)
class TestFollowUps:
    """The next turn brings everything back that the answers before it said."""

    def test_calls_results_and_signed_thoughts(self, gateway, alice, upstream, door, kind, stream):
        door, provider = DOORS[door], serve(upstream, kind)
        ask = replace(FOLLOW_UP, stream=stream)
        upstream.will(provider.says(CASES["text"].say))
        # OpenAI's dialect has no field for a failure, so that its clients tell it in words, which stay as they are.
        told = ask if door.tells_failures else replace(ask, items=as_words(ask.items))
        heard = door.ask(gateway, alice, told)
        assert heard.status == 200
        native = door.kind == provider.kind
        assert ("messages.thinking" in heard.dropped) is (not native and not provider.takes_thoughts), (
            "named if left out"
        )
        expected = told if provider.tells_failures else ask
        assert provider.read(upstream.only) == provider.expected(expected, native=native)

    def test_what_an_answer_said_can_be_given_back(self, gateway, alice, upstream, door, kind, stream):
        door, provider = DOORS[door], serve(upstream, kind)
        asked = replace(CASES["parallel tools"].ask, stream=stream, thinks=True)
        said = replace(CASES["parallel tools"].say, thought=CASES["thinking"].say.thought, text="Let me look.")
        upstream.will(provider.says(said), provider.says(Say(text="Fine.")))
        heard = door.ask(gateway, alice, asked)
        again = replace(asked, items=follow_up_of(asked, heard))
        assert door.ask(gateway, alice, again).text == "Fine."
        read = provider.read(upstream.last)
        assert read == provider.expected(again, native=door.kind == provider.kind)
        if provider.signs:
            assert said.thought in read.items


def follow_up_of(asked, heard):
    """The conversation so far, as a client keeps it."""
    thoughts = heard.signed or ([Thought(heard.thinking)] if heard.thinking else [])
    results = [Result(call.id, f"result {number}") for number, call in enumerate(heard.calls)]
    return (*asked.items, *thoughts, Spoke(heard.text), *heard.calls, *results, Said("And now?"))
