"""Virtual keys in the console: the secret is shown once, keys are revoked and rotated, never deleted."""

import json
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.contrib.sessions.models import Session as BrowserSession
from django.utils import timezone

from billing.models import Budget
from gateway.models import ConfigVersion
from keys import services
from keys.actors import COMMAND
from keys.models import KeyStatus, User, VirtualKey
from security.models import AuditEntry
from tests.api.doors import digest
from tests.console.pages import World, filled, last_entry, later, signed_in, submit, url
from tests.console.test_pages import SAVES

SECRET = re.compile(r"sk-ailb_[0-9A-Za-z]+")


def make(client, **fields) -> tuple[Any, str]:
    """A key by the console's form, and the secret from the page that shows it."""
    before = set(VirtualKey.objects.values_list("pk", flat=True))
    response = submit(client, url("add", "keys.virtualkey"), **{"name": "ci", **fields})
    assert response.status_code == 302, errors(response)
    key = VirtualKey.objects.exclude(pk__in=before).get()
    assert response["Location"] == url("secret", key)
    page = client.get(response["Location"])
    assert page.status_code == 200
    assert "no-store" in page["Cache-Control"]
    (secret,) = set(SECRET.findall(page.content.decode()))
    return key, secret


def errors(response) -> str:
    form = response.context["adminform"].form
    return json.dumps(form.errors.get_json_data())


# ── the secret ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_secret_is_shown_once_and_is_the_key_s(ada, world: World):
    key, secret = make(ada)

    assert key.digest == digest(secret)
    again = ada.get(url("secret", key))
    assert again.status_code == 302
    assert again["Location"] == url("change", key)
    shown = ada.get(url("change", key)).content.decode()
    assert not SECRET.search(shown)
    assert "shown once" in shown


def test_the_secret_is_nowhere_but_on_its_page(ada, world: World, caplog):
    submit(ada, url("add", "keys.virtualkey"), name="ci")
    stored = BrowserSession.objects.get()
    assert not SECRET.search(json.dumps(stored.get_decoded())), "the session holds it encrypted"
    key = VirtualKey.objects.get(name="ci")
    secret = SECRET.findall(ada.get(url("secret", key)).content.decode())[0]

    assert secret not in json.dumps(list(AuditEntry.objects.values("before", "after", "object_id")))
    assert secret not in caplog.text
    assert "new-secret" not in json.dumps(BrowserSession.objects.get().get_decoded()), "it has left the session"


def test_the_page_has_a_request_ready_to_paste(ada, world: World):
    submit(ada, url("add", "keys.virtualkey"), name="ci", allowed_models="gpt-test")
    page = ada.get(url("secret", VirtualKey.objects.get(name="ci")))

    command = page.context["curl"]
    assert command.startswith("curl -sS http://testserver/v1/chat/completions ")
    assert '"model": "gpt-test"' in command
    assert "data-copies='secret'" in page.content.decode()


def test_another_person_s_session_does_not_have_it(ada, world: World):
    submit(ada, url("add", "keys.virtualkey"), name="ci")
    key = VirtualKey.objects.get(name="ci")

    assert signed_in(User.objects.get(username="vic")).get(url("secret", key)).status_code == 302
    assert signed_in(User.objects.get(username="charlie")).get(url("secret", key)).status_code == 404
    assert SECRET.search(ada.get(url("secret", key)).content.decode())


# ── making and changing ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_with_everything(ada, world: World):
    alice = User.objects.get(username="alice")
    ends = later(days=30)
    key, _ = make(
        ada,
        user=alice.pk,
        allowed_models="gpt-test\n fast \n\n",
        tags="ci\nnightly",
        monthly_quota_dollars="12.50",
        monthly_quota_tokens="1000000",
        rate_limit_rpm="60",
        rate_limit_tpm="90000",
        max_parallel="4",
        expires_at_0=ends["0"],
        expires_at_1=ends["1"],
    )

    assert (key.user, key.team, key.role) == (alice, None, "member")
    assert (key.allowed_models, key.tags) == (["gpt-test", "fast"], ["ci", "nightly"])
    assert (key.rate_limit_rpm, key.rate_limit_tpm, key.max_parallel) == (60, 90000, 4)
    assert abs(key.expires_at - timezone.now() - timedelta(days=30)) < timedelta(minutes=1)
    budget = Budget.objects.get(scope="key", owner=key.pk)
    assert (budget.period, budget.limit_dollars, budget.limit_tokens) == ("monthly", Decimal("12.5"), 1_000_000)


