"""What survives a translation: properties of all dialects together, of requests, plain answers and streams.

Each property is looked at a few dozen times in `make test`, and thousands of times in `make test-long`: 127 800 cases
in all (`TestHowMany`), and in those of `test_cut_at_every_place` one more for each byte of a stream.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway import providers
from gateway.doors.chat import ChatDoor
from gateway.doors.messages import MessagesDoor
from gateway.errors import InvalidRequest, StreamCut, UpstreamError
from gateway.providers.ndjson import LineDecoder
from gateway.providers.reading import EventReader
from gateway.providers.sse import EventDecoder
from gateway.translate import anthropic, ollama, openai
from gateway.types import Completion, Frame, StreamEvent, Usage
from tests.gateway.providers.contract import configured, deployed

Json = dict[str, Any]
CHAT, MESSAGES = ChatDoor(), MessagesDoor()
DOORS = {"chat": CHAT, "messages": MESSAGES}
DIALECTS = {"openai": openai, "anthropic": anthropic, "ollama": ollama}
VENDORS = {kind: providers.vendor(kind)(configured(kind)) for kind in DIALECTS}
FRAME = Frame(id="req_1", created=1_760_000_000, model="the-model", input_tokens=9)
COUNTED = Usage(11, 7)

LONG: dict[str, int] = {}
"""How many examples `make test-long` looks at, a property."""


def holds(quick: int, long: int, **drawn: st.SearchStrategy) -> Callable:
    """A property of these, as two tests: a quick one and one of `make test-long`."""

    def of(check: Callable) -> Callable:
        LONG[check.__name__] = long
        numbers = [pytest.param(quick, id="quick"), pytest.param(long, id="long", marks=pytest.mark.long)]

        @pytest.mark.parametrize("examples", numbers)
        def test(examples):
            settings(max_examples=examples)(given(**drawn)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return of


class TestHowMany:
    def test_a_hundred_thousand(self):
        assert sum(LONG.values()) == 127_800, LONG


# ── what is drawn ───────────────────────────────────────────────────────────────────────────────────────────────────

# What breaks decoders: quotes, escapes, both line ends of SSE, separators that only Unicode has, two to four bytes.
texts = st.text(st.sampled_from('ab {}[]"\\/:,\n\r\t\x7f\x85ü漢\u2028🌍'), max_size=12)
seen = texts.filter(str.strip)
names = st.text(st.sampled_from("abcxyz_-09"), min_size=1, max_size=8)
seeds = st.integers(0, 2**32)
leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
objects = st.dictionaries(texts, leaves | texts | st.lists(texts, max_size=2), max_size=3)
png = "iVBORw0KGgo="


@st.composite
def arguments(draw: st.DrawFn) -> str:
    """A call's arguments as models write them: an object in any spelling, or nothing at all."""
    value = draw(objects)
    if not value:
        return draw(st.sampled_from(["", "{}", " { } "]))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))


def parsed(arguments: str) -> Any:
    return json.loads(arguments or "{}")


@dataclass(frozen=True)
class Call:
    id: str
    name: str
    arguments: str

    @property
    def seen(self) -> tuple[str, str, Any]:
        return self.id, self.name, parsed(self.arguments)


@st.composite
def calls(draw: st.DrawFn, least: int = 0, most: int = 4) -> tuple[Call, ...]:
    number = draw(st.integers(least, most))
    salt = draw(names)
    return tuple(Call(f"call_{salt}_{i}", draw(names), draw(arguments())) for i in range(number))


# ── a conversation ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Result:
    id: str
    texts: tuple[str, ...]
    failed: bool
    image: str | None


@dataclass(frozen=True)
class Turn:
    """The system's words, the user's, or the model's with what its tools answered."""

    role: str
    parts: tuple[str, ...] = ()
    """Texts, and images as `data:` or http URLs. Between the model's own come its calls."""
    calls: tuple[Call, ...] = ()
    results: tuple[Result, ...] = ()


images = st.sampled_from([f"data:image/png;base64,{png}", f"data:image/webp;base64,{png}", "https://a.test/b.png"])


@st.composite
def conversations(draw: st.DrawFn, *, remote: bool = True, failures: bool = False) -> tuple[Turn, ...]:
    """Turns as clients send them: the model's are never neighbours, and the user has the last word."""
    turns: list[Turn] = []
    some = images if remote else images.filter(lambda url: url.startswith("data:"))
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            turns.append(Turn("system", (draw(seen),)))
        turns += [Turn("user", tuple(draw(st.lists(seen | some, min_size=1, max_size=3))))]
        if draw(st.booleans()):
            called = draw(calls())
            said = tuple(draw(st.lists(seen, min_size=0 if called else 1, max_size=2)))
            results = tuple(
                Result(
                    call.id,
                    tuple(draw(st.lists(seen, max_size=2))),
                    failures and draw(st.booleans()),
                    draw(some) if failures and draw(st.booleans()) else None,
                )
                for call in draw(st.permutations(called))
            )
            turns.append(Turn("assistant", said, called, results))
    return (*turns, Turn("user", (draw(seen),)))


def is_image(part: str) -> bool:
    return part.startswith(("data:image/", "https://a.test/"))


# As OpenAI's


def openai_body(turns: tuple[Turn, ...], rng: random.Random) -> Json:
    messages: list[Json] = []
    for turn in turns:
        role = rng.choice(["system", "developer"]) if turn.role == "system" else turn.role
        message = {"role": role, "content": openai_content(turn.parts, rng)}
        if turn.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in turn.calls
            ]
        messages.append(message)
        for result in turn.results:
            content = openai_content(result.texts, rng) or ""
            messages.append({"role": "tool", "tool_call_id": result.id, "content": content})
    return {"model": "m", "messages": messages, "max_tokens": 100}


def openai_content(parts: tuple[str, ...], rng: random.Random) -> Any:
    if not parts:
        return None
    if len(parts) == 1 and not is_image(parts[0]) and rng.random() < 0.5:
        return parts[0]
    return [
        {"type": "image_url", "image_url": {"url": part}} if is_image(part) else {"type": "text", "text": part}
        for part in parts
    ]


def seen_by_openai(body: Json) -> tuple[list[str], list[Any]]:
    """The system's texts, and everything else in its order."""
    system: list[str] = []
    items: list[Any] = []
    for message in body["messages"]:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        told = [part["text"] if part["type"] == "text" else part["image_url"]["url"] for part in parts]
        match message["role"]:
            case "system" | "developer":
                system += told
            case "tool":
                items.append(("result", message["tool_call_id"], "".join(told)))
            case role:
                items += [(role, text) for text in told if text]
        for call in message.get("tool_calls", ()):
            assert call["type"] == "function"
            items.append(("call", call["id"], call["function"]["name"], parsed(call["function"]["arguments"])))
    return system, items


# As Anthropic's


