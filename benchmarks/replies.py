"""What a server answers, read as a client would, and compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import msgspec

from benchmarks.scenarios import Scenario

FINISH_REASONS = {"end_turn": "stop", "max_tokens": "length"}


class WrongAnswer(Exception):
    """A server's answer differs from what the upstream said."""


@dataclass(frozen=True)
class Reply:
    """What a client takes from an answer, plain or streamed; of Anthropic's in OpenAI's words."""

    text: str
    usage: dict[str, Any]
    finish_reason: str
    events: int
    # Events that carry text: a translation may frame a stream otherwise, but must not join what came apart.
    pieces: int

    def says_as(self, other: Reply) -> bool:
        """Whether both say and count the same, whatever dialects they came through."""
        return self._gist() == other._gist()

    def _gist(self) -> tuple[object, ...]:
        tokens = self.usage["prompt_tokens"], self.usage["completion_tokens"]
        return self.text, tokens, self.finish_reason, self.pieces


def ask(scenario: Scenario, *, port: int, headers: Iterable[str]) -> Reply:
    """Sends a scenario's request once and reads the answer as a client would. Raises `WrongAnswer`."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    fields = {name: value for name, _, value in (header.partition(": ") for header in headers)}
    try:
        connection.request("POST", scenario.path, scenario.body.encode(), fields)
        answer = connection.getresponse()
        return _read(scenario, answer, answer.read())
    except (OSError, HTTPException) as error:
        raise WrongAnswer(f"{scenario.name}: no answer on port {port}: {error!r}") from error
    finally:
        connection.close()


def _read(scenario: Scenario, answer: HTTPResponse, body: bytes) -> Reply:
    if answer.status != 200:
        raise WrongAnswer(f"{scenario.name}: status {answer.status}: {body[:400]!r}")
    stream = _anthropic_stream if scenario.of_anthropic else _openai_stream
    try:
        return stream(body) if scenario.events else _openai_plain(body)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
        raise WrongAnswer(f"{scenario.name}: {error!r} in {body[:400]!r}") from error


def _openai_plain(body: bytes) -> Reply:
    answer = msgspec.json.decode(body)
    choice = answer["choices"][0]
    return Reply(choice["message"]["content"], answer["usage"], choice["finish_reason"], 0, 0)


def _openai_stream(body: bytes) -> Reply:
    events = _data_of(body)
    if not events or events[-1] != b"[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    chunks = [msgspec.json.decode(event) for event in events[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    texts = [text for choice in choices if (text := choice["delta"].get("content"))]
    return Reply("".join(texts), chunks[-1]["usage"], choices[-1]["finish_reason"], len(events), len(texts))


def _anthropic_stream(body: bytes) -> Reply:
    events = [msgspec.json.decode(event) for event in _data_of(body)]
    if not events or events[-1]["type"] != "message_stop":
        raise ValueError("the stream does not end with message_stop")
    texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    last = next(event for event in events if event["type"] == "message_delta")
    # The last word on usage; servers may leave out there what message_start said.
    counted = {**events[0]["message"]["usage"], **last["usage"]}
    usage = {"prompt_tokens": counted["input_tokens"], "completion_tokens": counted["output_tokens"]}
    stop = last["delta"]["stop_reason"]
    return Reply("".join(texts), usage, FINISH_REASONS.get(stop, stop), len(events), len(texts))


def _data_of(body: bytes) -> list[bytes]:
    return [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
