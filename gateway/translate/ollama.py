"""Ollama's `/api/chat`, on the wire. No door speaks it: requests are written, answers and streams read.

Types: ollama-python 0.6.3, `ollama/_types.py`, and Ollama's `api/types.go`, which has more: `truncate` and `shift`,
ids of tool calls, `prompt_eval_cached_count`. Older servers ignore fields that they do not know, and leave some out.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.translate import events
from gateway.types import (
    Answer,
    Block,
    BlockEnd,
    Completion,
    Delta,
    Document,
    Finish,
    Image,
    Json,
    Message,
    Prompt,
    RedactedThinking,
    Refusal,
    Stop,
    StreamEvent,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
    ToolResult,
    Usage,
    Written,
)

# ── an upstream's request ───────────────────────────────────────────────────────────────────────────────────────────

# Models that take words for how much they think, and cannot be told not to (docs.ollama.com/capabilities/thinking);
# all others are asked with true or false.
_LEVELS: Final = re.compile(r"(.*/)?gpt-oss")
_WORDS: Final = {"none": "low", "minimal": "low", "low": "low", "medium": "medium"}
"""Any other is "high": of more, gpt-oss knows nothing."""
_OFF: Final = frozenset({"none", "minimal"})
_NO_ARGUMENTS: Final[Json] = {"type": "object", "properties": {}}


def write_request(prompt: Prompt, model: str, *, context_window: int | None) -> Written:
    """A prompt for Ollama; `context_window` in tokens, where known, is asked for as `num_ctx`.

    Raises `UnsupportedParameter` for what Ollama cannot carry, `InvalidRequest` for tool calls that are none.
    """
    _refuse_vital(prompt)
    dropped = list(prompt.others)
    body: Json = {
        "model": model,
        "messages": list(_messages(prompt.messages, dropped)),
        "stream": prompt.stream,
        # A prompt that is too long is an error: by default Ollama cuts it without a word (ollama#4967), or drops the
        # conversation's beginning while it answers.
        "truncate": False,
        "shift": False,
    }
    if options := _options(prompt, context_window):
        body["options"] = options
    if tools := _tools(prompt, dropped):
        body["tools"] = tools
    if prompt.output is not None:
        body["format"] = prompt.output.schema if prompt.output.schema is not None else "json"
    think = _think(prompt, model, dropped)
    if think is not None:
        body["think"] = think
    if prompt.service_tier not in (None, "auto"):
        dropped.append("service_tier")
    return Written(body, tuple(dict.fromkeys(dropped)))


def _refuse_vital(prompt: Prompt) -> None:
    names = [*(["n"] if prompt.n > 1 else []), *prompt.vital]
    if names:
        raise UnsupportedParameter(f"'{names[0]}' is not supported by this model's provider.", param=names[0])


def _options(prompt: Prompt, context_window: int | None) -> Json:
    named = {
        "num_predict": prompt.max_output,
        "temperature": prompt.temperature,
        "top_p": prompt.top_p,
        "top_k": prompt.top_k,
        "stop": list(prompt.stop) or None,
        "seed": prompt.seed,
        "frequency_penalty": prompt.frequency_penalty,
        "presence_penalty": prompt.presence_penalty,
        "num_ctx": context_window,
    }
    return {name: value for name, value in named.items() if value is not None}


def _think(prompt: Prompt, model: str, dropped: list[str]) -> bool | str | None:
    """None where the client said nothing: a model that cannot think refuses to be asked."""
    effort = prompt.effort
    if effort is None:
        if prompt.thinking_budget is None:
            return None
        dropped.append("thinking.budget_tokens")
        return True
    think: bool | str = effort not in _OFF
    exact = effort == "none"
    if _LEVELS.match(model):
        think = _WORDS.get(effort, "high")
        exact = think == effort
    if not exact:
        dropped.append("reasoning_effort")
    return think


def _tools(prompt: Prompt, dropped: list[str]) -> list[Json]:
    """Those that the model may call: what cannot be asked for is at least made likely."""
    tools, choice = prompt.tools, prompt.tool_choice
    if choice is not None and choice.mode == "none":
        return []
    if choice is not None and choice.mode != "auto":
        dropped.append("tool_choice")
        if choice.mode == "named":
            tools = tuple(tool for tool in tools if tool.name == choice.name)
            if not tools:
                raise InvalidRequest("'tool_choice' names a function that is not among 'tools'.", param="tool_choice")
    if tools and prompt.parallel_tools is False:
        dropped.append("parallel_tool_calls")
    if any(tool.strict for tool in tools):
        dropped.append("tools.strict")
    return [_tool(tool) for tool in tools]


def _tool(tool: Tool) -> Json:
    function: Json = {"name": tool.name, "parameters": tool.parameters or _NO_ARGUMENTS}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _messages(messages: Iterable[Message], dropped: list[str]) -> Iterator[Json]:
    tools: dict[str, str] = {}
    """By the id of a call, the tool that was called."""
    for message in messages:
        if message.name is not None:
            dropped.append("messages.name")
        if message.role == "assistant":
            tools |= {block.id: block.name for block in message.content if isinstance(block, ToolCall)}
            yield _assistant(message.content, dropped)
        else:
            yield from _told(message, tools, dropped)


def _told(message: Message, tools: dict[str, str], dropped: list[str]) -> Iterator[Json]:
    """A system's or user's turn: tool results as messages of their own, with their images where a user shows them."""
    texts: list[str] = []
    images: list[str] = []
    for block in message.content:
        if isinstance(block, ToolResult):
            yield _tool_result(block, tools)
            images += [_image(part, dropped) for part in block.content if isinstance(part, Image)]
        elif isinstance(block, Image):
            images.append(_image(block, dropped))
        else:
            texts.append(_text(block))
    if texts or images or not message.content:
        written: Json = {"role": message.role, "content": "\n\n".join(texts)}
        yield {**written, "images": images} if images else written


def _tool_result(result: ToolResult, tools: dict[str, str]) -> Json:
    said = "\n\n".join(_text(part) for part in result.content if not isinstance(part, Image))
    written: Json = {
        "role": "tool",
        "content": f"Error: {said}" if result.is_error else said,  # there is no field for it
        "tool_call_id": result.call_id,
    }
    name = tools.get(result.call_id)
    return written if name is None else {**written, "tool_name": name}


def _assistant(content: Sequence[Block], dropped: list[str]) -> Json:
    said: list[str] = []
    thought: list[str] = []
    calls: list[Json] = []
    for block in content:
        if isinstance(block, ToolCall):
            function = {"name": block.name, "arguments": _arguments(block)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, Thinking):
            thought.append(block.text)
        elif isinstance(block, RedactedThinking):
            dropped.append("messages.redacted_thinking")
        else:
            said.append(_text(block))
    written: Json = {"role": "assistant", "content": "".join(said)}
    if thought:
        written["thinking"] = "".join(thought)
    return {**written, "tool_calls": calls} if calls else written


def _arguments(call: ToolCall) -> Json:
    """Ollama takes an object, and nothing that only almost is one."""
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"The arguments of tool call '{call.id[:100]}' are no JSON object.", param="messages")
    return arguments


def _text(block: Block) -> str:
    """What can be said in words. Raises `UnsupportedParameter` for anything else."""
    if isinstance(block, Text | Refusal):
        return block.text
    if isinstance(block, Document):
        said = _document(block)
        return f"{block.title}\n\n{said}" if block.title else said
    raise UnsupportedParameter(
        f"Content of type '{getattr(block, 'type', type(block).__name__.lower())}' is not supported by this model's "
        "provider.",
        param="messages",
    )


def _document(document: Document) -> str:
    if document.text is not None:
        return document.text
    if document.data is None or not (document.media_type or "").startswith("text/"):
        raise UnsupportedParameter("This model's provider takes documents of plain text only.", param="messages")
    try:
        return base64.b64decode(document.data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidRequest("A text document is not UTF-8 in base64.", param="messages") from None


def _image(image: Image, dropped: list[str]) -> str:
    if image.data is None:
        raise UnsupportedParameter("This model's provider fetches no images: send them as base64.", param="messages")
    if image.detail not in (None, "auto"):
        dropped.append("image_url.detail")
    return image.data


# ── an upstream's answer ────────────────────────────────────────────────────────────────────────────────────────────

_STOPS: Final = {
    "stop": Stop.END,
    # Also where the context is full, since `shift` is off: Ollama has one word for both.
    "length": Stop.LENGTH,
    # Of requests without messages, that only load a model or drop it.
    "load": Stop.END,
    "unload": Stop.END,
}


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()  # nothing, and immutable

    @property
    def written(self) -> str:
        """The arguments as JSON. An object on Ollama's wire; some servers send JSON in a string."""
        raw = bytes(self.arguments)
        if raw.startswith(b'"'):
            return msgspec.json.decode(raw, type=str) or "{}"
        return raw.decode() if raw not in (b"", b"null") else "{}"


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None

    @property
    def text(self) -> str:
        """Everything that costs output tokens."""
        text = (self.thinking or "") + (self.content or "")
        for call in self.tool_calls or ():
            text += call.function.name + call.function.written
        return text


