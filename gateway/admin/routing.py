# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Deployments, model groups and traffic weights in the console."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminSelectWidget

from ailb_project.console import ConsoleAdmin, Switchable, actor_of
from gateway import services
from gateway.capabilities import CAPABILITIES
from gateway.models import Deployment, GroupFallback, GroupMember, ModelGroup, TrafficWeight
from keys import policy

_PREFIX = "can_"
_THERE = {"yes": True, "no": False}


def _capability_field(name: str) -> forms.ChoiceField:
    return forms.ChoiceField(
        label=name.replace("_", " ").capitalize(),
        choices=[("", "unknown: counts as there"), ("yes", "has it"), ("no", "has it not")],
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text=f"For requests with {CAPABILITIES[name]}."
        if name != "chat"
        else CAPABILITIES[name].capitalize() + ".",
    )


class _DeploymentForm(forms.ModelForm):
    """`capabilities` as a select each."""

    class Meta:
        model = Deployment
        fields = (
            "name",
            "provider",
            "upstream_model",
            "weight",
            "priority",
            "strategy",
            "version",
            "max_parallel",
            "rpm",
            "tpm",
            "context_window",
            "max_output",
            "enabled",
        )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        told: dict[bool | None, str] = {there: choice for choice, there in _THERE.items()}
        for name in CAPABILITIES:
            self.initial.setdefault(_PREFIX + name, told.get((self.instance.capabilities or {}).get(name), ""))

    def _post_clean(self) -> None:
        if any(name.startswith(_PREFIX) for name in self.fields):
            chosen = {name: self.cleaned_data.get(_PREFIX + name) for name in CAPABILITIES}
            self.instance.capabilities = {name: _THERE[choice] for name, choice in chosen.items() if choice}
        super()._post_clean()  # type: ignore[misc]  # Django's hook, which the stubs leave out


DeploymentForm = type(
    "DeploymentForm", (_DeploymentForm,), {_PREFIX + name: _capability_field(name) for name in CAPABILITIES}
)
"""With the capabilities that there are."""


@admin.register(Deployment)
class DeploymentAdmin(Switchable):
    resource = "routing"
    form = DeploymentForm
    list_display = (
        "name",
        "provider",
        "upstream_model",
        "version",
        "weight",
        "priority",
        "strategy",
        "enabled",
        "defined_by",
    )
    list_filter = (("provider", RelatedDropdownFilter), "enabled", ("strategy", ChoicesDropdownFilter))
    list_select_related = ("provider",)
    search_fields = ("name", "upstream_model", "provider__slug")
    autocomplete_fields = ("provider",)
    ordering = ("name",)
    readonly_fields = ("created_at",)
    fieldsets = (
        (None, {"fields": ("name", ("provider", "upstream_model"), "enabled")}),
        ("Routing", {"fields": (("weight", "priority"), ("strategy", "version"))}),
        ("Limits", {"fields": (("rpm", "tpm", "max_parallel"),)}),
        (
            "What it can do",
            {"fields": (*(_PREFIX + name for name in CAPABILITIES), ("context_window", "max_output"), "created_at")},
        ),
    )

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, deployment: Deployment) -> str:
        return deployment.managed_by or "-"


def _capability(name: str) -> Callable[..., str]:
    @display(description=name.replace("_", " "))
    def told(self: DeploymentAdmin, deployment: Deployment) -> str:
        return {True: "has it", False: "has it not"}.get(deployment.capabilities.get(name), "unknown")

    return told


for _name in CAPABILITIES:
    # Where the page is read-only, an admin's method stands for the form's field of the name.
    setattr(DeploymentAdmin, _PREFIX + _name, _capability(_name))


class OfGroupInline(TabularInline):
    """Who may change the group may change what is listed with it."""

    fk_name = "group"
    ordering = ("position", "id")
    extra = 0

    def _may_change(self, request: HttpRequest, group: Any) -> bool:
        parent: Any = self.admin_site._registry[ModelGroup]
        return bool(
            parent.has_add_permission(request) if group is None else parent.has_change_permission(request, group)
        )

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(self.admin_site._registry[ModelGroup].has_view_permission(request, obj))

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may_change(request, obj)


class MembersInline(OfGroupInline):
    model = GroupMember
    fields = ("position", "deployment")
    autocomplete_fields = ("deployment",)
    verbose_name = "member"
    verbose_name_plural = "members, in the order in which failover tries them"


class FallbackForm(forms.ModelForm):
    class Meta:
        model = GroupFallback
        fields = ("position", "fallback")

    def clean_fallback(self) -> ModelGroup:
        """The database refuses it too, in words that say nothing to a person."""
        fallback: ModelGroup = self.cleaned_data["fallback"]
        if fallback.pk == self.instance.group_id:
            raise forms.ValidationError("A group does not fall back to itself.")
        return fallback


class FallbacksInline(OfGroupInline):
    model = GroupFallback
    form = FallbackForm
    autocomplete_fields = ("fallback",)
    verbose_name = "fallback"
    verbose_name_plural = "fallbacks: groups that answer, in this order, where no member can"


@admin.register(ModelGroup)
class ModelGroupAdmin(ConsoleAdmin):
    resource = "routing"
    list_display = ("name", "strategy", "members", "hedging", "defined_by")
    list_filter = (("strategy", ChoicesDropdownFilter),)
    search_fields = ("name", "deployments__name")
    ordering = ("name",)
    readonly_fields = ("created_at",)
    inlines = (MembersInline, FallbacksInline)
    fieldsets = ((None, {"fields": ("name", "strategy", "hedging", "created_at")}),)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).prefetch_related("members__deployment")

    @display(description="members")
    def members(self, group: Any) -> str:
        return ", ".join(member.deployment.name for member in group.members.all()) or "-"

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, group: ModelGroup) -> str:
        return group.managed_by or "-"

    def remove(self, request: HttpRequest, obj: Any) -> None:
        """Its weights go with it, and one of them may be defined elsewhere."""
        for weight in obj.traffic_weights.all():
            policy.refuse_managed(actor_of(request), weight.managed_by)
        super().remove(request, obj)

    def audited_state(self, obj: Any) -> dict[str, Any]:
        """With its members and fallbacks, which are rows of their own."""
        return services.group_state(obj)


@admin.register(TrafficWeight)
class TrafficWeightAdmin(ConsoleAdmin):
    resource = "routing"
    policy_names = {"version": "name", "group": "name"}  # together they are its name
    fixed = ("group", "version")
    list_display = ("version", "of", "weight", "defined_by")
    list_select_related = ("group",)
    search_fields = ("version", "group__name")
    autocomplete_fields = ("group",)
    ordering = ("group__name", "version")
    fieldsets = ((None, {"fields": (("group", "version"), "weight")}),)

    @display(description="traffic of", ordering="group__name")
    def of(self, weight: TrafficWeight) -> str:
        return weight.group.name if weight.group is not None else "all"

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, weight: TrafficWeight) -> str:
        return weight.managed_by or "-"
