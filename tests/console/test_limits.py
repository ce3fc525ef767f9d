"""Limits of everybody in the console, and the waits of keys and teams."""

from keys.models import RateLimit, Team, VirtualKey
from security.models import AuditEntry
from tests.console.pages import World, last_entry, submit, url
from tests.console.test_keys import errors, make


def test_a_limit_is_made_changed_and_lifted(ada, world: World):
    response = submit(ada, url("add", "keys.ratelimit"), scope="provider", owner="upstream", rate_limit_rpm="60")
    assert response.status_code == 302, errors(response)
    made = RateLimit.objects.get(scope="provider")
    assert (made.owner, made.model, made.rate_limit_rpm, made.max_parallel) == ("upstream", "", 60, None)
    entry = last_entry(object_type="keys.ratelimit")
    assert (entry.action, entry.actor, entry.via) == ("create", "user:ada", "console")

    response = submit(ada, url("change", made), rate_limit_rpm="", max_parallel="3", owner="other", scope="model")
    assert response.status_code == 302, errors(response)
    assert last_entry(object_type="keys.ratelimit").after == {"rate_limit_rpm": None, "max_parallel": 3}
    made.refresh_from_db()
    assert (made.scope, made.owner) == ("provider", "upstream"), "what it limits is for good"

    assert ada.post(url("delete", made), {"post": "yes"}).status_code == 302
    assert not RateLimit.objects.filter(scope="provider").exists()
    assert [entry.action for entry in AuditEntry.objects.filter(object_id=made.pk, object_type="keys.ratelimit")] == [
        "delete", "update", "create",
    ]  # fmt: skip


def test_what_is_wrong_is_said_beside_the_field(ada, world: World):
    def told(**typed: str) -> str:
        response = submit(ada, url("add", "keys.ratelimit"), **{"rate_limit_rpm": "60", **typed})
        assert response.status_code == 200
        return errors(response)

    assert "There is no provider of this slug." in told(scope="provider", owner="nope")
    assert "There is no deployment or model group of this name." in told(scope="model", model="nope")
    assert "This scope has none." in told(scope="organisation", owner="upstream")
    assert "This scope needs one." in told(scope="key_model", owner=world.cast.key.pk)
    assert "A limit limits something" in told(scope="organisation", rate_limit_rpm="")
    assert "already exists" in told(scope="key_model", owner=world.cast.key.pk, model="gpt-test")
    assert RateLimit.objects.count() == 1


def test_the_list_names_keys(ada, world: World):
    page = ada.get(url("changelist", "keys.ratelimit")).content.decode()
    assert "alice&#x27;s key" in page
    assert world.cast.key.pk not in page


def test_what_a_file_defines_is_only_read(ada, world: World):
    RateLimit.objects.update(managed_by="file")
    row = world["keys.ratelimit"]
    page = ada.get(url("change", row)).content.decode()
    assert "This is defined by the file" in page
    assert 'name="_save"' not in page
    assert ada.post(url("delete", row), {"post": "yes"}).status_code == 403
    assert RateLimit.objects.exists()


def test_waits_and_shares_of_the_queue_are_on_the_pages_of_keys_and_teams(ada, world: World):
    key, _ = make(ada, max_wait_ms="5000", queue_weight="3")
    assert (key.max_wait_ms, key.queue_weight) == (5000, 3)
    assert submit(ada, url("change", key), max_wait_ms="").status_code == 302
    assert VirtualKey.objects.get(pk=key.pk).max_wait_ms is None
    response = submit(ada, url("change", world["keys.team"]), max_wait_ms="600000", queue_weight="2")
    assert response.status_code == 302, errors(response)
    assert last_entry(object_type="keys.team").after == {"max_wait_ms": 600_000, "queue_weight": 2}
    for typed in ({"max_wait_ms": "600001"}, {"queue_weight": "0"}):
        assert submit(ada, url("change", key), **typed).status_code == 200
    assert Team.objects.get(name="red").queue_weight == 2


def test_a_lead_sets_waits_and_no_share_of_the_queue(lea, world: World):
    key = world["keys.virtualkey"]
    page = lea.get(url("change", key))
    assert {"max_wait_ms", "rate_limit_rpm"} <= set(page.context["adminform"].form.fields)
    assert "queue_weight" not in page.context["adminform"].form.fields
    assert submit(lea, url("change", key), max_wait_ms="50", queue_weight="9").status_code == 302
    key.refresh_from_db()
    assert (key.max_wait_ms, key.queue_weight) == (50, 1)
    made, _ = make(lea, max_wait_ms="60")
    assert (made.max_wait_ms, made.queue_weight) == (60, 1)
