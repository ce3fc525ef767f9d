# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Virtual keys in the console: made, changed, rotated and revoked by `keys.services`; never deleted."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.db import models, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from unfold.contrib.filters.admin import AutocompleteSelectFilter, DropdownFilter
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.widgets import UnfoldAdminBigIntegerFieldWidget, UnfoldAdminTextInputWidget

from ailb_project.console import ConsoleAdmin, Refused, actor_of, refusals
from ailb_project.console_fields import DollarsField, LinesField, dollars, json_object
from billing import selectors as billing
from gateway.types import Role
from keys import policy, selectors, services
from keys.actors import Actor
from keys.admin import secret_page
from keys.models import KeyStatus, VirtualKey
from keys.policy import Reach

_BADGES = {"active": "success", "expired": "warning", "revoked": "danger"}


class KeyForm(forms.ModelForm):
    """A key and its monthly budget."""

    monthly_quota_dollars = DollarsField(
        label="Dollars a month", required=False, min_value=0, help_text="The key's monthly budget. Empty: no limit."
    )
    monthly_quota_tokens = forms.IntegerField(
        label="Tokens a month",
        required=False,
        min_value=0,
        widget=UnfoldAdminBigIntegerFieldWidget,
        help_text="Empty: no limit.",
    )
    allowed_models = LinesField(label="Allowed models", help_text="Model or group names, one a line. Empty: all.")
    tags = LinesField(help_text="On every request of this key, for reports. One a line.")

    class Meta:
        model = VirtualKey
        fields = (
            "name", "user", "team", "role", "allowed_models", "rate_limit_rpm", "rate_limit_tpm", "max_parallel",
            "max_wait_ms", "queue_weight", "expires_at", "metadata", "tags",
        )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self.instance._state.adding:
            quota = billing.key_quotas([self.instance.pk]).get(self.instance.pk)
            self.initial["monthly_quota_dollars"] = quota.limit_usd if quota is not None else None
            self.initial["monthly_quota_tokens"] = quota.limit_tokens if quota is not None else None

    def clean_allowed_models(self) -> list[str] | None:
        return self.cleaned_data["allowed_models"] or None

    def clean_metadata(self) -> Any:
        return json_object(self.cleaned_data["metadata"])


class RevokeForm(forms.Form):
    reason = forms.CharField(
        max_length=200, widget=UnfoldAdminTextInputWidget, help_text="For the audit log: leaked, owner left, replaced …"
    )


class RotateForm(forms.Form):
    grace_seconds = forms.IntegerField(
        initial=3600,
        min_value=0,
        max_value=int(services.MAX_GRACE.total_seconds()),
        widget=UnfoldAdminBigIntegerFieldWidget,
        help_text="How long the old secret keeps working beside the new one. 0 ends it at once: where it has leaked.",
    )


class StatusFilter(DropdownFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status.value, status.label) for status in KeyStatus]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        if self.value() not in KeyStatus.values:
            return queryset
        return queryset.filter(pk__in=selectors.keys(actor=actor_of(request), status=self.value()).values("pk"))