def anthropic_body(turns: tuple[Turn, ...], rng: random.Random) -> Json:
    system = [{"type": "text", "text": part} for turn in turns if turn.role == "system" for part in turn.parts]
    messages: list[Json] = []
    for turn in turns:
        if turn.role == "system":
            continue
        # With the model's words before and between its calls.
        content = interleaved([anthropic_part(part) for part in turn.parts], [*map(tool_use, turn.calls)], rng)
        messages.append({"role": turn.role, "content": content})
        if turn.results:
            messages.append({"role": "user", "content": [tool_result(result, rng) for result in turn.results]})
    for message in messages:
        if len(message["content"]) == 1 and message["content"][0]["type"] == "text" and rng.random() < 0.5:
            message["content"] = message["content"][0]["text"]
    body = {"model": "m", "max_tokens": 100, "messages": messages}
    return {**body, "system": system} if system else body


def interleaved(some: list[Any], others: list[Any], rng: random.Random) -> list[Any]:
    """Both, each in its order."""
    places = sorted(rng.randint(0, len(some)) for _ in others)
    for place, other in reversed([*zip(places, others, strict=True)]):
        some.insert(place, other)
    return some


def anthropic_part(part: str) -> Json:
    if not is_image(part):
        return {"type": "text", "text": part}
    if part.startswith("https:"):
        return {"type": "image", "source": {"type": "url", "url": part}}
    media_type, _, data = part.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def tool_use(call: Call) -> Json:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": parsed(call.arguments)}


def tool_result(result: Result, rng: random.Random) -> Json:
    content = [anthropic_part(part) for part in (*result.texts, *([result.image] if result.image else []))]
    block: Json = {"type": "tool_result", "tool_use_id": result.id, "content": content}
    if len(result.texts) == 1 and result.image is None and rng.random() < 0.5:
        block["content"] = result.texts[0]
    return {**block, "is_error": True} if result.failed else block


def seen_by_anthropic(body: Json) -> tuple[list[str], list[Any]]:
    """The system's texts, and everything else in its order; of each of the model's turns the words first."""
    system = [block["text"] for block in body.get("system", ())]
    items: list[Any] = []
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turn = [anthropic_item(block, message["role"]) for block in blocks]
        kinds = [block["type"] for block in blocks]
        assert kinds == sorted(kinds, key=lambda kind: kind != "tool_result"), "results of tools come first"
        items += sorted(turn, key=lambda item: item[0] == "call")
    return system, items


def anthropic_item(block: Json, role: str) -> Any:
    match block["type"]:
        case "text":
            return role, block["text"]
        case "image":
            source = block["source"]
            data = source["type"] == "base64"
            return role, f"data:{source['media_type']};base64,{source['data']}" if data else source["url"]
        case "tool_use":
            return "call", block["id"], block["name"], block["input"]
        case "tool_result":
            assert not block.get("is_error"), "the other dialect has no field for it"
            content = block.get("content", ())
            told = [content] if isinstance(content, str) else [part["text"] for part in content]
            return "result", block["tool_use_id"], "".join(told)
    raise AssertionError(block)


# Everything at once


def expected(turns: tuple[Turn, ...]) -> tuple[list[str], list[Any]]:
    """What any dialect should see, by way of one that has no field for a tool's failure and none for its pictures."""
    system = [part for turn in turns if turn.role == "system" for part in turn.parts]
    items: list[Any] = []
    for turn in turns:
        if turn.role == "system":
            continue
        items += [(turn.role, part) for part in turn.parts]
        items += [("call", *call.seen) for call in turn.calls]
        for result in turn.results:
            text = "".join(result.texts)
            items.append(("result", result.id, f"Error: {text}" if result.failed else text))
        items += [("user", result.image) for result in turn.results if result.image]
    return system, items


def read(door: Any, body: Json) -> Any:
    """A client's body in the neutral form."""
    request = door.parse(json.dumps(body).encode(), {})
    return DIALECTS[request.dialect].read_request(request)


def over(body: Json) -> Json:
    """A body as it goes over the wire."""
    sent: Json = msgspec.json.decode(msgspec.json.encode(body))
    return sent


@holds(60, 10_000, turns=conversations(), seed=seeds)
def test_openais_request_by_way_of_anthropic(turns, seed):
    """Calls with their ids, names, arguments and order, results beside each other, system turns, pictures."""
    asked = openai_body(turns, random.Random(seed))
    there = anthropic.write_request(read(CHAT, asked), "claude-sonnet-4-5", max_output=None)
    assert seen_by_anthropic(there.body) == expected(turns)
    roles = [message["role"] for message in there.body["messages"]]
    assert all(role != following for role, following in pairwise(roles)), "turns alternate"
    back = openai.write_request(read(MESSAGES, over(there.body)), "gpt-4o")
    assert seen_by_openai(back.body) == seen_by_openai(asked) == expected(turns)
    assert not there.dropped
    assert not back.dropped


@holds(60, 10_000, turns=conversations(failures=True), seed=seeds)
def test_anthropics_request_by_way_of_openai(turns, seed):
    """The same, and a tool's failure in words, its picture where a user may show one."""
    asked = anthropic_body(turns, random.Random(seed))
    there = openai.write_request(read(MESSAGES, asked), "gpt-4o")
    assert seen_by_openai(there.body) == expected(turns)
    back = anthropic.write_request(read(CHAT, over(there.body)), "claude-sonnet-4-5", max_output=None)
    assert seen_by_anthropic(back.body) == expected(turns)
    assert not there.dropped
    assert not back.dropped


