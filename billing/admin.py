# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Budgets, prices and the ledger in the console."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import BooleanRadioFilter, ChoicesDropdownFilter, FieldTextFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminTextInputWidget

from ailb_project.console import READ, ConsoleAdmin, LongList, actor_of, check_owner
from ailb_project.console_fields import Days, Exactly, dollars, moment, money
from billing import pricebook, pricing, selectors, services
from billing.alerts import admin as alerts
from billing.models import Budget, LedgerEntry, Price
from billing.models.prices import PriceImport
from keys import policy
from keys.actors import Actor
from security import audit

__all__ = ["alerts"]

_STATUS = {"healthy": "success", "warning": "warning", "exceeded": "danger"}
_KINDS = {"hold": "info", "settlement": "success", "release": "warning", "adjustment": "primary"}


class PercentsField(forms.CharField):
    """A list of whole numbers, between commas."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        if isinstance(value, list):
            return value
        parts = [part.strip().removesuffix("%").strip() for part in (value or "").split(",") if part.strip()]
        if not all(part.isascii() and part.isdecimal() for part in parts):
            raise forms.ValidationError("Whole numbers with commas between them, such as 50, 80, 100.")
        return sorted(map(int, parts))

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return (initial or []) != self.to_python(data)
        except forms.ValidationError:
            return True

    def run_validators(self, value: Any) -> None:
        """The model's own, of the list."""


class BudgetForm(forms.ModelForm):
    alert_thresholds = PercentsField(
        required=False, help_text="Per cents of the limit at which to raise an alert, each once a period. Empty: none."
    )

    def clean(self) -> Any:
        cleaned = super().clean()
        if {"scope", "owner"} <= self.cleaned_data.keys():
            check_owner(self.cleaned_data["scope"], self.cleaned_data["owner"])
        return cleaned


@admin.register(Budget)
class BudgetAdmin(ConsoleAdmin):
    resource = "budgets"
    fixed = ("scope", "owner", "period")
    has_service = True
    form = BudgetForm
    list_display = ("scope", "owner", "period", "dollars", "limit_tokens", "mode", "tz")
    list_display_links = ("scope", "owner")
    list_filter = (("scope", ChoicesDropdownFilter), ("period", ChoicesDropdownFilter))
    search_fields = ("owner",)
    search_help_text = "Key id, user id or team"
    readonly_fields = ("status", "spent", "reserved", "resets")
    fieldsets = (
        (None, {"fields": ("scope", "owner", ("period", "tz"), ("limit_dollars", "limit_tokens"))}),
        ("Custom period", {"fields": (("starts_on", "days", "repeats"),)}),
        ("At the limit", {"fields": (("mode", "grace_percent"), "alert_thresholds")}),
        ("This period", {"fields": (("status", "spent"), ("reserved", "resets"))}),
    )

    dollars = money("limit_dollars", "dollars")

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return selectors.budgets(actor=actor, action=action)

    @display(description="status", label=_STATUS)
    def status(self, budget: Budget) -> str:
        return selectors.budget_figures(budget).status

    @display(description="spent")
    def spent(self, budget: Budget) -> str:
        figures = selectors.budget_figures(budget)
        return f"{dollars(figures.current_spend)} and {figures.current_tokens:,} tokens"

    @display(description="reserved by requests in flight")
    def reserved(self, budget: Budget) -> str:
        figures = selectors.budget_figures(budget)
        return f"{dollars(figures.reserved)} and {figures.reserved_tokens:,} tokens"

    @display(description="resets", empty_value="never")
    def resets(self, budget: Budget) -> Any:
        return selectors.budget_figures(budget).resets_at

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        values = form.cleaned_data
        if change:
            changes = {name: values[name] for name in form.changed_data}
            services.update_budget(actor=actor_of(request), budget=obj, changes=changes)
        else:
            obj.pk = services.set_budget(actor=actor_of(request), **values).pk
        obj.refresh_from_db()

    def remove(self, request: HttpRequest, obj: Any) -> None:
        services.delete_budget(actor=actor_of(request), budget=obj)


@admin.register(LedgerEntry)
class LedgerAdmin(LongList):
    resource = "spend"
    list_display = (
        "written", "kind_badge", "key_id", "user_id", "team", "requested_model", "tokens", "cost", "status", "provider",
        "request_id",
    )  # fmt: skip
    list_display_links = ("written", "request_id")
    list_filter = (
        ("created_at", Days),
        ("kind", ChoicesDropdownFilter),
        ("key_id", Exactly),
        ("user_id", Exactly),
        ("team", Exactly),
        ("provider", Exactly),
        ("requested_model", FieldTextFilter),
        ("unpriced", BooleanRadioFilter),
        ("estimated", BooleanRadioFilter),
    )
    search_fields = ("request_id__exact", "key_id__exact")
    search_help_text = "A request's or a key's whole id"
    fieldsets = (
        (
            None,
            {"fields": (("request_id", "kind"), ("created_at", "written_at"), "status", ("key_id", "user_id", "team"))},
        ),
        (
            "What was served",
            {
                "fields": (
                    ("provider", "deployment"),
                    ("requested_model", "routed_model", "served_model"),
                    ("stream", "estimated", "unpriced"),
                )
            },
        ),
        (
            "Tokens and cost",
            {
                "fields": (
                    ("prompt_tokens", "completion_tokens"),
                    ("cached_tokens", "cache_write_tokens", "reasoning_tokens"),
                    ("cost_usd", "price_id"),
                    ("held_usd", "held_prompt_tokens", "held_output_tokens"),
                )
            },
        ),
        (
            "More",
            {
                "fields": (
                    ("latency_ms", "ttft_ms", "overhead_ms"),
                    ("session_id", "client_request_id"),
                    "tags",
                    "attempts",
                    "security_action",
                    "detail",
                    "process_id",
                )
            },
        ),
    )

    written = moment("written_at", "written at")

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        rows = LedgerEntry.objects.all()
        return policy.scope(rows, actor, "spend", action, user="user_id", team="team", key="key_id")

    @display(description="tokens")
    def tokens(self, entry: LedgerEntry) -> str:
        if entry.prompt_tokens is None and entry.completion_tokens is None:
            return "-"
        return f"{entry.prompt_tokens or 0:,} + {entry.completion_tokens or 0:,}"

    @display(description="cost")
    def cost(self, entry: LedgerEntry) -> str:
        if entry.cost_usd is None:
            return "unpriced" if entry.unpriced else "-"
        return f"{'≈ ' if entry.estimated else ''}{dollars(entry.cost_usd)}"

    @display(description="kind", label=_KINDS)
    def kind_badge(self, entry: LedgerEntry) -> tuple[str, str]:
        return entry.kind, entry.get_kind_display()


