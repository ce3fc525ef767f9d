# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Alerts, webhooks and deliveries in the console."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.http import HttpRequest
from unfold.contrib.filters.admin import ChoicesDropdownFilter, DropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextInputWidget

from ailb_project.console import READ, ConsoleAdmin, LongList, actor_of
from ailb_project.console_fields import Days, moment
from billing.alerts import messages as texts
from billing.alerts import services, signing
from billing.models import Alert, Delivery, Webhook
from billing.models.alerts import AlertKind
from keys import policy
from keys.policy import Reach

_KINDS = {"budget_threshold": "warning", "overrun": "info", "upstream_credentials": "danger", "counter_drift": "danger"}
_STATUS = {"pending": "info", "delivered": "success", "given_up": "danger"}


class Acknowledged(DropdownFilter):
    title = "acknowledged"
    parameter_name = "acknowledged"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("no", "No"), ("yes", "Yes")]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        if self.value() not in ("no", "yes"):
            return queryset
        return queryset.filter(acknowledged_at__isnull=self.value() == "no")


@admin.register(Alert)
class AlertAdmin(ConsoleAdmin):
    """Raised by the gateway; here they are acknowledged, no more."""

    resource = "alerts"
    ways = READ
    actions = ("acknowledge",)
    list_display = ("time", "kind_badge", "text", "acknowledged_by")
    list_display_links = ("time", "text")
    list_filter = (Acknowledged, ("kind", ChoicesDropdownFilter), ("at", Days))
    list_fullwidth = True
    fieldsets = (
        (None, {"fields": ("text", ("at", "kind"), ("subject", "level", "period_start"), "detail")}),
        ("Acknowledged", {"fields": (("acknowledged_by", "acknowledged_at"),)}),
    )
    readonly_fields = ("text",)

    time = moment("at", "at")

    @display(description="kind", label=_KINDS)
    def kind_badge(self, alert: Alert) -> tuple[str, str]:
        return alert.kind, alert.get_kind_display()

    @display(description="what")
    def text(self, alert: Alert) -> str:
        return texts.text(alert)

    def has_acknowledge_permission(self, request: HttpRequest) -> bool:
        return policy.reach(actor_of(request), "alerts", "update") is Reach.ALL

    @admin.action(description="Acknowledge", permissions=["acknowledge"])
    def acknowledge(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        chosen = list(queryset)
        for alert in chosen:
            services.acknowledge(actor=actor_of(request), alert=alert)
        self.message_user(request, f"Acknowledged: {len(chosen)}.", messages.SUCCESS)


class WebhookForm(forms.ModelForm):
    """The secret of a new webhook is made with the page, which is the one time that it is shown."""

    events = forms.MultipleChoiceField(
        choices=AlertKind.choices,
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="What it is told of. None ticked: everything.",
    )
    secret = forms.CharField(
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
        help_text="Messages are signed with it (Standard Webhooks). It is never shown again: copy it now.",
    )

    class Meta:
        model = Webhook
        fields = ("url", "events", "enabled")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if "secret" not in self.fields:
            return
        if self.instance._state.adding:
            self.initial["secret"] = signing.new_secret()
        else:
            self.fields["secret"].help_text = "Write-only. Empty: the present one stays."

    def clean_secret(self) -> str:
        secret: str = self.cleaned_data["secret"].strip()
        if secret and not signing.is_secret(secret):
            raise forms.ValidationError("whsec_ and 24 to 64 bytes in base64.")
        return secret


@admin.register(Webhook)
class WebhookAdmin(ConsoleAdmin):
    resource = "webhooks"
    has_service = True
    form = WebhookForm
    list_display = ("host", "told", "enabled", "last")
    fieldsets = (
        (None, {"fields": ("url", "enabled", "events", "secret")}),
        ("So far", {"fields": (("last", "created_at"),)}),
    )
    readonly_fields = ("last", "created_at")

    @display(description="server")
    def host(self, webhook: Webhook) -> str:
        return str(webhook)

    @display(description="told of")
    def told(self, webhook: Webhook) -> str:
        return ", ".join(webhook.events) or "everything"

    @display(description="last delivery", empty_value="none yet")
    def last(self, webhook: Webhook) -> Any:
        delivery = webhook.deliveries.order_by("-id").first()
        if delivery is None:
            return None
        return f"{delivery.get_status_display()}{f': {delivery.error}' if delivery.error else ''}"

    @display(description="secret")
    def secret(self, webhook: Webhook) -> str:
        """Where the page is read-only, this stands for the form's field of the name."""
        return "(set)" if webhook.credentials else "-"

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        values = {name: value for name, value in form.cleaned_data.items() if name != "secret" or value}
        if change:
            changes = {name: values[name] for name in form.changed_data if name in values}
            services.update_webhook(actor=actor_of(request), webhook=obj, changes=changes)
        else:
            obj.pk = services.create_webhook(actor=actor_of(request), **values)[0].pk
        obj.refresh_from_db()

    def remove(self, request: HttpRequest, obj: Any) -> None:
        services.delete_webhook(actor=actor_of(request), webhook=obj)


@admin.register(Delivery)
class DeliveryAdmin(LongList):
    """What was sent, or is to be, and how that went. E-mails too, but only for those who may see webhooks."""

    resource = "webhooks"
    list_display = ("time", "state", "to", "alert", "tries", "http_status", "error")
    list_display_links = ("time", "state")
    list_filter = (("status", ChoicesDropdownFilter),)
    list_select_related = ("alert", "webhook")
    fieldsets = (
        (None, {"fields": ("alert", "webhook", ("status", "tries"), ("last_at", "next_at"), ("http_status", "error"))}),
    )

    time = moment("last_at", "last tried")

    @display(description="status", label=_STATUS)
    def state(self, delivery: Delivery) -> tuple[str, str]:
        return delivery.status, delivery.get_status_display()

    @display(description="to")
    def to(self, delivery: Delivery) -> str:
        return str(delivery.webhook or "e-mail")
