"""`/api/alerts` and `/api/webhooks`."""

from typing import Any

import pytest
from django.utils import timezone

from billing.alerts import recording, signing
from billing.models import Delivery, Webhook
from security.models import AuditEntry
from tests.api.doors import Cast

URL = "https://hooks.example.com/ailb?of=1"


def raised(kind: str = "overrun", subject: str = "gpt") -> int:
    alert = recording.record(kind=kind, subject=subject, period_start=timezone.now(), detail={"held_usd": "0.1"})
    assert alert is not None
    return alert.pk


class TestAlerts:
    def test_the_list_and_its_filters(self, cast: Cast):
        first, second = raised(), raised("upstream_credentials")
        answer = cast["fin"].get("/api/alerts").body
        assert (answer["total"], [alert["id"] for alert in answer["alerts"]]) == (2, [second, first])
        told = answer["alerts"][1]
        assert set(told) == {
            "id", "kind", "subject", "period_start", "level", "at", "text", "detail", "acknowledged_by",
            "acknowledged_at",
        }  # fmt: skip
        assert (told["kind"], told["subject"], told["level"], told["acknowledged_at"]) == ("overrun", "gpt", 0, None)
        cast["ada"].post(f"/api/alerts/{first}/acknowledge")

        def ids(query: str) -> list[int]:
            return [alert["id"] for alert in cast["vic"].get(f"/api/alerts?{query}").body["alerts"]]

        assert ids("acknowledged=true") == ids("kind=overrun") == [first]
        assert ids("acknowledged=false") == ids("limit=1") == [second]
        assert cast["vic"].get("/api/alerts?kind=other").status == 400

    def test_acknowledging(self, cast: Cast):
        alert = raised()
        first = cast["fin"].post(f"/api/alerts/{alert}/acknowledge")
        assert (first.status, first.body["acknowledged_by"]) == (200, "user:fin")
        assert cast["ada"].post(f"/api/alerts/{alert}/acknowledge").body == first.body
        assert cast["ada"].post("/api/alerts/999999/acknowledge").status == 404
        assert cast["ada"].post(f"/api/alerts/{alert}/acknowledge", by="me").status == 400


class TestWebhooks:
    def test_the_secret_is_shown_once(self, cast: Cast):
        made = cast["ada"].post("/api/webhooks", url=URL)
        assert made.status == 201
        assert signing.is_secret(made.body["secret"])
        shown = {name: value for name, value in made.body.items() if name != "secret"}
        assert shown == {
            "id": made.body["id"], "url": URL, "events": [], "enabled": True, "last_delivery": None,
            "created_at": made.body["created_at"],
        }  # fmt: skip
        assert cast["ada"].get(f"/api/webhooks/{made.body['id']}").body == shown
        assert cast["ada"].get("/api/webhooks").body["webhooks"] == [shown]

    def test_a_given_secret_is_kept_and_may_be_replaced(self, cast: Cast):
        given, other = signing.new_secret(), signing.new_secret()
        made = cast["ada"].post("/api/webhooks", url=URL, secret=given, events=["overrun"]).body
        assert (made["secret"], made["events"]) == (given, ["overrun"])
        before = Webhook.objects.get().credentials
        answer = cast["ada"].patch(f"/api/webhooks/{made['id']}", secret=other)
        assert (answer.status, "secret" in answer.body) == (200, False)
        assert Webhook.objects.get().credentials != before

    def test_changes_are_what_they_name_and_audited(self, cast: Cast):
        made = cast["ada"].post("/api/webhooks", url=URL).body
        answer = cast["ada"].patch(f"/api/webhooks/{made['id']}", enabled=False, events=["counter_drift"])
        assert (answer.body["enabled"], answer.body["events"], answer.body["url"]) == (False, ["counter_drift"], URL)
        entry: Any = AuditEntry.objects.order_by("-id")[0]
        assert entry.after == {"enabled": False, "events": ["counter_drift"]}
        assert cast["ada"].delete(f"/api/webhooks/{made['id']}").status == 204
        assert cast["ada"].get(f"/api/webhooks/{made['id']}").status == 404
        assert AuditEntry.objects.order_by("-id")[0].action == "delete"

    @pytest.mark.parametrize(
        ("fields", "wrong"),
        [
            ({}, "url"), ({"url": "http://10.0.0.1/"}, "url"), ({"url": "http://169.254.169.254/"}, "url"),
            ({"url": "http://[::1]/"}, "url"), ({"url": "ftp://example.com/"}, "url"), ({"url": 5}, "url"),
            ({"url": "https://user:pass@example.com/"}, "url"), ({"url": URL, "events": ["party"]}, "events"),
            ({"url": URL, "events": ["overrun", "overrun"]}, "events"), ({"url": URL, "secret": "short"}, "secret"),
            ({"url": URL, "enabled": "yes"}, "enabled"), ({"url": URL, "name": "x"}, "name"),
        ],
    )  # fmt: skip
    def test_what_is_no_webhook(self, cast: Cast, fields: dict, wrong: str):
        answer = cast["ada"].post("/api/webhooks", **fields)
        assert (answer.status, list(answer.body["errors"])) == (400, [wrong])
        assert not Webhook.objects.exists()

    def test_how_it_went_is_told(self, cast: Cast):
        made = cast["ada"].post("/api/webhooks", url=URL, events=["overrun"]).body
        alert = raised()
        raised("counter_drift")
        Delivery.objects.update(status="given_up", tries=6, http_status=500, error="It answered 500.")
        answer = cast["ada"].get(f"/api/webhooks/{made['id']}/deliveries").body
        (told,) = answer["deliveries"]
        assert answer["total"] == 1
        assert told == {
            "id": told["id"], "alert_id": alert, "status": "given_up", "tries": 6, "next_at": None, "last_at": None,
            "http_status": 500, "error": "It answered 500.",
        }  # fmt: skip
        assert cast["ada"].get(f"/api/webhooks/{made['id']}").body["last_delivery"] == told
        assert cast["ada"].get("/api/webhooks/999999/deliveries").status == 404
