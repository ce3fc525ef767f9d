"""Anthropic's Messages, on the wire: requests as clients send them.

Types: anthropic 2.12, `types/message_create_params`, `types/*_param`. Its `messages` may hold system turns too: Claude
Code sends them.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.translate import fields
from gateway.types import (
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
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)  # fmt: skip

_encode = msgspec.json.Encoder().encode

_READ: Final = frozenset(
    {"model", "messages", "max_tokens", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences", "tools"}
    | {"tool_choice", "thinking", "output_config", "output_format", "metadata", "service_tier"}
)
# Without these the answer would not be the one that was asked for.
_VITAL: Final = frozenset({"mcp_servers", "container"})
_SPEECHLESS: Final[tuple[Any, ...]] = ({}, [], None, False, 0, "")
"""Values of a parameter that ask for nothing."""
_TOOL_FIELDS: Final = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_ROLES: Final = frozenset({"user", "assistant", "system"})
_DEFAULT_EFFORT: Final = "high"
"""What adaptive thinking is at where nothing is said; of most models, says "Effort"."""
_TIERS: Final = {"auto": "auto", "standard_only": "default"}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def read_request(request: ChatRequest) -> Prompt:
    """A client's messages request in the neutral form. Raises `InvalidRequest` for parts that are none."""
    body = request.body
    config = fields.object_(body, "output_config")
    thinking = fields.object_(body, "thinking")
    choice = fields.object_(body, "tool_choice")
    tools = fields.list_(body, "tools")
    system = tuple(_system(body.get("system"), "system"))
    return Prompt(
        messages=((Message("system", system),) if system else ()) + tuple(_messages(fields.list_(body, "messages"))),
        stream=request.stream,
        max_output=request.max_output,
        temperature=fields.number(body, "temperature"),
        top_p=fields.number(body, "top_p"),
        top_k=fields.integer(body, "top_k"),
        stop=_stops(body),
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools) if not _is_server_tool(tool)),
        tool_choice=_choice(choice),
        parallel_tools=False if choice.get("disable_parallel_tool_use") is True else None,
        output=_output(config.get("format") or body.get("output_format")),
        effort=_effort(thinking, config),
        thinking_budget=fields.integer(thinking, "budget_tokens") if thinking.get("type") == "enabled" else None,
        end_user=fields.string(fields.object_(body, "metadata"), "user_id"),
        service_tier=_TIERS.get(fields.string(body, "service_tier") or ""),
        others=tuple(_others(body, config, tools)),
        vital=tuple(_vital(body, tools)),
    )


def _vital(body: Json, tools: list[Any]) -> Iterator[str]:
    yield from (name for name in sorted(_VITAL) if body.get(name) not in _SPEECHLESS)
    yield from (f"tools[{i}]" for i, tool in enumerate(tools) if _is_server_tool(tool))


def _others(body: Json, config: Json, tools: list[Any]) -> Iterator[str]:
    known = _READ | _VITAL
    yield from (name for name, value in body.items() if name not in known and value not in _SPEECHLESS)
    yield from (f"output_config.{name}" for name in config if name not in ("effort", "format"))
    for index, tool in enumerate(tools):
        if isinstance(tool, dict) and not _is_server_tool(tool):
            more = (name for name, value in tool.items() if name not in _TOOL_FIELDS and value not in _SPEECHLESS)
            yield from (f"tools[{index}].{name}" for name in more)


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _messages(messages: list[Any]) -> Iterator[Message]:
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise InvalidRequest(f"'{where}.role' is 'user' or 'assistant'.", param=f"{where}.role")
        if role == "system":
            yield Message(role, tuple(_system(message.get("content"), f"{where}.content")))
        else:
            yield Message(role, _ordered(_blocks(message.get("content"), f"{where}.content")))


def _ordered(blocks: Iterator[Block]) -> tuple[Block, ...]:
    """Results of tools first, as the neutral form has them."""
    return tuple(sorted(blocks, key=lambda block: not isinstance(block, ToolResult)))


def _system(content: Any, where: str) -> Iterator[Text]:
    for index, block in enumerate(_blocks(content if content is not None else [], where)):
        if not isinstance(block, Text):
            raise InvalidRequest(f"'{where}' is text.", param=f"{where}[{index}]")
        yield block


def _blocks(content: Any, where: str) -> Iterator[Block]:
    if isinstance(content, str):
        yield Text(content)
    elif isinstance(content, list):
        for index, block in enumerate(content):
            yield _block(block, f"{where}[{index}]")
    else:
        raise InvalidRequest(f"'{where}' is a string or a list of blocks.", param=where)


