"""`/api/deployments`: a model at a provider, under the name that clients ask for. Who may: `test_providers.py`."""

from typing import Any

import pytest

from billing.models import LedgerEntry
from gateway.models import ConfigVersion, Deployment, GroupMember, Provider
from security.models import AuditEntry
from tests.api.doors import Answer, Cast, Door, make_key
from tests.api.test_providers import at_once
from tests.console.pages import entry as ledger_entry
from tests.support.world import make_deployment, make_group, make_provider

NEW = {"name": "d", "provider": "upstream", "upstream_model": "m"}


@pytest.fixture
def provider(db: None) -> Provider:
    return make_provider("http://127.0.0.1:9/v1")


@pytest.fixture
def ada(cast: Cast) -> Door:
    return cast["ada"]


def told_for(answer: Answer) -> set[str]:
    assert answer.status == 400, answer.body
    return set(answer.body["errors"])


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(object_type__startswith="gateway.").order_by("id"))


def test_everything_that_can_be_said(ada: Door, provider: Provider):
    said = {
        "name": "library/llama3:8b", "provider": "upstream", "upstream_model": "llama3:8b", "weight": 0, "priority": -3,
        "max_output": 8192, "context_window": 2**40, "strategy": "failover", "enabled": False,
        "version": "2026-11", "max_parallel": 8, "rpm": 600, "tpm": 2**40,
        "capabilities": {"vision": False, "tools": True},
    }  # fmt: skip
    answer = ada.post("/api/deployments", **said)
    assert answer.status == 201, answer.body
    shown = dict(answer.body)
    assert shown.pop("created_at")
    assert shown == {**said, "managed_by": ""}
    assert ada.get("/api/deployments/library/llama3:8b").body == answer.body
    assert ada.get("/api/deployments/library%2Fllama3%3A8b").body == answer.body
    assert ada.get("/api/deployments").body == {
        "deployments": [answer.body], "total": 1, "limit": 50, "offset": 0,
    }  # fmt: skip
    (entry,) = entries()
    assert (entry.action, entry.object_type, entry.actor) == ("create", "gateway.deployment", "user:ada")
    assert (entry.after["name"], entry.after["weight"]) == ("library/llama3:8b", 0)


def test_the_least_that_can_be_said(ada: Door, provider: Provider):
    body = ada.post("/api/deployments", **NEW).body
    del body["created_at"]
    assert body == {
        **NEW, "weight": 1, "priority": 0, "max_output": None, "context_window": None, "strategy": None,
        "version": None, "max_parallel": None, "rpm": None, "tpm": None, "capabilities": {}, "enabled": True,
        "managed_by": "",
    }  # fmt: skip


def test_pages(ada: Door, provider: Provider):
    for name in ("c", "a", "b"):
        make_deployment(provider, name)
    body = ada.get("/api/deployments?limit=1&offset=1").body
    assert ([row["name"] for row in body["deployments"]], body["total"]) == (["b"], 3)


def test_a_list_of_capabilities_is_complete(ada: Door, provider: Provider):
    body = ada.post("/api/deployments", **NEW, capabilities=["tools", "vision", "chat"]).body
    told = {"tools": True, "vision": True, "audio": False, "documents": False, "json_schema": False, "chat": True}
    assert body["capabilities"] == told
    assert Deployment.objects.get().capabilities == told
    body = ada.patch("/api/deployments/d", capabilities=[]).body
    assert body["capabilities"] == dict.fromkeys(["tools", "vision", "audio", "documents", "json_schema"], False)
    assert ada.patch("/api/deployments/d", capabilities={"audio": True}).body["capabilities"] == {"audio": True}
    assert ada.patch("/api/deployments/d", capabilities={}).body["capabilities"] == {}


