"""A chat in no dialect: what a client asks, what a model says and what is heard of it.

`dialect_registry` has the providers that write and read these, and the clients of the doors that do: so that
one assertion holds for every pair of them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

Json = dict[str, Any]


# ── a conversation, item by item ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class System:
    text: str


@dataclass(frozen=True)
class Said:
    """The user's words."""

    text: str


@dataclass(frozen=True)
class Picture:
    media_type: str
    data: str


@dataclass(frozen=True)
class Thought:
    """The model's own, as it was told; a signature where its vendor signs."""

    text: str
    signature: str = ""


@dataclass(frozen=True)
class Spoke:
    """The model's words."""

    text: str


@dataclass(frozen=True)
class Called:
    id: str
    name: str
    arguments: Json


@dataclass(frozen=True)
class Result:
    """What a tool answered."""

    id: str
    text: str
    failed: bool = False


Item = System | Said | Picture | Thought | Spoke | Called | Result
MODELS_OWN = (Thought, Spoke, Called)


def in_turns(items: tuple[Item, ...]) -> list[tuple[str, list[Item]]]:
    """System items by themselves, and runs of the user's and of the model's."""
    turns: list[tuple[str, list[Item]]] = []
    for item in items:
        role = "system" if isinstance(item, System) else "assistant" if isinstance(item, MODELS_OWN) else "user"
        if not turns or turns[-1][0] != role or role == "system":
            turns.append((role, []))
        turns[-1][1].append(item)
    return turns


@dataclass(frozen=True)
class Function:
    """A tool."""

    name: str
    description: str
    schema: Json


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, of a client or as an upstream got it."""

    items: tuple[Item, ...] = (System("Be brief."), Said("Hi there"))
    tools: tuple[Function, ...] = ()
    choice: str | None = None
    """auto, required or none; else the name of the tool to call"""
    schema: Json | None = None
    """The answer is to be JSON of this schema."""
    max_output: int | None = 4000
    thinks: bool = False
    model: str = "the-model"
    stream: bool = False


@dataclass(frozen=True)
class Tokens:
    """As OpenAI counts: the rest are parts of the first two."""

    prompt: int
    completion: int
    cached: int = 0
    written: int = 0
    reasoning: int = 0


@dataclass(frozen=True, kw_only=True)
class Say:
    """An answer, of a model or as a client heard it. `stop`: end, sequence, length, window, tools, refusal, pause or a
    word of the upstream's own.
    """

    thought: Thought | None = None
    text: str = ""
    refusal: str = ""
    calls: tuple[Called, ...] = ()
    stop: str = "end"
    tokens: Tokens | None = Tokens(100, 40, 20, 10)


@dataclass
class Heard:
    """A response as a client reads it, every framing rule of its dialect checked on the way."""

    status: int
    headers: httpx2.Headers
    raw: bytes
    text: str = ""
    thinking: str = ""
    signed: list[Thought] = field(default_factory=list)
    refusal: str = ""
    calls: list[Called] = field(default_factory=list)
    stop: str | None = None
    """The door's word."""
    stop_sequence: str | None = None
    tokens: Tokens | None = None
    error: Json | None = None
    model: str | None = None
    ended: bool = False
    """A stream came to its end in order."""
    events: list[Json] = field(default_factory=list)
    body: Any = None

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def dropped(self) -> set[str]:
        """What the answer says was left out of the request."""
        return {name for name in self.headers.get("x-ailb-dropped-parameters", "").split(", ") if name}


# ── the cases ───────────────────────────────────────────────────────────────────────────────────────────────────────

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
CITY: Json = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Function("get_weather", "The weather of a city.", CITY)
CLOCK = Function("clock", "The time.", {"type": "object", "properties": {}})
SIGNATURE = "EqQBCkYIBxgCKkBzaWduYXR1cmU="

KOELN = Called("call_01A", "get_weather", {"city": "Köln"})
BONN = Called("call_01B", "get_weather", {"city": 'Bonn "am" Rhein'})
TIME = Called("call_01C", "clock", {})


@dataclass(frozen=True)
class Case:
    ask: Ask
    say: Say


CASES: dict[str, Case] = {
    "text": Case(Ask(), Say(text='Hello wörld 🌍,\n"how" are you?')),
    "tools": Case(
        Ask(tools=(WEATHER,), choice="required"),
        Say(text="Let me look.", calls=(KOELN,), stop="tools"),
    ),
    "parallel tools": Case(
        Ask(tools=(WEATHER, CLOCK), choice="auto"),
        Say(calls=(KOELN, BONN, TIME), stop="tools"),
    ),
    "image": Case(Ask(items=(Said("What is this?"), Picture("image/png", PNG))), Say(text="A dot.")),
    "JSON schema": Case(Ask(schema=CITY), Say(text='{"city": "Köln"}')),
    "thinking": Case(
        Ask(thinks=True),
        Say(
            thought=Thought("Six times seven is forty-two.", SIGNATURE),
            text="42",
            tokens=Tokens(100, 40, 20, 10, 15),
        ),
    ),
    "refusal": Case(Ask(), Say(refusal="I cannot help with that.", stop="refusal")),
    "length stop": Case(Ask(), Say(text="Once upon a", stop="length")),
    "context-window stop": Case(Ask(), Say(text="Once upon a", stop="window")),
    "error before the first byte": Case(Ask(), Say()),
    "error after the first byte": Case(Ask(), Say(text="Once upon a time there was")),
}

# A conversation with everything in it that an earlier answer can leave there.
HISTORY: tuple[Item, ...] = (
    System("Be brief."),
    Said("How is the weather in Köln and in Bonn?"),
    Thought("Two calls will do.", SIGNATURE),
    Spoke("Let me look."),
    KOELN,
    BONN,
    Result(KOELN.id, "12 °C"),
    Result(BONN.id, "no such city", failed=True),
    Said("And in Köln alone?"),
)
FOLLOW_UP = Ask(items=HISTORY, tools=(WEATHER, CLOCK), thinks=True)


def as_words(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """The items where a failure has no field: it is told in words."""
    return tuple(
        replace(item, text=f"Error: {item.text}", failed=False) if isinstance(item, Result) and item.failed else item
        for item in items
    )