@holds(60, 8_000, turns=conversations(remote=False, failures=True), door=st.sampled_from([*DOORS]), seed=seeds)
def test_requests_of_both_to_ollama(turns, door, seed):
    """Ids, names, arguments and order are kept, and a result names the tool that was called."""
    write = openai_body if door == "chat" else anthropic_body
    if door == "chat":
        turns = tuple(
            replace(turn, results=tuple(replace(result, failed=False, image=None) for result in turn.results))
            for turn in turns
        )
    written = ollama.write_request(read(DOORS[door], write(turns, random.Random(seed))), "m", context_window=None)
    system = [message["content"] for message in written.body["messages"] if message["role"] == "system"]
    assert "\n\n".join(system) == "\n\n".join(expected(turns)[0])
    told: list[Any] = []
    tools: dict[str, str] = {}
    for message in written.body["messages"]:
        calls = message.get("tool_calls", ())
        tools |= {call["id"]: call["function"]["name"] for call in calls}
        if message["role"] == "tool":
            assert message["tool_name"] == tools[message["tool_call_id"]]
            told.append(("result", message["tool_call_id"], message["content"]))
        elif message["role"] != "system":
            told.append((message["role"], message["content"], message.get("images", [])))
        told += [("call", call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
    assert told == list(expected_of_ollama(turns))
    assert not written.dropped


def expected_of_ollama(turns: tuple[Turn, ...]) -> Iterator[Any]:
    for turn in turns:
        if turn.role == "system":
            continue
        words = [part for part in turn.parts if not is_image(part)]
        pictures = [part.partition(";base64,")[2] for part in turn.parts if is_image(part)]
        yield turn.role, ("" if turn.role == "assistant" else "\n\n").join(words), pictures
        yield from (("call", *call.seen) for call in turn.calls)
        for result in turn.results:
            text = "\n\n".join(result.texts)
            yield "result", result.id, f"Error: {text}" if result.failed else text
        if pictures := [result.image.partition(";base64,")[2] for result in turn.results if result.image]:
            yield "user", "", pictures


def test_pictures_of_two_results_keep_their_order():
    """By way of OpenAI's dialect, where a tool shows none."""
    results = tuple(Result(f"c{i}", ("See.",), False, f"https://a.test/{i}.png") for i in (1, 2))
    turns = (Turn("user", ("Hi",)), Turn("assistant", (), (Call("c1", "a", ""), Call("c2", "a", "")), results))
    written = openai.write_request(read(MESSAGES, anthropic_body(turns, random.Random(0))), "gpt-4o")
    parts = written.body["messages"][-1]["content"]
    assert [part["image_url"]["url"] for part in parts] == ["https://a.test/1.png", "https://a.test/2.png"]


odd_ids = st.lists(st.text(st.sampled_from("abc09_-.:|/ü "), min_size=1, max_size=12), min_size=1, max_size=4)


@holds(20, 2_000, ids=odd_ids)
def test_ids_that_anthropic_would_refuse(ids):
    """Other vendors' have dots and colons: a result still names its call, and only characters that Anthropic takes."""
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
    results = [{"role": "tool", "tool_call_id": id_, "content": "x"} for id_ in ids]
    user = {"role": "user", "content": "x"}
    asked = {"model": "m", "messages": [user, {"role": "assistant", "tool_calls": calls}, *results]}
    body = anthropic.write_request(read(CHAT, asked), "claude-sonnet-4-5", max_output=None).body
    _, assistant, answered = body["messages"]
    written = [block["id"] for block in assistant["content"]]
    assert [block["tool_use_id"] for block in answered["content"]] == written
    assert all(id_.replace("_", "a").replace("-", "a").isalnum() and id_.isascii() for id_ in written)


# ── an answer ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Thought:
    text: str
    signature: str = ""


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Refused:
    text: str


Block = Thought | Words | Refused | Call

# By each dialect's word for why it stopped: OpenAI's and Anthropic's.
STOPS: dict[str, dict[str, tuple[str, str]]] = {
    "openai": {
        "stop": ("stop", "end_turn"),
        "length": ("length", "max_tokens"),
        "content_filter": ("content_filter", "refusal"),
        "tool_calls": ("tool_calls", "tool_use"),
        "a_new_word": ("stop", "end_turn"),
    },
    "anthropic": {
        "end_turn": ("stop", "end_turn"),
        "stop_sequence": ("stop", "stop_sequence"),
        "max_tokens": ("length", "max_tokens"),
        "model_context_window_exceeded": ("length", "model_context_window_exceeded"),
        "refusal": ("content_filter", "refusal"),
        "pause_turn": ("stop", "pause_turn"),
        "tool_use": ("tool_calls", "tool_use"),
        "a_new_word": ("stop", "end_turn"),
    },
    "ollama": {
        "stop": ("stop", "end_turn"),
        "length": ("length", "max_tokens"),
        "a_new_word": ("stop", "end_turn"),
    },
}
ENDS = ("stop", "end_turn", "a_new_word")
"""Words that say nothing of tools where tools were called."""


@dataclass(frozen=True)
class Said:
    """An answer of a model whose vendor speaks `dialect`."""

    dialect: str
    blocks: tuple[Block, ...]
    stop: str

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, Words | Refused))

    @property
    def thinking(self) -> str:
        return "".join(block.text for block in self.blocks if isinstance(block, Thought))

    @property
    def signed(self) -> list[Thought]:
        return [block for block in self.blocks if isinstance(block, Thought) and block.signature]

    @property
    def calls(self) -> list[Call]:
        return [block for block in self.blocks if isinstance(block, Call)]

    @property
    def stops(self) -> tuple[str, str]:
        """What an OpenAI client and an Anthropic client are told."""
        if self.calls and self.stop in ENDS:
            return "tool_calls", "tool_use"
        if any(isinstance(block, Refused) for block in self.blocks):
            return STOPS[self.dialect][self.stop][0], "refusal"
        return STOPS[self.dialect][self.stop]

    @property
    def order(self) -> list[Any]:
        """The blocks as they are shown: neighbouring words are one."""
        kinds = {Thought: "thinking", Words: "text", Refused: "text"}
        told: list[Any] = []
        for kind, blocks in groupby(self.blocks, lambda block: kinds.get(type(block), "call")):
            few = list(blocks)
            told += [call.seen for call in few] if kind == "call" else [(kind, "".join(block.text for block in few))]
        return told


@st.composite
def answers(draw: st.DrawFn, kinds: tuple[str, ...] = ("openai", "anthropic", "ollama")) -> Said:
    dialect = draw(st.sampled_from(kinds))
    said = texts.filter(bool)
    blocks: list[Block] = []
    if draw(st.booleans()):
        signs = dialect == "anthropic"
        thoughts = [Thought(draw(said), draw(names) if signs else "") for _ in range(draw(st.integers(1, 1 + signs)))]
        blocks += thoughts
    called = list(draw(calls()))
    for _ in range(draw(st.integers(0, 3))):
        blocks.append(Words(draw(said)))
        blocks += [called.pop(0) for _ in range(draw(st.integers(0, len(called))))]
    blocks += called
    words = [word for word in STOPS[dialect] if called or word not in ("tool_calls", "tool_use")]
    if dialect == "openai" and draw(st.integers(0, 5)) == 0:
        blocks = [block for block in blocks if isinstance(block, Thought)] + [Refused(draw(said))]
        words = ["stop", "content_filter"]
    if not any(isinstance(block, Call) for block in blocks):
        words = [word for word in words if word not in ("tool_calls", "tool_use")]
    return Said(dialect, tuple(blocks), draw(st.sampled_from(words)))


# ── on the wire of each dialect ─────────────────────────────────────────────────────────────────────────────────────


def pieces(text: str, rng: random.Random, most: int = 4) -> list[str]:
    """A text in up to so many pieces."""
    places = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, most - 1)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True) if a < b]


def spelled(payload: Json, rng: random.Random) -> str:
    return json.dumps(payload, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(",", ":"), (", ", ": ")]))


USAGES: Json = {
    "openai": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    "anthropic": {"input_tokens": 11, "output_tokens": 7},
}


