"""What a request needs of a deployment. A leaf of the data plane: pure, and it reads either dialect's body.

A deployment says of each capability that it has it, has it not, or nothing: then it counts as there. One that a request
needs and that a deployment has not takes the deployment out, before any strategy looks at it.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway.types import ChatRequest

CAPABILITIES: Final[Mapping[str, str]] = {
    "chat": "answering in a conversation, as embedding models do not",
    "streaming": "streaming",
    "tools": "tools",
    "vision": "images",
    "audio": "audio",
    "documents": "documents",
    "json_schema": "output by a JSON schema",
}
"""By name, as a refusal says it."""

_PARTS: Final = {
    "image_url": "vision",
    "image": "vision",
    "input_audio": "audio",
    "file": "documents",
    "document": "documents",
    "tool_use": "tools",
    "tool_result": "tools",
}
"""Content parts of both dialects."""


def needs(request: ChatRequest) -> set[str]:
    """The capabilities without which `request` cannot be served."""
    body = request.body
    found = {"chat"}
    if request.stream:
        found.add("streaming")
    if body.get("tools") or body.get("functions"):
        found.add("tools")
    if _wants_schema(body):
        found.add("json_schema")
    if body.get("audio") or "audio" in (body.get("modalities") or ()):
        found.add("audio")
    for message in body["messages"]:
        if message.get("tool_calls") or message.get("function_call") or message["role"] in ("tool", "function"):
            found.add("tools")
        if isinstance(content := message.get("content"), list):
            found.update(_of_parts(content))
    return found


def _wants_schema(body: Mapping[str, Any]) -> bool:
    """OpenAI's `response_format`; Anthropic's `output_format`, and the newer `output_config.format`."""
    config = body.get("output_config")
    formats = (
        body.get("response_format"),
        body.get("output_format"),
        isinstance(config, dict) and config.get("format"),
    )
    return any(isinstance(form, dict) and form.get("type") == "json_schema" for form in formats)


def _of_parts(parts: Iterable[Any]) -> set[str]:
    found = set()
    for part in parts:
        if isinstance(part, dict) and (need := _PARTS.get(part.get("type", ""))) is not None:
            found.add(need)
            if isinstance(nested := part.get("content"), list):  # a tool's result may be an image
                found |= _of_parts(nested)
    return found