class PriceForm(forms.ModelForm):
    """A new price is judged by `pricebook.set_price`, after it has closed the one in force."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if "effective_from" in self.fields:
            # Not the moment at which the page was opened: that would bill what came in since then anew.
            self.fields["effective_from"].required = False
            self.initial["effective_from"] = None
            self.fields["effective_from"].help_text = "First moment (UTC) at which it applies. Empty: now."

    def _post_clean(self) -> None:
        if not self.instance._state.adding:
            super()._post_clean()  # type: ignore[misc]  # Django's hook, which the stubs leave out
            return
        names = [name for name in self.fields if self.cleaned_data.get(name) is not None]
        self.instance = forms.models.construct_instance(self, self.instance, names)
        try:
            self.instance.clean_fields(exclude=self._get_validation_exclusions())  # type: ignore[attr-defined]
        except forms.ValidationError as error:
            self._update_errors(error)  # type: ignore[attr-defined]


@admin.register(Price)
class PriceAdmin(ConsoleAdmin):
    """A price is never rewritten: a new one closes the one in force, and what is planned may be withdrawn."""

    resource = "prices"
    form = PriceForm
    list_display = (
        "provider",
        "model",
        "deployment",
        "per_input",
        "per_output",
        "effective_from",
        "effective_until",
        "source",
    )
    list_display_links = ("provider", "model")
    list_filter = (
        ("source", ChoicesDropdownFilter),
        ("provider", FieldTextFilter),
        ("deployment", FieldTextFilter),
        ("effective_from", Days),
    )
    search_fields = ("model", "provider", "deployment")
    _RATES = (
        ("input", "output"),
        ("cached_input", "cache_write_5m", "cache_write_1h"),
        ("reasoning", "audio_input", "audio_output"),
        "request",
    )
    add_fieldsets = (
        (None, {"fields": (("provider", "model"), "deployment", "effective_from")}),
        ("US dollars per million tokens", {"fields": (*_RATES, "confirmed")}),
        ("More", {"classes": ("collapse",), "fields": ("tiers", "service_tiers", "match")}),
        (None, {"fields": ("note",)}),
    )
    fieldsets = (
        (None, {"fields": (("provider", "model"), ("deployment", "source"), ("effective_from", "effective_until"))}),
        ("US dollars per million tokens", {"fields": (*_RATES, "confirmed")}),
        ("More", {"fields": (("daily_from", "daily_until"), "tiers", "service_tiers", "match", "created_at")}),
        (None, {"fields": ("note",)}),
    )
    readonly_fields = ("created_at",)
    _CHANGEABLE = frozenset({"effective_until", "note"})

    per_input = money("input", "input")
    per_output = money("output", "output")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        names = super().get_readonly_fields(request, obj)
        if obj is None:
            return names
        frozen = (field.name for field in self.opts.fields if field.name not in self._CHANGEABLE)
        return tuple(dict.fromkeys((*names, *frozen)))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What has been in force explains what was billed."""
        planned = obj is None or obj.effective_from > timezone.now()
        return planned and super().has_delete_permission(request, obj)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"request": "0", **super().get_changeform_initial_data(request)}

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            super().write(request, obj, form, change)
            return
        rivals = Price.objects.filter(provider=obj.provider, model__iexact=obj.model, deployment=obj.deployment)
        before = {row.pk: audit.state(row) for row in rivals}
        values = dict(form.cleaned_data)
        rates = pricing.Rates(**{name: values.pop(name) for name in pricing.RATE_NAMES if name in values})
        price = pricebook.set_price(rates=rates, **values)
        for row in rivals.filter(pk__in=before):
            was, now = audit.difference(before[row.pk], audit.state(row))
            if now:
                self.record(request, row, "update", before=was, after=now)
        obj.pk = price.pk
        obj.refresh_from_db()
        form.stood = price.pk in before

    def _record_saved(self, request: HttpRequest, form: Any, change: bool) -> None:
        if not getattr(form, "stood", False):  # the price in force is this one already
            super()._record_saved(request, form, change)


@admin.register(PriceImport)
class PriceImportAdmin(ConsoleAdmin):
    resource = "prices"
    ways = READ
    list_display = ("version", "imported_at")
    fieldsets = ((None, {"fields": ("version", "imported_at")}),)
