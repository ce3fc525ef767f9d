"""Anthropic's Messages, on the wire: requests as an upstream gets them.

Types: anthropic 2.12, `types/message_create_params`, `types/*_param`; what a model takes of them is in `claude`.
Sampling parameters are of version 2023-06-01 of the API, which older models still take: 2026-10-21 has none.
"""

import binascii
import hashlib
import re
from base64 import b64decode
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.translate import claude
from gateway.translate.anthropic_schema import Inexpressible, closed
from gateway.types import (
    Audio,
    Block,
    Document,
    Foreign,
    Image,
    Json,
    Message,
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

ANSWER_TOOL: Final = "ailb_answer"
"""The tool that a model without output formats is made to answer with: its input is the answer."""
_ANSWER: Final = "Gives the answer: its input is the answer itself."
_ANY_OBJECT: Final[Json] = {"type": "object", "properties": {}, "additionalProperties": True}
_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_LEAST_BUDGET: Final = 1024
_MOST_BUDGET: Final = 32_000  # tokens; Anthropic: above it the returns diminish
_TIERS: Final = {"auto": "auto", "default": "standard_only"}
# Of the output cap, for models that want a number; the rest is for the answer.
_FRACTIONS: Final = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}
_RISING: Final = ("minimal", "low", "medium", "high", "xhigh", "max")
_NO_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


def write_request(prompt: Prompt, model: str, *, max_output: int | None) -> Written:
    """The prompt as `model` takes it; `max_output` is the deployment's most output tokens, None where unknown.

    Raises `UnsupportedParameter`, and `InvalidRequest` where the conversation itself is none.
    """
    if prompt.vital or prompt.n > 1:
        param = prompt.vital[0] if prompt.vital else "n"
        raise UnsupportedParameter(f"'{param}' is nothing that this model's provider knows.", param=param)
    dropped = list(prompt.others)
    known = claude.model(model)
    system, turns = _conversation(prompt.messages, dropped)
    body: Json = {"model": model, "max_tokens": _cap(prompt, known, max_output), "messages": turns}
    if prompt.stream:
        body["stream"] = True
    if system:
        body["system"] = system
    _write_tools(prompt, known, body, dropped)
    _write_thinking(prompt, known, body, dropped)
    _write_sampling(prompt, known, body, dropped)
    _write_rest(prompt, body, dropped)
    return Written(body, tuple(dict.fromkeys(dropped)))


def _cap(prompt: Prompt, known: claude.Model, max_output: int | None) -> int:
    """Anthropic requires one, and refuses one above the model's own."""
    most = max_output or known.max_output
    return min(prompt.max_output, most) if prompt.max_output is not None else most


def _write_rest(prompt: Prompt, body: Json, dropped: list[str]) -> None:
    stops = [stop for stop in prompt.stop if stop.strip()]  # Anthropic refuses blank ones
    if stops:
        body["stop_sequences"] = stops
    if len(stops) < len(prompt.stop):
        dropped.append("stop")
    if prompt.end_user:
        body["metadata"] = {"user_id": prompt.end_user}
    if prompt.service_tier in _TIERS:
        body["service_tier"] = _TIERS[prompt.service_tier]
    elif prompt.service_tier is not None:
        dropped.append("service_tier")
    if prompt.seed is not None:
        dropped.append("seed")
    dropped += [name for name in ("frequency_penalty", "presence_penalty") if getattr(prompt, name)]


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _conversation(messages: Iterable[Message], dropped: list[str]) -> tuple[list[Json], list[Json]]:
    """The system's blocks and the turns: neighbours of one role are one turn, and none is empty."""
    system: list[Json] = []
    turns: list[Json] = []
    for message in messages:
        if message.name is not None:
            dropped.append("messages.name")
        blocks = [written for block in message.content if (written := _block(block, message.role, dropped)) is not None]
        if message.role == "system":
            system += blocks
        elif turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": message.role, "content": blocks})
    if not turns:
        raise InvalidRequest("There is no message with content.", param="messages")
    for turn in turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")  # Anthropic wants them first
    if turns[-1]["role"] == "assistant" and "text" in (last := turns[-1]["content"][-1]):
        last["text"] = last["text"].rstrip()  # a beginning for the model to go on from: it may not end in a space
    return system, turns


def _block(block: Block, role: str, dropped: list[str]) -> Json | None:
    """None where it is left out."""
    if role == "system" and not isinstance(block, Text):
        raise UnsupportedParameter("System messages are text for this model's provider.", param="messages")
    match block:
        case Text() | Refusal():
            # Anthropic refuses text without a character to see.
            return _text(block) if block.text.strip() else None
        case Image() | Document():
            return _media(block, dropped)
        case ToolCall():
            return {"type": "tool_use", "id": _id(block.id), "name": block.name, "input": _input(block)}
        case ToolResult():
            return _result(block, dropped)
        case Thinking(signature=str(signature)):
            return {"type": "thinking", "thinking": block.text, "signature": signature}
        case Thinking():  # Anthropic refuses what its model has not signed
            dropped.append("messages.reasoning_content")
            return None
        case RedactedThinking():
            return {"type": "redacted_thinking", "data": block.data}
        case Audio():
            raise UnsupportedParameter("This model's provider takes no audio.", param="messages")
        case Foreign():
            raise UnsupportedParameter(f"This model's provider has no '{block.type}' content.", param="messages")


