# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Providers in the console: their credentials are written and never shown."""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextareaWidget, UnfoldBooleanSwitchWidget

from ailb_project.console import Switchable, actor_of
from gateway import discovery, services, vault
from gateway.errors import UpstreamError
from gateway.models import Provider
from keys import policy

_UNSEEN = {"autocomplete": "off", "spellcheck": "false", "style": "-webkit-text-security: disc", "rows": 3}


class UnseenTextarea(UnfoldAdminTextareaWidget):
    """Of several lines, and as a password's input: dots as it is typed, and never filled by the server."""

    def __init__(self) -> None:
        super().__init__(attrs=_UNSEEN)

    def format_value(self, value: Any) -> None:
        return None


class ProviderForm(forms.ModelForm):
    """A provider and its credentials, which are written and never shown."""

    api_key = forms.CharField(
        label="API key",
        required=False,
        strip=True,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )
    headers = forms.CharField(label="Extra headers", required=False, widget=UnseenTextarea)
    forget = forms.BooleanField(
        label="Forget the stored credentials",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Those given above, if any, take their place.",
    )

    class Meta:
        model = Provider
        fields = (
            "slug",
            "kind",
            "base_url",
            "price_book",
            "connect_timeout",
            "first_byte_timeout",
            "idle_timeout",
            "enabled",
        )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stored = _opened(self.instance)
        self.set = services.credentials_set(self.instance)
        self.base = services.origin(self.instance)
        if self.instance._state.adding:
            self.fields.pop("forget", None)
            self.fields["kind"].choices = [("", "Select value"), *self.fields["kind"].choices]  # type: ignore[attr-defined]
            self.initial.setdefault("kind", "")
        for name, text in (
            ("api_key", ""),
            ("headers", "One a line, a name, a colon and a value. As secret as the key."),
        ):
            if name in self.fields:
                kept = f"({'set' if self.set[name] else 'not set'}) Empty: as it is. "
                self.fields[name].help_text = text if self.instance._state.adding else f"{kept}{text}"

    def clean_headers(self) -> dict[str, str]:
        headers = {}
        for line in self.cleaned_data["headers"].splitlines():
            name, colon, value = line.partition(":")
            if not line.strip():
                continue
            if not colon or not name.strip() or not value.strip() or not (name + value).isprintable():
                # Never the line itself: it may hold a secret, and errors are shown.
                raise forms.ValidationError("Each line is a header's name, a colon and its value.")
            headers[name.strip().lower()] = value.strip()
        try:
            return services.checked_headers(headers)
        except ValidationError as error:
            raise forms.ValidationError(error.messages) from None

    def clean(self) -> Any:
        cleaned = super().clean()
        if not self.instance._state.adding:
            self._check_moved()
        return cleaned

    def _check_moved(self) -> None:
        """Credentials go to the host that they were given for, and to no other."""
        moved = Provider(
            kind=self.cleaned_data.get("kind", self.instance.kind), base_url=self.cleaned_data.get("base_url", "")
        )
        if services.origin(moved) == self.base or self.cleaned_data.get("forget"):
            return
        for name in ("api_key", "headers"):
            if self.set[name] and not self.cleaned_data.get(name):
                self.add_error(name, "The host changes: give it again, or have it forgotten.")

    @property
    def replaces_credentials(self) -> bool:
        given = bool(self.cleaned_data.get("api_key") or self.cleaned_data.get("headers"))
        return given or bool(self.cleaned_data.get("forget"))

    def credentials(self) -> dict[str, Any]:
        """What is given, else what is stored."""
        kept = {} if self.cleaned_data.get("forget") else self.stored
        api_key = self.cleaned_data.get("api_key") or kept.get("api_key")
        return {"api_key": api_key, "headers": self.cleaned_data.get("headers") or kept.get("headers") or {}}


def _opened(provider: Provider) -> dict[str, Any]:
    """What is stored, as far as it can be opened: the rest cannot be kept either."""
    try:
        return vault.open_sealed(provider.credentials)
    except vault.VaultError:
        return {}