def test_a_change_is_the_service_s_and_audited(ada, world: World):
    key = world["keys.virtualkey"]
    page = ada.get(url("change", key))
    assert 'value="50.00"' in page.content.decode(), "the quota without the column's zeros"

    response = ada.post(url("change", key), filled(page, name="renamed", monthly_quota_dollars="75"))
    assert response.status_code == 302, errors(response)
    key.refresh_from_db()
    assert key.name == "renamed"
    assert Budget.objects.get(scope="key", owner=key.pk).limit_dollars == 75
    entry = last_entry(object_type="keys.virtualkey", object_id=key.pk)
    assert (entry.actor, entry.via, entry.ip, entry.action) == ("user:ada", "console", "127.0.0.1", "update")
    assert (entry.before, entry.after) == ({"name": "alice's key"}, {"name": "renamed"})


@pytest.mark.parametrize("label", sorted(SAVES["ada"]))
def test_nothing_changed_writes_nothing(ada, world: World, label: str):
    before = AuditEntry.objects.count(), list(ConfigVersion.objects.values())
    response = submit(ada, url("change", world[label]))
    assert response.status_code == 302, errors(response)
    assert (AuditEntry.objects.count(), list(ConfigVersion.objects.values())) == before


def test_what_the_service_refuses_is_said_on_the_form(ada, world: World):
    gone = later(days=-1)
    response = submit(ada, url("add", "keys.virtualkey"), name="late", expires_at_0=gone["0"], expires_at_1=gone["1"])

    assert response.status_code == 200
    assert "That is in the past." in errors(response)
    assert 'value="late"' in response.content.decode(), "what was typed is kept"
    assert not VirtualKey.objects.filter(name="late").exists()


def test_a_member_makes_their_own_key_and_sets_no_limit(alice, world: World):
    page = alice.get(url("add", "keys.virtualkey"))
    assert set(page.context["adminform"].form.fields) == {"name", "expires_at", "tags", "metadata"}

    key, secret = make(alice, user=str(User.objects.get(username="bob").pk), rate_limit_rpm="1000", role="admin")
    assert (key.user.username, key.rate_limit_rpm, key.role) == ("alice", None, "member")
    assert key.digest == digest(secret)
    assert Budget.objects.get(scope="key", owner=key.pk).limit_dollars == 50, "no freer than the key she had"


def test_a_member_renames_their_key_and_no_more(alice, world: World):
    page = alice.get(url("change", world["keys.virtualkey"]))
    assert set(page.context["adminform"].form.fields) == {"name"}

    alice.post(url("change", world["keys.virtualkey"]), {"name": "mine", "rate_limit_rpm": "9", "role": "admin"})
    key = VirtualKey.objects.get(pk=world["keys.virtualkey"].pk)
    assert (key.name, key.rate_limit_rpm, key.role) == ("mine", None, "member")


def test_a_team_lead_gives_limits_within_the_team_s_budget(lea, world: World):
    key = world["keys.virtualkey"]
    within = submit(lea, url("change", key), monthly_quota_dollars="90", rate_limit_rpm="10")
    assert within.status_code == 302, errors(within)
    beyond = submit(lea, url("change", key), monthly_quota_dollars="101")

    assert beyond.status_code == 200
    assert "beyond the team" in errors(beyond)
    assert Budget.objects.get(scope="key", owner=key.pk).limit_dollars == 90
    assert VirtualKey.objects.get(pk=key.pk).rate_limit_rpm == 10


def test_a_team_lead_makes_keys_for_the_team_alone(lea, world: World):
    made, _ = make(lea, user=str(User.objects.get(username="bob").pk))
    assert (made.user.username, made.team.name) == ("bob", "red")
    refused = submit(lea, url("add", "keys.virtualkey"), name="x", user=str(User.objects.get(username="charlie").pk))
    assert "user" in errors(refused)


def test_an_admin_s_key_is_not_a_lead_s_to_touch(lea, world: World):
    key, _ = services.create_key(actor=COMMAND, name="root", team="red", role="admin")
    assert 'name="_save"' not in lea.get(url("change", key)).content.decode()
    assert lea.get(url("rotate", key)).status_code == 403


# ── revoking and rotating ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_revoked_with_a_reason(ada, world: World):
    key = world["keys.virtualkey"]
    assert url("revoke", key) in ada.get(url("change", key)).content.decode()
    asked = ada.get(url("revoke", key))
    assert (asked.status_code, VirtualKey.objects.get(pk=key.pk).status) == (200, KeyStatus.ACTIVE)
    assert ada.post(url("revoke", key), {"reason": ""}).status_code == 200
    assert VirtualKey.objects.get(pk=key.pk).status is KeyStatus.ACTIVE

    response = ada.post(url("revoke", key), {"reason": "leaked"}, follow=True)
    assert "Revoked: alice&#x27;s key" in response.content.decode()
    key.refresh_from_db()
    assert (key.status, key.revoked_reason) == (KeyStatus.REVOKED, "leaked")
    entry = last_entry()
    assert (entry.actor, entry.via, entry.action, entry.object_id) == ("user:ada", "console", "revoke", key.pk)
    assert entry.after["revoked_reason"] == "leaked"
    # And that is that.
    assert url("revoke", key) not in ada.get(url("change", key)).content.decode()
    assert ada.post(url("revoke", key), {"reason": "again"}).status_code == 403