def test_limits_and_version_are_taken_away_again(ada: Door, provider: Provider):
    ada.post("/api/deployments", **NEW, version="v1", rpm=1, tpm=2, max_parallel=3)
    body = ada.patch("/api/deployments/d", version=None, rpm=None, tpm=None, max_parallel=None).body
    assert [body[name] for name in ("version", "rpm", "tpm", "max_parallel")] == [None] * 4
    assert Deployment.objects.get().version == ""


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": None}, "name"), ({"name": ""}, "name"), ({"name": "two words"}, "name"), ({"name": "a,b"}, "name"),
        ({"name": "x" * 201}, "name"), ({"name": 5}, "name"), ({"name": "a\0"}, "name"),
        ({"provider": None}, "provider"), ({"provider": "nope"}, "provider"), ({"provider": 1}, "provider"),
        ({"upstream_model": ""}, "upstream_model"), ({"upstream_model": "a b"}, "upstream_model"),
        ({"weight": -1}, "weight"), ({"weight": 1.5}, "weight"), ({"weight": "1"}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": 2**31}, "weight"), ({"weight": None}, "weight"), ({"priority": 2**31}, "priority"),
        ({"priority": -(2**31) - 1}, "priority"), ({"max_output": 0}, "max_output"), ({"max_output": -1}, "max_output"),
        ({"max_output": 2**63}, "max_output"), ({"context_window": "8k"}, "context_window"),
        ({"context_window": 10**400}, "context_window"), ({"strategy": "fastest"}, "strategy"),
        ({"strategy": 5}, "strategy"),
        ({"strategy": ""}, "strategy"), ({"enabled": "true"}, "enabled"), ({"managed_by": ""}, "managed_by"),
        ({"created_at": None}, "created_at"), ({"surprise": 1}, "surprise"),
        ({"version": "a b"}, "version"), ({"version": ""}, "version"), ({"version": 2}, "version"),
        ({"version": "x" * 61}, "version"), ({"rpm": 0}, "rpm"), ({"rpm": 2**31}, "rpm"), ({"tpm": "1"}, "tpm"),
        ({"tpm": 2**63}, "tpm"), ({"max_parallel": -1}, "max_parallel"), ({"max_parallel": 1.5}, "max_parallel"),
        ({"capabilities": None}, "capabilities"), ({"capabilities": "tools"}, "capabilities"),
        ({"capabilities": {"tools": 1}}, "capabilities"), ({"capabilities": {"flying": True}}, "capabilities"),
        ({"capabilities": ["flying"]}, "capabilities"), ({"capabilities": [["tools"]]}, "capabilities"),
        ({"capabilities": {"tools": None}}, "capabilities"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(ada: Door, provider: Provider, fields: dict[str, Any], wrong: str):
    assert told_for(ada.post("/api/deployments", **{**NEW, **fields})) == {wrong}
    assert not Deployment.objects.exists()
    make_deployment(provider)
    before = Deployment.objects.values().get()
    assert told_for(ada.patch("/api/deployments/gpt-test", **fields)) == {wrong}
    assert Deployment.objects.values().get() == before
    assert not entries()


@pytest.mark.parametrize("missing", ["name", "provider", "upstream_model"])
def test_what_must_be_said(ada: Door, provider: Provider, missing: str):
    assert told_for(ada.post("/api/deployments", **{k: v for k, v in NEW.items() if k != missing})) == {missing}


def test_a_name_that_is_taken(ada: Door, provider: Provider):
    make_deployment(provider, "d")
    make_deployment(provider, "e")
    for answer in (ada.post("/api/deployments", **NEW), ada.patch("/api/deployments/e", name="d", weight=9)):
        assert (answer.status, answer.body["type"]) == (409, "conflict_error")
    assert list(Deployment.objects.order_by("name").values_list("name", "weight")) == [("d", 1), ("e", 1)]
    assert not entries()


def test_changes(ada: Door, provider: Provider):
    make_deployment(provider, strategy="random", max_output=5)
    other = make_provider("http://127.0.0.1:8/v1", slug="other")
    body = ada.patch("/api/deployments/gpt-test", name="a/b:c", provider="other", strategy=None, max_output=None).body
    assert (body["name"], body["provider"], body["strategy"], body["max_output"]) == ("a/b:c", "other", None, None)
    assert body["upstream_model"] == "gpt-test"
    assert ada.get("/api/deployments/gpt-test").status == 404
    assert ada.get("/api/deployments/a/b:c").body == body
    (entry,) = entries()
    assert entry.before == {"name": "gpt-test", "provider_id": provider.pk, "strategy": "random", "max_output": 5}
    assert entry.after == {"name": "a/b:c", "provider_id": other.pk, "strategy": "", "max_output": None}


def test_what_changes_nothing_is_not_written(ada: Door, provider: Provider):
    make_deployment(provider)
    number = ConfigVersion.objects.get(section="catalog").number
    for said in ({}, {"weight": 1}, {"provider": "upstream", "strategy": None}):
        assert ada.patch("/api/deployments/gpt-test", **said).status == 200
    assert ConfigVersion.objects.get(section="catalog").number == number
    assert not entries()


def test_deleting_one_takes_it_out_of_its_groups(ada: Door, provider: Provider):
    make_group("fast", make_deployment(provider, "library/a:1"), make_deployment(provider, "b"))
    assert ada.delete("/api/deployments/library/a:1").status == 204
    assert ada.delete("/api/deployments/library/a:1").status == 404
    assert ada.get("/api/models/fast").body["deployments"] == ["b"]
    assert GroupMember.objects.count() == 1
    (entry,) = entries()
    assert (entry.action, entry.before["name"], entry.before["along"]) == (
        "delete", "library/a:1", {"gateway.groupmember": 1},
    )  # fmt: skip


def test_what_the_ledger_names_can_be_deleted(ada: Door, provider: Provider):
    deployment = make_deployment(provider)
    row = LedgerEntry.objects.create(**ledger_entry("key_1", deployment.created_at))
    assert ada.delete("/api/deployments/gpt-test").status == 204
    assert ada.delete("/api/providers/upstream").status == 204
    assert LedgerEntry.objects.get(pk=row.pk).deployment == "gpt-test"


def test_of_two_who_make_one_name_at_once_one_succeeds(committed: None):
    make_provider("http://127.0.0.1:9/v1")
    admin = Door(secret=make_key("admin key", role="admin")[1])
    assert sorted(at_once([lambda: admin.post("/api/deployments", **NEW)] * 2)) == [201, 409]
    assert Deployment.objects.count() == 1
