"""OpenAI's chat completions, on the wire: what a client asks for.

Types: openai-python 3.54, `types/chat/completion_create_params`.
"""

from collections.abc import Iterator
from typing import Any, Final

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.translate import fields
from gateway.types import (
    Audio,
    Block,
    ChatRequest,
    Document,
    Foreign,
    Image,
    Json,
    Message,
    OutputFormat,
    Prompt,
    RedactedThinking,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)  # fmt: skip

# ── a client's request ──────────────────────────────────────────────────────────────────────────────────────────────

_READ: Final = frozenset(
    {"model", "messages", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens", "temperature"}
    | {"top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty", "tools", "tool_choice", "user"}
    | {"parallel_tool_calls", "response_format", "reasoning_effort", "safety_identifier", "service_tier"}
)
# Without these the answer would not have the shape, or not be the answer, that was asked for.
_VITAL: Final = frozenset({"logprobs", "top_logprobs", "modalities", "audio", "functions", "web_search_options"})
_SPEECHLESS: Final[tuple[object, ...]] = ({}, [], None, False, 0, "")
"""Values of a parameter that ask for nothing."""


def read_request(request: ChatRequest) -> Prompt:
    """A client's chat request in the neutral form. Raises `InvalidRequest` for parts that are none."""
    body = request.body
    vital = [name for name in _VITAL if body.get(name) not in _SPEECHLESS and body.get(name) != ["text"]]
    return Prompt(
        messages=tuple(_messages(body["messages"])),
        stream=request.stream,
        max_output=request.max_output,
        temperature=fields.number(body, "temperature"),
        top_p=fields.number(body, "top_p"),
        top_k=fields.integer(body, "top_k"),
        stop=_stop(body.get("stop")),
        seed=fields.integer(body, "seed"),
        frequency_penalty=fields.number(body, "frequency_penalty"),
        presence_penalty=fields.number(body, "presence_penalty"),
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.get("tools") or ())),
        tool_choice=_tool_choice(body.get("tool_choice")),
        parallel_tools=fields.boolean(body, "parallel_tool_calls"),
        output=_output(body.get("response_format")),
        effort=fields.string(body, "reasoning_effort"),
        end_user=fields.string(body, "safety_identifier") or fields.string(body, "user"),
        service_tier=fields.string(body, "service_tier"),
        n=request.n,
        others=tuple(
            name for name, value in body.items()
            if name not in _READ and name not in _VITAL and value not in _SPEECHLESS
        ),
        vital=tuple(vital),
    )  # fmt: skip


def _messages(messages: list[Json]) -> Iterator[Message]:
    """System, user and assistant turns; adjacent tool messages are one user turn of results."""
    results: list[ToolResult] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if message["role"] in ("tool", "function"):
            results.append(_tool_result(message, where))
            continue
        if results:
            yield Message("user", tuple(results))
            results = []
        role = "system" if message["role"] == "developer" else message["role"]
        content = list(_parts(message.get("content"), f"{where}.content"))
        if role == "assistant":
            content = [*_thinking(message), *content, *_refusal(message), *_tool_calls(message, where)]
        name = message.get("name")
        yield Message(role, tuple(content), name if isinstance(name, str) else None)
    if results:
        yield Message("user", tuple(results))


def _tool_result(message: Json, where: str) -> ToolResult:
    call_id = message.get("tool_call_id") or message.get("name")
    if not isinstance(call_id, str):
        raise InvalidRequest(f"'{where}.tool_call_id' is required.", param=f"{where}.tool_call_id")
    content = []
    for part in _parts(message.get("content"), f"{where}.content"):
        if not isinstance(part, Text | Image | Document):
            raise InvalidRequest(f"'{where}.content' of a tool is text.", param=f"{where}.content")
        content.append(part)
    return ToolResult(call_id, tuple(content))


def _parts(content: Any, where: str) -> Iterator[Block]:
    if isinstance(content, str):
        yield Text(content)
    for index, part in enumerate(content if isinstance(content, list) else ()):
        yield _part(part, f"{where}[{index}]")