class _Line(msgspec.Struct):
    """A plain answer, or one line of a stream."""

    model: str | None = None
    created_at: str | None = None
    message: _Message | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    prompt_eval_cached_count: int | None = None
    eval_count: int | None = None
    error: Any = None


_lines = msgspec.json.Decoder(_Line)


def read_answer(body: bytes, *, native: bool = False) -> Completion:
    """A plain answer in the neutral form; `native` is never asked for. Raises `msgspec.MsgspecError`."""
    answer = _lines.decode(body)
    if answer.message is None:
        raise msgspec.ValidationError("Object missing required field `message`")
    message = answer.message
    calls = [_call(call, answer, index) for index, call in enumerate(message.tool_calls or ())]
    content: list[Block] = [Thinking(message.thinking)] if message.thinking else []
    content += [Text(message.content)] if message.content else []
    text = message.text
    return Completion(
        answer=Answer(
            content=(*content, *calls),
            stop=_stop(answer.done_reason, called=bool(calls)),
        ),
        usage=_usage(answer, said=bool(text)),
        text=text,
        spoken=_spoken(message),
        served_model=answer.model,
        finish_reason=answer.done_reason or "stop",
    )


def _spoken(message: "_Message | None") -> str | None:
    """What of its text is said to the user; None where that is all of it."""
    hidden = message is not None and (message.thinking or message.tool_calls)
    return (message.content or "") if message is not None and hidden else None


