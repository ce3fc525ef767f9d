"""Security events: what is written down, and that it stays."""

import pytest

from security import engine, events
from security.models import SecurityEvent
from tests.security.builders import caller, chat, policy, user

pytestmark = pytest.mark.django_db

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3


def test_each_finding_is_written_without_its_text():
    verdict = engine.screen(chat([user("hi"), user(f"{SECRET} of Project Titan")]), policy("titan"))
    events.record("req_1", caller("alice", key_id="key_9", team="red"), verdict)
    rows = list(SecurityEvent.objects.order_by("id").values())
    told = [(row["category"], row["detector"], row["action"], row["severity"], row["part"]) for row in rows]
    assert told == [
        ("secret", "secrets", "sanitize", "high", "messages[1].content"),
        ("custom", "terms", "block", "medium", "messages[1].content"),
    ]
    assert (rows[0]["start"], rows[0]["end"]) == (0, len(SECRET))
    assert {(row["request_id"], row["key_id"], row["user_id"], row["team"]) for row in rows} == {
        ("req_1", "key_9", "alice", "red")
    }
    assert SECRET not in str(rows)
    assert "Titan" not in str(rows)


def test_a_key_without_user_and_team_has_events_too():
    events.record("req_1", caller(None), engine.screen(chat([user(SECRET)]), policy()))
    row = SecurityEvent.objects.get()
    assert (row.user_id, row.team) == (None, None)


def test_a_prompt_full_of_secrets_does_not_fill_the_table():
    events.record("req_1", caller(), engine.screen(chat([user(f"{SECRET} " * 1000)]), policy()))
    assert SecurityEvent.objects.count() == 50


def test_an_event_is_never_changed_or_removed():
    events.record("req_1", caller(), engine.screen(chat([user(SECRET)]), policy()))
    event = SecurityEvent.objects.get()
    event.action = "allow"
    with pytest.raises(TypeError):
        event.save()
    with pytest.raises(TypeError):
        event.delete()
    assert SecurityEvent.objects.get().action == "sanitize"