@admin.register(VirtualKey)
class VirtualKeyAdmin(ConsoleAdmin):
    resource = "keys"
    ways = {"view": "read", "add": "create", "change": "update"}
    policy_names = {"user": "user_id"}
    has_service = True
    form = KeyForm
    list_display = ("name", "owner", "team_name", "status", "used", "hint", "defined_by")
    list_filter = (StatusFilter, ("team", AutocompleteSelectFilter), ("user", AutocompleteSelectFilter))
    search_fields = ("name", "id", "hint", "user__username", "team__name")
    search_help_text = "Name, id, last characters, user or team"
    autocomplete_fields = ("user", "team")
    ordering = ("-created_at", "id")
    actions = ("revoke_selected",)
    actions_detail = ("rotate", "revoke")
    readonly_fields = ("state", "id", "hint", "spent", "created_at", "last_used", "revoked_at", "revoked_reason")
    add_fieldsets = (
        (None, {"fields": ("name", "user", "team", "allowed_models", "expires_at", "tags")}),
        (
            "Limits",
            {
                "fields": (
                    ("monthly_quota_dollars", "monthly_quota_tokens"),
                    ("rate_limit_rpm", "rate_limit_tpm", "max_parallel"),
                    ("max_wait_ms", "queue_weight"),
                )
            },
        ),
        ("More", {"classes": ("collapse",), "fields": ("role", "metadata")}),
    )
    fieldsets = (
        (
            None,
            {"fields": (("state", "hint"), "name", "user", "team", "allowed_models", "expires_at", "tags")},
        ),
        (
            "Limits",
            {
                "fields": (
                    "spent",
                    ("monthly_quota_dollars", "monthly_quota_tokens"),
                    ("rate_limit_rpm", "rate_limit_tpm", "max_parallel"),
                    ("max_wait_ms", "queue_weight"),
                )
            },
        ),
        (
            "More",
            {
                "classes": ("collapse",),
                "fields": ("id", "role", "metadata", "created_at", "last_used", "revoked_at", "revoked_reason"),
            },
        ),
    )

    # what the policy says of keys is in two rows of its table: the key, and its limits

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return selectors.keys(actor=actor, action=action)

    def allowed_fields(self, actor: Actor, action: str) -> frozenset[str] | None:
        if action == "read":
            return policy.allowed_fields(actor, "keys", "read")
        named = policy.allowed_fields(actor, "keys", action)
        limits = policy.allowed_fields(actor, "key_limits", "update")
        return (policy.KEY_FIELDS if named is None else named) | (policy.LIMIT_FIELDS if limits is None else limits)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and (obj is None or _is_theirs(request, obj))

    def has_revoke_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return self._may_act(request, "revoke", object_id)

    def has_rotate_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        return self._may_act(request, "rotate", object_id)

    def _may_act(self, request: HttpRequest, act: str, object_id: str | None) -> bool:
        """`object_id` is as the URL has it. Raises `Http404` for a key that they do not even see."""
        if object_id is None:
            return policy.reach(actor_of(request), "keys", act) is not Reach.NONE
        key: Any = self.get_object(request, unquote(object_id))
        return self._acts_on(request, act, key)

    def _acts_on(self, request: HttpRequest, act: str, key: VirtualKey) -> bool:
        if key.managed_by or key.status is KeyStatus.REVOKED or not _is_theirs(request, key):
            return False
        return self.scoped(actor_of(request), act).filter(pk=key.pk).exists()

    def get_list_filter(self, request: HttpRequest) -> Any:
        # The two others would tell a member who else there is.
        if policy.reach(actor_of(request), "people", "read") is Reach.ALL:
            return super().get_list_filter(request)
        return (StatusFilter,)

    # columns

    @display(description="owner", ordering="user__username")
    def owner(self, key: VirtualKey) -> str:
        return selectors.user_id_of(key) or "-"

    @display(description="team")
    def team_name(self, key: VirtualKey) -> str:
        return selectors.team_of(key) or "-"

    @display(description="status", label=_BADGES)
    def status(self, key: VirtualKey) -> tuple[str, str]:
        return key.status.value, key.status.label

    @display(description="status")
    def state(self, key: VirtualKey) -> str:
        return str(key.status.label)

    @display(description="last used", ordering="last_used", empty_value="never")
    def used(self, key: VirtualKey) -> Any:
        return key.last_used

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, key: VirtualKey) -> str:
        return key.managed_by or "-"

    @display(description="spent this month")
    def spent(self, key: VirtualKey) -> str:
        figures = billing.key_figures(key.pk)
        return f"{dollars(figures.current_spend)} and {figures.current_tokens:,} tokens"

    @display(description="dollars a month")
    def monthly_quota_dollars(self, key: VirtualKey) -> str:
        quota = billing.key_quotas([key.pk]).get(key.pk)
        return dollars(quota.limit_usd) if quota is not None and quota.limit_usd is not None else "no limit"

    @display(description="tokens a month")
    def monthly_quota_tokens(self, key: VirtualKey) -> str:
        quota = billing.key_quotas([key.pk]).get(key.pk)
        return f"{quota.limit_tokens:,}" if quota is not None and quota.limit_tokens is not None else "no limit"

    # writing

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        actor = actor_of(request)
        values = {self._policy_name(name): _plain(value) for name, value in form.cleaned_data.items()}
        if change:
            changed = {self._policy_name(name) for name in form.changed_data}
            services.update_key(actor=actor, key=obj, changes={name: values[name] for name in changed})
        else:
            key, secret = services.create_key(actor=actor, **values)
            secret_page.keep(request, key, secret)
            obj.pk = key.pk
        obj.refresh_from_db()

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        return HttpResponseRedirect(self._page("secret", obj))

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        only_save = {"show_save_and_add_another": False, **({"show_save_and_continue": False} if not object_id else {})}
        return super().changeform_view(request, object_id, form_url, {**(extra_context or {}), **only_save})

    # its own pages

    def get_urls(self) -> list[URLPattern]:
        secret = path(
            "<path:object_id>/secret/",
            self.admin_site.admin_view(self.secret_view),
            name=f"{self.opts.app_label}_{self.opts.model_name}_secret",
        )
        return [secret, *super().get_urls()]

    def secret_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: Any = self.get_object(request, unquote(object_id))
        secret = secret_page.take(request, key)
        if secret is None:
            self.message_user(
                request, "A key's secret is shown once. If it was lost, rotate the key for a new one.", messages.INFO
            )
            return HttpResponseRedirect(self._page("change", key))
        told = {"key": key, "secret": secret, "curl": secret_page.curl(request, key, secret)}
        context = {**told, "back": self._page("change", key)}
        response = self._render(request, "admin/keys/virtualkey/secret.html", "The key's secret", context)
        response["Cache-Control"] = "no-store"
        return response

    @action(
        description="Rotate",
        url_path="rotate",
        icon="autorenew",
        permissions=["rotate"],
    )
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: Any = self.get_object(request, unquote(object_id))
        form = RotateForm(request.POST or None)
        if form.is_valid():
            try:
                with refusals():
                    key, secret, _ = services.rotate_key(actor=actor_of(request), key=key, **form.cleaned_data)
            except Refused as refused:
                return self.refuse(request, refused, self._page("change", key))
            secret_page.keep(request, key, secret)
            return HttpResponseRedirect(self._page("secret", key))
        text = "The key gets a new secret, which is shown once. Its owner, limits and reports stay as they are."
        return self._confirm(request, f"Rotate {key}", text, form, [key], "Rotate")

    @action(description="Revoke", url_path="revoke", icon="block", permissions=["revoke"], variant=ActionVariant.DANGER)
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key: Any = self.get_object(request, unquote(object_id))
        form = RevokeForm(request.POST or None)
        if form.is_valid():
            return self._revoke(request, [key], form.cleaned_data["reason"], self._page("change", key))
        text = "The key ends within a second, everywhere and for good. It stays in reports."
        return self._confirm(request, f"Revoke {key}", text, form, [key], "Revoke")

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke_selected(self, request: HttpRequest, queryset: models.QuerySet) -> HttpResponse | None:
        keys = [key for key in queryset if self._acts_on(request, "revoke", key)]
        if not keys:
            self.message_user(request, "None of these keys is yours to revoke, or still in force.", messages.WARNING)
            return None
        form = RevokeForm(request.POST if "confirmed" in request.POST else None)
        if form.is_valid():
            return self._revoke(request, keys, form.cleaned_data["reason"], request.get_full_path())
        text = "These keys end within a second, everywhere and for good. They stay in reports."
        return self._confirm(request, f"Revoke {len(keys)} keys", text, form, keys, "Revoke", "revoke_selected")

    def _revoke(self, request: HttpRequest, keys: list[Any], reason: str, url: str) -> HttpResponse:
        """All of them or none."""
        try:
            with refusals(), transaction.atomic():
                for key in keys:
                    services.revoke_key(actor=actor_of(request), key=key, reason=reason)
        except Refused as refused:
            return self.refuse(request, refused, url)
        self.message_user(request, f"Revoked: {', '.join(map(str, keys))}.", messages.SUCCESS)
        return HttpResponseRedirect(url)

    def _confirm(
        self,
        request: HttpRequest,
        title: str,
        text: str,
        form: forms.Form,
        keys: list[Any],
        button: str,
        list_action: str = "",
    ) -> HttpResponse:
        context = {
            "text": text,
            "form": form,
            "keys": keys,
            "button": button,
            "list_action": list_action,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "back": self._page("change", keys[0]) if not list_action else request.get_full_path(),
        }
        return self._render(request, "admin/keys/virtualkey/confirm.html", title, context)

    def _render(self, request: HttpRequest, template: str, title: str, context: dict[str, Any]) -> HttpResponse:
        request.current_app = self.admin_site.name
        shown = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **context}
        return TemplateResponse(request, template, shown)

    def _page(self, page: str, key: VirtualKey) -> str:
        # Quoted: to Django's admin the `_` of an id begins an escaped character.
        return reverse(self._url_name(page), args=[quote(key.pk)])


def _is_theirs(request: HttpRequest, key: VirtualKey) -> bool:
    """A key with the admin role is an admin's to touch: `keys.services` refuses others too."""
    return key.role != Role.ADMIN or policy.role(actor_of(request)) is Role.ADMIN


def _plain(value: Any) -> Any:
    """As services take it: people and teams by their names."""
    return getattr(value, "username", getattr(value, "name", value)) if isinstance(value, models.Model) else value