def _text(block: Text | Refusal) -> Json:
    return _marked({"type": "text", "text": block.text}, cached=isinstance(block, Text) and block.cached)


def _marked(written: Json, *, cached: bool) -> Json:
    return {**written, "cache_control": {"type": "ephemeral"}} if cached else written


def _media(block: Image | Document, dropped: list[str]) -> Json:
    if isinstance(block, Image):
        if block.detail not in (None, "auto"):
            dropped.append("messages.image_url.detail")
        return _marked({"type": "image", "source": _image_source(block)}, cached=block.cached)
    title = {"title": block.title} if block.title else {}
    return _marked({"type": "document", "source": _document_source(block), **title}, cached=block.cached)


def _image_source(image: Image) -> Json:
    if image.data is not None and image.media_type in _IMAGES:
        return {"type": "base64", "media_type": image.media_type, "data": image.data}
    if image.url is not None and image.url[:8].lower().startswith(("https://", "http://")):
        return {"type": "url", "url": image.url}
    raise UnsupportedParameter(
        "Images are JPEG, PNG, GIF or WebP data, or an http(s) URL, for this model's provider.", param="messages"
    )


def _document_source(document: Document) -> Json:
    if document.text is not None:
        return {"type": "text", "media_type": "text/plain", "data": document.text}
    if document.data is not None and document.media_type == "application/pdf":
        return {"type": "base64", "media_type": document.media_type, "data": document.data}
    if document.data is not None and (document.media_type or "").startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": _decoded(document.data)}
    if document.url is not None:
        return {"type": "url", "url": document.url}
    if document.file_id is not None:
        return {"type": "file", "file_id": document.file_id}
    raise UnsupportedParameter("Files are PDF or text for this model's provider.", param="messages")


def _decoded(data: str) -> str:
    try:
        return b64decode(data, validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidRequest("A file's data is not base64 of text.", param="messages") from None


def _id(id_: str) -> str:
    """A tool call's id with the characters that Anthropic takes; other vendors' have dots and colons too.

    Two that differ only there stay different.
    """
    written = _NO_ID.sub("_", id_)
    if written == id_ and id_:
        return id_
    return f"{written}_{hashlib.sha256(id_.encode(errors='replace')).hexdigest()[:8]}"


def _input(call: ToolCall) -> Json:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"The arguments of the tool call '{call.id}' are not a JSON object.", param="messages")
    return arguments


def _result(result: ToolResult, dropped: list[str]) -> Json:
    written: Json = {"type": "tool_result", "tool_use_id": _id(result.call_id)}
    if content := [each for block in result.content if (each := _block(block, "user", dropped)) is not None]:
        written["content"] = content
    if result.is_error:
        written["is_error"] = True
    return _marked(written, cached=result.cached)


# ── tools, and the answer's format ──────────────────────────────────────────────────────────────────────────────────


def _write_tools(prompt: Prompt, known: claude.Model, body: Json, dropped: list[str]) -> None:
    tools = [_tool(tool, known, dropped) for tool in prompt.tools]
    choice = _choice(prompt)
    forced = choice is not None and choice["type"] in ("any", "tool")
    if (answer := _format(prompt, known, body)) is not None and not forced:
        # Where a tool is to be called anyway, the answer is that call, and has no other format.
        free = tools and (choice is None or choice["type"] == "auto")
        choice = {"type": "any"} if free else {"type": "tool", "name": ANSWER_TOOL}
        tools.append(answer)
        forced = True
    if forced and not known.forces_tools:
        raise UnsupportedParameter("This model cannot be made to call a tool.", param="tool_choice")
    if tools:
        body["tools"] = tools
    if choice is None and tools and prompt.parallel_tools is False:
        choice = {"type": "auto"}
    if choice is not None and tools:
        if prompt.parallel_tools is False and choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
        body["tool_choice"] = choice


def _tool(tool: Tool, known: claude.Model, dropped: list[str]) -> Json:
    written: Json = {"name": tool.name, "input_schema": tool.parameters or _NO_ARGUMENTS}
    if tool.description:
        written["description"] = tool.description
    if "type" not in written["input_schema"]:
        written["input_schema"] = {"type": "object", **written["input_schema"]}  # required there
    if tool.strict:
        try:
            if not known.formats:
                raise Inexpressible
            written |= {"input_schema": closed(written["input_schema"]), "strict": True}
        except Inexpressible:
            dropped.append("tools.function.strict")
    return _marked(written, cached=tool.cached)


def _choice(prompt: Prompt) -> Json | None:
    asked = prompt.tool_choice
    if asked is None:
        return None
    if asked.mode in ("required", "named") and not prompt.tools:
        raise InvalidRequest("'tool_choice' asks for a tool, and there is none in 'tools'.", param="tool_choice")
    match asked.mode:
        case "named":
            return {"type": "tool", "name": asked.name}
        case "required":
            return {"type": "any"}
    return {"type": asked.mode}