def plain(said: Said, rng: random.Random) -> bytes:
    """As a whole answer."""
    return spelled(
        {"openai": openai_plain, "anthropic": anthropic_plain, "ollama": ollama_plain}[said.dialect](said), rng
    ).encode()


def openai_plain(said: Said) -> Json:
    refusal = "".join(block.text for block in said.blocks if isinstance(block, Refused))
    message: Json = {"role": "assistant", "content": said.text if not refusal else None, "refusal": refusal or None}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": said.stop}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "model": "m", "usage": USAGES["openai"]}


def anthropic_plain(said: Said) -> Json:
    content = [anthropic_block(block) for block in said.blocks]
    head = {"id": "msg_x", "type": "message", "role": "assistant", "model": "m", "usage": USAGES["anthropic"]}
    return {**head, "content": content, "stop_reason": said.stop, "stop_sequence": sequence(said)}


def sequence(said: Said) -> str | None:
    return "HALT" if said.stop == "stop_sequence" else None


def anthropic_block(block: Block) -> Json:
    match block:
        case Thought():
            return {"type": "thinking", "thinking": block.text, "signature": block.signature}
        case Call():
            return tool_use(block)
    return {"type": "text", "text": block.text}


def ollama_plain(said: Said) -> Json:
    message = {"role": "assistant", "content": said.text, "thinking": said.thinking}
    if said.calls:
        message["tool_calls"] = [ollama_call(call) for call in said.calls]
    return {**OLLAMA, "message": message, **ollama_last(said)}


OLLAMA: Json = {"model": "m", "created_at": "2026-08-01T12:00:00Z"}


def ollama_call(call: Call) -> Json:
    return {"id": call.id, "function": {"name": call.name, "arguments": parsed(call.arguments)}}


def ollama_last(said: Said) -> Json:
    return {"done": True, "done_reason": said.stop, "prompt_eval_count": 11, "eval_count": 7}


@dataclass(frozen=True)
class Wire:
    """A stream: its bytes, and how many of them it takes until the upstream has said why it stopped."""

    data: bytes
    finished: int


def wire(said: Said, rng: random.Random, *, terminated: bool = True) -> Wire:
    """A stream in one of the ways that servers have. `terminated`: with what comes after the stop reason."""
    if said.dialect == "ollama":
        payloads = list(ollama_lines(said, rng))
        ending = rng.choice(["\n", "\r\n"])
        lines = [spelled(payload, rng) + ending for payload in payloads]
        lines[-1] = lines[-1] if rng.random() < 0.7 else lines[-1].rstrip()
        blanks = [ending * (rng.random() < 0.1) + line for line in lines]
        data = "".join(blanks).encode()
        return Wire(data, len(data.rstrip()))
    payloads = [*(openai_chunks if said.dialect == "openai" else anthropic_events)(said, rng)]
    at = next(i for i, payload in enumerate(payloads) if is_finish(payload))
    kept = payloads if terminated else payloads[: at + 1]
    events = [sse(payload, said.dialect, rng) for payload in kept]
    tail = rng.choice(["data: [DONE]\n\n", "data: [DONE]", "data:[DONE]\n\n"]) if terminated else ""
    begun, rest = "".join(events[: at + 1]), "".join(events[at + 1 :]) + tail * (said.dialect == "openai")
    ending = rng.choice(["\n", "\n", "\r\n", "\r"])
    begun, rest = (part.replace("\n", ending) for part in (begun, rest))
    return Wire((begun + rest).encode(), len(begun[: begun.rindex("}") + 1].encode()))


def is_finish(payload: Json) -> bool:
    choices = payload.get("choices") or [{}]
    return payload.get("type") == "message_delta" or choices[0].get("finish_reason") is not None


def sse(payload: Json, dialect: str, rng: random.Random) -> str:
    """One event, with what servers and proxies put around it. Its JSON is on one line, as all of them write it."""
    lines = [f"data:{' ' * (rng.random() < 0.9)}{spelled(payload, rng)}"]
    if dialect == "anthropic" or rng.random() < 0.1:
        lines.insert(rng.randint(0, 1), f"event: {payload.get('type', 'message')}")
    if rng.random() < 0.1:
        lines.insert(0, rng.choice(["id: 7", "retry: 3000", ": a comment", "unknown: field"]))
    before = rng.choice([": ping\n\n", ":\n\n", "\n", "\n\n"]) if rng.random() < 0.1 else ""
    return before + "\n".join(lines) + "\n\n"


def openai_chunks(said: Said, rng: random.Random) -> Iterator[Json]:
    deltas = [{"role": "assistant", "content": ""}]
    thought = rng.choice(["reasoning_content", "reasoning"])
    last: list[Json] = []
    for kind, blocks in groupby(said.blocks, type):
        match kind:
            case _ if kind is Call:
                *deltas_of_calls, last = openai_calls(list(blocks), said, rng)
                deltas += [*deltas_of_calls, *([{"tool_calls": last}] if last else [])]
            case _:
                field = {Words: "content", Refused: "refusal", Thought: thought}[kind]
                deltas += [{field: piece} for block in blocks for piece in pieces(block.text, rng)]
    finish: Json = {}
    if last and deltas[-1].get("tool_calls") is last and rng.random() < 0.5:
        finish = deltas.pop()  # the rest of the arguments comes with the stop reason
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    for delta in deltas:
        yield {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}
    choice = {"index": 0, "delta": finish, "finish_reason": said.stop}
    where = rng.choice(["apart", "with", "none"])
    yield {**head, "choices": [choice], **({"usage": USAGES["openai"]} if where == "with" else {})}
    if where == "apart":
        yield {**head, "choices": [], "usage": USAGES["openai"]}


def openai_calls(calls: list[Call], said: Said, rng: random.Random) -> Iterator[Any]:
    """Deltas, and then the fragments of the last one: whole calls, in fragments, or in fragments in turns."""
    first = said.calls.index(calls[0])
    found: list[list[Json]] = []
    turns: list[list[Json]] = []
    style = rng.choice(["whole", "fragments", "turns", "turns", "no index"])
    for index, call in enumerate(calls, first):
        where = {} if style == "no index" else {"index": index}
        parts = [call.arguments] if style == "whole" else pieces(call.arguments, rng)
        begun = parts.pop(0) if parts and (style == "whole" or rng.random() < 0.3) else ""
        start = {**where, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": begun}}
        more = [{**where, "function": {"arguments": part}} for part in parts]
        if style == "turns":
            found.append([start])
            turns.append(more)
        else:
            found += [[each] for each in (start, *more)]
    while any(turns):
        several = [turn.pop(0) for turn in turns if turn and rng.random() < 0.7]
        found += [several] if rng.random() < 0.5 and several else [[each] for each in several]
    yield from ({"tool_calls": fragments} for fragments in found[:-1])
    yield found[-1]


def anthropic_events(said: Said, rng: random.Random) -> Iterator[Json]:
    start = {**anthropic_plain(said), "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": start | {"usage": {"input_tokens": 11, "output_tokens": 1}}}
    for index, block in enumerate(said.blocks):
        if rng.random() < 0.2:
            yield rng.choice([{"type": "ping"}, {"type": "a_new_event", "delta": {"new": 1}}])
        whole = anthropic_block(block)
        given, deltas = anthropic_deltas(whole, block, rng)
        yield {"type": "content_block_start", "index": index, "content_block": {**whole, **given}}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    usage: Json = {"output_tokens": 7, "input_tokens": rng.choice([None, 11])}
    delta = {"stop_reason": said.stop, "stop_sequence": sequence(said)}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}


