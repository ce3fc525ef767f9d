"""Nothing is written in the console without an entry in the audit log."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.files.uploadedfile import SimpleUploadedFile

from gateway.models import Deployment
from memory.models import Turn
from rag.models import Collection, Document, Passage
from security.models import AuditEntry
from tests.console.pages import PROMPT, World, filled, submit, url
from tests.console.test_keys import errors
from tests.console.test_pages import CELLS, SAVES

# What a form is given, for each model that has one. `{…}` is the pk of the world's row of that label.
NEW: dict[str, dict[str, str]] = {
    "keys.virtualkey": {"name": "new"},
    "keys.user": {"username": "new"},
    "keys.team": {"name": "new"},
    "keys.ratelimit": {"scope": "organisation", "rate_limit_rpm": "5"},
    "billing.budget": {"scope": "user", "owner": "bob", "period": "daily", "limit_dollars": "5"},
    "billing.price": {"provider": "openai", "model": "new", "input": "1", "output": "2"},
    "billing.webhook": {"url": "https://hooks.example.com/new"},
    "gateway.provider": {"slug": "new", "kind": "openai", "base_url": "https://api.example.com/v1", "api_key": "sk-1"},
    "gateway.deployment": {"name": "new", "provider": "{gateway.provider}", "upstream_model": "m"},
    "gateway.modelgroup": {"name": "new"},
    "gateway.trafficweight": {"version": "new", "weight": "5"},
    "security.policy": {
        "name": "new",
        "scope": "team",
        "owner": "red",
        "do_secret": "block",
        "blocked_terms": "osprey",
    },
    "rag.collection": {"name": "new"},
    "rag.document": {"collection": "{rag.collection}", "title": "new", "text": "Some text."},
}
CHANGED: dict[str, tuple[dict[str, str], dict]] = {
    "keys.virtualkey": ({"name": "changed"}, {"name": "changed"}),
    "keys.user": ({"display_name": "changed"}, {"display_name": "changed"}),
    "keys.team": ({"cost_centre": "changed"}, {"cost_centre": "changed"}),
    "keys.ratelimit": ({"rate_limit_rpm": "6"}, {"rate_limit_rpm": 6}),
    "billing.budget": ({"limit_tokens": "7"}, {"limit_tokens": 7}),
    "billing.price": ({"note": "changed"}, {"note": "changed"}),
    "billing.webhook": ({"url": "https://hooks.example.com/2"}, {"url": "https://hooks.example.com/2"}),
    "gateway.provider": ({"price_book": "changed"}, {"price_book": "changed"}),
    "gateway.deployment": ({"weight": "3"}, {"weight": 3}),
    "gateway.modelgroup": ({"strategy": "random"}, {"strategy": "random"}),
    "gateway.trafficweight": ({"weight": "6"}, {"weight": 6}),
    "security.policy": ({"blocked_terms": "heron\nfalcon"}, {"blocked_terms": ["heron", "falcon"]}),
}
DELETED = {label for label, visitor, statuses in CELLS if visitor == "ada" and statuses[3] == 200}


def test_the_tables_are_whole():
    assert set(NEW) == {label for label, visitor, statuses in CELLS if visitor == "ada" and statuses[1] == 200}
    assert set(CHANGED) == SAVES["ada"]


def entries(label: str) -> list[Any]:
    return list(
        AuditEntry.objects.filter(object_type=label, via="console", actor="user:ada", role="admin", ip="127.0.0.1")
    )


@pytest.mark.parametrize("label", sorted(NEW))
def test_what_is_made_is_recorded(ada, world: World, label: str):
    model = type(world[label])
    before = set(model.objects.values_list("pk", flat=True))
    typed = {name: str(world[value[1:-1]].pk) if value[:1] == "{" else value for name, value in NEW[label].items()}
    response = submit(ada, url("add", label), **typed)
    assert response.status_code == 302, errors(response)

    made = model.objects.exclude(pk__in=before).get()
    (entry,) = entries(label)
    assert (entry.action, entry.object_id, entry.before) == ("create", str(made.pk), None)
    assert entry.after[model._meta.pk.attname] == made.pk
    name = next(name for name in typed if name in entry.after and name != "text")
    assert str(entry.after[name]) == typed[name]


@pytest.mark.parametrize("label", sorted(CHANGED))
def test_what_is_changed_is_recorded(ada, world: World, label: str):
    typed, after = CHANGED[label]
    was = {name: getattr(world[label], name) for name in after}
    response = submit(ada, url("change", world[label]), **typed)
    assert response.status_code == 302, errors(response)

    (entry,) = entries(label)
    assert (entry.action, entry.object_id) == ("update", str(world[label].pk))
    assert (entry.before, entry.after) == (was, after)


@pytest.mark.parametrize("label", sorted(DELETED - {"keys.user", "keys.team"}))  # theirs: test_people.py
def test_what_is_deleted_is_recorded(ada, world: World, label: str):
    row = world[label]
    pk = row.pk
    assert ada.post(url("delete", row), {"post": "yes"}).status_code == 302

    assert not type(row).objects.filter(pk=pk).exists()
    (entry,) = [entry for entry in entries(label) if entry.action == "delete"]
    assert (entry.object_id, entry.after) == (str(pk), None)
    assert entry.before["id"] == pk


def test_several_at_once_are_each_recorded(ada, world: World):
    others = [
        Deployment.objects.create(name=f"d{i}", provider=world["gateway.provider"], upstream_model="m") for i in "12"
    ]
    chosen = {"_selected_action": [row.pk for row in others]}
    listed = url("changelist", "gateway.deployment")

    ada.post(listed, {"action": "disable", **chosen})
    assert not Deployment.objects.filter(name__in=["d1", "d2"], enabled=True).exists()
    ada.post(listed, {"action": "disable", **chosen})
    assert [entry.after for entry in entries("gateway.deployment")] == [{"enabled": False}] * 2, "once each"
    assert "Are you sure" in ada.post(listed, {"action": "delete_selected", **chosen}).content.decode()
    ada.post(listed, {"action": "delete_selected", "post": "yes", **chosen})
    assert not Deployment.objects.filter(name__in=["d1", "d2"]).exists()
    assert [entry.action for entry in entries("gateway.deployment")][:2] == ["delete"] * 2


def test_the_audit_fails_the_write(ada, world: World, monkeypatch):
    """In one transaction: what cannot be recorded is not done."""

    def fail(**told):
        raise RuntimeError("no audit today")

    monkeypatch.setattr("security.audit.record", fail)
    ada.raise_request_exception = False
    for label, (typed, _) in CHANGED.items():
        page = ada.get(url("change", world[label]))
        assert ada.post(url("change", world[label]), filled(page, **typed)).status_code == 500, label
        for name in typed:
            stored = type(world[label]).objects.get(pk=world[label].pk)
            assert getattr(stored, name) == getattr(world[label], name), label
    for label in sorted(DELETED - {"keys.user", "keys.team"}):
        assert ada.post(url("delete", world[label]), {"post": "yes"}).status_code == 500, label
        assert type(world[label]).objects.filter(pk=world[label].pk).exists(), label


def test_a_group_s_members_are_part_of_its_entry(ada, world: World):
    other = Deployment.objects.create(name="other", provider=world["gateway.provider"], upstream_model="m")
    page = ada.get(url("change", world["gateway.modelgroup"]))
    row = {"members-1-id": "", "members-1-group": world["gateway.modelgroup"].pk}
    added = {**row, "members-1-position": "1", "members-1-deployment": other.pk, "members-TOTAL_FORMS": "2"}
    response = ada.post(url("change", world["gateway.modelgroup"]), filled(page, **added))
    assert response.status_code == 302, errors(response)

    (entry,) = entries("gateway.modelgroup")
    assert entry.before == {"members": ["gpt-test"]}
    assert entry.after == {"members": ["gpt-test", "other"]}


def test_what_goes_along_is_recorded_too(ada, world: World):
    page = ada.get(url("delete", world["gateway.provider"])).content.decode()
    assert "Deployments" in page
    ada.post(url("delete", world["gateway.provider"]), {"post": "yes"})

    (provider,) = entries("gateway.provider")
    assert provider.before["along"] == {"gateway.deployment": 1, "gateway.groupmember": 1}
    (deployment,) = entries("gateway.deployment")
    assert (deployment.action, deployment.before["name"]) == ("delete", "gpt-test")


def test_what_people_wrote_is_not_in_the_log(ada, world: World):
    ada.post(url("delete", world["memory.turn"]), {"post": "yes"})
    ada.post(url("delete", world["rag.document"]), {"post": "yes"})
    Turn.objects.create(session=world["memory.session"], role="user", content=PROMPT)
    ada.post(url("delete", world["memory.session"]), {"post": "yes"})

    (turn,) = entries("memory.turn")
    assert turn.before["content"] == f"({len(PROMPT)} characters)"
    (session,) = entries("memory.session")
    assert session.before["along"] == {"memory.turn": 1}
    told = str(list(AuditEntry.objects.values("before", "after")))
    assert PROMPT not in told
    assert "Twenty-five days" not in told


def test_reading_somebody_s_conversation_is_recorded(ada, alice, world: World):
    assert PROMPT not in ada.get(url("changelist", "memory.turn")).content.decode()
    assert PROMPT in ada.get(url("change", world["memory.turn"])).content.decode()
    (entry,) = entries("memory.turn")
    assert (entry.action, entry.after) == ("read", {"session": "s1", "owner": "user:alice"})

    assert PROMPT in alice.get(url("change", world["memory.turn"])).content.decode()
    assert AuditEntry.objects.filter(action="read").count() == 1, "one's own is one's own"


def test_an_object_s_history_is_the_audit_log(ada, alice, world: World):
    submit(ada, url("change", world["gateway.deployment"]), weight="9")
    response = ada.get(url("history", world["gateway.deployment"]), follow=True)
    shown = list(response.context["cl"].result_list)
    assert [entry.action for entry in shown] == ["update"]
    assert alice.get(url("history", world["keys.virtualkey"])).status_code == 403
    assert not LogEntry.objects.exists()


def test_the_log_itself_stays(ada, world: World):
    for label in ("security.auditentry", "billing.ledgerentry", "security.securityevent"):
        listed = url("changelist", label)
        assert ada.post(url("delete", world[label]), {"post": "yes"}).status_code == 403
        ada.post(listed, {"action": "delete_selected", "post": "yes", "_selected_action": [world[label].pk]})
        assert type(world[label]).objects.filter(pk=world[label].pk).exists()
        assert "delete_selected" not in ada.get(listed).content.decode()


# ── knowledge ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_document_from_a_file(ada, world: World):
    file = SimpleUploadedFile("guide.md", "# Guide\n\nHow to.\n".encode("utf-8-sig"))
    response = submit(ada, url("add", "rag.document"), collection=world["rag.collection"].pk, file=file)
    assert response.status_code == 302, errors(response)
    document = Document.objects.get(title="guide.md")
    assert document.text == "# Guide\n\nHow to.\n"
    assert Passage.objects.filter(document=document).count() == 1


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [("a.pdf", b"%PDF-1.4 \xff\xfe\x00", "UTF-8"), ("a.bin", b"a\x00b", "not a text"), ("empty.txt", b" ", "A text")],
)
def test_what_is_no_text_is_refused(ada, world: World, name: str, content: bytes, told: str):
    file = SimpleUploadedFile(name, content)
    response = submit(ada, url("add", "rag.document"), collection=world["rag.collection"].pk, file=file)
    assert response.status_code == 200
    assert told in errors(response)


def test_a_member_s_collection_is_their_own(alice, world: World):
    Collection.objects.create(name="everyone's", owner="")
    response = submit(alice, url("add", "rag.collection"), name="hers", owner="")
    assert response.status_code == 302, errors(response)
    assert Collection.objects.get(name="hers").owner == "user:alice"
    listed = {row.name for row in alice.get(url("changelist", "rag.collection")).context["cl"].result_list}
    assert listed == {"handbook", "hers", "everyone's"}
    shared = Collection.objects.get(name="everyone's")
    assert submit(alice, url("add", "rag.document"), collection=shared.pk, text="x").status_code == 200, (
        "not hers to fill"
    )
    assert alice.post(url("delete", shared), {"post": "yes"}).status_code == 403
