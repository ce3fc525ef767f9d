# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Policies of the screen, its events, and the audit log in the console."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin
from unfold.contrib.filters.admin import ChoicesDropdownFilter, FieldTextFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from ailb_project.console import LongList, Switchable, check_owner
from ailb_project.console_fields import Days, Exactly, LinesField, moment
from security.detectors.base import BALANCED, Action
from security.models import AuditEntry, Policy, SecurityEvent

_PREFIX = "do_"
_ACTIONS = {"block": "danger", "sanitize": "warning", "flag": "info"}


def _category_field(category: str, default: Action) -> forms.ChoiceField:
    choices = [("", f"as built in ({default.value})"), *((action.value, action.value) for action in Action)]
    return forms.ChoiceField(
        label=category.replace("_", " ").capitalize(), choices=choices, required=False, widget=UnfoldAdminSelectWidget
    )


class _PolicyForm(forms.ModelForm):
    """`actions` as a select a category, `blocked_terms` as lines."""

    blocked_terms = LinesField(help_text="Plain terms of 3 to 200 characters, in any case and inside longer words.")

    class Meta:
        model = Policy
        fields = ("name", "scope", "owner", "blocked_terms", "enabled")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for category in BALANCED:
            self.initial.setdefault(_PREFIX + category, (self.instance.actions or {}).get(category, ""))

    def clean(self) -> Any:
        cleaned = super().clean()
        if {"scope", "owner"} <= self.cleaned_data.keys():
            check_owner(self.cleaned_data["scope"], self.cleaned_data["owner"])
        return cleaned

    def _post_clean(self) -> None:
        if any(name.startswith(_PREFIX) for name in self.fields):
            chosen = {category: self.cleaned_data.get(_PREFIX + category) for category in BALANCED}
            self.instance.actions = {str(category): action for category, action in chosen.items() if action}
        super()._post_clean()  # type: ignore[misc]  # Django's hook, which the stubs leave out


PolicyForm = type(
    "PolicyForm",
    (_PolicyForm,),
    {_PREFIX + category: _category_field(category, BALANCED[category]) for category in BALANCED},
)
"""With the categories that there are."""


@admin.register(Policy)
class PolicyAdmin(Switchable):
    resource = "policies"
    form = PolicyForm
    list_display = ("name", "scope", "owner", "enabled", "told")
    list_filter = (("scope", ChoicesDropdownFilter), "enabled")
    search_fields = ("name", "owner")
    ordering = ("name",)
    readonly_fields = ("created_at",)
    fieldsets = (
        (None, {"fields": ("name", ("scope", "owner"), "enabled")}),
        ("What to do with what is found", {"fields": tuple(_PREFIX + category for category in BALANCED)}),
        ("Blocked terms", {"fields": ("blocked_terms", "created_at")}),
    )

    @display(description="actions")
    def told(self, policy: Policy) -> str:
        return ", ".join(f"{category}: {action}" for category, action in policy.actions.items()) or "as built in"


def _chosen(category: str, default: Action) -> Callable[..., str]:
    @display(description=category.replace("_", " "))
    def chosen(self: PolicyAdmin, policy: Policy) -> str:
        return str(policy.actions.get(category, f"as built in ({default.value})"))

    return chosen


for _category, _default in BALANCED.items():
    # Where the page is read-only, an admin's method stands for the form's field of the name.
    setattr(PolicyAdmin, _PREFIX + _category, _chosen(_category, _default))


@admin.register(SecurityEvent)
class SecurityEventAdmin(LongList):
    resource = "security_events"
    list_display = ("time", "request_id", "category", "acted", "severity", "detector", "key_id", "user_id", "team")
    list_display_links = ("time", "request_id")
    list_filter = (
        ("at", Days),
        ("category", Exactly),
        ("action", Exactly),
        ("key_id", Exactly),
        ("user_id", Exactly),
        ("team", Exactly),
    )
    search_fields = ("request_id__exact", "key_id__exact")
    search_help_text = "A request's or a key's whole id"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "at",
                    "request_id",
                    ("category", "action", "severity"),
                    ("detector", "part"),
                    ("start", "end"),
                )
            },
        ),
        ("Whose", {"fields": (("key_id", "user_id", "team"),)}),
    )

    time = moment("at", "at")

    @display(description="action", label=_ACTIONS)
    def acted(self, event: SecurityEvent) -> str:
        return event.action


@admin.register(AuditEntry)
class AuditAdmin(LongList):
    resource = "audit"
    list_display = ("time", "actor", "role", "via", "ip", "action", "object_type", "object_id")
    list_filter = (
        ("at", Days),
        ("actor", FieldTextFilter),
        ("action", FieldTextFilter),
        ("object_type", FieldTextFilter),
        ("via", Exactly),
    )
    search_fields = ("object_id__exact", "actor__exact")
    search_help_text = "An object's whole id, or an actor such as user:alice"
    fieldsets = (
        (None, {"fields": ("at", ("actor", "role"), ("via", "ip"), "action", ("object_type", "object_id"))}),
        ("Before and after", {"fields": ("before", "after")}),
    )

    time = moment("at", "at")