def anthropic_deltas(whole: Json, block: Block, rng: random.Random) -> tuple[Json, list[Json]]:
    """What the block begins as, and what is added."""
    if isinstance(block, Thought):
        parts = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block.text, rng)]
        signatures = [{"type": "signature_delta", "signature": block.signature}] if block.signature else []
        return {"thinking": "", "signature": ""}, [*parts, *signatures]
    if isinstance(block, Call):
        if rng.random() < 0.2:  # a compatible server that does not stream it
            return {}, []
        parts = ["", *pieces(block.arguments, rng)] if rng.random() < 0.8 else [block.arguments]
        return {"input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return {"text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(block.text, rng)]


def ollama_lines(said: Said, rng: random.Random) -> Iterator[Json]:
    messages: list[Json] = []
    for kind, blocks in groupby(said.blocks, type):
        if kind is Call:
            calls = [ollama_call(call) for call in blocks]
            at = rng.randint(0, len(calls))
            messages += [{"content": "", "tool_calls": few} for few in (calls[:at], calls[at:]) if few]
        else:
            field = "thinking" if kind is Thought else "content"
            messages += [{"content": "", field: piece} for block in blocks for piece in pieces(block.text, rng)]
    last = messages.pop() if messages and rng.random() < 0.3 else {"content": ""}
    for message in messages:
        yield {**OLLAMA, "message": {"role": "assistant", **message}, "done": False}
    yield {**OLLAMA, "message": {"role": "assistant", **last}, **ollama_last(said)}


# ── what is read, and what a client gets ────────────────────────────────────────────────────────────────────────────


def reader(dialect: str, *, native: bool = False) -> EventReader:
    decoder = LineDecoder() if dialect == "ollama" else EventDecoder()
    return EventReader(VENDORS[dialect], decoder, DIALECTS[dialect].Events(native=native))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(borders) if a < b]


def fed(reader: EventReader, chunks: list[bytes]) -> Iterator[list[StreamEvent]]:
    """As the flow of a call feeds it."""
    for chunk in chunks:
        if reader.done:
            return
        yield reader.feed(chunk)
    if not reader.done:
        yield reader.end()


def rendered(door: str, batches: Iterator[list[StreamEvent]], *, include_usage: bool = True) -> bytes:
    """What a client gets, to its end."""
    body: Json = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 9}
    if door == "chat" and include_usage:
        body["stream_options"] = {"include_usage": True}
    request = DOORS[door].parse(json.dumps(body).encode(), {})
    stream = DOORS[door].stream(request, lambda: FRAME, ())
    told = b"".join([stream.render(events) for events in batches])
    return told + stream.end(stream.usage or COUNTED)


def whole(door: str, completion: Completion) -> bytes:
    """A plain answer as a client gets it."""
    return DOORS[door].whole(completion, completion.usage or COUNTED, lambda: FRAME, ())


@dataclass
class Heard:
    text: str = ""
    thinking: str = ""
    signed: list[Thought] | None = None
    calls: list[Call] | None = None
    stop: str | None = None
    order: list[Any] | None = None


def heard_by_chat(raw: bytes) -> Heard:
    """A stream as an OpenAI client reads it, the rules of its framing checked on the way."""
    *events, last, rest = raw.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") and "\n" not in event for event in events), "no ids, no names"
    *chunks, usage = [json.loads(event[6:]) for event in events]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in [*chunks, usage]}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] is not None for choice in choices] == [False] * (len(choices) - 1) + [True]
    heard = Heard(signed=[], calls=[], stop=choices[-1]["finish_reason"])
    assert choices[-1]["delta"] == {}
    for choice in choices:
        assert choice["index"] == 0
        delta = choice["delta"]
        heard.text += (delta.get("content") or "") + (delta.get("refusal") or "")
        heard.thinking += delta.get("reasoning_content") or ""
        for block in delta.get("thinking_blocks", ()):
            assert block["index"] == len(heard.signed)
            heard.signed.append(Thought(block["thinking"], block["signature"]))
        for fragment in delta.get("tool_calls", ()):
            add_fragment(heard.calls, fragment)
    assert all(parsed(call.arguments) is not None and call.arguments for call in heard.calls), "clients parse them"
    return heard


def add_fragment(calls: list[Call], fragment: Json) -> None:
    index, function = fragment["index"], fragment["function"]
    if index == len(calls):
        assert fragment["type"] == "function"
        calls.append(Call(fragment["id"], function["name"], function["arguments"]))
    else:
        assert fragment.keys() == {"index", "function"}
        assert function.keys() == {"arguments"}
        calls[index] = replace(calls[index], arguments=calls[index].arguments + function["arguments"])


def anthropic_stream(raw: bytes) -> list[Json]:
    """The events, each of which has a name that is its type."""
    *events, rest = raw.decode().split("\n\n")
    assert rest == ""
    found = []
    for event in events:
        name, data = event.split("\n")
        payload = json.loads(data.removeprefix("data: "))
        assert name == f"event: {payload['type']}"
        found.append(payload)
    return found


def heard_by_messages(raw: bytes) -> Heard:
    """A stream as an Anthropic client reads it, the rules of its framing checked on the way."""
    start, *events, delta, stop = anthropic_stream(raw)
    assert start["type"] == "message_start"
    message = start["message"]
    assert (message["role"], message["content"], message["stop_reason"]) == ("assistant", [], None)
    assert message["usage"]["input_tokens"] > 0
    assert (delta["type"], stop) == ("message_delta", {"type": "message_stop"})
    assert delta["usage"]["output_tokens"] >= 0
    blocks: list[Json] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open, "one at a time"
                assert event["index"] == len(blocks), "without gaps"
                is_open = True
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                add_delta(blocks[-1], event["delta"])
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(blocks) - 1
                is_open = False
            case kind:
                raise AssertionError(kind)
    assert not is_open, "every start has a stop"
    return heard_in_blocks(blocks, delta["delta"]["stop_reason"])


