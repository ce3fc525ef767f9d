# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Limits of everybody in the console. A key's, user's, team's and deployment's own are on their pages."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.decorators import display

from ailb_project.console import ConsoleAdmin, actor_of
from keys import services
from keys.models import LimitScope, RateLimit, VirtualKey


@admin.register(RateLimit)
class RateLimitAdmin(ConsoleAdmin):
    resource = "limits"
    has_service = True
    fixed = ("scope", "owner", "model")
    list_display = ("scope", "of", "model", "rate_limit_rpm", "rate_limit_tpm", "max_parallel", "defined_by")
    list_filter = (("scope", ChoicesDropdownFilter),)
    search_fields = ("owner", "model")
    search_help_text = "Provider, key id or model"
    ordering = ("scope", "owner", "model")
    readonly_fields = ("created_at",)
    fieldsets = (
        (None, {"fields": ("scope", ("owner", "model"), "created_at")}),
        ("Limits", {"fields": (("rate_limit_rpm", "rate_limit_tpm", "max_parallel"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        """With the names of keys, which their ids tell nobody."""
        names = VirtualKey.objects.filter(pk=models.OuterRef("owner")).values("name")
        return super().get_queryset(request).annotate(key_name=models.Subquery(names))

    @display(description="owner", ordering="owner", empty_value="-")
    def of(self, limit: Any) -> str:
        return limit.key_name or limit.owner if limit.scope == LimitScope.KEY_MODEL else limit.owner

    @display(description="defined by", ordering="managed_by")
    def defined_by(self, limit: RateLimit) -> str:
        return limit.managed_by or "-"

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            changes = {name: form.cleaned_data[name] for name in form.changed_data}
            services.update_limit(actor=actor_of(request), limit=obj, changes=changes)
        else:
            obj.pk = services.set_limit(actor=actor_of(request), **form.cleaned_data)[0].pk
        obj.refresh_from_db()

    def remove(self, request: HttpRequest, obj: Any) -> None:
        services.delete_limit(actor=actor_of(request), limit=obj)
