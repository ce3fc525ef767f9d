"""The OpenAPI document: what DRF's views say of themselves, and what no view can say.

The inference endpoints are Channels consumers, described in `gateway.openapi_inference`; the refusals are written
here, and the `X-User-ID` header that every operation of `/api` has. Document and page are open to everybody: they tell
what is in the repository.
"""

from threading import Lock
from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import (
    OpenApiJsonRenderer,
    OpenApiJsonRenderer2,
    OpenApiYamlRenderer,
    OpenApiYamlRenderer2,
)
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from gateway import openapi_inference, render
from gateway.problems import is_under

Node = dict[str, Any]

_METHODS = ("get", "post", "patch", "put", "delete")
_REFUSED = {
    "400": "Malformed JSON, wrong types, unknown fields: `errors` says which.",
    "401": "No credentials, or bad ones.",
    "403": "Not for this role.",
    "404": "Unknown, or another's.",
}
_INFERENCE_REFUSED = {
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


_making = Lock()
_document: Node | None = None


class Generator(SchemaGenerator):
    """`manage.py spectacular --generator-class gateway.openapi.Generator` writes the same document."""

    def get_schema(self, request: Any = None, public: bool = False) -> Node:
        # Made once: it is the same for everybody, and drf-spectacular loads its extensions at the first use, in which
        # two at once trip over each other.
        global _document
        with _making:
            if _document is None:
                made = super().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
                _document = complete(made)
        return _document


def complete(document: Node) -> Node:
    """Add what the views do not know."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components |= openapi_inference.schemas()
    document["paths"] |= {path: {"post": operation} for path, operation in openapi_inference.OPERATIONS.items()}
    for path, item in document["paths"].items():
        for method in set(item) & set(_METHODS):
            _add_refusals(item[method], path)
    return document


def _add_refusals(operation: Node, path: str) -> None:
    of_api = is_under(path, "/api")
    name = "Problem" if of_api else "AnthropicError" if is_under(path, "/v1/messages") else "OpenAIError"
    schema = {"$ref": f"#/components/schemas/{name}"}
    for code, text in (_REFUSED if of_api else _INFERENCE_REFUSED).items():
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


class DocsView(_Open, SpectacularSwaggerSplitView):
    """Swagger UI, from our own static files."""