def _stop(reason: str | None, *, called: bool) -> Stop:
    """Ollama says `stop` after tool calls too, and older servers say nothing."""
    stop = _STOPS.get(reason or "stop", Stop.UNKNOWN)
    return Stop.TOOL_CALLS if called and stop is Stop.END else stop


def _call(call: _ToolCall, line: _Line, index: int) -> ToolCall:
    """With an id where the server gives none: unique in a conversation, since lines are made at different times."""
    name, arguments = call.function.name, call.function.written
    made = f"{line.created_at}/{index}/{name}/{arguments}"
    return ToolCall(call.id or f"call_{hashlib.sha256(made.encode()).hexdigest()[:24]}", name, arguments)


def _usage(line: _Line, *, said: bool) -> Usage | None:
    """None where a count is missing, so that it is estimated and not billed as 0.

    Servers up to 0.2 leave `prompt_eval_count` out where the prompt was cached (ollama#2068, #5371). Go leaves out
    counts of 0: without `eval_count` nothing was said, or it was not counted. Cached tokens are part of the prompt's.
    """
    if not line.prompt_eval_count or (said and not line.eval_count):
        return None
    cached = min(line.prompt_eval_cached_count or 0, line.prompt_eval_count)
    return Usage(line.prompt_eval_count, line.eval_count or 0, cached_tokens=cached)


# ── an upstream's stream ────────────────────────────────────────────────────────────────────────────────────────────


class Events(events.Events):
    """Lines of JSON, the last of which says `done`. A tool call comes whole, in any line."""

    def __init__(self, *, native: bool = False) -> None:
        super().__init__(native=native)
        self._calls = 0
        self._said = False

    def read(self, data: bytes) -> StreamEvent | None:
        line = _lines.decode(data)
        if line.error is not None:
            raise events.ErrorEvent(line.error)
        text = line.message.text if line.message is not None else ""
        deltas = list(self._deltas(line, line.message)) if line.message is not None else []
        self._said = self._said or bool(text)
        if line.done:
            self.done = True
            deltas.append(Finish(_stop(line.done_reason, called=bool(self._calls))))
        return StreamEvent(
            text=text,
            content=bool(text),
            finish_reason=(line.done_reason or "stop") if line.done else None,
            usage=_usage(line, said=self._said) if line.done else None,
            served_model=line.model,
            deltas=tuple(deltas),
            spoken=_spoken(line.message),
        )

    def _deltas(self, line: _Line, message: _Message) -> Iterator[Delta]:
        if message.thinking:
            yield ThinkingDelta(message.thinking)
        if message.content:
            yield TextDelta(message.content)
        for call in message.tool_calls or ():
            index, self._calls = self._calls, self._calls + 1
            whole = _call(call, line, index)
            yield ToolCallStart(index, whole.id, whole.name)
            yield ToolCallDelta(index, whole.arguments)
            yield BlockEnd()
