"""What the doors have in common: AILB's own fields, the words of a refusal, the frame of a stream.

A request's JSON is parsed once, checked where the gateway reads it and kept as it is elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from gateway.errors import GatewayError, InvalidRequest, NotImplementedYet
from gateway.routing import strategies
from gateway.types import ChatRequest, Citation, Completion, Dialect, Frame, Json, StreamEvent, Usage

# AILB's own fields: taken out before an upstream sees the request (http-api.md section 3).
_OWN = ("session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags")
_MOST_TOKENS = 2**31

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Tokens = Annotated[int, Meta(ge=1, le=_MOST_TOKENS)]
Headers = Mapping[bytes, bytes]
encode = msgspec.json.Encoder().encode


class OwnFields(msgspec.Struct):
    """AILB's, on every door. Types are strict: "5" is no number and 1 no boolean."""

    model: Name | None = None
    session_id: Name | None = None
    rag_collection: Name | None = None
    rag_top_k: Annotated[int, Meta(ge=1, le=50)] | None = None
    routing_strategy: str | None = None
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=100)]], Meta(max_length=50)] | None = None


Read = TypeVar("Read", bound=OwnFields)


class Door(ABC):
    """One client dialect."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    def parse(self, raw: bytes, headers: Headers) -> ChatRequest:
        """The request in `raw`; `headers` carry AILB's fields where the body does not.

        Raises `InvalidRequest`, whose `param` names the field.
        """

    def parse_count(self, raw: bytes, headers: Headers) -> ChatRequest:
        """A request to count a prompt's tokens, where the dialect has one. Raises as `parse` does."""
        raise NotImplementedYet(f"Counting tokens is not part of the {self.dialect} dialect.")

    @abstractmethod
    def whole(
        self, completion: Completion, usage: Usage, frame: Callable[[], Frame], citations: tuple[Citation, ...]
    ) -> bytes:
        """A plain answer's body. `usage` is what was settled; `frame` is asked where the answer is translated."""

    @abstractmethod
    def stream(self, request: ChatRequest, frame: Callable[[], Frame], citations: tuple[Citation, ...]) -> "DoorStream":
        """The state of one stream. `frame` is asked once, when an upstream has begun to answer."""

    @abstractmethod
    def error(self, error: GatewayError, request_id: str) -> bytes:
        """The JSON of an error."""

    @abstractmethod
    def error_event(self, error: bytes) -> bytes:
        """That JSON as the last event of a stream."""

    def parameter(self, name: str) -> str:
        """The client's name of a parameter that the neutral form calls by OpenAI's."""
        return name


class DoorStream(ABC):
    """Turns upstream events into bytes for one client, and remembers what was delivered.

    What ends the stream is held back until the request is settled.
    """

    def __init__(self, frame: Callable[[], Frame]) -> None:
        self._frame = frame
        self._texts: list[str] = []
        self._said: list[str] | None = None
        """Of the texts, where something else was among them."""
        self.usage: Usage | None = None
        self.served_model: str | None = None
        self.service_tier: str | None = None
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        """Everything delivered so far that costs output tokens."""
        return "".join(self._texts)

    @property
    def spoken(self) -> str:
        """What of it was said to the user."""
        return "".join(self._texts if self._said is None else self._said)

    def render(self, events: list[StreamEvent]) -> bytes:
        """What the client is sent for `events`; empty where they hold nothing for it."""
        shown = []
        for event in events:
            if event.usage is not None:
                self.usage = event.usage  # cumulative where it comes more than once
            if event.text:
                if event.spoken is not None and self._said is None:
                    self._said = list(self._texts)
                self._texts.append(event.text)
                if self._said is not None:
                    self._said.append(event.text if event.spoken is None else event.spoken)
            if event.served_model is not None:
                self.served_model = event.served_model
            if event.service_tier is not None:
                self.service_tier = event.service_tier
            if event.finish_reason is not None:
                self.finish_reason = event.finish_reason
            if event.data:
                shown.append(self._native(event))
            elif event.deltas:
                shown.append(self._translated(event))
        return b"".join(shown)

    def _framed(self) -> Frame:
        """The frame of a translated stream, with the model that the upstream says it is."""
        frame = self._frame()
        return frame if self.served_model is None else msgspec.structs.replace(frame, model=self.served_model)

    @abstractmethod
    def _native(self, event: StreamEvent) -> bytes:
        """An event of an upstream that speaks the client's dialect."""

    @abstractmethod
    def _translated(self, event: StreamEvent) -> bytes:
        """An event's deltas."""

    @abstractmethod
    def end(self, usage: Usage) -> bytes:
        """What ends the stream. `usage` is what was settled."""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoded(raw: bytes) -> Json:
    """The body's JSON object. Raises `InvalidRequest`."""
    try:
        body = msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


def checked(body: Json, type_: type[Read]) -> Read:
    """The fields that the gateway reads. Raises `InvalidRequest`."""
    try:
        return msgspec.convert(body, type_, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None


def check_roles(roles: list[str], known: frozenset[str]) -> None:
    """Raises `InvalidRequest` for the first role that is none."""
    for index, role in enumerate(roles):
        if role not in known:
            where = f"messages[{index}].role"
            raise InvalidRequest(f"'{where}' is one of: {', '.join(sorted(known))}.", param=where)


def without_own(body: Json) -> Json:
    return {name: value for name, value in body.items() if name not in _OWN}


def model(read: OwnFields, headers: Headers) -> str:
    """Raises `InvalidRequest` where none is named."""
    named = read.model or header(headers, b"x-preferred-model")
    if not named:
        raise InvalidRequest("A model is needed: name one in 'model'.", param="model")
    return named


def routing_strategy(read: OwnFields, headers: Headers) -> str | None:
    strategy = read.routing_strategy or header(headers, b"x-routing-strategy")
    if strategy is not None and strategy not in strategies():
        raise InvalidRequest(f"'routing_strategy' is one of: {', '.join(strategies())}.", param="routing_strategy")
    return strategy


def session_id(read: OwnFields, headers: Headers) -> str | None:
    return read.session_id or header(headers, b"x-session-id")


def _invalid(problem: str) -> InvalidRequest:
    """msgspec's words end in the path: "Expected `int`, got `str` - at `$.max_tokens`"."""
    what, _, path = problem.partition(" - at `")
    param = path.rstrip("`").removeprefix("$").removeprefix(".") or None
    if "missing required field" in what:
        missing = what.rsplit("`", 2)[-2]
        param = f"{param}.{missing}" if param else missing
        return InvalidRequest(f"'{param}' is required.", param=param)
    return InvalidRequest(f"{what} in '{param}'." if param else f"{what}.", param=param)


def header(headers: Headers, name: bytes, *, longest: int = 200) -> str | None:
    """A header's text. Raises `InvalidRequest` where it is longer than `longest` characters or no UTF-8."""
    value = headers.get(name)
    if not value:
        return None
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The header '{name.decode()}' is not UTF-8.", param=name.decode()) from None
    if len(text) > longest:
        raise InvalidRequest(f"The header '{name.decode()}' is longer than {longest} characters.", param=name.decode())
    return text or None


def tags(read: OwnFields, headers: Headers) -> tuple[str, ...]:
    if read.tags is not None:
        return tuple(read.tags)
    value = headers.get(b"x-ailb-tags")
    if not value:
        return ()
    found = tuple(tag.strip() for tag in value.decode("utf-8", "replace").split(",") if tag.strip())
    if len(found) > 50 or any(len(tag) > 100 for tag in found):
        raise InvalidRequest("'x-ailb-tags' takes up to 50 tags of up to 100 characters.", param="tags")
    return found
