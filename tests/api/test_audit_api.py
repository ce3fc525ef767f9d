"""`/api/audit`: the log, which nothing changes."""

from datetime import UTC, datetime

import pytest

from security.models import AuditEntry
from tests.api.doors import Cast


def test_an_entry_says_who_what_and_from_where(cast: Cast):
    cast["lea"].patch(f"/api/keys/{cast.key.pk}", name="other")
    entry = cast["ada"].get("/api/audit?limit=1").body["results"][0]
    assert set(entry) == {
        "id", "at", "actor", "role", "via", "ip", "action", "object_type", "object_id", "before", "after",
    }  # fmt: skip
    assert (entry["actor"], entry["role"], entry["via"], entry["ip"]) == ("user:lea", "team_lead", "api", "127.0.0.1")
    assert (entry["before"], entry["after"]) == ({"name": "alice's key"}, {"name": "other"})


def test_pages_and_filters(cast: Cast):
    AuditEntry.objects.all()._raw_delete("default")
    for index in range(5):
        cast["ada" if index % 2 else "lea"].patch(f"/api/keys/{cast.key.pk}", name=f"n{index}")
    seen: list[str] = []
    path: str | None = "/api/audit?limit=2"
    while path is not None:
        answer = cast["ada"].get(path).body
        seen += [entry["after"]["name"] for entry in answer["results"]]
        path = answer["next"]
    assert seen == ["n4", "n3", "n2", "n1", "n0"]

    def names(query: str) -> list[str]:
        return [entry["after"]["name"] for entry in cast["ada"].get(f"/api/audit?{query}").body["results"]]

    assert names("actor=user:lea") == ["n4", "n2", "n0"]
    assert names(f"object_type=keys.virtualkey&object_id={cast.key.pk}&action=update") == seen
    assert names("action=revoke") == names("object_id=other") == names("end_date=2020-01-01") == []
    assert names("start_date=2020-01-01") == seen
    third = AuditEntry.objects.order_by("id")[2]
    assert names(f"start_date={third.at.astimezone(UTC).isoformat().replace('+', '%2B')}")[-1] == "n2"


def test_no_secret_is_in_the_log(cast: Cast):
    made = cast["ada"].post("/api/keys", name="n").body
    rotated = cast["ada"].post(f"/api/keys/{made['key_data']['id']}/rotate", grace_seconds=5).body
    told = str(list(AuditEntry.objects.values()))
    for secret in (made["key"], rotated["key"], *cast.secrets.values()):
        assert secret not in told
    from tests.api.doors import digest

    assert digest(rotated["key"]) not in told


def test_entries_are_never_changed(cast: Cast):
    entry = AuditEntry.objects.order_by("id")[0]
    entry.at = datetime(2020, 1, 1, tzinfo=UTC)
    with pytest.raises(TypeError):
        entry.save()
    with pytest.raises(TypeError):
        entry.delete()
    for method in ("POST", "PATCH", "DELETE"):
        assert cast["ada"].send(method, "/api/audit").status == 405
