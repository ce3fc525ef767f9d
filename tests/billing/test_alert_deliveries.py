"""Alerts on their way: signed, tried again, given up, and never to where nobody may call."""

import base64
import json
import re
import smtplib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import ValidationError
from django.core.mail.backends.locmem import EmailBackend
from django.utils import timezone
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from billing.alerts import delivery, recording, services, signing
from billing.models import Alert, Delivery, Webhook
from keys.actors import COMMAND
from security.models import AuditEntry
from tests.support.receiver import Receiver

DOCS = Path(__file__).resolve().parents[2] / "docs" / "budgets.md"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """On loopback, which webhooks may not call; a test says that they may."""
    monkeypatch.setattr(delivery, "_TRUSTED_NETWORK", True)
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def webhook(db: None, receiver: Receiver) -> Webhook:
    made, _ = services.create_webhook(actor=COMMAND, url="https://hooks.example.com/", secret=SECRET)
    Webhook.objects.update(url=receiver.url)  # past the form, which would refuse loopback
    made.refresh_from_db()
    return made


def raised(kind: str = "overrun", subject: str = "gpt", **told: Any) -> Alert:
    detail = {"cost_usd": "0.02", "held_usd": "0.01"}
    alert = recording.record(kind=kind, subject=subject, period_start=timezone.now(), detail=detail, **told)
    assert alert is not None
    return alert


def pass_time(seconds: float) -> None:
    """Everything that is planned is due that much sooner."""
    for row in Delivery.objects.all():
        Delivery.objects.filter(pk=row.pk).update(next_at=row.next_at - timedelta(seconds=seconds))


class TestSignatures:
    def test_the_standards_own_library_verifies_them(self, webhook, receiver):
        alert = raised()
        assert delivery.deliver_due() == 1
        (posted,) = receiver.posted
        told = Verifier(SECRET).verify(posted.body, posted.headers)
        assert told["type"] == "overrun"
        assert told["data"]["id"] == alert.pk
        assert told["data"]["cost_usd"] == "0.02"
        assert told["timestamp"].endswith("Z")
        assert posted.headers["webhook-id"] == f"alert_{alert.pk}"
        assert posted.headers["content-type"] == "application/json"
        assert posted.path == "/ailb?of=installation-1"
        for wrong in (posted.body + b" ", posted.body.replace(b"gpt", b"gpu")):
            with pytest.raises(WebhookVerificationError):
                Verifier(SECRET).verify(wrong, posted.headers)
        with pytest.raises(WebhookVerificationError):
            Verifier(signing.new_secret()).verify(posted.body, posted.headers)

    def test_and_so_does_the_snippet_of_the_documentation(self, webhook, receiver):
        raised()
        delivery.deliver_due()
        (posted,) = receiver.posted
        (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        names: dict[str, Any] = {}
        exec(snippet, names)
        names["verify"](SECRET, posted.headers, posted.body)
        with pytest.raises(ValueError, match="not signed"):
            names["verify"](SECRET, posted.headers, posted.body + b" ")
        long_ago = signing.headers(SECRET, message_id="alert_1", body=b"{}", at=timezone.now() - timedelta(hours=1))
        with pytest.raises(ValueError, match="sent again"):
            names["verify"](SECRET, long_ago, b"{}")

    @pytest.mark.parametrize(
        "secret",
        ["", "whsec_", "whsec_QUJD", "whsec_!!!!", SECRET.removeprefix("whsec_"), "whsec_" + "A" * 88 + "BBBB"],
    )
    def test_what_is_no_secret(self, db, secret):
        with pytest.raises(ValidationError):
            services.update_webhook(
                actor=COMMAND,
                webhook=services.create_webhook(actor=COMMAND, url="https://example.com/")[0],
                changes={"secret": secret},
            )

    def test_a_made_one_is_one(self):
        assert signing.is_secret(signing.new_secret())
        assert signing.new_secret() != signing.new_secret()


class TestTrying:
    def test_a_delivered_one_is_not_sent_again(self, webhook, receiver):
        raised()
        assert [delivery.deliver_due() for _ in range(3)] == [1, 0, 0]
        row = Delivery.objects.get()
        assert (row.status, row.tries, row.http_status, row.error) == ("delivered", 1, 204, "")
        assert len(receiver.posted) == 1

    @pytest.mark.parametrize("status", [301, 302, 400, 404, 410, 500, 503])
    def test_only_2xx_is_success_and_redirects_are_not_followed(self, webhook, receiver, status):
        receiver.answers.append(status)
        raised()
        assert delivery.deliver_due() == 0
        row = Delivery.objects.get()
        assert (row.status, row.http_status, row.error) == ("pending", status, f"It answered {status}.")
        assert len(receiver.posted) == 1

    def test_it_is_tried_again_later_and_later_with_the_same_id(self, webhook, receiver):
        receiver.answers.extend([500, None, 503])
        alert = raised()
        for number, wait in enumerate((10, 60, 300)):
            delivery.deliver_due()
            pass_time(wait - 1)
            delivery.deliver_due()
            assert len(receiver.posted) == number + 1, "not before its time"
            pass_time(1)
        assert delivery.deliver_due() == 1
        assert {posted.headers["webhook-id"] for posted in receiver.posted} == {f"alert_{alert.pk}"}
        row = Delivery.objects.get()
        assert (row.status, row.tries, row.http_status) == ("delivered", 4, 204)

    def test_after_an_hour_it_is_given_up_and_says_so(self, webhook, receiver):
        receiver.answers.extend([500] * 20)
        raised()
        for wait in (*delivery.WAITS, timedelta(days=1), timedelta(days=1)):
            delivery.deliver_due()
            pass_time(wait.total_seconds())
        assert 3600 <= sum(wait.total_seconds() for wait in delivery.WAITS) <= 4000
        row = Delivery.objects.get()
        assert (row.status, row.tries, row.http_status) == ("given_up", 6, 500)
        assert len(receiver.posted) == 6

    def test_of_two_workers_one_sends(self, webhook, receiver):
        raised()
        one, other = Delivery.objects.get(), Delivery.objects.get()
        assert [delivery._claim(one), delivery._claim(other)] == [True, False]

    def test_a_worker_that_died_meanwhile_is_made_good(self, webhook, receiver):
        raised()
        assert delivery._claim(Delivery.objects.get())
        assert delivery.deliver_due() == 0
        pass_time(10)
        assert delivery.deliver_due() == 1

    def test_one_that_hangs_up_holds_up_no_other(self, webhook, receiver):
        other, _ = services.create_webhook(actor=COMMAND, url="https://other.example.com/")
        Webhook.objects.filter(pk=other.pk).update(url="http://127.0.0.1:9/")
        raised()
        assert delivery.deliver_due() == 1
        lost = Delivery.objects.get(webhook=other)
        assert (lost.status, lost.http_status) == ("pending", None)
        assert "Connect call failed" in lost.error or "refused" in lost.error

    def test_a_slow_one_is_given_seconds(self, webhook, monkeypatch, receiver):
        monkeypatch.setattr(delivery, "SECONDS", 0.001)
        raised()
        assert delivery.deliver_due() == 0
        assert Delivery.objects.get().error == "No answer within 0.001 seconds."

    def test_events_and_switches(self, webhook, receiver):
        Webhook.objects.update(events=["overrun"])
        raised("counter_drift")
        assert not Delivery.objects.exists()
        raised("overrun")
        Webhook.objects.update(enabled=False)
        raised("overrun", "another")
        assert delivery.deliver_due() == 0
        assert (Delivery.objects.get().status, Delivery.objects.get().error) == ("given_up", "The webhook is disabled.")
        assert not receiver.posted


class TestAddresses:
    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1/", "http://localhost:8080/x", "https://10.0.0.1/", "https://192.168.1.1/hook", "http://[::1]/",
         "http://169.254.169.254/latest/meta-data", "http://2130706433/", "http://[::ffff:10.0.0.1]/"],
    )  # fmt: skip
    def test_the_gateways_own_network_is_not_called(self, db, url):
        """A name is judged when it is resolved, an address at once; and both again when they are called."""
        if "localhost" not in url:
            with pytest.raises(ValidationError):
                services.create_webhook(actor=COMMAND, url=url)
        made, _ = services.create_webhook(actor=COMMAND, url="https://example.com/")
        Webhook.objects.filter(pk=made.pk).update(url=url)
        raised()
        assert delivery.deliver_due() == 0
        assert "never called" in Delivery.objects.get().error

    @pytest.mark.parametrize(
        "url", ["ftp://example.com/", "https://user:secret@example.com/", "example.com", "https://", "https://x/#y",
                "https://example.com:0/", "javascript:alert(1)", "https://[::1"],
    )  # fmt: skip
    def test_what_is_no_url(self, db, url):
        with pytest.raises(ValidationError) as caught:
            services.create_webhook(actor=COMMAND, url=url)
        assert "secret" not in str(caught.value)