def _part(part: Json, where: str) -> Block:
    cached = isinstance(part.get("cache_control"), dict)
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text, cached)
        case {"type": "refusal", "refusal": str(text)}:
            return Refusal(text)
        case {"type": "image_url", "image_url": {"url": str(url), **rest}}:
            detail = rest.get("detail")
            media_type, data = _data_url(url, where)
            remote = url if data is None else None
            return Image(media_type, data, remote, detail if isinstance(detail, str) else None, cached)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(format_)}}:
            return Audio(format_, data)
        case {"type": "file", "file": dict(file)}:
            return _file(file, where, cached=cached)
        case {"type": str(type_)} if type_ not in ("text", "image_url", "input_audio", "file", "refusal"):
            return Foreign(type_)
    raise InvalidRequest(f"'{where}' is not a content part.", param=where)


def _file(file: Json, where: str, *, cached: bool) -> Document:
    name, data, file_id = file.get("filename"), file.get("file_data"), file.get("file_id")
    media_type = None
    if isinstance(data, str):
        media_type, bare = _data_url(data, where)
        data, media_type = (bare, media_type) if bare is not None else (data, "application/pdf")
    return Document(
        media_type=media_type,
        data=data if isinstance(data, str) else None,
        file_id=file_id if isinstance(file_id, str) else None,
        title=name if isinstance(name, str) else None,
        cached=cached,
    )


def _data_url(url: str, where: str) -> tuple[str | None, str | None]:
    """Media type and base64 of a `data:` URL; none of another."""
    if url[:5].lower() != "data:":
        return None, None
    head, comma, data = url[5:].partition(",")
    media_type, _, encoding = head.rpartition(";")
    if not comma or encoding.strip().lower() != "base64":
        raise InvalidRequest(f"'{where}' is a data URL that is not base64.", param=where)
    return media_type.split(";")[0].strip().lower() or None, data


def _thinking(message: Json) -> Iterator[Block]:
    """What an answer of ours carried: `thinking_blocks` with signatures, or `reasoning_content` without."""
    blocks = message.get("thinking_blocks")
    if isinstance(blocks, list) and blocks:
        for block in blocks:
            match block:
                case {"type": "redacted_thinking", "data": str(data)}:
                    yield RedactedThinking(data)
                case {"type": "thinking", "thinking": str(text), **rest}:
                    signature = rest.get("signature")
                    yield Thinking(text, signature if isinstance(signature, str) else None)
        return
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield Thinking(reasoning)


def _refusal(message: Json) -> Iterator[Block]:
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        yield Refusal(refusal)


def _name_of(function_call: Any) -> Any:
    return function_call.get("name") if isinstance(function_call, dict) else None


def _tool_calls(message: Json, where: str) -> Iterator[Block]:
    legacy = message.get("function_call")
    calls = message.get("tool_calls") or ([{"id": _name_of(legacy), "function": legacy}] if legacy else ())
    for index, call in enumerate(calls):
        match call:
            case {"id": str(id_), "function": {"name": str(name), **rest}}:
                arguments = rest.get("arguments")
                yield ToolCall(id_, name, arguments if isinstance(arguments, str) else "")
            case _:
                param = f"{where}.tool_calls[{index}]"
                raise InvalidRequest(f"'{param}' has no id or no function.", param=param)


def _tool(tool: Json, where: str) -> Tool:
    match tool:
        case {"type": "function", "function": {"name": str(name), **rest}}:
            description, parameters, strict = rest.get("description"), rest.get("parameters"), rest.get("strict")
            return Tool(
                name=name,
                description=description if isinstance(description, str) else None,
                parameters=parameters if isinstance(parameters, dict) else None,
                strict=strict if isinstance(strict, bool) else None,
                cached=isinstance(tool.get("cache_control"), dict),
            )
        case {"type": "function"}:
            raise InvalidRequest(f"'{where}.function.name' is required.", param=f"{where}.function.name")
    raise UnsupportedParameter(f"'{where}' is no function, and this model's provider has no others.", param=where)


def _tool_choice(choice: Any) -> ToolChoice | None:
    match choice:
        case None:
            return None
        case "auto" | "required" | "none":
            return ToolChoice(choice)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice("named", name)
    raise UnsupportedParameter("'tool_choice' is 'auto', 'required', 'none' or a function here.", param="tool_choice")


def _output(format_: Any) -> OutputFormat | None:
    match format_:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return OutputFormat()
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **rest}}:
            name, strict = rest.get("name"), rest.get("strict")
            return OutputFormat(
                schema, name if isinstance(name, str) else None, strict if isinstance(strict, bool) else None
            )
    raise InvalidRequest("'response_format' is 'text', 'json_object' or a 'json_schema'.", param="response_format")


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise InvalidRequest("'stop' is a string or a list of strings.", param="stop")
    return tuple(each for each in stops if each)
