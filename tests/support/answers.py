"""What a client got from `/v1`: one value for plain answers and streams, read without the gateway's own code."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx2

Json = dict[str, Any]


@dataclass
class Answer:
    """A response, whole. `body` is the JSON of a plain one; `chunks` are a stream's events, `[DONE]` left out."""

    status: int
    headers: httpx2.Headers
    raw: bytes
    body: Any = None
    chunks: list[Json] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    done: bool = False
    """A stream ended with `[DONE]`."""

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def text(self) -> str:
        """What the model said."""
        if not self.streamed:
            said: str = self.body["choices"][0]["message"]["content"]
            return said
        deltas = [choice.get("delta", {}) for chunk in self.chunks for choice in chunk.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def usage(self) -> Json | None:
        """The usage that the client was told; of a stream the only one."""
        if not self.streamed:
            told: Json | None = self.body.get("usage")
            return told
        found = [chunk for chunk in self.chunks if chunk.get("usage") is not None]
        assert len(found) <= 1, f"usage came {len(found)} times"
        return found[0]["usage"] if found else None

    @property
    def error(self) -> Json:
        """The error, of a plain answer or of a stream's event."""
        found = [self.body] if self.body is not None else [chunk for chunk in self.chunks if "error" in chunk]
        assert len(found) == 1, f"{len(found)} errors in {self.raw!r}"
        error: Json = found[0]["error"]
        return error


def read(response: httpx2.Response) -> Answer:
    """A response as an answer; of a stream every byte must be an event, a comment or the terminator."""
    answer = Answer(response.status_code, response.headers, response.content)
    if not answer.streamed:
        is_json = response.headers.get("content-type", "") == "application/json"
        answer.body = json.loads(response.content) if is_json and response.content else None
        return answer
    *events, rest = response.content.split(b"\n\n")
    assert rest == b"", f"a stream ends with a blank line, not with {rest!r}"
    for event in events:
        assert not answer.done, f"after [DONE] came {event!r}"
        if event == b"data: [DONE]":
            answer.done = True
        elif event.startswith(b":"):
            answer.comments.append(event.decode())
        else:
            assert event.startswith(b"data: "), f"no id, no event name, no other field: {event!r}"
            assert b"\n" not in event, f"one line an event: {event!r}"
            answer.chunks.append(json.loads(event[6:]))
    return answer


def assert_error(
    answer: Answer, status: int, type: str, code: str | None, *, param: str | None = None, says: str | None = None
) -> Json:
    """The one shape of an error at the OpenAI door. Returns its body for more to be said of it."""
    assert answer.status == status, (answer.status, answer.raw)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["content-length"]) == len(answer.raw)
    assert_error_body(answer.body, type, code, param=param, says=says)
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    error: Json = answer.body["error"]
    return error


def assert_error_body(
    body: Any, type: str, code: str | None, *, param: str | None = None, says: str | None = None
) -> None:
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == (type, code, param), error
    assert isinstance(error["message"], str)
    assert error["message"].strip()
    if says is not None:
        assert says in error["message"]


def assert_stream_error(answer: Answer, type: str, code: str | None, *, says: str | None = None) -> Json:
    """An error after the headers: one event in the one shape, nothing behind it, no terminator."""
    assert answer.status == 200
    assert not answer.done
    assert_error_body(answer.chunks[-1], type, code, says=says)
    return answer.error
