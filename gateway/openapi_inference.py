"""The inference endpoints in the OpenAPI document: consumers, which no generator reads."""

from typing import Any, Final

from gateway.routing import strategies

Node = dict[str, Any]

_STRING: Final[Node] = {"type": "string"}
_NAME: Final[Node] = {"type": "string", "minLength": 1, "maxLength": 200}
_TOKENS: Final[Node] = {"type": "integer", "minimum": 1, "maximum": 2**31}
_OBJECTS: Final[Node] = {"type": "array", "items": {"type": "object"}}
_TEXT_OR_PARTS: Final[Node] = {"oneOf": [_STRING, _OBJECTS]}

_REQUEST_HEADERS: Final = {
    "X-Session-ID": "`session_id`",
    "X-Routing-Strategy": "`routing_strategy`",
    "X-Preferred-Model": "The model, where `model` is absent.",
    "X-AILB-Tags": "`tags`, comma-separated.",
}
_ANSWER_HEADERS: Final = {
    "x-request-id": "The ledger's id of the request.",
    "x-ailb-provider": "Who served it.",
    "x-ailb-model": "The deployment that served it.",
    "x-ailb-attempts": "How many calls it took.",
    "x-ailb-cost-usd": "Where it is known when the headers go out.",
    "x-ailb-dropped-parameters": "What the provider's dialect could not express and was left out.",
}


def _operation(id_: str, summary: str, description: str, request: str, answer: str) -> Node:
    return {
        "operationId": id_,
        "tags": ["v1"],
        "summary": summary,
        "description": description,
        "security": [{"virtualKey": []}],
        "parameters": [
            {"in": "header", "name": name, "schema": _STRING, "description": text}
            for name, text in _REQUEST_HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{request}"}}},
        },
        "responses": {
            "200": {
                "description": answer,
                "headers": {name: {"schema": _STRING, "description": text} for name, text in _ANSWER_HEADERS.items()},
                "content": {
                    "application/json": {"schema": {"type": "object", "additionalProperties": True}},
                    "text/event-stream": {"schema": _STRING},
                },
            }
        },
    }


_COUNT: Final = _operation(
    "count_message_tokens",
    "How many tokens a Messages request is.",
    "Anthropic's own count where it serves the model, an estimate elsewhere. Free, and not on the ledger.",
    "MessagesCountRequest",
    "The count.",
)
_COUNT["responses"]["200"] = {
    "description": "The count.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["input_tokens"],
                "properties": {"input_tokens": {"type": "integer", "minimum": 1}},
            }
        }
    },
}

OPERATIONS: Final[dict[str, Node]] = {
    "/v1/chat/completions": _operation(
        "create_chat_completion",
        "OpenAI Chat Completions, served by any provider.",
        "Parameters that are not listed pass through to an OpenAI-compatible upstream unchanged; of any other, what "
        "its dialect cannot express is refused with 400 or named in `x-ailb-dropped-parameters`.",
        "ChatCompletionRequest",
        "The completion; with `stream`, `chat.completion.chunk` events that end in `data: [DONE]`.",
    ),
    "/v1/messages": _operation(
        "create_message",
        "Anthropic Messages, served by any provider.",
        "Parameters that are not listed pass through to Anthropic unchanged; of any other upstream, what its dialect "
        "cannot express is refused with 400 or named in `x-ailb-dropped-parameters`.",
        "MessagesRequest",
        "The message; with `stream`, Anthropic's events that end in `message_stop`.",
    ),
    "/v1/messages/count_tokens": _COUNT,
}
"""POST, by path."""


def schemas() -> dict[str, Node]:
    """Components that the operations refer to."""
    return {
        "OpenAIError": _OPENAI_ERROR,
        "AnthropicError": _ANTHROPIC_ERROR,
        "ChatCompletionRequest": _chat_request(),
        "MessagesRequest": _messages_request(["messages", "max_tokens"]),
        "MessagesCountRequest": _messages_request(["messages"]),
    }


_OPENAI_ERROR: Final[Node] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _STRING,
                "type": _STRING,
                "param": {**_STRING, "nullable": True},
                "code": {**_STRING, "nullable": True},
            },
        }
    },
}

_ANTHROPIC_ERROR: Final[Node] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"type": "string", "enum": ["error"]},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _STRING, "message": _STRING},
        },
        "request_id": _STRING,
    },
}


def _own_fields() -> Node:
    return {
        "model": {
            **_NAME,
            "description": "A deployment, a model group, `provider/model` or `auto`. Needed unless `X-Preferred-Model` "
            "names one.",
        },
        "session_id": {**_NAME, "description": "Gives the conversation memory."},
        "rag_collection": {**_NAME, "description": "Adds passages of this collection."},
        "rag_top_k": {"type": "integer", "minimum": 1, "maximum": 50, "default": 3},
        "routing_strategy": {"type": "string", "enum": strategies()},
        "tags": {
            "type": "array",
            "maxItems": 50,
            "items": {"type": "string", "minLength": 1, "maxLength": 100},
            "description": "For spend reports.",
        },
    }


def _messages(roles: list[str], content: Node, required: list[str]) -> Node:
    message: Node = {
        "type": "object",
        "required": required,
        "properties": {"role": {"type": "string", "enum": roles}, "content": content},
        "additionalProperties": True,
    }
    return {"type": "array", "minItems": 1, "items": message}


def _chat_request() -> Node:
    roles = ["developer", "system", "user", "assistant", "tool", "function"]
    return {
        "type": "object",
        "required": ["messages"],
        "additionalProperties": True,
        "properties": {
            "messages": _messages(roles, {"nullable": True, **_TEXT_OR_PARTS}, ["role"]),
            "stream": {"type": "boolean"},
            "stream_options": {
                "type": "object",
                "properties": {"include_usage": {"type": "boolean"}},
                "description": "With `stream` only.",
            },
            "max_tokens": _TOKENS,
            "max_completion_tokens": _TOKENS,
            "n": {"type": "integer", "minimum": 1, "maximum": 128},
            "tools": _OBJECTS,
            "response_format": {"type": "object"},
            "reasoning_effort": _STRING,
            **_own_fields(),
        },
    }


def _messages_request(required: list[str]) -> Node:
    return {
        "type": "object",
        "required": required,
        "additionalProperties": True,
        "properties": {
            "messages": _messages(["user", "assistant"], _TEXT_OR_PARTS, ["role", "content"]),
            "max_tokens": _TOKENS,
            "system": _TEXT_OR_PARTS,
            "stream": {"type": "boolean"},
            "stop_sequences": {"type": "array", "items": _STRING},
            "temperature": {"type": "number", "minimum": 0, "maximum": 1},
            "tools": _OBJECTS,
            "tool_choice": {"type": "object"},
            "thinking": {"type": "object"},
            **_own_fields(),
        },
    }
