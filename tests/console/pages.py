"""The console as its visitors have it: pages, forms filled as a browser would, and one row of every model."""

from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.forms import CheckboxInput, CheckboxSelectMultiple, FileInput, SplitDateTimeWidget
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from billing import pricebook
from billing.alerts import services as alerts
from billing.models import Alert, Delivery, LedgerEntry, Price
from billing.models.prices import PriceImport
from billing.pricing import Rates
from gateway.models import (
    ConfigVersion,
    Deployment,
    GatewayProcess,
    GroupMember,
    ModelGroup,
    Provider,
    TrafficWeight,
)
from keys.actors import COMMAND
from keys.models import RateLimit, Team, User
from memory.models import Session, Turn
from rag.models import Collection, Document
from security.models import AuditEntry, Policy, SecurityEvent
from tests.api.doors import Cast

CREDENTIAL = "sk-upstream-0123456789abcdef"
HEADER = "project-secret-42"
WEBHOOK_SECRET = "whsec_QSBzZWNyZXQgdGhhdCBubyBwYWdlIHNob3dz"
PROMPT = "What Alice asked in confidence"


@dataclass
class World:
    """One row of every model; what belongs to somebody is Alice's."""

    cast: Cast
    rows: dict[str, Model] = field(default_factory=dict)

    def __getitem__(self, label: str) -> Any:
        return self.rows[label]

    def add(self, row: Model) -> None:
        self.rows[row._meta.label_lower] = row


def make_world(cast: Cast) -> World:
    world = World(cast)
    now = timezone.now()
    provider = Provider(slug="upstream", kind="openai", base_url="http://127.0.0.1:9/v1")
    provider.set_credentials(api_key=CREDENTIAL, headers={"x-project": HEADER})
    provider.save()
    deployment = Deployment.objects.create(name="gpt-test", provider=provider, upstream_model="gpt-test")
    group = ModelGroup.objects.create(name="fast", strategy="failover")
    GroupMember.objects.create(group=group, deployment=deployment)
    alert = Alert.objects.create(kind="overrun", subject="gpt-test", period_start=now)
    webhook, _ = alerts.create_webhook(actor=COMMAND, url="https://hooks.example.com/ailb", secret=WEBHOOK_SECRET)
    session = Session.objects.create(owner="user:alice", session_id="s1")
    collection = Collection.objects.create(name="handbook", owner="user:alice")
    for row in (
        cast.key,
        User.objects.get(username="alice"),
        Team.objects.get(name="red"),
        RateLimit.objects.create(scope="key_model", owner=cast.key.pk, model="gpt-test", rate_limit_rpm=60),
        cast.budgets["alice's key"],
        LedgerEntry.objects.create(**entry(cast.key.pk, now)),
        alert,
        webhook,
        Delivery.objects.create(alert=alert, webhook=webhook),
        make_price(),
        PriceImport.objects.create(version="1"),
        provider,
        deployment,
        group,
        TrafficWeight.objects.create(group=group, version="canary", weight=5),
        GatewayProcess.objects.create(id="p1", host="here", pid=1),
        ConfigVersion.objects.get(section="keys"),
        Policy.objects.create(name="strict", scope="organisation", blocked_terms=["falcon"]),
        SecurityEvent.objects.create(
            request_id="r1", key_id=cast.key.pk, category="secret", detector="secrets", action="block", severity="high",
            part="messages[0].content", start=0, end=4,
        ),
        AuditEntry.objects.order_by("id").first(),
        session,
        Turn.objects.create(session=session, role="user", content=PROMPT),
        collection,
        Document.objects.create(collection=collection, title="Holidays", text="Twenty-five days a year."),
    ):  # fmt: skip
        assert row is not None
        world.add(row)
    return world


def make_price(model: str = "gpt-test", **fields: Any) -> Price:
    rates = Rates(input=Decimal("2.5"), output=Decimal(10))
    return pricebook.set_price(provider="openai", model=model, rates=rates, **fields)


def entry(key_id: str, at: Any, number: int = 1) -> dict[str, Any]:
    return {
        "request_id": f"r{number}", "kind": "settlement", "created_at": at, "written_at": at, "process_id": "p1",
        "key_id": key_id, "user_id": "alice", "team": "red", "provider": "openai", "deployment": "gpt-test",
        "requested_model": "gpt-test", "routed_model": "gpt-test", "status": 200, "stream": False,
        "prompt_tokens": 10, "completion_tokens": 2, "cost_usd": Decimal("0.000045"),
    }  # fmt: skip


def registered() -> list[type[Model]]:
    """Every model that the console has pages of."""
    return sorted(admin.site._registry, key=lambda model: model._meta.label_lower)


def url(page: str, row: Model | str) -> str:
    """`url("change", key)`, `url("add", "keys.virtualkey")`."""
    label = row if isinstance(row, str) else row._meta.label_lower
    arguments = [] if isinstance(row, str) else [quote(row.pk)]
    return reverse(f"admin:{label.replace('.', '_')}_{page}", args=arguments)


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def filled(response: Any, **changes: Any) -> dict[str, Any]:
    """What a browser sends for the page's form, with these fields typed over."""
    sent: dict[str, Any] = {}
    form = response.context["adminform"].form
    forms = [form]
    for inline in response.context["inline_admin_formsets"]:
        forms += [inline.formset.management_form, *inline.formset.initial_forms]
    for each in forms:
        for bound in each:
            sent.update(_sent(bound))
    return {name: value for name, value in (sent | changes).items() if value is not None}


def _sent(bound: Any) -> dict[str, Any]:
    widget = bound.field.widget
    widget = getattr(widget, "widget", widget)  # Django wraps those of related fields
    value = bound.value()
    if isinstance(widget, FileInput):
        return {}
    if isinstance(widget, CheckboxSelectMultiple):
        return {bound.html_name: value or []}
    if isinstance(widget, CheckboxInput):
        return {bound.html_name: "on"} if value else {}
    if isinstance(widget, SplitDateTimeWidget):
        parts = widget.decompress(value) if value else [None, None]
        return {f"{bound.html_name}_{i}": str(part) for i, part in enumerate(parts) if part is not None}
    return {bound.html_name: "" if value is None else value}


def submit(client: Client, address: str, **changes: Any) -> Any:
    """Open the page, fill its form, send it."""
    page = client.get(address)
    assert page.status_code == 200, page.status_code
    return client.post(address, filled(page, **changes))


def last_entry(**told: Any) -> Any:
    """The newest entry of the audit log."""
    return AuditEntry.objects.filter(**told).first()


def later(**span: float) -> dict[str, str]:
    """A moment as two fields have it."""
    at = timezone.now() + timedelta(**span)
    return {"0": at.strftime("%Y-%m-%d"), "1": at.strftime("%H:%M:%S")}