class TestSecrets:
    def test_they_are_sealed_and_in_no_log(self, db):
        webhook, _ = services.create_webhook(actor=COMMAND, url="https://example.com/", secret=SECRET)
        assert SECRET not in webhook.credentials
        services.update_webhook(actor=COMMAND, webhook=webhook, changes={"secret": (new := signing.new_secret())})
        told = json.dumps(list(AuditEntry.objects.values("before", "after")))
        assert SECRET not in told
        assert new not in told
        assert webhook.credentials not in told
        assert AuditEntry.objects.order_by("-id")[0].after == {"credentials": "(replaced)"}

    def test_one_that_no_key_opens_is_told(self, webhook, receiver):
        Webhook.objects.update(credentials="gAAAAABnonsense")
        raised()
        assert delivery.deliver_due() == 0
        assert Delivery.objects.get().error == "Its secret cannot be opened: give it again."


class TestMail:
    def test_nobody_is_told_where_nobody_is_named(self, db):
        raised()
        assert not Delivery.objects.exists()

    def test_all_who_are_named_are_told_once(self, db, settings):
        settings.ALERT_EMAILS = ["ops@example.com", "finance@example.com"]
        settings.DEFAULT_FROM_EMAIL = "ailb@example.com"
        raised(subject="gpt\nBcc: everybody@example.com")
        assert [delivery.deliver_due(), delivery.deliver_due()] == [1, 0]
        (message,) = mail.outbox
        assert (message.to, message.from_email) == (settings.ALERT_EMAILS, "ailb@example.com")
        assert message.subject.startswith("AILB: A request to gpt Bcc: everybody@example.com cost 0.02 dollars")
        assert "held_usd: 0.01" in message.body
        row = Delivery.objects.get()
        assert (row.status, row.webhook, row.http_status) == ("delivered", None, None)

    @pytest.mark.parametrize("error", [ConnectionRefusedError(), smtplib.SMTPServerDisconnected("bye"), TimeoutError()])
    def test_a_mail_server_that_is_gone_is_tried_again(self, db, settings, monkeypatch, error):
        settings.ALERT_EMAILS = ["ops@example.com"]

        def send(self: Any, messages: Any) -> int:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(EmailBackend, "send_messages", send)
            raised()
            assert delivery.deliver_due() == 0
        row = Delivery.objects.get()
        assert (row.status, row.error.startswith("The mail server")) == ("pending", True)
        pass_time(10)
        assert delivery.deliver_due() == 1
        assert len(mail.outbox) == 1
