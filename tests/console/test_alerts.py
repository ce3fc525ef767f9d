"""Alerts and webhooks in the console."""

import re

from django.urls import reverse
from django.utils import timezone

from billing.alerts import recording, signing
from billing.models import Alert, Budget, Delivery, Webhook
from gateway import vault
from keys.models import User
from tests.console.pages import World, last_entry, signed_in, submit, url
from tests.console.test_keys import errors

URL = "https://hooks.example.com/other"


def test_the_home_page_says_how_many_wait(ada, world: World):
    recording.record(kind="overrun", subject="another", period_start=timezone.now(), detail={})
    page = ada.get(reverse("admin:index")).content.decode()
    assert re.search(r"Alerts to see to</p>\s*<p[^>]*>2</p>", page)
    link = f"{url('changelist', 'billing.alert')}?acknowledged=no"
    assert link in page
    assert len(ada.get(link).context["cl"].result_list) == 2
    chosen = {"action": "acknowledge", "_selected_action": list(Alert.objects.values_list("pk", flat=True))}
    assert ada.post(link, chosen, follow=True).status_code == 200
    assert set(Alert.objects.values_list("acknowledged_by", flat=True)) == {"user:ada"}
    assert len(ada.get(link).context["cl"].result_list) == 0
    assert "Alerts to see to" not in ada.get(reverse("admin:index")).content.decode()
    assert last_entry(action="acknowledge").actor == "user:ada"


def test_members_have_neither_list_nor_card(alice, world: World):
    assert "Alerts to see to" not in alice.get(reverse("admin:index")).content.decode()


def test_viewers_read_and_acknowledge_nothing(world: World):
    vic = signed_in(User.objects.get(username="vic"))
    chosen = {"action": "acknowledge", "_selected_action": [world["billing.alert"].pk]}
    vic.post(url("changelist", "billing.alert"), chosen)
    assert not Alert.objects.exclude(acknowledged_at=None).exists()


def test_a_new_webhooks_secret_is_on_its_form_and_nowhere_else(ada, world: World):
    page = ada.get(url("add", "billing.webhook"))
    secret = page.context["adminform"].form["secret"].value()
    assert signing.is_secret(secret)
    response = submit(ada, url("add", "billing.webhook"), url=URL, secret=secret, events=["overrun"])
    assert response.status_code == 302, errors(response)
    made = Webhook.objects.get(url=URL)
    assert (vault.open_sealed(made.credentials), made.events, made.enabled) == ({"secret": secret}, ["overrun"], True)
    for shown in (ada.get(url("change", made)), ada.get(url("changelist", "billing.webhook"))):
        assert secret not in shown.content.decode()
    assert secret not in str(last_entry(object_type="billing.webhook", action="create").after)


def test_a_webhook_is_changed_and_keeps_its_secret(ada, world: World):
    webhook = world["billing.webhook"]
    response = submit(ada, url("change", webhook), enabled=None)
    assert response.status_code == 302, errors(response)
    changed = Webhook.objects.get(pk=webhook.pk)
    assert (changed.enabled, changed.credentials) == (False, webhook.credentials)
    submit(ada, url("change", webhook), secret=signing.new_secret())
    assert Webhook.objects.get(pk=webhook.pk).credentials != webhook.credentials
    assert last_entry(object_type="billing.webhook").after == {"credentials": "(replaced)"}
    assert "24 to 64 bytes" in errors(submit(ada, url("change", webhook), secret="short"))


def test_the_gateways_own_network_is_refused_on_the_form(ada, world: World):
    response = submit(ada, url("add", "billing.webhook"), url="http://10.0.0.1/hook")
    assert "never called" in errors(response)


def test_a_deleted_webhook_takes_its_deliveries_along(ada, world: World):
    assert ada.post(url("delete", world["billing.webhook"]), {"post": "yes"}).status_code == 302
    assert not Webhook.objects.exists()
    assert not Delivery.objects.exists()


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_with_dates_grace_and_thresholds(ada, world: World):
    typed = {
        "scope": "team", "owner": "red", "period": "custom", "starts_on": "2026-03-03", "days": "45", "repeats": "on",
        "limit_dollars": "10", "mode": "grace", "grace_percent": "25", "alert_thresholds": "90 %, 50",
    }  # fmt: skip
    response = submit(ada, url("add", "billing.budget"), **typed)
    assert response.status_code == 302, errors(response)
    made = Budget.objects.get(period="custom")
    assert (str(made.starts_on), made.days, made.repeats) == ("2026-03-03", 45, True)
    assert (made.mode, made.grace_percent, made.alert_thresholds) == ("grace", 25, [50, 90])
    assert submit(ada, url("change", made), alert_thresholds="").status_code == 302
    assert Budget.objects.get(pk=made.pk).alert_thresholds == []


def test_what_is_wrong_with_it_is_said_beside_the_field(ada, world: World):
    budget = world.cast.budgets["red"]
    assert "Whole numbers" in errors(submit(ada, url("change", budget), alert_thresholds="half"))
    assert "from 1 to 1000" in errors(submit(ada, url("change", budget), alert_thresholds="0"))
    assert "Only a custom period" in errors(submit(ada, url("change", budget), days="5"))
