"""Reading a chat request at the OpenAI door: the client's JSON, checked where the gateway reads it, kept as it is
elsewhere. Parsed once; unknown parameters pass through.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequest
from gateway.routing import strategies
from gateway.types import ChatRequest, Json

# AILB's own fields: taken out before an upstream sees the request (http-api.md section 3).
_OWN = ("session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags")
_ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})
_MOST_TOKENS = 2**31

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Tokens = Annotated[int, Meta(ge=1, le=_MOST_TOKENS)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: _ImageUrl | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None


class _Tool(msgspec.Struct):
    type: str


class _Body(msgspec.Struct):
    """The fields the gateway reads. Types are strict: "5" is no number and 1 no boolean."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: Name | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    tools: list[_Tool] | None = None
    service_tier: Annotated[str, Meta(max_length=40)] | None = None
    session_id: Name | None = None
    rag_collection: Name | None = None
    rag_top_k: Annotated[int, Meta(ge=1, le=50)] | None = None
    routing_strategy: str | None = None
    tags: Annotated[list[Annotated[str, Meta(min_length=1, max_length=100)]], Meta(max_length=50)] | None = None


def parse(raw: bytes, headers: Mapping[bytes, bytes]) -> ChatRequest:
    """The request in `raw`; `headers` carry AILB's fields where the body does not.

    Raises `InvalidRequest`, whose `param` names the field.
    """
    body = _decoded(raw)
    read = _checked(body)
    model = read.model or _header(headers, b"x-preferred-model")
    if not model:
        raise InvalidRequest("A model is needed: name one in 'model'.", param="model")
    strategy = read.routing_strategy or _header(headers, b"x-routing-strategy")
    if strategy is not None and strategy not in strategies():
        raise InvalidRequest(f"'routing_strategy' is one of: {', '.join(strategies())}.", param="routing_strategy")
    stream = bool(read.stream)
    if read.stream_options is not None and not stream:
        raise InvalidRequest("'stream_options' is for requests with 'stream': true.", param="stream_options")
    return ChatRequest(
        body={name: value for name, value in body.items() if name not in _OWN},
        model=model,
        stream=stream,
        include_usage=stream and read.stream_options is not None and bool(read.stream_options.include_usage),
        n=read.n or 1,
        # Either name works everywhere; of both, the newer wins (lesson 40).
        max_output=read.max_completion_tokens or read.max_tokens,
        session_id=read.session_id or _header(headers, b"x-session-id"),
        rag_collection=read.rag_collection,
        rag_top_k=read.rag_top_k or 3,
        routing_strategy=strategy,
        tags=tuple(read.tags) if read.tags is not None else _tags(headers),
        end_user=read.user,
    )


def _decoded(raw: bytes) -> Json:
    try:
        body = msgspec.json.decode(raw)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


def _checked(body: Json) -> _Body:
    try:
        read = msgspec.convert(body, _Body, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    for index, message in enumerate(read.messages):
        if message.role not in _ROLES:
            raise InvalidRequest(
                f"'messages[{index}].role' is one of: {', '.join(sorted(_ROLES))}.", param=f"messages[{index}].role"
            )
    return read


def _invalid(problem: str) -> InvalidRequest:
    """msgspec's words end in the path: "Expected `int`, got `str` - at `$.max_tokens`"."""
    what, _, path = problem.partition(" - at `")
    param = path.rstrip("`").removeprefix("$").removeprefix(".") or None
    if "missing required field" in what:
        missing = what.rsplit("`", 2)[-2]
        param = f"{param}.{missing}" if param else missing
        return InvalidRequest(f"'{param}' is required.", param=param)
    return InvalidRequest(f"{what} in '{param}'." if param else f"{what}.", param=param)


def _header(headers: Mapping[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    if not value:
        return None
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The header '{name.decode()}' is not UTF-8.", param=name.decode()) from None
    if len(text) > 200:
        raise InvalidRequest(f"The header '{name.decode()}' is longer than 200 characters.", param=name.decode())
    return text or None


def _tags(headers: Mapping[bytes, bytes]) -> tuple[str, ...]:
    value = headers.get(b"x-ailb-tags")
    if not value:
        return ()
    tags = tuple(tag.strip() for tag in value.decode("utf-8", "replace").split(",") if tag.strip())
    if len(tags) > 50 or any(len(tag) > 100 for tag in tags):
        raise InvalidRequest("'x-ailb-tags' takes up to 50 tags of up to 100 characters.", param="tags")
    return tags
