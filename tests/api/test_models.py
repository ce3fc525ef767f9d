"""`/v1/models`: what the caller's key may use, in OpenAI's shape."""

import pytest
from openai.types import Model

from gateway.registry import ModelCard
from keys.models import VirtualKey
from tests.api.doors import Cast

CARDS = [
    ModelCard(id="gpt-4o", created=1_700_000_000, owned_by="openai", provider="openai"),
    ModelCard(id="library/llama3:8b", created=1_700_000_001, owned_by="ollama", provider="ollama"),
]


@pytest.fixture
def asked(monkeypatch) -> list:
    """The allow-lists that the registry was asked with."""
    lists: list = []

    def visible(catalog: object, allowed: frozenset[str] | None) -> list[ModelCard]:
        lists.append(allowed)
        return [card for card in CARDS if allowed is None or card.id in allowed]

    monkeypatch.setattr("gateway.api.visible", visible)
    return lists


def test_the_list(cast: Cast, asked: list):
    body = cast["alice's key"].get("/v1/models").body
    assert body["object"] == "list"
    assert body["data"][0] == {
        "id": "gpt-4o", "object": "model", "created": 1_700_000_000, "owned_by": "openai", "provider": "openai",
    }  # fmt: skip
    for model in body["data"]:
        Model.model_validate(model, strict=True)
    assert asked == [None]


def test_only_what_the_key_may_use(cast: Cast, asked: list):
    VirtualKey.objects.filter(pk=cast.key.pk).update(allowed_models=["gpt-4o"])
    assert [model["id"] for model in cast["alice's key"].get("/v1/models").body["data"]] == ["gpt-4o"]
    assert asked == [frozenset({"gpt-4o"})]
    refused = cast["alice's key"].get("/v1/models/library/llama3:8b")
    assert (refused.status, refused.body["error"]["code"], refused.body["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )


def test_nothing_allowed_is_nothing(cast: Cast, asked: list):
    VirtualKey.objects.filter(pk=cast.key.pk).update(allowed_models=[])
    assert cast["alice's key"].get("/v1/models").body["data"] == []


@pytest.mark.parametrize("path", ["library/llama3:8b", "library%2Fllama3%3A8b", "library/llama3%3a8b"])
def test_ids_may_hold_slashes_and_colons(cast: Cast, asked: list, path: str):
    assert cast["alice's key"].get(f"/v1/models/{path}").body["id"] == "library/llama3:8b"


def test_unknown_models(cast: Cast, asked: list):
    for path in ("gpt-5", "gpt-4o/", "library", "x" * 4000):
        answer = cast["alice's key"].get(f"/v1/models/{path}")
        assert (answer.status, answer.body["error"]["code"]) == (404, "model_not_found")
        assert len(answer.body["error"]["message"]) < 300


def test_the_registry_itself_is_asked(cast: Cast):
    from tests.support.world import make_deployment, make_provider

    make_deployment(make_provider("http://127.0.0.1:9/v1"), name="gpt-test")
    assert [model["id"] for model in cast["lone key"].get("/v1/models").body["data"]] == ["gpt-test"]
    assert cast["lone key"].get("/v1/models/gpt-test").body["owned_by"] == "upstream"
