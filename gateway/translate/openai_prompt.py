"""OpenAI's chat completions, on the wire: what an upstream is asked for.

Types: openai-python 3.54, `types/chat/completion_create_params`.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from gateway.errors import UnsupportedParameter
from gateway.types import (
    Audio,
    Block,
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
    ToolResult,
    Written,
)  # fmt: skip

_MOST_STOPS: Final = 4
# Of OpenAI's own names: models that think, take `reasoning_effort`, and refuse what steers sampling
# (platform.openai.com/docs/guides/reasoning, "Limitations"; guides/latest-model, "parameter compatibility").
_REASONS: Final = re.compile(r"(.*/)?(o\d|gpt-[5-9]|gpt-oss)")
_BUDGETS: Final = ((2_048, "low"), (8_192, "medium"))
"""Thinking tokens that a client of Anthropic's names, and the effort they stand for; beyond them it is high."""
_EFFORTS: Final = frozenset({"none", "minimal", "low", "medium", "high", "xhigh"})


def write_request(prompt: Prompt, model: str, *, output_cap: str = "max_completion_tokens") -> Written:
    """A prompt for an OpenAI-compatible upstream; `output_cap` is its name for that.

    Raises `UnsupportedParameter` for what a chat completion cannot carry.
    """
    if prompt.vital:
        raise UnsupportedParameter(
            f"'{prompt.vital[0]}' is not supported by this model's provider.", param=prompt.vital[0]
        )
    dropped = list(prompt.others)
    body: Json = {"model": model, "messages": list(_written_messages(prompt.messages, dropped))}
    if prompt.max_output is not None:
        body[output_cap] = prompt.max_output
    _sampling(prompt, model, body, dropped)
    _tools(prompt, body)
    if prompt.output is not None:
        body["response_format"] = _response_format(prompt.output)
    if prompt.n > 1:
        body["n"] = prompt.n
    if prompt.end_user is not None:
        body["user"] = prompt.end_user
    if prompt.service_tier not in (None, "auto"):
        body["service_tier"] = prompt.service_tier
    if prompt.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Written(body, tuple(dict.fromkeys(dropped)))


def reasons(model: str) -> bool:
    """Whether a model of this name thinks before it answers, and takes its parameters accordingly."""
    return _REASONS.match(model) is not None


def _sampling(prompt: Prompt, model: str, body: Json, dropped: list[str]) -> None:
    thinks = reasons(model)
    effort = _effort(prompt)
    if effort is not None and thinks:
        body["reasoning_effort"] = effort
    elif effort not in (None, "none"):
        dropped.append("reasoning_effort")
    named = {
        "temperature": prompt.temperature,
        "top_p": prompt.top_p,
        "frequency_penalty": prompt.frequency_penalty,
        "presence_penalty": prompt.presence_penalty,
        "stop": list(prompt.stop[:_MOST_STOPS]) or None,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if thinks:
        dropped += given
    else:
        body |= given
    if prompt.seed is not None:
        body["seed"] = prompt.seed
    if prompt.top_k is not None:
        dropped.append("top_k")
    if len(prompt.stop) > _MOST_STOPS:
        dropped.append("stop")


def _effort(prompt: Prompt) -> str | None:
    if prompt.effort is not None:
        return prompt.effort if prompt.effort in _EFFORTS else "xhigh"
    if prompt.thinking_budget is None:
        return None
    return next((effort for most, effort in _BUDGETS if prompt.thinking_budget <= most), "high")


def _tools(prompt: Prompt, body: Json) -> None:
    if not prompt.tools:
        return
    body["tools"] = [{"type": "function", "function": _function(tool)} for tool in prompt.tools]
    if prompt.tool_choice is not None:
        choice = prompt.tool_choice
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.mode == "named" else choice.mode
    if prompt.parallel_tools is not None:
        body["parallel_tool_calls"] = prompt.parallel_tools


def _function(tool: Tool) -> Json:
    function: Json = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _response_format(output: OutputFormat) -> Json:
    if output.schema is None:
        return {"type": "json_object"}
    strict = output.strict if output.strict is not None else _is_strict(output.schema)
    schema = {"name": output.name or "answer", "schema": output.schema, "strict": strict}
    return {"type": "json_schema", "json_schema": schema}


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI would hold an answer to the schema to the letter: each object closed, each property required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        required = schema.get("required")
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return False
        if not isinstance(required, list) or any(name not in required for name in properties):
            return False
    return all(map(_is_strict, schema.values()))


def _written_messages(messages: tuple[Message, ...], dropped: list[str]) -> Iterator[Json]:
    for message in messages:
        if message.role == "assistant":
            yield _assistant(message, dropped)
        elif message.role == "system":
            yield _named({"role": "system", "content": _content(message.content)}, message)
        else:
            yield from _user(message)


def _user(message: Message) -> Iterator[Json]:
    """A user's turn: its tool results as messages of their own, and their images where a user may show them."""
    rest: list[Block] = []
    shown: list[Block] = []
    for block in message.content:
        if not isinstance(block, ToolResult):
            rest.append(block)
            continue
        texts = [part for part in block.content if isinstance(part, Text)]
        shown += [part for part in block.content if not isinstance(part, Text)]
        if block.is_error:  # there is no field for it
            texts = [Text("Error: " + (texts[0].text if texts else "")), *texts[1:]]
        yield {"role": "tool", "tool_call_id": block.call_id, "content": _content(tuple(texts))}
    if shown or rest or not message.content:
        yield _named({"role": "user", "content": _content((*shown, *rest))}, message)


def _assistant(message: Message, dropped: list[str]) -> Json:
    said: list[Block] = []
    calls: list[Json] = []
    for block in message.content:
        match block:
            case ToolCall():
                function = {"name": block.name, "arguments": block.arguments or "{}"}
                calls.append({"id": block.id, "type": "function", "function": function})
            case Thinking() | RedactedThinking():
                dropped.append("messages.reasoning_content")
            case _:
                said.append(block)
    written: Json = {"role": "assistant", "content": _content(tuple(said)) if said or not calls else None}
    if calls:
        written["tool_calls"] = calls
    return _named(written, message)


def _named(written: Json, message: Message) -> Json:
    return written if message.name is None else {**written, "name": message.name}


def _content(blocks: tuple[Block, ...]) -> str | list[Json]:
    """A single text as the string that every server takes; else parts."""
    if not blocks:
        return ""
    if len(blocks) == 1 and isinstance(blocks[0], Text):
        return blocks[0].text
    return [_written_part(block) for block in blocks]


def _written_part(block: Block) -> Json:
    match block:
        case Text(text):
            return {"type": "text", "text": text}
        case Refusal(text):
            return {"type": "refusal", "refusal": text}
        case Image():
            url = block.url if block.data is None else f"data:{block.media_type};base64,{block.data}"
            return {"type": "image_url", "image_url": {"url": url} | ({"detail": block.detail} if block.detail else {})}
        case Audio():
            return {"type": "input_audio", "input_audio": {"data": block.data, "format": block.format}}
        case Document(text=str(text)):
            return {"type": "text", "text": text if block.title is None else f"{block.title}\n\n{text}"}
        case Document(data=str(data)):
            url = f"data:{block.media_type or 'application/pdf'};base64,{data}"
            return {"type": "file", "file": {"filename": block.title or "document.pdf", "file_data": url}}
        case Foreign(type_):
            raise UnsupportedParameter(f"'{type_}' is not supported by this model's provider.", param="messages")
    raise UnsupportedParameter("A document by reference is not supported by this model's provider.", param="messages")