def add_delta(block: Json, delta: Json) -> None:
    match delta["type"], block["type"]:
        case "text_delta", "text":
            block["text"] += delta["text"]
        case "thinking_delta", "thinking":
            block["thinking"] += delta["thinking"]
        case "signature_delta", "thinking":
            block["signature"] += delta["signature"]
        case "input_json_delta", "tool_use":
            block["json"] += delta["partial_json"]
        case mismatch:
            raise AssertionError(mismatch)


def heard_in_blocks(blocks: list[Json], stop: str) -> Heard:
    heard = Heard(signed=[], calls=[], order=[], stop=stop)
    for block in blocks:
        match block["type"]:
            case "text":
                heard.text += block["text"]
            case "thinking":
                heard.thinking += block["thinking"]
                if block["signature"]:
                    heard.signed.append(Thought(block["thinking"], block["signature"]))
            case "tool_use":
                raw = block.get("json", json.dumps(block["input"]))
                heard.calls.append(Call(block["id"], block["name"], raw))
        kind, shown = block["type"], block.get("text", block.get("thinking"))
        if kind == "tool_use":
            heard.order.append(heard.calls[-1].seen)
        elif heard.order and heard.order[-1][0] == kind:
            heard.order[-1] = (kind, heard.order[-1][1] + shown)
        else:
            heard.order.append((kind, shown))
    return heard


def heard_plainly(door: str, raw: bytes) -> Heard:
    body = json.loads(raw)
    if door == "messages":
        return heard_in_blocks(body["content"], body["stop_reason"])
    (choice,) = body["choices"]
    message = choice["message"]
    calls = [
        Call(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]
    signed = [Thought(block["thinking"], block["signature"]) for block in message.get("thinking_blocks", ())]
    text = (message["content"] or "") + (message["refusal"] or "")
    return Heard(text, message.get("reasoning_content", ""), signed, calls, choice["finish_reason"])


def assert_same(heard: Heard, said: Said, door: str) -> None:
    assert heard.text == said.text
    assert heard.thinking == said.thinking
    assert heard.signed == said.signed
    assert [call.seen for call in heard.calls] == [call.seen for call in said.calls]
    assert heard.stop == said.stops[door == "messages"]
    assert heard.order is None or heard.order == said.order


HEARD = {"chat": heard_by_chat, "messages": heard_by_messages}
places = st.lists(st.integers(0, 100_000), max_size=12)


@holds(150, 24_000, said=answers(), door=st.sampled_from([*DOORS]), seed=seeds, places=places, bytewise=st.booleans())
def test_a_stream_is_told_whole(said, door, seed, places, bytewise):
    """In whichever pieces it comes: same words, thoughts, calls and stop, and a client's rules are kept."""
    rng = random.Random(seed)
    data = wire(said, rng, terminated=rng.random() < 0.8).data
    chunks = [data[i : i + 1] for i in range(len(data))] if bytewise else cut(data, places)
    came = reader(said.dialect)
    heard = HEARD[door](rendered(door, fed(came, chunks)))
    assert came.done
    assert_same(heard, said, door)


@holds(40, 8_000, said=answers(), door=st.sampled_from([*DOORS]), seed=seeds)
def test_a_plain_answer_is_told_whole(said, door, seed):
    """Of which OpenAI's and Ollama's have no order: thoughts, words, calls."""
    completion = DIALECTS[said.dialect].read_answer(plain(said, random.Random(seed)), native=False)
    heard = heard_plainly(door, whole(door, completion))
    assert_same(heard if said.dialect == "anthropic" else replace(heard, order=None), said, door)


@holds(30, 5_000, said=answers(("anthropic",)), seed=seeds)
def test_an_answer_by_way_of_openai(said, seed):
    """Anthropic's, as a gateway behind this one would get it and tell its own Anthropic client."""
    answer = anthropic.read_answer(plain(said, random.Random(seed)), native=False)
    again = openai.read_answer(whole("chat", answer), native=False)
    heard = heard_plainly("messages", whole("messages", again))
    assert (heard.text, heard.thinking) == (said.text, said.thinking)
    assert [call.seen for call in heard.calls] == [call.seen for call in said.calls]
    chat, _ = said.stops
    assert heard.stop == ("tool_use" if said.calls and chat == "stop" else STOPS["openai"][chat][1])


@holds(4, 400, said=answers(), native=st.booleans(), seed=seeds)
def test_cut_at_every_place(said, native, seed):
    """Two chunks, whose border is at each byte of the stream in turn, even inside a character or a line end."""
    native = native and said.dialect != "ollama"
    data = wire(said, random.Random(seed)).data
    whole = [event for events in fed(reader(said.dialect, native=native), [data]) for event in events]
    for place in range(1, len(data)):
        came = reader(said.dialect, native=native)
        events = [event for events in fed(came, [data[:place], data[place:]]) for event in events]
        assert came.done
        assert events == whole, place


# ── native: as it came ──────────────────────────────────────────────────────────────────────────────────────────────


@holds(50, 6_000, said=answers(("openai",)), include_usage=st.booleans(), seed=seeds, places=places)
def test_openais_chunks_pass_as_they_are(said, include_usage, seed, places):
    """With fields that nobody knows; but usage is told once, in an event of its own, or not at all."""
    rng = random.Random(seed)
    said = replace(said, stop=rng.choice(["stop", "length", "tool_calls", "content_filter"]))
    chunks = [
        chunk | {"obfuscation": "x" * rng.randint(0, 3), "new": [None, {"a": 1e-7}]}
        for chunk in openai_chunks(said, rng)
    ]
    chunks = [chunk for chunk in chunks if chunk["choices"]]
    if include_usage or rng.random() < 0.5:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
    usage = {**chunks[0], "choices": [], "usage": {**USAGES["openai"], "new_details": {"a": 1}}}
    data = "".join(sse(chunk, "openai", rng) for chunk in [*chunks, usage]).encode() + b"data: [DONE]\n\n"
    raw = rendered("chat", fed(reader("openai", native=True), cut(data, places)), include_usage=include_usage)
    *events, last, rest = raw.decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    if include_usage:
        assert told == [*chunks, usage]
    else:
        assert told == [{name: value for name, value in chunk.items() if name != "usage"} for chunk in chunks]


@holds(50, 6_000, said=answers(("anthropic",)), seed=seeds, places=places)
def test_anthropics_events_pass_as_they_are(said, seed, places):
    """Pings and events of kinds that nobody knows too, each under its name."""
    rng = random.Random(seed)
    assume(said.stop != "a_new_word")  # which would not be told
    events = [event | {"new": [1e-7, None]} for event in anthropic_events(said, rng)]
    data = "".join(sse(event, "anthropic", rng) for event in events).encode()
    raw = rendered("messages", fed(reader("anthropic", native=True), cut(data, places)))
    assert anthropic_stream(raw) == events


def test_a_native_stream_without_its_last_event_begins_once():
    """Some compatible servers send no `message_stop`."""
    said = Said("anthropic", (Words("Hi"),), "end_turn")
    events = [
        event for event in anthropic_events(said, random.Random(0)) if event["type"] not in ("ping", "a_new_event")
    ]
    data = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events[:-1])
    raw = rendered("messages", fed(reader("anthropic", native=True), [data]))
    assert_same(heard_by_messages(raw), said, "messages")


