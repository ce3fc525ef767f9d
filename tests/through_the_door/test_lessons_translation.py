"""What the users of other gateways ran into between dialects (lessons.md 36 to 41): tools, usage and caps."""

import json
import random
from dataclasses import replace
from itertools import product

import pytest

from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import CASES, CLOCK, KOELN, WEATHER, Ask, Called, Said, Say, Thought

PAIRS = list(product(DOORS, PROVIDERS))
TRANSLATED = [(door, kind) for door, kind in PAIRS if door != kind]
TEXT = CASES["text"].say

each_translation = pytest.mark.parametrize(("door", "kind"), TRANSLATED)
each_door = pytest.mark.parametrize("door", DOORS)
each_kind = pytest.mark.parametrize("kind", PROVIDERS)


def some_answer(seed):
    """1 to 4 calls, with text before and between them or not; how each call's arguments come."""
    chance = random.Random(seed)
    values = ["Köln", 'a "quoted" \\ word', "🌍\n\t", "", "x" * 300]
    parts = []
    for number in range(chance.randint(1, 4)):
        if chance.random() < 0.5:
            parts.append(f"Text {number}. ")
        numbers = [number, None, 1.5, 1e-7, 2**53 + 1, 2**70, -0.25, 1e22, True]
        arguments = {} if chance.random() < 0.3 else {"city": chance.choice(values), "n": {"deep": numbers}}
        name = chance.choice(["get_weather", "clock"])
        parts.append((Called(f"call_{seed}_{number}", name, arguments), chance.choice(["pieces", "once", "last"])))
    return parts


def pieces_of(provider, parts):
    """Such an answer on the wire: of OpenAI the arguments that come last come with the finish reason."""
    if provider.kind == "anthropic":
        say = Say(text="", calls=(), stop="tools")
        start, *_, delta, stop = provider.pieces(say)
        events = [start]
        for index, part in enumerate(parts):
            events += _anthropic_block(provider, index, part)
        return [*events, delta, stop]
    chunks, last, calls = [provider.chunk({"role": "assistant", "content": ""})], [], 0
    for part in parts:
        if isinstance(part, str):
            chunks.append(provider.chunk({"content": part}))
            continue
        call, how = part
        function = {"name": call.name, "arguments": ""}
        first = {"index": calls, "id": call.id, "type": "function", "function": function}
        chunks.append(provider.chunk({"tool_calls": [first]}))
        told = [{"index": calls, "function": {"arguments": text}} for text in _cut(call, how)]
        if how == "last":
            last += told
        else:
            chunks += [provider.chunk({"tool_calls": [fragment]}) for fragment in told]
        calls += 1
    chunks.append(provider.chunk({"tool_calls": last} if last else {}, finish="tool_calls"))
    return [*chunks, *provider.pieces(Say(text="x"))[-2:]]


def _anthropic_block(provider, index, part):
    if isinstance(part, str):
        block, deltas = {"type": "text", "text": ""}, [{"type": "text_delta", "text": part}]
    else:
        call, how = part
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        texts = _cut(call, how) if call.arguments else ([""] if how == "pieces" else [])
        deltas = [{"type": "input_json_delta", "partial_json": text} for text in texts]
    yield provider.event("content_block_start", index=index, content_block=block)
    for delta in deltas:
        yield provider.event("content_block_delta", index=index, delta=delta)
    yield provider.event("content_block_stop", index=index)


def _cut(call, how):
    whole = json.dumps(call.arguments, ensure_ascii=len(call.id) % 2 == 0)
    return [whole[at : at + 5] for at in range(0, len(whole), 5)] if how == "pieces" else [whole]