def _block(block: Any, where: str) -> Block:
    cached = isinstance(block, dict) and isinstance(block.get("cache_control"), dict)
    match block:
        case {"type": "text", "text": str(text)}:
            return Text(text, cached)
        case {"type": "image", "source": dict(source)}:
            return _image(source, where, cached=cached)
        case {"type": "document", "source": dict(source)}:
            return _document(block, source, where, cached=cached)
        case {"type": "thinking", "thinking": str(text)}:
            return Thinking(text, fields.string(block, "signature") or None)
        case {"type": "redacted_thinking", "data": str(data)}:
            return RedactedThinking(data)
        case {"type": "tool_use", "id": str(id_), "name": str(name), "input": dict(input_)}:
            return ToolCall(id_, name, _encode(input_).decode())
        case {"type": "tool_result", "tool_use_id": str(id_)}:
            content = tuple(_result(block.get("content"), f"{where}.content"))
            return ToolResult(id_, content, block.get("is_error") is True, cached)
        case {"type": str(type_)} if type_ not in _KNOWN:
            return Foreign(type_)
    raise InvalidRequest(f"'{where}' is not a content block.", param=where)


_KNOWN: Final = frozenset(
    {"text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result"}
)  # fmt: skip


def _result(content: Any, where: str) -> Iterator[Text | Image | Document]:
    for index, block in enumerate(_blocks(content if content is not None else [], where)):
        if not isinstance(block, Text | Image | Document):
            param = f"{where}[{index}]"
            raise UnsupportedParameter(f"'{param}' is nothing that this model's provider knows.", param=param)
        yield block


def _image(source: Json, where: str, *, cached: bool) -> Image | Foreign:
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return Image(media_type, data, cached=cached)
        case {"type": "url", "url": str(url)}:
            return Image(url=url, cached=cached)
        case {"type": str(type_)} if type_ not in ("base64", "url"):
            return Foreign("image")
    raise InvalidRequest(f"'{where}.source' is not an image's.", param=f"{where}.source")


def _document(block: Json, source: Json, where: str, *, cached: bool) -> Document | Foreign:
    said = (fields.string(block, "title"), fields.string(block, "context"))  # both are there for the model to read
    title = ": ".join(part for part in said if part) or None
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return Document(media_type=media_type, data=data, title=title, cached=cached)
        case {"type": "text", "data": str(text)} | {"type": "content", "content": str(text)}:
            return Document(media_type="text/plain", text=text, title=title, cached=cached)
        case {"type": "url", "url": str(url)}:
            return Document(url=url, title=title, cached=cached)
        case {"type": "file", "file_id": str(file_id)}:
            return Document(file_id=file_id, title=title, cached=cached)
        case {"type": str(type_)} if type_ not in ("base64", "text", "url", "file"):
            return Foreign("document")
    raise InvalidRequest(f"'{where}.source' is not a document's.", param=f"{where}.source")


# ── tools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_server_tool(tool: Any) -> bool:
    """Whether Anthropic runs it, or taught its models: nobody else has it."""
    return isinstance(tool, dict) and tool.get("type") not in (None, "custom")


def _tool(tool: Any, where: str) -> Tool:
    if not isinstance(tool, dict):
        raise InvalidRequest(f"'{where}' is not a tool.", param=where)
    name, schema, strict = fields.string(tool, "name"), tool.get("input_schema"), tool.get("strict")
    if not name:
        raise InvalidRequest(f"'{where}.name' is required.", param=f"{where}.name")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidRequest(f"'{where}.input_schema' is an object.", param=f"{where}.input_schema")
    return Tool(
        name=name,
        description=fields.string(tool, "description"),
        parameters=schema,
        strict=strict if isinstance(strict, bool) else None,
        cached=isinstance(tool.get("cache_control"), dict),
    )


def _choice(choice: Json) -> ToolChoice | None:
    match choice:
        case {"type": "auto" | "any" | "none" as mode}:
            return ToolChoice(_CHOICES[mode])
        case {"type": "tool", "name": str(name)}:
            return ToolChoice("named", name)
    if choice:
        raise InvalidRequest("'tool_choice' is of type 'auto', 'any', 'tool' or 'none'.", param="tool_choice")
    return None


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _effort(thinking: Json, config: Json) -> str | None:
    match thinking.get("type"):
        case "disabled" | "between_tools":
            return "none"
        case "adaptive":
            return fields.string(config, "effort") or _DEFAULT_EFFORT
        case None | "enabled":
            return fields.string(config, "effort")
    raise InvalidRequest("'thinking.type' is 'adaptive', 'enabled' or 'disabled'.", param="thinking.type")


def _output(format_: Any) -> OutputFormat | None:
    match format_:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return OutputFormat(schema)
    raise InvalidRequest("'output_config.format' is a 'json_schema' with its 'schema'.", param="output_config.format")


def _stops(body: Json) -> tuple[str, ...]:
    stops = fields.list_(body, "stop_sequences")
    if not all(isinstance(each, str) for each in stops):
        raise InvalidRequest("'stop_sequences' is a list of strings.", param="stop_sequences")
    return tuple(stops)
