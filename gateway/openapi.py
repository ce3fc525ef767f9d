"""The OpenAPI document: what DRF's views say of themselves, and what no view can say.

The inference endpoint is a Channels consumer, so its description is written here; so are the refusals and the
`X-User-ID` header that every operation of `/api` has. Document and page are open to everybody: they tell what is in
the repository.
"""

from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import (
    OpenApiJsonRenderer,
    OpenApiJsonRenderer2,
    OpenApiYamlRenderer,
    OpenApiYamlRenderer2,
)
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from gateway import render
from gateway.routing import strategies

Node = dict[str, Any]

_METHODS = ("get", "post", "patch", "put", "delete")
_REFUSED = {
    "400": "Malformed JSON, wrong types, unknown fields: `errors` says which.",
    "401": "No credentials, or bad ones.",
    "403": "Not for this role.",
    "404": "Unknown, or another's.",
}
_OPENAI_REFUSED = {
    "400": "Malformed JSON or wrong types (`param` names the field), a need nobody can serve, a blocked prompt.",
    "401": "`invalid_api_key`, `key_revoked`, `key_expired`.",
    "402": "`budget_exceeded`, `unpriced_model`.",
    "403": "`model_not_allowed`, `endpoint_not_allowed`.",
    "404": "`model_not_found`, `collection_not_found`.",
    "413": "Over 20 MiB.",
    "429": "`rate_limit_exceeded`, with `Retry-After`; `request_too_large_for_limit`.",
    "502": "Every candidate failed.",
    "503": "`no_healthy_deployment`, `draining`, `guard_unavailable`.",
    "504": "The upstream did not answer in time.",
}


class Generator(SchemaGenerator):
    """`manage.py spectacular --generator-class gateway.openapi.Generator` writes the same document."""

    def get_schema(self, request: Any = None, public: bool = False) -> Node:
        return complete(super().get_schema(request=request, public=public))  # type: ignore[no-untyped-call]


def complete(document: Node) -> Node:
    """Add what the views do not know."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components |= {"OpenAIError": _OPENAI_ERROR, "ChatCompletionRequest": _chat_request()}
    document["paths"]["/v1/chat/completions"] = {"post": _CHAT}
    for path, item in document["paths"].items():
        for method in set(item) & set(_METHODS):
            _add_refusals(item[method], of_api=render.is_under(path, "/api"))
    return document


def _add_refusals(operation: Node, *, of_api: bool) -> None:
    schema = {"$ref": f"#/components/schemas/{'Problem' if of_api else 'OpenAIError'}"}
    for code, text in (_REFUSED if of_api else _OPENAI_REFUSED).items():
        operation["responses"].setdefault(
            code, {"description": text, "content": {"application/json": {"schema": schema}}}
        )
    if of_api:
        operation.setdefault("parameters", []).append(_USER_HEADER)


_USER_HEADER: Node = {
    "in": "header",
    "name": "X-User-ID",
    "schema": {"type": "string"},
    "description": "From an admin: narrows the call to this user's own things, and is audited. From others: 403.",
}

_OPENAI_ERROR: Node = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "string", "nullable": True},
                "code": {"type": "string", "nullable": True},
            },
        }
    },
}

_CHAT: Node = {
    "operationId": "create_chat_completion",
    "tags": ["v1"],
    "summary": "OpenAI Chat Completions, served by any provider.",
    "description": "Parameters that are not listed pass through to the upstream unchanged.",
    "security": [{"virtualKey": []}],
    "parameters": [
        {"in": "header", "name": name, "schema": {"type": "string"}, "description": text}
        for name, text in {
            "X-Session-ID": "`session_id`",
            "X-Routing-Strategy": "`routing_strategy`",
            "X-Preferred-Model": "The model, where `model` is absent.",
            "X-AILB-Tags": "`tags`, comma-separated.",
        }.items()
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}},
    },
    "responses": {
        "200": {
            "description": "The completion; with `stream`, `chat.completion.chunk` events that end in `data: [DONE]`.",
            "headers": {
                name: {"schema": {"type": "string"}, "description": text}
                for name, text in {
                    "x-request-id": "The ledger's id of the request.",
                    "x-ailb-provider": "Who served it.",
                    "x-ailb-model": "The deployment that served it.",
                    "x-ailb-attempts": "How many calls it took.",
                    "x-ailb-cost-usd": "Where it is known when the headers go out.",
                }.items()
            },
            "content": {
                "application/json": {"schema": {"type": "object", "additionalProperties": True}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    },
}


def _chat_request() -> Node:
    message: Node = {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "enum": ["developer", "system", "user", "assistant", "tool", "function"]},
            "content": {
                "nullable": True,
                "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}],
            },
        },
        "additionalProperties": True,
    }
    return {
        "type": "object",
        "required": ["messages"],
        "additionalProperties": True,
        "properties": {
            "model": {"type": "string", "description": "A deployment, a model group, `provider/model` or `auto`."},
            "messages": {"type": "array", "minItems": 1, "items": message},
            "stream": {"type": "boolean"},
            "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
            "max_tokens": {"type": "integer", "minimum": 1},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "n": {"type": "integer", "minimum": 1},
            "tools": {"type": "array", "items": {"type": "object"}},
            "response_format": {"type": "object"},
            "session_id": {"type": "string", "description": "Gives the conversation memory."},
            "rag_collection": {"type": "string", "description": "Adds passages of this collection."},
            "rag_top_k": {"type": "integer", "minimum": 1, "maximum": 50, "default": 3},
            "routing_strategy": {"type": "string", "enum": strategies()},
            "tags": {"type": "array", "items": {"type": "string"}, "description": "For spend reports."},
        },
    }


class _Open(APIView):
    """What both views add to theirs: the request's id, and refusals as the rest of `/api` has them."""

    authentication_classes = []
    http_method_names = ["get", "head"]

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["x-request-id"] = render.request_id(request)
        if response.exception:
            response.accepted_renderer, response.accepted_media_type = JSONRenderer(), JSONRenderer.media_type
        return response


class SchemaView(_Open, SpectacularAPIView):
    """JSON for whoever does not ask for YAML."""

    generator_class = Generator
    renderer_classes = [OpenApiJsonRenderer2, OpenApiJsonRenderer, OpenApiYamlRenderer, OpenApiYamlRenderer2]


class DocsView(_Open, SpectacularSwaggerView):
    """Swagger UI, from our own static files."""
