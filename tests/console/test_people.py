"""Users, teams and passwords in the console."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from keys import services
from keys.actors import COMMAND
from keys.models import Team, User
from security.models import AuditEntry
from tests.api.doors import make_user
from tests.console.pages import World, last_entry, signed_in, submit, url
from tests.console.test_keys import errors

OLD, NEW = "a password of Ada's", "something that she chose"


def by_name(name: str) -> Any:
    return User.objects.get(username=name)


def sign_in(username: str, password: str) -> Client:
    client = Client()
    response = client.post(reverse("admin:login"), {"username": username, "password": password})
    assert response.status_code == 302, "the password is right"
    return client


# ── users ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_person_is_made_and_given_a_password(ada, world: World):
    team = Team.objects.get(name="red")
    made = submit(ada, url("add", "keys.user"), username="dora", role="finance", team=team.pk, email="dora@example.com")
    dora = by_name("dora")
    assert made["Location"] == url("change", dora), "where the button for a password is"
    assert (dora.role, dora.team, dora.email, dora.has_usable_password()) == (
        "finance",
        team,
        "dora@example.com",
        False,
    )

    given = "a first password"
    assert ada.get(url("set_password", dora)).status_code == 200
    response = ada.post(url("set_password", dora), {"password1": given, "password2": given})
    assert response.status_code == 302
    dora.refresh_from_db()
    assert dora.check_password(given)
    assert dora.must_change_password
    first, second = AuditEntry.objects.filter(object_type="keys.user", object_id=str(dora.pk))
    assert (first.action, second.action) == ("set_password", "create")
    assert given not in str(first.after)
    assert dora.password not in str(second.after)
    # And she has to replace it.
    assert sign_in("dora", given).get(reverse("admin:index"))["Location"] == reverse("admin:password_change")


def test_a_poor_password_is_refused(ada, world: World):
    response = ada.post(url("set_password", by_name("alice")), {"password1": "short", "password2": "short"})
    assert response.status_code == 200
    assert "too short" in response.content.decode()
    assert not by_name("alice").has_usable_password()


def test_passwords_of_others_are_the_admin_s_to_set(lea, world: World):
    alice = by_name("alice")
    assert lea.get(url("set_password", alice)).status_code == 403
    assert url("set_password", alice) not in lea.get(url("change", alice)).content.decode()
    assert signed_in(by_name("vic")).get(url("set_password", alice)).status_code == 403
    assert lea.get(url("set_password", by_name("charlie"))).status_code == 404


def test_one_s_own_password_wants_the_old_one(ada, world: World):
    assert ada.get(url("set_password", by_name("ada")))["Location"] == reverse("admin:password_change")


def test_a_change_of_role_and_team(ada, world: World):
    blue = Team.objects.get(name="blue")
    response = submit(ada, url("change", by_name("bob")), role="viewer", team=blue.pk)
    assert response.status_code == 302, errors(response)
    assert (by_name("bob").role, by_name("bob").team) == ("viewer", blue)
    entry = last_entry(object_type="keys.user")
    assert entry.after == {"role": "viewer", "team_id": blue.pk}
    assert submit(ada, url("change", by_name("bob")), team="").status_code == 302
    assert by_name("bob").team is None


def test_a_team_lead_sets_colleagues_limits_and_not_their_roles(lea, world: World):
    page = lea.get(url("change", by_name("bob")))
    fields = {"display_name", "rate_limit_rpm", "rate_limit_tpm", "max_parallel"}
    assert set(page.context["adminform"].form.fields) == fields
    lea.post(url("change", by_name("bob")), {"display_name": "Robert", "role": "admin", "rate_limit_rpm": "5"})
    assert (by_name("bob").display_name, by_name("bob").role, by_name("bob").rate_limit_rpm) == ("Robert", "member", 5)


@pytest.mark.parametrize("change", [{"role": "member"}, {"is_active": None}])
def test_the_last_admin_who_can_sign_in_stays(ada, world: World, change: dict):
    other = make_user("abel", "admin")
    response = submit(ada, url("change", by_name("ada")), **change)
    assert response.status_code == 200
    assert "last admin" in errors(response)
    assert (by_name("ada").role, by_name("ada").is_active) == ("admin", True)

    services.set_password(actor=COMMAND, user=other, password="a password of Abel's")
    assert submit(ada, url("change", by_name("ada")), **change).status_code == 302


def test_nobody_deletes_themselves(ada, world: World):
    response = ada.post(url("delete", by_name("ada")), {"post": "yes"}, follow=True)
    assert "This is you" in response.content.decode()
    assert User.objects.filter(username="ada").exists()


def test_who_owns_keys_is_not_deleted_and_the_page_says_why(ada, world: World):
    for row in (by_name("alice"), world["keys.team"]):
        page = ada.get(url("delete", row)).content.decode()
        assert "protected related objects" in page
        assert "Virtual key: " in page
        ada.post(url("delete", row), {"post": "yes"})
        assert type(row).objects.filter(pk=row.pk).exists()


def test_who_owns_none_is(ada, world: World):
    rows: list[Any] = [by_name("vic"), services.create_team(actor=COMMAND, name="empty")]
    for row in rows:
        assert ada.post(url("delete", row), {"post": "yes"}).status_code == 302
        assert not type(row).objects.filter(pk=row.pk).exists()
        entry = last_entry()
        assert (entry.action, entry.object_type, entry.object_id) == ("delete", row._meta.label_lower, str(row.pk))


def test_a_team_keeps_its_name(ada, world: World):
    submit(ada, url("change", world["keys.team"]), name="crimson", cost_centre="C1")
    team = Team.objects.get(pk=world["keys.team"].pk)
    assert (team.name, team.cost_centre) == ("red", "C1")


# ── the first password ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def newcomer(cast) -> Client:
    """Ada, signed in with a password that she was given."""
    User.objects.filter(username="ada").update(must_change_password=True)
    return sign_in("ada", OLD)


def change_password(client: Client, old: str = OLD, new: str = NEW):
    sent = {"old_password": old, "new_password1": new, "new_password2": new}
    return client.post(reverse("admin:password_change"), sent)


def test_the_first_password_has_to_be_replaced(newcomer: Client):
    for address in (reverse("admin:index"), url("changelist", "keys.virtualkey"), url("add", "keys.user")):
        assert newcomer.get(address)["Location"] == reverse("admin:password_change")
    page = newcomer.get(reverse("admin:password_change"))
    assert page.status_code == 200
    assert "Set your own to go on" in page.content.decode()

    done = change_password(newcomer)
    assert done["Location"] == reverse("admin:index")
    index = newcomer.get(done["Location"])
    assert index.status_code == 200, "still signed in"
    assert "Your password was changed" in index.content.decode()
    ada = by_name("ada")
    assert not ada.must_change_password
    assert ada.check_password(NEW)
    entry = last_entry()
    assert (entry.actor, entry.via, entry.action) == ("user:ada", "console", "set_password")
    assert AuditEntry.objects.filter(action="set_password").count() == 1
    assert sign_in("ada", NEW).get(reverse("admin:index")).status_code == 200


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (OLD, OLD, "That is the password you have."),
        ("not it at all", NEW, "incorrectly"),
        (OLD, "short", "too short"),
        (OLD, "password1234", "too common"),
    ],
)
def test_the_first_password_is_not_replaced_by(newcomer: Client, old: str, new: str, told: str):
    response = change_password(newcomer, old, new)
    assert response.status_code == 200
    assert told in response.content.decode()
    assert by_name("ada").must_change_password
    assert newcomer.get(reverse("admin:index")).status_code == 302


def test_anybody_changes_their_own_password(cast):
    bob = services.set_password(actor=COMMAND, user=by_name("bob"), password=OLD)
    client = sign_in(bob.username, OLD)
    page = client.get(reverse("admin:password_change")).content.decode()
    assert "Set your own to go on" not in page
    assert change_password(client).status_code == 302
    assert by_name("bob").check_password(NEW)
    assert last_entry().actor == "user:bob"


def test_who_was_shut_out_is_out(cast, ada):
    bob = services.set_password(actor=COMMAND, user=by_name("bob"), password=OLD)
    client = sign_in("bob", OLD)
    assert submit(ada, url("change", bob), is_active=None).status_code == 302
    assert client.get(reverse("admin:index")).status_code == 302
