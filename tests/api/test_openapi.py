"""The OpenAPI document describes what there is, the inference endpoint included."""

import re
from functools import cache
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.urls import URLPattern
from drf_spectacular.validation import validate_schema

from ailb_project.urls import urlpatterns
from gateway.api import NotYetView
from gateway.openapi import Generator
from keys import policy
from tests.api.doors import Cast, Door


@cache
def document() -> dict[str, Any]:
    return Generator().get_schema(public=True)


def test_it_is_valid_and_without_warnings(tmp_path, capsys):
    validate_schema(document())
    out = str(tmp_path / "schema.yaml")
    call_command("spectacular", generator_class="gateway.openapi.Generator", fail_on_warn=True, validate=True, file=out)
    assert yaml.safe_load((tmp_path / "schema.yaml").read_text())["paths"].keys() == document()["paths"].keys()


def test_every_route_and_method_is_described():
    described = {
        (re.sub(r"\{\w+\}", "*", path), method) for path, item in document()["paths"].items() for method in item
    }
    views: dict[str, Any] = {
        "/" + re.sub(r"<\w+:\w+>", "*", str(pattern.pattern)): getattr(pattern.callback, "cls", None)
        for pattern in urlpatterns
        if isinstance(pattern, URLPattern) and str(pattern.pattern).startswith(("api/", "v1/"))
    }
    routed = {
        (path, method)
        for path, view in views.items()
        for method in ("get", "post", "patch", "put", "delete")
        if hasattr(view, method) and view is not NotYetView
    }
    open_pages = {("/api/schema", "get"), ("/api/docs", "get")}
    inference = {(path, "post") for path in ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")}
    assert described == (routed - open_pages) | inference


def test_the_inference_endpoint():
    chat = document()["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    for status in ("400", "401", "402", "403", "404", "413", "429", "502", "503", "504"):
        schema = chat["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/OpenAIError"}
    request = document()["components"]["schemas"]["ChatCompletionRequest"]
    assert request["required"] == ["messages"]
    assert {"session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags"} <= set(request["properties"])
    assert request["additionalProperties"] is True


def test_the_messages_endpoints_refuse_in_anthropics_shape():
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        responses = document()["paths"][path]["post"]["responses"]
        schema = responses["402"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/AnthropicError"}
    schemas = document()["components"]["schemas"]
    assert schemas["MessagesRequest"]["required"] == ["messages", "max_tokens"]
    assert schemas["MessagesCountRequest"]["required"] == ["messages"]


def test_the_fields_of_a_key_are_the_policys():
    properties = document()["components"]["schemas"]["NewKey"]["properties"]
    assert set(properties) == policy.KEY_FIELDS | policy.LIMIT_FIELDS
    assert set(properties) <= set(document()["components"]["schemas"]["KeyData"]["properties"])


@pytest.mark.parametrize("path", ["/api/keys", "/api/billing/usage", "/api/audit"])
def test_refusals_and_the_narrowing_header_are_described(path: str):
    operation = document()["paths"][path]["get"]
    assert {"200", "400", "401", "403", "404"} <= set(operation["responses"])
    assert "X-User-ID" in {parameter["name"] for parameter in operation["parameters"]}
    assert {"virtualKey": []} in operation["security"]


def test_v1_takes_keys_only():
    assert document()["paths"]["/v1/models"]["get"]["security"] == [{"virtualKey": []}]


def test_it_is_served_to_everybody_as_json_or_yaml(cast: Cast):
    answer = Door().get("/api/schema")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert "/v1/chat/completions" in answer.body["paths"]
    as_yaml = Door().get("/api/schema", Accept="application/vnd.oai.openapi")
    assert yaml.safe_load(as_yaml.body)["paths"].keys() == answer.body["paths"].keys()


def test_swagger_ui_comes_from_our_own_files(cast: Cast):
    page = Door().get("/api/docs")
    assert page.status == 200
    text = page.body.decode()
    assert "drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js" in text
    assert "https://" not in text
    # A script of its own would be refused: ailb_project.browser_security.
    (address,) = re.findall(r'<script src="(/api/docs[^"]*)"', text)
    assert "/api/schema" in Door().get(address).body.decode()