def _told(provider: Provider, name: str) -> str:
    return "(set)" if services.credentials_set(provider)[name] else "(not set)"


@admin.register(Provider)
class ProviderAdmin(Switchable):
    resource = "providers"
    fixed = ("slug",)
    form = ProviderForm
    actions: Any = (*Switchable.actions, "discover")
    list_display = ("slug", "kind", "base_url", "has_credentials", "enabled", "models", "defined_by")
    list_filter = ("enabled", ("kind", ChoicesDropdownFilter))
    search_fields = ("slug", "base_url")
    ordering = ("slug",)
    readonly_fields = ("created_at",)
    add_fieldsets = (
        (None, {"fields": ("slug", "kind", "base_url", "enabled")}),
        ("Credentials", {"fields": ("api_key", "headers")}),
        (
            "More",
            {
                "classes": ("collapse",),
                "fields": ("price_book", ("connect_timeout", "first_byte_timeout", "idle_timeout")),
            },
        ),
    )
    fieldsets = (
        (None, {"fields": ("slug", "kind", "base_url", "enabled")}),
        ("Credentials", {"fields": ("api_key", "headers", "forget")}),
        (
            "More",
            {
                "classes": ("collapse",),
                "fields": ("price_book", ("connect_timeout", "first_byte_timeout", "idle_timeout"), "created_at"),
            },
        ),
    )

    @admin.action(description="Discover models", permissions=["change"])
    def discover(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        """Ask each server which models it has; its deployments follow."""
        for provider in queryset:
            text, level = self._discovered(request, provider)
            self.message_user(request, f"{provider.slug}: {text}", level)

    def _discovered(self, request: HttpRequest, provider: Provider) -> tuple[str, int]:
        """What to say of one provider, and how loudly."""
        if not discovery.can_discover(provider.kind):
            return "a provider of its kind cannot be asked for its models.", messages.WARNING
        if services.models_are_named(provider):
            return "its models are defined elsewhere.", messages.WARNING
        try:
            found = discovery.discover(provider, actor_of(request))
        except UpstreamError as error:
            return error.message, messages.ERROR
        except discovery.NotDiscoverable:
            return "its credentials cannot be opened.", messages.ERROR
        return f"{len(found)} model{'' if len(found) == 1 else 's'}: {', '.join(found) or 'none'}", messages.SUCCESS

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).annotate(number_of_models=models.Count("deployments"))

    @display(description="credentials", boolean=True)
    def has_credentials(self, provider: Provider) -> bool:
        return bool(provider.credentials)

    @display(description="deployments", ordering="number_of_models")
    def models(self, provider: Any) -> int:
        return int(provider.number_of_models)

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, provider: Provider) -> str:
        return provider.managed_by or "-"

    @display(description="API key")
    def api_key(self, provider: Provider) -> str:
        return _told(provider, "api_key")

    @display(description="extra headers")
    def headers(self, provider: Provider) -> str:
        return _told(provider, "headers")

    @display(description="forget")
    def forget(self, provider: Provider) -> str:
        return "-"

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fieldsets
        return [
            (title, {**told, "fields": [name for name in told["fields"] if name != "forget"]})
            for title, told in fieldsets
        ]

    def remove(self, request: HttpRequest, obj: Any) -> None:
        """Its deployments go with it, and one of them may be defined elsewhere."""
        for deployment in obj.deployments.all():
            policy.refuse_managed(actor_of(request), deployment.managed_by)
        super().remove(request, obj)

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if form.replaces_credentials:
            told = form.credentials()
            if any(told.values()):
                obj.set_credentials(**told)
            else:
                obj.credentials = ""
        super().write(request, obj, form, change)

    def audited_notes(self, form: Any) -> dict[str, Any]:
        """Secrets look alike in the log: that they were replaced shows as this."""
        replaced = form.replaces_credentials and form.instance.credentials
        return {"credentials": "(replaced)"} if replaced and form.was else {}