class TestLesson36ArgumentsOfTools:
    @pytest.mark.parametrize("seeds", [range(12), range(12, 24)], ids=["these", "those"])
    @pytest.mark.parametrize(("door", "kind"), [("openai", "anthropic"), ("anthropic", "openai")])
    def test_a_round_trip_loses_nothing(self, gateway, alice, upstream, stream, door, kind, seeds):
        door, provider = DOORS[door], serve(upstream, kind)
        ask = Ask(tools=(WEATHER, CLOCK), stream=stream)
        for seed in seeds:
            parts = some_answer(seed)
            calls = [part[0] for part in parts if not isinstance(part, str)]
            text = "".join(part for part in parts if isinstance(part, str))
            plain = provider.plain(Say(text=text, calls=tuple(calls), stop="tools"))
            upstream.will(provider.plays(plain, *pieces_of(provider, parts)), provider.says(TEXT))
            heard = door.ask(gateway, alice, ask)
            assert (heard.text, heard.calls, heard.stop) == (text, calls, door.stops["tools"]), f"seed {seed}"
            # And back again, as history.
            assert door.ask(gateway, alice, replace(ask, items=(Said("Hi"), *heard.calls))).status == 200
            assert [item for item in provider.read(upstream.last).items if isinstance(item, Called)] == calls

    @each_translation
    def test_tools_that_were_called_are_the_reason_whatever_the_upstream_says(
        self, gateway, alice, upstream, stream, door, kind
    ):
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(Say(calls=(KOELN,), stop="end")))
        heard = door.ask(gateway, alice, Ask(tools=(WEATHER,), stream=stream))
        assert (heard.calls, heard.stop) == ([KOELN], door.stops["tools"])


class TestLesson37FirstFragments:
    @pytest.mark.parametrize("kind", ["anthropic", "ollama"])
    def test_index_id_type_and_name_come_first(self, gateway, alice, upstream, kind):
        provider, case = serve(upstream, kind), CASES["parallel tools"]
        upstream.will(provider.says(replace(case.say, text="Let me look.")))
        heard = DOORS["openai"].ask(gateway, alice, replace(case.ask, stream=True))
        fragments = [
            fragment
            for chunk in heard.events
            for choice in chunk["choices"]
            for fragment in choice["delta"].get("tool_calls", ())
        ]
        for index in range(3):
            first = next(fragment for fragment in fragments if fragment["index"] == index)
            assert (first["id"], first["type"]) == (case.say.calls[index].id, "function")
            assert first["function"]["name"] == case.say.calls[index].name

    def test_a_server_that_names_no_index_and_no_id(self, gateway, alice, upstream):
        """Seen of compatible servers: the message has its blocks all the same."""
        provider = serve(upstream, "openai")
        fragments = [
            {"index": -1, "id": "a", "function": {"name": "clock", "arguments": "{}"}},
            {"index": -1, "id": "b", "function": {"name": "get_weather", "arguments": '{"city": "Bonn"}'}},
        ]
        chunks = [provider.chunk({"tool_calls": [fragment]}) for fragment in fragments]
        upstream.will(provider.plays({}, *chunks, provider.chunk({}, finish="tool_calls"), *provider.pieces(TEXT)[-2:]))
        heard = DOORS["anthropic"].ask(gateway, alice, Ask(tools=(WEATHER, CLOCK), stream=True))
        assert heard.calls == [Called("a", "clock", {}), Called("b", "get_weather", {"city": "Bonn"})]


class TestLesson38TheUsageChunk:
    @each_kind
    def test_once_with_no_choice_and_null_before(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = DOORS["openai"].ask(gateway, alice, Ask(stream=True))
        # The door's reader asserts it of every stream; here once in so many words.
        *others, last = heard.events
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 140
        assert all(chunk["usage"] is None for chunk in others)

    @pytest.mark.parametrize("asked", [True, False])
    @pytest.mark.parametrize("where", ["with the finish", "everywhere"])
    def test_upstreams_that_tell_it_elsewhere(self, gateway, alice, upstream, asked, where):
        provider = serve(upstream, "openai")
        *events, finish, usage, done = (
            json.loads(piece.removeprefix(b"data: ")) if b"[DONE]" not in piece else piece
            for piece in provider.pieces(TEXT)
        )
        told = [*(events if where == "everywhere" else []), finish]
        for chunk in told:
            chunk["usage"] = usage["usage"]
        pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in (*events, finish)]
        upstream.will(provider.plays({}, *pieces, done))
        more = {} if asked else {"stream_options": None}
        heard = DOORS["openai"].ask(gateway, alice, Ask(stream=True), **more)
        assert heard.ended
        assert heard.tokens == (TEXT.tokens if asked else None)
        assert gateway.settlement(heard.id).prompt_tokens == 100


