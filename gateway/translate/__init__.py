"""From one dialect's wire format to another's, by way of the neutral form of `gateway.types`. Pure: no I/O, no clock.

One module a dialect. Of a door's and a provider's dialect:

    read_request(request: ChatRequest) -> Prompt                what a client asked for (doors' dialects)
    write_answer(completion: Completion, frame: Frame) -> Json  a plain answer for a client (doors' dialects)
    StreamWriter(frame)                                         a stream for a client (doors' dialects)
        .write(event: StreamEvent) -> bytes                     what an event's deltas are to it, framed for the wire
    write_request(prompt: Prompt, model: str, ...) -> Written   what an upstream is asked for
    read_answer(body: bytes, *, native: bool) -> Completion     an upstream's plain answer
    Events(native=...).read(data: bytes) -> StreamEvent | None  an upstream's stream, a payload at a time

What a dialect cannot express is never left out in silence: what only changes an answer's odds is left out and named
(`Written.dropped`, told to the client in `x-ailb-dropped-parameters`), anything else raises `UnsupportedParameter`.
"""

import importlib
from typing import Final

from gateway.types import ChatRequest, Dialect, Prompt

STOP_REASONS: Final = {
    Dialect.OPENAI: frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"}),
    Dialect.ANTHROPIC: frozenset(
        {"end_turn", "stop_sequence", "max_tokens", "tool_use", "refusal", "pause_turn"}
        | {"model_context_window_exceeded"}
    ),
    Dialect.OLLAMA: frozenset({"stop", "length", "load", "unload"}),
}
"""The upstreams' words that we know, by dialect. Any other is shown as an ordinary end, and counted."""


def read_request(request: ChatRequest) -> Prompt:
    """The request in the neutral form. Raises `InvalidRequest` where its parts contradict each other."""
    prompt: Prompt = importlib.import_module(f"{__name__}.{request.dialect}").read_request(request)
    return prompt
