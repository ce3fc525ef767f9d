"""What is asked of every server, and what a right answer to it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import msgspec

CHAT_PATH = "/v1/chat/completions"
# upstream.c's default, and the length of the stream in the bar.
CHUNKS = 30
# A finish chunk, a usage chunk and [DONE] follow the content.
EVENTS = CHUNKS + 3

MESSAGES = [
    {
        "role": "system",
        "content": "You are the assistant of a small accounting firm. Answer in one sentence and name your source.",
    },
    {
        "role": "user",
        "content": "Our office moved in March, and the landlord of the old place still holds the deposit. In which "
        "account do we keep it until it is paid back, and does the accrued interest belong to this year's income?",
    },
]


@dataclass(frozen=True)
class Scenario:
    """One request, sent over and over.

    `events` is 0 for a plain answer; `bar` is CPU as a multiple of the bare consumer's; `weight` is how many chats it
    is worth, so that rounds last alike; `delay_us` is the upstream's pause between two chunks.
    """

    name: str
    title: str
    body: str
    events: int
    bar: float | None
    weight: float
    delay_us: int = 0
    path: str = CHAT_PATH

    @property
    def saturates(self) -> bool:
        """Whether its closed loop keeps a server busy, so that a throughput can be read from it."""
        return self.delay_us == 0


def chat_body(**extra: object) -> str:
    """A chat request of about half a kilobyte."""
    request = {"model": "gpt-4o-mini", "messages": MESSAGES, "max_tokens": 64, "temperature": 0.2, **extra}
    return msgspec.json.encode(request).decode()


# Usage is asked for, so that the gateway and the bare servers get and forward the same bytes.
STREAM_BODY = chat_body(stream=True, stream_options={"include_usage": True})

CHAT = Scenario("chat", "chat", chat_body(), 0, 1.6, weight=1)
STREAM = Scenario("stream", f"{CHUNKS}-chunk stream", STREAM_BODY, EVENTS, 2.0, weight=2)
# No bar, for judgement only: events that arrive one by one cannot be parsed and sent together, as those of real models
# arrive. 20 ms is a model that writes 50 tokens a second.
SPACED = Scenario(
    "spaced", f"{CHUNKS}-chunk stream, 20 ms apart", STREAM_BODY, EVENTS, None, weight=12, delay_us=20_000
)


class WrongAnswer(Exception):
    """A server's answer differs from what the upstream said."""


@dataclass(frozen=True)
class Reply:
    """What a client takes from an answer, plain or streamed."""

    text: str
    usage: dict[str, Any]
    finish_reason: str
    events: int


def ask(scenario: Scenario, *, port: int, headers: Iterable[str]) -> Reply:
    """Sends a scenario's request once and reads the answer as a client would."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    fields = {name: value for name, _, value in (header.partition(": ") for header in headers)}
    try:
        connection.request("POST", scenario.path, scenario.body.encode(), fields)
        answer = connection.getresponse()
        return _read_reply(scenario, answer, answer.read())
    except (OSError, HTTPException) as error:
        raise WrongAnswer(f"{scenario.name}: no answer on port {port}: {error!r}") from error
    finally:
        connection.close()


def _read_reply(scenario: Scenario, answer: HTTPResponse, body: bytes) -> Reply:
    if answer.status != 200:
        raise WrongAnswer(f"{scenario.name}: status {answer.status}: {body[:400]!r}")
    try:
        return _stream_reply(body) if scenario.events else _plain_reply(body)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
        raise WrongAnswer(f"{scenario.name}: {error!r} in {body[:400]!r}") from error


def _plain_reply(body: bytes) -> Reply:
    answer = msgspec.json.decode(body)
    choice = answer["choices"][0]
    return Reply(choice["message"]["content"], answer["usage"], choice["finish_reason"], 0)


def _stream_reply(body: bytes) -> Reply:
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    chunks = [msgspec.json.decode(event) for event in events[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return Reply(text, chunks[-1]["usage"], choices[-1]["finish_reason"], len(events))