class TestLesson39UsageAtTheStartOfAMessage:
    @pytest.mark.parametrize("kind", ["openai", "ollama"])
    def test_an_estimate_first_and_the_exact_count_last(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.always(provider.says(TEXT))
        told = []
        for words in (1, 4_000):
            heard = DOORS["anthropic"].ask(gateway, alice, Ask(items=(Said("word " * words),), stream=True))
            told.append(heard.events[0]["message"]["usage"]["input_tokens"])
            assert heard.tokens == provider.reported(TEXT.tokens)
        few, many = told
        assert 1 <= few < 50
        assert 2_000 < many < 20_000, "an estimate, and not a constant"


class TestLesson40CapsByEitherName:
    @pytest.mark.parametrize(
        ("named", "cap"),
        [
            ({"max_tokens": 300}, 300),
            ({"max_completion_tokens": 300}, 300),
            ({"max_tokens": 300, "max_completion_tokens": 200}, 200),
            ({"max_tokens": 200, "max_completion_tokens": 300}, 300),
        ],
    )
    @each_kind
    def test_either_works_and_the_newer_wins(self, gateway, alice, upstream, stream, kind, named, cap):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = DOORS["openai"].ask(gateway, alice, Ask(max_output=None, stream=stream), **named)
        assert heard.status == 200
        assert provider.read(upstream.only).max_output == cap

    @each_door
    def test_models_that_refuse_the_older_name_get_the_newer(self, gateway, alice, upstream, stream, door):
        """As OpenAI's models do that think: "Unsupported parameter: 'max_tokens'"."""
        serve(upstream, "openai", model="o4-mini")
        upstream.will(PROVIDERS["openai"].says(TEXT))
        named = {"max_tokens": 300, **({"max_completion_tokens": None} if door == "openai" else {})}
        DOORS[door].ask(gateway, alice, Ask(stream=stream), **named)
        assert "max_tokens" not in upstream.only.body
        assert upstream.only.body["max_completion_tokens"] == 300


class TestLesson41OllamasStreams:
    @each_door
    def test_long_thoughts_and_tools_arrive_complete(self, gateway, alice, upstream, stream, door):
        door, provider = DOORS[door], serve(upstream, "ollama")
        thought = Thought("".join(f"Step {number}: think – 🤔. " for number in range(400)))
        calls = tuple(Called(f"call_{n}", "get_weather", {"city": f"Ort {n}", "n": {"a": [n]}}) for n in range(4))
        say = Say(thought=thought, text="So I look.", calls=calls, stop="tools")
        line = {"model": provider.model, "created_at": "2026-08-01T12:00:00Z", "done": False}
        words = [thought.text[at : at + 7] for at in range(0, len(thought.text), 7)]
        lines = [{**line, "message": {"role": "assistant", "content": "", "thinking": word}} for word in words]
        lines += [json.loads(piece) for piece in provider.pieces(replace(say, thought=None))]
        raw = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
        # Lines do not come as reads do.
        upstream.will(provider.plays(provider.plain(say), *(raw[at : at + 1000] for at in range(0, len(raw), 1000))))
        heard = door.ask(gateway, alice, Ask(tools=(WEATHER,), thinks=True, stream=stream))
        assert (heard.thinking, heard.text, heard.calls) == (thought.text, say.text, list(calls))
        assert heard.stop == door.stops["tools"]

    @each_door
    def test_calls_without_an_id_and_in_the_last_line(self, gateway, alice, upstream, stream, door):
        door, provider = DOORS[door], serve(upstream, "ollama")
        plain = provider.plain(Say(calls=(KOELN, replace(KOELN, arguments={"city": "Bonn"})), stop="tools"))
        for call in plain["message"]["tool_calls"]:
            del call["id"]
        upstream.will(provider.plays(plain, json.dumps(plain).encode() + b"\n"))
        heard = door.ask(gateway, alice, Ask(tools=(WEATHER,), stream=stream))
        assert [call.arguments for call in heard.calls] == [{"city": "Köln"}, {"city": "Bonn"}]
        assert len({call.id for call in heard.calls}) == 2
        assert heard.stop == door.stops["tools"]
