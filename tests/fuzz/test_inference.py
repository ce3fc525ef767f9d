"""Hypothesis at the three inference endpoints, over a provider of each dialect that answers well.

So a request is either refused in the door's words or answered in them, by every rule of its framing.
"""

import json
from types import SimpleNamespace

import httpx2
import pytest

from tests.fuzz.explore import explore, shares
from tests.fuzz.requests import COUNT, VALID, Sent, any_request, written
from tests.fuzz.target import MODELS, Target
from tests.fuzz.wire import Answer, Broken, Wire, request
from tests.support.dialect_registry import DOORS

DOOR_OF = {door.path: door for door in DOORS.values()}


class Client:
    """Keeps its connection as clients do."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._wire: Wire | None = None

    def send(self, sent: Sent) -> Answer:
        data = request(sent.path, headers=sent.headers, body=sent.body)
        for again in (True, False):
            self._wire = self._wire or Wire(self._target.port)
            try:
                answer = self._wire.ask(data)
            except (Broken, TimeoutError):
                self.close()
                if not again:
                    raise
                continue
            if answer.headers.get("connection") == "close":
                self.close()
            return answer
        raise AssertionError("unreachable")

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None


def check(target: Target, sent: Sent, answer: Answer) -> None:
    """Refused in the door's words, or answered in them."""
    target.judge(answer, sent.path, sent=request(sent.path, headers=sent.headers, body=sent.body))
    if answer.status != 200:
        return
    if sent.path == COUNT:
        assert set(answer.body) == {"input_tokens"}
        assert answer.body["input_tokens"] > 0
        return
    asked = sent.asked or {}
    options = asked.get("stream_options")
    usage = bool(options.get("include_usage")) if isinstance(options, dict) else False
    if sent.asked is None and answer.content_type.startswith("text/event-stream"):
        return  # whether usage was asked for is not known
    response = SimpleNamespace(
        status_code=answer.status, headers=httpx2.Headers(list(answer.headers.items())), content=answer.raw
    )
    heard = DOOR_OF[sent.path].hear(response, usage=usage)  # type: ignore[arg-type]
    assert heard.error is None, heard.error
    if answer.content_type.startswith("text/event-stream"):
        assert heard.ended, answer.raw


@shares(700, 6000)
def test_any_request_is_refused_or_answered(target: Target, seed: int, cases: int):
    client = Client(target)

    def one(sent: Sent) -> None:
        target.asked += 1
        check(target, sent, client.send(sent))

    try:
        explore(seed, cases, any_request(target.member.encode()), one)
    finally:
        client.close()


@pytest.mark.parametrize("name", ["\0", "a\r\nx-injected: 1", "\x7f"])
def test_a_parameter_of_any_name_is_answered(target: Target, name: str):
    """Translated, it is left out; the header that names it is one."""
    client = Client(target)
    path, body = VALID[0]
    sent = Sent(path, tuple(target.bearer()), written({**body, "model": MODELS[1], name: 1}))
    answer = client.send(sent)
    client.close()
    assert answer.status == 200
    assert "x-injected" not in answer.headers


@pytest.mark.parametrize("model", MODELS)
def test_what_the_fuzzer_begins_with_is_mostly_served(target: Target, model: str):
    """Else it would only ever look at refusals."""
    client = Client(target)
    bearer = tuple(target.bearer())
    served = 0
    for path, body in VALID:
        sent = Sent(path, bearer, written({**body, "model": model}), {**body, "model": model})
        answer = client.send(sent)
        check(target, sent, answer)
        served += answer.status == 200
        assert answer.status in (200, 400), (json.dumps(body), answer)
    client.close()
    assert served > len(VALID) * 0.6