def test_several_keys_are_revoked_from_the_list(ada, world: World):
    keys = [world.cast.keys[name] for name in ("alice's key", "bob's key")]
    listed = url("changelist", "keys.virtualkey")
    chosen = {"action": "revoke_selected", "_selected_action": [key.pk for key in keys]}

    asked = ada.post(listed, chosen)
    assert asked.status_code == 200
    assert {key.status for key in VirtualKey.objects.all()} == {KeyStatus.ACTIVE}
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', asked.content.decode()))
    assert hidden["confirmed"] == "yes"
    assert ada.post(listed, {**chosen, "confirmed": "yes", "reason": "the team is gone"}).status_code == 302
    revoked = [key.pk for key in VirtualKey.objects.all() if key.status is KeyStatus.REVOKED]
    assert set(revoked) == {key.pk for key in keys}
    assert AuditEntry.objects.filter(action="revoke", via="console").count() == 2


def test_a_member_revokes_their_own_alone(alice, world: World):
    assert alice.post(url("revoke", world.cast.keys["bob's key"]), {"reason": "x"}).status_code == 404
    assert alice.post(url("revoke", world["keys.virtualkey"]), {"reason": "x"}).status_code == 302
    assert VirtualKey.objects.get(pk=world["keys.virtualkey"].pk).status is KeyStatus.REVOKED


def test_a_viewer_has_neither_button(world: World):
    vic = signed_in(User.objects.get(username="vic"))
    key = world["keys.virtualkey"]
    page = vic.get(url("change", key)).content.decode()
    assert url("revoke", key) not in page
    assert url("rotate", key) not in page
    for act in ("revoke", "rotate"):
        assert vic.post(url(act, key), {"reason": "x", "grace_seconds": "0"}).status_code == 403


@pytest.mark.parametrize("grace", [0, 600])
def test_rotation_shows_the_new_secret_once(ada, world: World, grace: int):
    key = world["keys.virtualkey"]
    old = key.digest
    response = ada.post(url("rotate", key), {"grace_seconds": str(grace)})
    assert response["Location"] == url("secret", key)
    (secret,) = set(SECRET.findall(ada.get(response["Location"]).content.decode()))

    key.refresh_from_db()
    assert key.digest == digest(secret) != old
    assert key.previous_digest == (old if grace else "")
    assert ada.get(url("secret", key)).status_code == 302
    entry = last_entry()
    assert (entry.action, entry.via) == ("rotate", "console")
    assert secret not in json.dumps(entry.after)
    assert key.digest not in json.dumps(entry.after)


def test_keys_are_never_deleted(ada, world: World):
    key = world["keys.virtualkey"]
    assert ada.post(url("delete", key), {"post": "yes"}).status_code == 403
    listed = ada.get(url("changelist", "keys.virtualkey")).content.decode()
    assert "delete_selected" not in listed
    assert VirtualKey.objects.filter(pk=key.pk).exists()


# ── the list ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_is_filtered_and_searched(ada, world: World):
    services.revoke_key(actor=COMMAND, key=world.cast.keys["bob's key"])
    VirtualKey.objects.filter(name="lone key").update(expires_at=timezone.now() - timedelta(days=1))

    def names(**query) -> set[str]:
        return {key.name for key in ada.get(url("changelist", "keys.virtualkey"), query).context["cl"].result_list}

    assert names(status="revoked") == {"bob's key"}
    assert names(status="expired") == {"lone key"}
    assert "bob's key" not in names(status="active")
    assert names(team__id__exact=world["keys.team"].pk) == {"red's key"}
    assert names(user__id__exact=world["keys.user"].pk) == {"alice's key"}
    assert names(q="charlie") == {"charlie's key"}
    assert names(q=world["keys.virtualkey"].hint) == {"alice's key"}


def test_the_list_costs_the_same_for_many_keys(ada, world: World, django_assert_max_num_queries):
    for number in range(30):
        services.create_key(actor=COMMAND, name=f"key {number}", user_id="alice")
    with django_assert_max_num_queries(12):
        ada.get(url("changelist", "keys.virtualkey"))