def _format(prompt: Prompt, known: claude.Model, body: Json) -> Json | None:
    """The tool that the answer is to be given by, where the model has no output format for it; else None."""
    if prompt.output is None:
        return None
    schema = prompt.output.schema
    if schema is not None and known.formats:
        try:
            body["output_config"] = {"format": {"type": "json_schema", "schema": closed(schema)}}
        except Inexpressible:
            pass
        else:
            return None
    # "Any object" is no schema that Anthropic's formats can say: theirs are closed.
    schema = _ANY_OBJECT if schema is None else schema
    if not known.forces_tools or schema.get("type") != "object":
        raise UnsupportedParameter("This model cannot answer in this format.", param="response_format")
    return {"name": ANSWER_TOOL, "description": _ANSWER, "input_schema": schema}


# ── thinking ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_thinking(prompt: Prompt, known: claude.Model, body: Json, dropped: list[str]) -> None:
    budget, effort = prompt.thinking_budget, prompt.effort
    if budget is None and effort is None:
        return
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    if budget is None and effort == "none":
        said = _write_no_thinking(known, body)
    elif budget is None and effort not in _RISING:
        said = False
    elif known.style is claude.Style.ADAPTIVE:
        said = _write_adaptive(budget, effort, known, body, forced=forced)
    else:
        said = known.style is claude.Style.BUDGET and not forced and _write_budget(budget, effort, body)
    if not said:
        dropped.append("reasoning_effort")


def _write_adaptive(budget: int | None, effort: str | None, known: claude.Model, body: Json, *, forced: bool) -> bool:
    """Whether it is as asked. A forced call skips thinking, and is refused where thinking is asked for."""
    if forced and not known.thinks_unasked:
        return False
    if not forced:
        body["thinking"] = {"type": "adaptive"}
    if effort is None or effort not in _RISING:
        effort = _effort_of(budget or 0, body["max_tokens"])
    return _write_effort(effort, known, body)


def _write_no_thinking(known: claude.Model, body: Json) -> bool:
    if not known.thinks_unasked:
        return True
    if known.off is None:
        _write_effort("low", known, body)  # the least there is
        return False
    body["thinking"] = {"type": known.off}
    return True


def _write_effort(effort: str, known: claude.Model, body: Json) -> bool:
    """The model's nearest effort that is no higher; whether that is what was asked for."""
    lower = [each for each in known.efforts if _RISING.index(each) <= _RISING.index(effort)]
    nearest = lower[-1] if lower else known.efforts[0]
    body.setdefault("output_config", {})["effort"] = nearest
    return nearest == effort or effort == "minimal"


def _effort_of(budget: int, max_tokens: int) -> str:
    """The least effort whose part of the cap holds the budget."""
    return next((effort for effort in ("low", "medium") if budget <= _FRACTIONS[effort] * max_tokens), "high")


def _write_budget(budget: int | None, effort: str | None, body: Json) -> bool:
    """Whether there is room for a budget, and the conversation allows one."""
    most = body["max_tokens"]
    if budget is None:
        budget = max(_LEAST_BUDGET, min(int(most * _FRACTIONS[effort or "high"]), _MOST_BUDGET))
    budget = min(budget, most - 1)
    if budget < _LEAST_BUDGET or _is_unsigned(body["messages"]):
        return False
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return True


def _is_unsigned(turns: list[Any]) -> bool:
    """Whether the model would go on from a turn of its own that does not begin with thinking: Anthropic refuses to let
    it think then. That is the last turn, or the one whose tools' results are the last.
    """
    last = turns[-1]
    if last["role"] != "assistant":
        if last["content"][0]["type"] != "tool_result" or len(turns) == 1:
            return False
        last = turns[-2]
    return last["content"][0]["type"] not in ("thinking", "redacted_thinking")


# ── sampling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_sampling(prompt: Prompt, known: claude.Model, body: Json, dropped: list[str]) -> None:
    """What the model takes of temperature, top_p and top_k. Their defaults say nothing: they are not told."""
    for name, value in _sampled(prompt, dropped):
        thinks = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
        allowed = known.samples and not (thinks and (name != "top_p" or value < _LEAST_THINKING_TOP_P))
        if allowed and not (known.samples_by_one and name == "top_p" and "temperature" in body):
            body[name] = value
        else:
            dropped.append(name)


_LEAST_THINKING_TOP_P: Final = 0.95  # Anthropic: with thinking, top_p is 0.95 to 1


def _sampled(prompt: Prompt, dropped: list[str]) -> Iterator[tuple[str, float]]:
    if prompt.temperature is not None:
        if prompt.temperature > 1:  # OpenAI's go to 2
            dropped.append("temperature")
        if prompt.temperature < 1:
            yield "temperature", prompt.temperature
    if prompt.top_p is not None and prompt.top_p < 1:
        yield "top_p", prompt.top_p
    if prompt.top_k is not None:
        yield "top_k", prompt.top_k