@pytest.mark.parametrize(("dialect", "door"), [("anthropic", "chat"), ("openai", "messages"), ("ollama", "chat")])
def test_the_model_that_answered_is_named_in_a_stream_too(dialect, door):
    said = Said(dialect, (Words("Hi"),), "end_turn" if dialect == "anthropic" else "stop")
    answer = whole(door, DIALECTS[dialect].read_answer(plain(said, random.Random(1)), native=False))
    raw = rendered(door, fed(reader(dialect), [wire(said, random.Random(1)).data]))
    told = json.loads(raw.decode().split("\n\n")[0].rpartition("data: ")[2])
    assert told.get("message", told)["model"] == json.loads(answer)["model"] == "m"


# ── broken off, and nonsense ────────────────────────────────────────────────────────────────────────────────────────


@holds(60, 8_000, said=answers(), native=st.booleans(), seed=seeds, share=st.floats(0, 1))
def test_what_is_cut_off_is_never_whole(said, native, seed, share):
    """At any byte before the upstream has said why it stopped."""
    native = native and said.dialect != "ollama"
    sent = wire(said, random.Random(seed))
    came = reader(said.dialect, native=native)
    # Every byte up to the last of the JSON that says it.
    try:
        for _ in fed(came, [sent.data[: int(share * (sent.finished - 1))]]):
            assert not came.done
    except StreamCut:
        pass
    assert not came.done


@holds(4, 400, said=answers(), seed=seeds)
def test_cut_off_at_every_place(said, seed):
    sent = wire(said, random.Random(seed))
    for place in range(sent.finished):
        came = reader(said.dialect)
        try:
            for _ in fed(came, [sent.data[:place]]):
                assert not came.done
        except StreamCut:
            pass
        assert not came.done, place


ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, "", "x", "\n", "a\n\nb: c\r", "auto", "data:;,", [], {}, [[]], [None], [1],
    ["x"], {"type": "text"}, {"type": 5}, {"type": None}, {"type": []}, {"a": {"b": []}}, {"name": "f"},
    [{"type": "text", "text": 5}], [{"id": 1, "function": "f"}], {"type": "function", "function": []},
    {"type": "tool", "name": {}},
]  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with something in it, at any depth, left out, moved or exchanged for what does not belong there."""
    value = json.loads(json.dumps(value))
    if not (nodes := [*_nodes(value)]):
        return rng.choice(ODD)
    parent, key = rng.choice(nodes)
    match rng.randint(0, 9):
        case 0:
            del parent[key]
        case 1:
            parent[key] = [parent[key]]
        case 2:
            parent[key] = {rng.choice(["type", "text", "a"]): parent[key]}
        case 3:
            other, name = rng.choice(nodes)
            parent[key] = json.loads(json.dumps(other[name]))
        case 4 if isinstance(parent, dict):
            name = rng.choice(["", "type", "function_call", "name", "cache_control", "index", "stop", "x\r\ny: z"])
            parent[name] = rng.choice(ODD)
        case _:
            parent[key] = rng.choice(ODD)
    return value


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(each, dict | list):
            yield from _nodes(each)


def payloads_of(said: Said, rng: random.Random) -> list[Any]:
    make = {"openai": openai_chunks, "anthropic": anthropic_events, "ollama": ollama_lines}[said.dialect]
    payloads: list[Any] = list(make(said, rng))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(payloads))
        match rng.randint(0, 5):
            case 0:
                payloads.insert(at, rng.choice(ODD))
            case 1:
                payloads.insert(at, payloads[rng.randrange(len(payloads))])
            case 2:
                payloads.pop(at)
            case _:
                payloads[at] = mutated(payloads[at], rng) if isinstance(payloads[at], dict | list) else None
        payloads = payloads or [{}]
    return payloads


@holds(100, 10_000, said=answers(), native=st.booleans(), door=st.sampled_from([*DOORS]), seed=seeds, places=places)
def test_nonsense_in_a_stream_is_an_upstreams_error(said, native, door, seed, places):
    """Nothing else is raised, whether it is read or told on; and what is told on is still a stream."""
    rng = random.Random(seed)
    native = native and {"openai": "chat", "anthropic": "messages"}.get(said.dialect) == door
    ends = "\n" if said.dialect == "ollama" else "\n\n"
    begin = "" if said.dialect == "ollama" else "data: "
    data = "".join(begin + spelled(payload, rng) + ends for payload in payloads_of(said, rng)).encode()
    if rng.random() < 0.2:
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(rng.randint(1, 4)) + data[at + rng.randint(0, 3) :]
    try:
        raw = rendered(door, fed(reader(said.dialect, native=native), cut(data, places)))
    except UpstreamError:
        return
    for event in raw.decode(errors="replace").split("\n\n")[:-1]:
        *named, payload = event.split("\n")
        assert [name[:7] for name in named] == (["event: "] if door == "messages" else []), event
        payload = payload.removeprefix("data: ")
        assert payload.startswith("[DONE]") or isinstance(json.loads(payload), dict)


def test_a_name_of_two_lines_is_no_second_event():
    """A native event is told under its type, which an upstream may have chosen badly."""
    event = {"type": "new\n\nevent: message_stop\ndata: {}", "a": 1}
    raw = rendered(
        "messages",
        fed(
            reader("anthropic", native=True),
            [b"data: %b\n\n" % json.dumps(event).encode(), b'data: {"type":"message_stop"}\n\n'],
        ),
    )
    assert raw.count(b"\n\n") <= 2, raw


def test_no_utf8_in_a_field_that_nobody_reads():
    """Such an event is told on or is the upstream's error, but no defect of ours."""
    chunk = b'data: {"new":"\xff","choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":1}}\n\n'
    with suppress(UpstreamError):
        rendered("chat", fed(reader("openai", native=True), [chunk, b"data: [DONE]\n\n"]))


@holds(60, 10_000, said=answers(), native=st.booleans(), door=st.sampled_from([*DOORS]), seed=seeds)
def test_nonsense_for_an_answer(said, native, door, seed):
    """Raises what the flow of a call catches and nothing else; what was read can be told."""
    rng = random.Random(seed)
    native = native and {"openai": "chat", "anthropic": "messages"}.get(said.dialect) == door
    body = json.loads(plain(said, rng))
    for _ in range(rng.randint(1, 3)):
        body = mutated(body, rng) if body and isinstance(body, dict) else body
    data = json.dumps(body).encode()
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data))] + rng.randbytes(2)
    try:
        completion = DIALECTS[said.dialect].read_answer(data, native=native)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    json.loads(whole(door, completion))


