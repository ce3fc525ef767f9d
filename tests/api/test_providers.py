"""`/api/providers`: credentials go in and never come out, and go nowhere but where they were given for."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
import structlog
from django.db import connections, transaction
from django.http import Http404
from pydantic import SecretStr

from ailb_project.env import Env
from gateway import discovery, environment, services, vault
from gateway.models import ConfigVersion, Deployment, GroupMember, ModelGroup, Provider, TrafficWeight
from keys.actors import COMMAND
from security.models import AuditEntry
from tests.api.doors import EVERYONE, Answer, Cast, Door, make_key
from tests.support import world
from tests.support.upstream import answers, hangs, says
from tests.support.world import CREDENTIAL, make_deployment, make_group, make_price, make_provider

HEADER = "project-secret-42"
STORED = {"api_key": CREDENTIAL, "headers": {"x-project": HEADER}}
HERE = "http://127.0.0.1:9/v1"
NEW = {"slug": "new", "kind": "openai", "base_url": "https://api.example.com/v1", "api_key": "sk-new-secret"}

TIMEOUTS = {"connect": 5.0, "first_byte": 600.0, "idle": 120.0}
READ = {"ada": 200, "admin key": 200, "fin": 200, "vic": 200, "nobody": 401}


def provider(**fields: Any) -> Provider:
    return make_provider(HERE, **{"headers": {"x-project": HEADER}, **fields})


def credentials(slug: str = "upstream") -> dict[str, Any]:
    return vault.open_sealed(Provider.objects.get(slug=slug).credentials)


def last_entry(**told: Any) -> Any:
    return AuditEntry.objects.filter(**told).order_by("-id").first()


def told_for(answer: Answer) -> set[str]:
    """The fields that a 400 complains of."""
    assert (answer.status, answer.body["status_code"]) == (400, 400), answer.body
    return set(answer.body["errors"])


# ── who may ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("call", "done"),
    [
        (("POST", "/api/providers", NEW), 201),
        (("PATCH", "/api/providers/upstream", {"enabled": False}), 200),
        (("DELETE", "/api/providers/upstream", None), 204),
        (("POST", "/api/providers/local/discover", {}), 200),
        (("POST", "/api/deployments", {"name": "d", "provider": "upstream", "upstream_model": "m"}), 201),
        (("PATCH", "/api/deployments/gpt-test", {"weight": 2}), 200),
        (("DELETE", "/api/deployments/gpt-test", None), 204),
        (("POST", "/api/models", {"name": "g", "deployments": ["gpt-test"]}), 201),
        (("PATCH", "/api/models/fast", {"strategy": "random"}), 200),
        (("DELETE", "/api/models/fast", None), 204),
        (("PUT", "/api/routing/weights", {"version": "v2", "weight": 5}), 201),
        (("POST", "/api/routing/weights", {"version": "v1", "weight": 5}), 200),
        (("DELETE", "/api/routing/weights/v1", None), 204),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_admins_write_and_nobody_else(cast: Cast, monkeypatch, call: tuple[str, str, Any], done: int):
    monkeypatch.setattr(discovery, "ask", lambda provider: ["m"])
    make_group("fast", make_deployment(provider()))
    make_provider("http://127.0.0.1:9", slug="local", kind="ollama")
    TrafficWeight.objects.create(version="v1", weight=1)
    got = {}
    for who in EVERYONE:
        with transaction.atomic():
            got[who] = cast[who].send(*call).status
            transaction.set_rollback(True)
    assert got == {who: done if who in ("ada", "admin key") else 401 if who == "nobody" else 403 for who in EVERYONE}


@pytest.mark.parametrize(
    "path",
    ["/api/providers", "/api/providers/upstream", "/api/deployments", "/api/deployments/gpt-test", "/api/models",
     "/api/models/fast", "/api/routing/weights"],
)  # fmt: skip
def test_admin_finance_and_viewer_read(cast: Cast, path: str):
    make_group("fast", make_deployment(provider()))
    assert {who: cast[who].get(path).status for who in EVERYONE} == {who: READ.get(who, 403) for who in EVERYONE}


def test_finance_reads_names_and_no_more(cast: Cast):
    make_group("fast", make_deployment(provider()))
    fin = cast["fin"]
    named = {"slug": "upstream", "kind": "openai", "enabled": True}
    assert fin.get("/api/providers").body["providers"] == [named]
    assert fin.get("/api/providers/upstream").body == named
    assert fin.get("/api/deployments").body["deployments"] == [{"name": "gpt-test", "enabled": True}]
    assert fin.get("/api/deployments/gpt-test").body == {"name": "gpt-test", "enabled": True}
    assert fin.get("/api/models").body["models"] == [{"name": "fast"}]
    assert fin.get("/api/models/fast").body == {"name": "fast"}
    TrafficWeight.objects.create(version="v1", weight=1)
    assert fin.get("/api/routing/weights").body["weights"] == [{"version": "v1", "group": None}]


def test_an_admin_who_acts_as_a_user_reads_nothing_here(cast: Cast):
    for path in ("/api/providers", "/api/deployments", "/api/models"):
        assert cast["admin key"].get(path, **{"X-User-ID": "alice"}).status == 403


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_provider_is_shown_without_its_credentials(cast: Cast):
    row = provider()
    for who in ("ada", "vic"):
        body = cast[who].get("/api/providers/upstream").body
        assert body.pop("created_at")
        assert body == {
            "slug": "upstream", "kind": "openai", "base_url": HERE, "api_key_set": True, "headers_set": True,
            "timeouts": TIMEOUTS, "price_book": "", "enabled": True, "managed_by": "",
        }  # fmt: skip
        shown = json.dumps(cast[who].get("/api/providers").body)
        for secret in (CREDENTIAL, HEADER, "x-project", row.credentials):
            assert secret not in shown


def test_pages(cast: Cast):
    for slug in ("c", "a", "b"):
        provider(slug=slug)
    body = cast["ada"].get("/api/providers?limit=2&offset=1").body
    assert [row["slug"] for row in body.pop("providers")] == ["b", "c"]
    assert body == {"total": 3, "limit": 2, "offset": 1}
    assert cast["ada"].get("/api/providers?kind=openai").status == 400


def test_unknown_ones(cast: Cast):
    for method in ("GET", "PATCH", "DELETE"):
        assert cast["ada"].send(method, "/api/providers/nope", {} if method == "PATCH" else None).status == 404
    assert cast["ada"].post("/api/providers/nope/discover").status == 404


# ── making one ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_that_can_be_said(cast: Cast):
    said = {
        **NEW, "headers": {"X-Org": " org-secret "}, "timeouts": {"connect": 1, "first_byte": 2.5},
        "price_book": "azure", "enabled": False,
    }  # fmt: skip
    answer = cast["ada"].post("/api/providers", **said)
    assert answer.status == 201, answer.body
    shown = {**answer.body}
    assert shown.pop("created_at")
    assert shown == {
        "slug": "new", "kind": "openai", "base_url": NEW["base_url"], "api_key_set": True, "headers_set": True,
        "timeouts": {"connect": 1.0, "first_byte": 2.5, "idle": 120.0}, "price_book": "azure", "enabled": False,
        "managed_by": "",
    }  # fmt: skip
    assert credentials("new") == {"api_key": "sk-new-secret", "headers": {"x-org": "org-secret"}}
    assert cast["ada"].get("/api/providers/new").body == answer.body
    assert cast["ada"].get("/api/providers").body["providers"] == [answer.body]


def test_the_least_that_can_be_said(cast: Cast):
    body = cast["ada"].post("/api/providers", slug="new", kind="openai").body
    assert (body["base_url"], body["api_key_set"], body["headers_set"]) == ("", False, False)
    assert (body["timeouts"], body["enabled"]) == (TIMEOUTS, True)
    assert Provider.objects.get().credentials == ""


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"slug": None}, "slug"), ({"slug": "No Slug"}, "slug"), ({"slug": "a/b"}, "slug"), ({"slug": 5}, "slug"),
        ({"slug": "x" * 61}, "slug"), ({"slug": "a\0"}, "slug"), ({"kind": "nobody"}, "kind"), ({"kind": []}, "kind"),
        ({"kind": None}, "kind"), ({"base_url": 5}, "base_url"), ({"base_url": "x" * 501}, "base_url"),
        ({"api_key": 5}, "api_key"), ({"api_key": ""}, "api_key"), ({"api_key": "a\nb"}, "api_key"),
        ({"api_key": "x" * 4097}, "api_key"), ({"headers": []}, "headers"), ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a b": "c"}}, "headers"), ({"headers": {"": "c"}}, "headers"),
        ({"headers": {"a": ""}}, "headers"),
        ({"headers": {"a": "b\r\nc: d"}}, "headers"), ({"headers": {"a": "\0"}}, "headers"),
        ({"headers": {"Content-Length": "1"}}, "headers"), ({"headers": {"host": "other"}}, "headers"),
        ({"headers": {"a": "1", "A": "2"}}, "headers"), ({"headers": {f"x{i}": "v" for i in range(51)}}, "headers"),
        ({"headers": {"a": "x" * 4097}}, "headers"), ({"headers": {"ü": "v"}}, "headers"),
        ({"timeouts": 5}, "timeouts"), ({"timeouts": None}, "timeouts"), ({"timeouts": {"connect": "5"}}, "timeouts"),
        ({"timeouts": {"connect": True}}, "timeouts"), ({"timeouts": {"connect": 0}}, "timeouts"),
        ({"timeouts": {"connect": 121}}, "timeouts"), ({"timeouts": {"idle": 3601}}, "timeouts"),
        ({"timeouts": {"idle": None}}, "timeouts"), ({"timeouts": {"idle": 10**400}}, "timeouts"),
        ({"timeouts": {"total": 5}}, "timeouts"), ({"price_book": "x" * 61}, "price_book"),
        ({"enabled": "yes"}, "enabled"), ({"enabled": 1}, "enabled"), ({"surprise": 1}, "surprise"),
        ({"credentials": "x"}, "credentials"), ({"managed_by": "x"}, "managed_by"),
        ({"api_key_set": True}, "api_key_set"),
        ({"connect_timeout": 5}, "connect_timeout"), ({"id": 1}, "id"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(cast: Cast, fields: dict[str, Any], wrong: str):
    said = {**NEW, **fields}
    assert told_for(cast["ada"].post("/api/providers", **said)) == {wrong}
    assert not Provider.objects.exists()
    provider()
    if wrong not in ("slug", "base_url"):
        assert told_for(cast["ada"].patch("/api/providers/upstream", **fields)) == {wrong}
    assert credentials() == STORED
    assert not AuditEntry.objects.filter(object_type="gateway.provider").exists()


NEVER_CALLED = [
    "http://169.254.169.254/v1", "http://169.254.0.1", "http://[fe80::1]/v1", "http://[::ffff:169.254.169.254]/v1",
    "http://2852039166/v1", "http://0xa9fea9fe/v1", "http://100.100.100.200/v1", "http://168.63.129.16",
    "http://[fd00:ec2::254]/", "http://0.0.0.0/v1", "http://224.0.0.1/v1", "http://[64:ff9b::a9fe:a9fe]/v1",
    "ftp://a/v1", "file:///etc/passwd", "//host/v1", "host/v1", "http://", "http://u:p@host/v1", "http://h/v1?key=1",
    "http://h/v1#x", "http://h:0/v1", "http://h:99999/v1", "http://[::1/v1", "x",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER_CALLED)
def test_addresses_that_are_never_called(cast: Cast, address: str):
    assert told_for(cast["ada"].post("/api/providers", **{**NEW, "base_url": address})) == {"base_url"}
    provider()
    again = {"base_url": address, "api_key": "sk-again", "headers": {"x-project": "again"}}
    assert told_for(cast["ada"].patch("/api/providers/upstream", **again)) == {"base_url"}
    assert (Provider.objects.get().base_url, credentials()) == (HERE, STORED)


@pytest.mark.parametrize("address", ["http://127.0.0.1:11434", "http://10.0.0.1/v1", "http://localhost/v1"])
def test_an_admin_may_name_a_private_address(cast: Cast, address: str):
    assert cast["ada"].post("/api/providers", **{**NEW, "base_url": address}).status == 201


@pytest.mark.parametrize(
    ("kind", "base_url"),
    [("anthropic", "http://localhost/v1"), ("ollama", "http://localhost/v1/"), ("ollama", "http://localhost/api")],
)
def test_an_address_that_would_be_doubled_is_refused(cast: Cast, kind: str, base_url: str):
    answer = cast["ada"].post("/api/providers", slug="new", kind=kind, base_url=base_url)
    assert told_for(answer) == {"base_url"}
    assert "at its end" in answer.body["detail"]


def test_a_slug_that_is_taken(cast: Cast):
    row = provider()
    answer = cast["ada"].post("/api/providers", **{**NEW, "slug": "upstream"})
    assert (answer.status, answer.body["type"]) == (409, "conflict_error")
    assert Provider.objects.get().credentials == row.credentials
    assert not AuditEntry.objects.filter(object_type="gateway.provider").exists()


# ── changing one ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_omitted_stays(cast: Cast):
    provider(price_book="azure", idle_timeout=7)
    answer = cast["ada"].patch("/api/providers/upstream", timeouts={"connect": 2}, enabled=False)
    assert answer.body["timeouts"] == {"connect": 2.0, "first_byte": 600.0, "idle": 7.0}
    assert (answer.body["enabled"], answer.body["price_book"], answer.body["base_url"]) == (False, "azure", HERE)
    assert credentials() == STORED
    entry = last_entry(object_type="gateway.provider")
    assert (entry.action, entry.actor, entry.via) == ("update", "user:ada", "api")
    assert entry.before == {"connect_timeout": "5.0", "enabled": True}
    assert entry.after == {"connect_timeout": "2.0", "enabled": False}


def test_the_slug_is_for_good(cast: Cast):
    provider()
    assert told_for(cast["ada"].patch("/api/providers/upstream", slug="other")) == {"slug"}


def test_what_changes_nothing_is_not_written(cast: Cast):
    provider()
    number = ConfigVersion.objects.get(section="catalog").number
    for said in ({}, {"enabled": True}, {"base_url": HERE}, STORED, {"timeouts": {}}):
        assert cast["ada"].patch("/api/providers/upstream", **said).status == 200
    assert ConfigVersion.objects.get(section="catalog").number == number
    assert not AuditEntry.objects.filter(object_type="gateway.provider").exists()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"api_key": "sk-rotated"}, STORED | {"api_key": "sk-rotated"}),
        ({"headers": {"X-Other": "v"}}, STORED | {"headers": {"x-other": "v"}}),
        ({"api_key": None}, STORED | {"api_key": None}),
        ({"headers": None}, STORED | {"headers": None}),
        ({"headers": {}}, STORED | {"headers": None}),
    ],
)
def test_each_credential_is_replaced_or_forgotten_by_itself(cast: Cast, said: dict[str, Any], kept: dict[str, Any]):
    provider()
    answer = cast["ada"].patch("/api/providers/upstream", **said)
    assert (answer.body["api_key_set"], answer.body["headers_set"]) == (bool(kept["api_key"]), bool(kept["headers"]))
    assert credentials() == kept | {"headers": kept["headers"] or {}}
    entry = AuditEntry.objects.get(object_type="gateway.provider")
    assert (entry.before, entry.after) == ({"credentials": "(set)"}, {"credentials": "(replaced)"})


def test_both_are_forgotten(cast: Cast):
    provider()
    answer = cast["ada"].patch("/api/providers/upstream", api_key=None, headers=None)
    assert (answer.body["api_key_set"], answer.body["headers_set"]) == (False, False)
    assert Provider.objects.get().credentials == ""
    entry = AuditEntry.objects.get(object_type="gateway.provider")
    assert (entry.before, entry.after) == ({"credentials": "(set)"}, {"credentials": None})


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({"base_url": "http://127.0.0.1:9/v2"}, False),
        ({"base_url": "HTTP://127.0.0.1:9/v1"}, False),
        ({"base_url": "http://127.0.0.1:10/v1"}, True),
        ({"base_url": "http://127.0.0.1/v1"}, True),
        ({"base_url": "http://other.example:9/v1"}, True),
        ({"base_url": "http://127.0.0.1.evil.example:9/v1"}, True),
        ({"base_url": "https://127.0.0.1:9/v1"}, True),
        ({"base_url": ""}, True),  # the vendor's own
    ],
)
def test_another_host_wants_credentials_again(cast: Cast, fields: dict[str, Any], moved: bool):
    provider()
    answer = cast["ada"].patch("/api/providers/upstream", **fields)
    if not moved:
        assert (answer.status, credentials()) == (200, STORED)
        return
    assert told_for(answer) == {"api_key", "headers"}
    assert told_for(cast["ada"].patch("/api/providers/upstream", **fields, api_key="sk-for-there")) == {"headers"}
    assert told_for(cast["ada"].patch("/api/providers/upstream", **fields, headers={"a": "b"})) == {"api_key"}
    assert (Provider.objects.get().base_url, credentials()) == (HERE, STORED)
    assert not AuditEntry.objects.filter(object_type="gateway.provider").exists()

    there = {"api_key": "sk-for-there", "headers": {"x-project": "there"}}
    assert cast["ada"].patch("/api/providers/upstream", **fields, **there).status == 200
    assert credentials() == there


def test_another_host_without_the_old_ones(cast: Cast):
    provider()
    moved = {"base_url": "https://other.example/v1", "api_key": "sk-for-there", "headers": None}
    assert cast["ada"].patch("/api/providers/upstream", **moved).status == 200
    assert credentials() == {"api_key": "sk-for-there", "headers": {}}


def test_only_what_is_set_is_asked_for_again(cast: Cast):
    provider(headers=None)
    elsewhere = {"base_url": "https://other.example/v1"}
    assert told_for(cast["ada"].patch("/api/providers/upstream", **elsewhere)) == {"api_key"}
    provider(slug="open", api_key=None, headers=None)
    assert cast["ada"].patch("/api/providers/open", **elsewhere).status == 200


def test_another_kind_is_another_host_where_the_address_is_the_vendors(cast: Cast):
    make_provider("", slug="cloud")
    assert told_for(cast["ada"].patch("/api/providers/cloud", kind="anthropic")) == {"api_key"}
    assert cast["ada"].patch("/api/providers/cloud", base_url="https://api.openai.com/v1").status == 200


def test_credentials_that_no_key_opens(cast: Cast):
    provider()
    Provider.objects.update(credentials="gibberish")
    body = cast["ada"].patch("/api/providers/upstream", price_book="openai").body
    assert (body["api_key_set"], body["headers_set"]) == (True, True), "nobody can say that they are not"
    elsewhere = {"base_url": "https://other.example/v1"}
    assert told_for(cast["ada"].patch("/api/providers/upstream", **elsewhere)) == {"api_key", "headers"}
    assert Provider.objects.get().credentials == "gibberish", "not ours to lose"
    assert cast["ada"].patch("/api/providers/upstream", api_key="sk-again").status == 200
    assert credentials() == {"api_key": "sk-again", "headers": {}}
    Provider.objects.update(credentials="gibberish")
    assert cast["ada"].patch("/api/providers/upstream", api_key=None, headers=None).status == 200
    assert Provider.objects.get().credentials == ""


def test_headers_of_before_are_no_reason_to_refuse_a_key(cast: Cast):
    provider(headers={"host": "as the console let it in"})
    assert cast["ada"].patch("/api/providers/upstream", api_key="sk-rotated").status == 200


# ── secrets stay where they are ─────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_in_answers_audit_or_logs(cast: Cast, caplog, capfd):
    secrets = ("sk-first-secret", "sk-second-secret", "header-secret", "sk-third-secret", "wrong\tsecret")
    caplog.set_level("DEBUG")
    ada, shown = cast["ada"], []
    with structlog.testing.capture_logs() as logs:
        shown += [
            ada.post("/api/providers", **{**NEW, "api_key": secrets[0], "headers": {"x-a": secrets[2]}}),
            ada.patch("/api/providers/new", api_key=secrets[1]),
            ada.patch("/api/providers/new", base_url="http://169.254.169.254", api_key=secrets[3]),
            ada.patch("/api/providers/new", base_url="http://other.example", api_key=secrets[3]),
            ada.patch("/api/providers/new", api_key=[secrets[3]]),
            ada.patch("/api/providers/new", api_key=secrets[4]),
            ada.patch("/api/providers/new", headers={"x-a": secrets[4]}),
            ada.patch("/api/providers/new", headers={secrets[2] + " ": "x"}),
            ada.patch("/api/providers/new", headers=[secrets[2]]),
            ada.post("/api/providers", **{**NEW, "api_key": secrets[3]}),
            ada.get("/api/providers/new"), ada.get("/api/providers"), ada.delete("/api/providers/new"),
            ada.get("/api/audit"),
        ]  # fmt: skip
    assert [answer.status for answer in shown] == [201, 200, *[400] * 7, 409, 200, 200, 204, 200]
    everything = str([answer.body for answer in shown]) + str(list(AuditEntry.objects.values())) + str(logs)
    everything += caplog.text + "".join(capfd.readouterr())
    for secret in ("first-secret", "second-secret", "header-secret", "third-secret", "wrong", "gAAAA"):
        assert secret not in everything
    made = AuditEntry.objects.get(object_type="gateway.provider", action="create")
    assert made.after["credentials"] == "(set)"


# ── deleting one ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_deployments_go_with_it_and_each_is_recorded(cast: Cast):
    row = provider()
    make_group("fast", make_deployment(row, "a"), make_deployment(row, "b"))
    ids = (row.pk, *Deployment.objects.order_by("name").values_list("pk", flat=True))
    assert cast["ada"].delete("/api/providers/upstream").status == 204
    assert cast["ada"].get("/api/providers/upstream").status == 404
    assert cast["ada"].delete("/api/providers/upstream").status == 404
    assert not Deployment.objects.exists()
    assert not GroupMember.objects.exists()
    assert ModelGroup.objects.filter(name="fast").exists()
    entries = AuditEntry.objects.filter(object_type__startswith="gateway.").order_by("id")
    assert [(e.action, e.object_type, e.object_id) for e in entries] == [
        ("delete", "gateway.provider", str(ids[0])),
        ("delete", "gateway.deployment", str(ids[1])),
        ("delete", "gateway.deployment", str(ids[2])),
    ]
    assert entries[0].before["along"] == {"gateway.deployment": 2, "gateway.groupmember": 2}
    assert (entries[0].before["credentials"], entries[1].before["name"]) == ("(set)", "a")


# ── what is defined elsewhere ───────────────────────────────────────────────────────────────────────────────────────


def test_managed_rows_are_only_read(cast: Cast):
    row = provider(managed_by="environment")
    group = make_group("fast", make_deployment(row, managed_by="environment"))
    ModelGroup.objects.filter(pk=group.pk).update(managed_by="file")
    for path, change in (
        ("/api/providers/upstream", {"enabled": False}),
        ("/api/deployments/gpt-test", {"weight": 5}),
        ("/api/models/fast", {"strategy": "random"}),
    ):
        shown = cast["ada"].get(path).body
        assert shown["managed_by"]
        for answer in (cast["ada"].patch(path, **change), cast["ada"].patch(path), cast["ada"].delete(path)):
            assert (answer.status, answer.body["type"]) == (409, "conflict_error")
            assert f"defined by the {shown['managed_by']}" in answer.body["detail"]
        assert cast["ada"].get(path).body == shown
    assert not AuditEntry.objects.filter(object_type__startswith="gateway.").exists()


# ── discovery ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def local(committed: None, upstream: Any) -> Provider:
    return make_provider(upstream.url.removesuffix("/v1"), slug="local", kind="ollama")


@pytest.fixture
def admin(committed: None) -> Door:
    return Door(secret=make_key("admin key", role="admin")[1])


def lists(*names: str) -> Any:
    return answers({"models": [{"name": name, "model": name} for name in names]})


def test_the_server_is_asked_and_deployments_follow(admin: Door, local: Provider, upstream: Any):
    make_deployment(local, "gone")
    upstream.always(lists("a", "library/b:7b"))
    answer = admin.post("/api/providers/local/discover")
    assert (answer.status, answer.body) == (200, {"models": ["a", "library/b:7b"]})
    enabled = {row["name"]: row["enabled"] for row in admin.get("/api/deployments").body["deployments"]}
    assert enabled == {"a": True, "library/b:7b": True, "gone": False}
    assert last_entry(action="create", object_type="gateway.deployment").via == "api"
    assert admin.send("POST", "/api/providers/local/discover").status == 200, "without a body too"
    assert told_for(admin.post("/api/providers/local/discover", surprise=1)) == {"surprise"}


def test_a_server_that_does_not_answer(admin: Door, local: Provider, upstream: Any, monkeypatch):
    monkeypatch.setattr(discovery, "SECONDS", 0.2)
    make_provider("http://127.0.0.1:1", slug="down", kind="ollama")
    make_deployment(local, "mine")
    got = [admin.post("/api/providers/down/discover")]
    for script in (hangs(), answers({"error": CREDENTIAL}, 500), answers({"error": "no"}, 401), answers("surprise")):
        upstream.always(script)
        got.append(admin.post("/api/providers/local/discover"))
    for answer in got:
        assert (answer.status, answer.body["status_code"], answer.body["type"]) == (502, 502, "upstream_error")
        assert set(answer.body) == {"detail", "type", "status_code"}
        assert CREDENTIAL not in str(answer.body)
    assert Deployment.objects.get().enabled


def test_those_that_cannot_be_asked(admin: Door, local: Provider, upstream: Any, settings: Any):
    provider()
    assert told_for(admin.post("/api/providers/upstream/discover")) == {"kind"}
    Provider.objects.filter(slug="local").update(credentials="gibberish")
    assert admin.post("/api/providers/local/discover").status == 409
    Provider.objects.filter(slug="local").delete()
    base_url = upstream.url.removesuffix("/v1")
    settings.ENV = Env.model_construct(
        **{**Env().model_dump(), "OLLAMA_BASE_URL": base_url, "OLLAMA_MODELS": ("a",), "OPENAI_API_KEY": SecretStr("x")}
    )
    environment.apply(settings.ENV)
    answer = admin.post("/api/providers/ollama/discover")
    assert (answer.status, upstream.requests) == (409, [])


# ── at once, and in force at once ───────────────────────────────────────────────────────────────────────────────────


def at_once(calls: list[Callable[[], Answer]]) -> list[int]:
    """The statuses of calls that are made at the same moment."""
    barrier = Barrier(len(calls))

    def make(call: Callable[[], Answer]) -> int:
        barrier.wait(10)
        try:
            return call().status
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(make, calls))


@pytest.mark.parametrize("number", range(3))
def test_of_two_who_make_one_slug_at_once_one_succeeds(admin: Door, number: int):
    assert sorted(at_once([lambda: admin.post("/api/providers", **NEW)] * 2)) == [201, 409]
    assert Provider.objects.count() == 1
    assert AuditEntry.objects.filter(object_type="gateway.provider").count() == 1


def test_of_many_who_change_one_no_change_is_lost(admin: Door):
    provider()
    changes: list[dict[str, Any]] = [{"price_book": "a"}, {"timeouts": {"idle": 9}}, {"api_key": "sk-rotated"}]
    calls = [partial(admin.patch, "/api/providers/upstream", **said) for said in changes]
    assert at_once(calls) == [200] * 3
    row = Provider.objects.get()
    assert (row.price_book, row.idle_timeout, credentials()["api_key"]) == ("a", 9.0, "sk-rotated")


def test_of_two_who_delete_one_one_succeeds(admin: Door):
    make_deployment(provider())
    assert sorted(at_once([lambda: admin.delete("/api/providers/upstream")] * 2)) == [204, 404]
    assert AuditEntry.objects.filter(object_type="gateway.provider").count() == 1


def test_what_was_deleted_meanwhile_is_not_found(cast: Cast):
    row = provider()
    deployment = make_deployment(row)
    group = make_group("fast", deployment)
    Provider.objects.all().delete()
    ModelGroup.objects.all().delete()
    for write in (
        lambda: services.update_provider(actor=COMMAND, provider=row, changes={"enabled": False}),
        lambda: services.delete_deployment(actor=COMMAND, deployment=deployment),
        lambda: services.update_group(actor=COMMAND, group=group, changes={"name": "x"}),
    ):
        with pytest.raises(Http404):
            write()


@pytest.fixture
def no_poll(monkeypatch):
    """The snapshot is read again where a change is made, or not at all."""
    monkeypatch.setattr("gateway.snapshot.POLL_SECONDS", 60)


def test_a_change_is_in_force_before_its_response(no_poll: None, gateway: Any, upstream: Any, alice: Any):
    """Through the ASGI server, its own snapshot and the scripted upstream."""
    admin = world.make_key(role="admin")

    def api(method: str, path: str, **body: Any) -> Any:
        answer = gateway.send(method, f"/api/{path}", key=admin, json=body)
        assert answer.status in (200, 201, 204), answer.raw
        return answer

    make_price(provider="fresh")
    upstream.always(says("Hello"))
    assert gateway.chat(alice).status == 404
    api("POST", "providers", slug="fresh", kind="openai", base_url=upstream.url, api_key="sk-fresh-one")
    api("POST", "deployments", name="gpt-test", provider="fresh", upstream_model="gpt-up")
    answer = gateway.chat(alice)
    assert (answer.status, answer.headers["x-ailb-provider"]) == (200, "fresh")
    assert upstream.requests[-1].headers["authorization"] == "Bearer sk-fresh-one"
    assert upstream.requests[-1].body["model"] == "gpt-up"

    api("PATCH", "providers/fresh", api_key="sk-fresh-two", headers={"x-project": "p"})
    assert gateway.chat(alice).status == 200
    sent = upstream.requests[-1].headers
    assert (sent["authorization"], sent["x-project"]) == ("Bearer sk-fresh-two", "p")

    api("POST", "models", name="team/fast:1", deployments=["gpt-test"])
    assert gateway.chat(alice, model="team/fast:1").status == 200
    api("PATCH", "deployments/gpt-test", enabled=False)
    assert gateway.chat(alice).status == 404
    api("PATCH", "deployments/gpt-test", enabled=True, name="gpt/other:2")
    assert (gateway.chat(alice).status, gateway.chat(alice, model="gpt/other:2").status) == (404, 200)
    assert Door(secret=admin.secret).delete("/api/providers/fresh").status == 204
    assert gateway.chat(alice, model="gpt/other:2").status == 404
