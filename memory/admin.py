# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Conversations in the console: read, which is audited, and deleted."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models.functions import Length
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from unfold.contrib.filters.admin import ChoicesDropdownFilter, FieldTextFilter
from unfold.decorators import display

from ailb_project.console import ConsoleAdmin, LongList, actor_of, owned
from ailb_project.console_fields import Days
from keys.actors import Actor
from memory.models import Session, Turn

_WAYS = {"view": "read", "delete": "delete"}


@admin.register(Session)
class SessionAdmin(ConsoleAdmin):
    resource = "sessions"
    ways = _WAYS
    list_display = ("session_id", "owner", "created_at", "last_turn_at")
    list_filter = (("owner", FieldTextFilter), ("last_turn_at", Days))
    search_fields = ("session_id", "owner__exact")
    search_help_text = "A session's name, or a whole owner such as user:alice"
    readonly_fields = ("turns",)
    fieldsets = ((None, {"fields": ("session_id", "owner", ("created_at", "last_turn_at"), "turns")}),)

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return owned(Session.objects.all(), actor, self.resource, action)

    @display(description="turns")
    def turns(self, session: Session) -> str:
        url = reverse("admin:memory_turn_changelist")
        number = session.turns.count()
        return format_html('<a class="text-link" href="{}?{}">{}</a>', url, urlencode({"session": session.pk}), number)


@admin.register(Turn)
class TurnAdmin(LongList):
    resource = "sessions"
    ways = _WAYS
    unaudited = frozenset({"content"})
    audit_each = False
    list_display = ("created_at", "session", "owner", "role", "length")
    list_display_links = ("created_at",)
    list_filter = (("role", ChoicesDropdownFilter), ("created_at", Days))
    list_select_related = ("session",)
    search_fields = ("session__session_id__exact", "session__owner__exact")
    search_help_text = "A session's whole name, or a whole owner such as user:alice"
    fieldsets = ((None, {"fields": ("session", "role", "created_at", "content")}),)

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        mine = owned(Session.objects.all(), actor, self.resource, action)
        return Turn.objects.filter(session__in=mine)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        # The list does without what was said.
        return super().get_queryset(request).defer("content").annotate(number=Length("content"))

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **told: Any) -> Any:
        response = super().change_view(request, object_id, *args, **told)
        if (shown := getattr(response, "context_data", None)) is not None:
            self._record_reading(request, shown["original"])
        return response

    def _record_reading(self, request: HttpRequest, turn: Turn) -> None:
        """Somebody else's conversation."""
        actor = actor_of(request)
        if turn.session.owner != f"user:{actor.user_id}":
            self.record(request, turn, "read", after={"session": turn.session.session_id, "owner": turn.session.owner})

    @display(description="owner")
    def owner(self, turn: Turn) -> str:
        return turn.session.owner

    @display(description="characters")
    def length(self, turn: Any) -> int:
        return int(turn.number)