# ── nonsense in requests ────────────────────────────────────────────────────────────────────────────────────────────

SCHEMA: Json = {
    "type": "object",
    "properties": {"a": {"type": ["string", "null"], "format": "date"}, "b": {"type": "array", "items": {"enum": [1]}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
MORE: dict[str, Json] = {
    "chat": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        "stop": ["a", "b"], "temperature": 1.5, "top_p": 0.5, "seed": 1, "frequency_penalty": 0.5, "logit_bias": {},
        "presence_penalty": 0.5, "parallel_tool_calls": False, "reasoning_effort": "low", "user": "u", "n": 1,
        "metadata": {"a": "b"}, "service_tier": "auto", "logprobs": False, "modalities": ["text"], "top_k": 5,
        "stream": True, "stream_options": {"include_usage": True}, "safety_identifier": "x", "store": True,
    },
    "messages": {
        "tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}, {"type": "web_search_20250305", "name": "w"}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "stop_sequences": ["a", " "], "temperature": 0.5,
        "top_p": 0.5, "top_k": 5, "metadata": {"user_id": "u"}, "service_tier": "standard_only", "stream": True,
        "mcp_servers": [], "container": None, "cache_control": {"type": "ephemeral"},
    },
}  # fmt: skip
MODELS = ("gpt-4o", "gpt-5", "gpt-oss:20b", "claude-sonnet-4-5", "claude-opus-4-7", "claude-3-haiku-20240307", "m")


def assistant_extras(door: str, rng: random.Random) -> Json:
    """What an assistant's turn can have besides."""
    if door == "messages":
        block = {"type": "thinking", "thinking": "t", "signature": "s"}
        return {"content": [block, {"type": "redacted_thinking", "data": "d"}, {"type": "text", "text": "x"}]}
    return rng.choice([
        {"function_call": {"name": "f", "arguments": "{}"}}, {"refusal": "no", "content": None}, {"name": "bob"},
        {"reasoning_content": "t"}, {"thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}]},
    ])  # fmt: skip


MEDIA: dict[str, list[Json]] = {
    "chat": [
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "title": "t"},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA=="}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}},
        {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
        {"type": "search_result", "source": "x", "title": "t", "content": []},
    ],
}


def full_body(turns: tuple[Turn, ...], door: str, rng: random.Random) -> Json:
    """A request with much in it."""
    body = (openai_body if door == "chat" else anthropic_body)(turns, rng)
    more = [*MORE[door]]
    body |= {name: MORE[door][name] for name in rng.sample(more, rng.randint(0, len(more)))}
    if "stream" not in body:
        body.pop("stream_options", None)
    for message in body["messages"]:
        if message["role"] == "assistant" and rng.random() < 0.5:
            message |= assistant_extras(door, rng)
        elif message["role"] == "user" and isinstance(message["content"], list) and rng.random() < 0.5:
            message["content"].append(rng.choice(MEDIA[door]))
    return body


@holds(150, 20_000, turns=conversations(failures=True), door=st.sampled_from([*DOORS]), seed=seeds)
def test_nonsense_in_a_request_is_the_clients_error(turns, door, seed):
    """A body that the door takes and that is wrong deeper down is refused with 400 or sent on: it is never a defect."""
    rng = random.Random(seed)
    body = full_body(turns, door, rng)
    for _ in range(rng.randint(1, 3)):
        body = mutated(body, rng)
        assume(isinstance(body, dict))
    try:
        request = DOORS[door].parse(json.dumps(body).encode(), {})
    except InvalidRequest:
        return
    assert_prepared(request, rng.choice(MODELS))


def assert_prepared(request: Any, model: str) -> None:
    """Written for each kind of provider, or refused."""
    for vendor in VENDORS.values():
        deployment = deployed(vendor.config, upstream_model=model)
        with suppress(InvalidRequest):
            assert msgspec.json.decode(vendor.prepare(request, deployment).data)["model"] == model


WRONG_DEEPER_DOWN: list[tuple[str, Json]] = [
    ("chat", {"messages": [{"role": "assistant", "content": "x", "function_call": "auto"}]}),
    ("chat", {"messages": [{"role": "assistant", "content": "x", "function_call": ["f"]}]}),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "format": []}}}}),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
        "type": "object", "properties": {"a": {"type": "string", "format": {}}}}}}]}),
    ("messages", {"output_config": {"format": {"type": "json_schema", "schema": {
        "type": "object", "properties": {}, "additionalProperties": False, "required": [{}]}}}}),
]  # fmt: skip


@pytest.mark.parametrize(("door", "fields"), WRONG_DEEPER_DOWN)
def test_wrong_types_deeper_down(door, fields):
    """Some that the property above finds."""
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], **fields}
    for model in MODELS:
        assert_prepared(DOORS[door].parse(json.dumps(body).encode(), {}), model)


# What is nested, and how it begins and ends, `@` being where.
DEEP = {
    "a tool's schema": ('{"items":', '"tools":[{"name":"f","input_schema":{"type":"object","items":@}}]'),
    "a strict tool's schema": (
        '{"type":"object","properties":{"a":',
        '"tools":[{"name":"f","strict":true,"input_schema":@}]',
    ),
    "an answer's schema": (
        '{"type":"array","items":',
        '"output_config":{"format":{"type":"json_schema","schema":@}}',
    ),
    "a call's input": (
        '{"a":',
        '"messages":[{"role":"user","content":"x"},'
        '{"role":"assistant","content":[{"type":"tool_use","id":"c","name":"f","input":@}]},'
        '{"role":"user","content":[{"type":"tool_result","tool_use_id":"c"}]}]',
    ),
    "a result in a result": (
        '{"type":"tool_result","tool_use_id":"c","content":[',
        '"messages":[{"role":"user","content":[@]}]',
    ),
    "a field that nobody knows": ('{"a":', '"new":@'),
}


@pytest.mark.parametrize("levels", [10, 100, 200, 300, 450, 900, 960, 100_000])
@pytest.mark.parametrize("what", DEEP)
def test_deep_bodies_are_refused_or_sent(what, levels):
    """What is nested too deeply to be read is the client's error too."""
    opening, rest = DEEP[what]
    closing = "".join({"{": "}", "[": "]"}[bracket] for bracket in reversed(opening) if bracket in "{[")
    deep = opening * levels + "{}" + closing * levels
    messages = "" if "messages" in rest else '"messages":[{"role":"user","content":"x"}],'
    body = '{"model":"m","max_tokens":9,' + messages + rest.replace("@", deep) + "}"
    try:
        request = MESSAGES.parse(body.encode(), {})
    except InvalidRequest:
        return
    for model in ("gpt-4o", "claude-sonnet-4-5"):
        assert_prepared(request, model)
