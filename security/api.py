"""`/api/audit`: who changed what; and what can be said of a policy."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from keys.api import fields
from keys.api.base import ApiView, checked_query, next_page
from keys.api.fields import Boolean, Name, StrictSerializer
from keys.api.queries import RangeQuery, cursor
from security.models import AuditEntry
from security.policies import LONGEST_TERM, MOST_TERMS, Scope

_LOOKUPS = {"start": "at__gte", "end": "at__lt", "cursor": "id__lt"}


class NewPolicy(StrictSerializer):
    """A policy of the screen, as a configuration file has it. What its actions may be the model says."""

    name = Name(max_length=200)
    scope = serializers.ChoiceField(Scope.choices, required=False)
    owner = Name(max_length=200, required=False, allow_blank=True, help_text="Key id or team; none: the organisation.")
    actions = serializers.DictField(child=Name(max_length=20), required=False, help_text="By category.")
    blocked_terms = fields.names(most=MOST_TERMS, length=LONGEST_TERM)
    enabled = Boolean(required=False)


class AuditQuery(RangeQuery):
    actor = Name(max_length=250, required=False, help_text="As the log names them: user:alice, key:key_…, command.")
    action = Name(max_length=40, required=False)
    object_type = Name(max_length=60, required=False)
    object_id = Name(max_length=250, required=False)


class AuditData(serializers.ModelSerializer[AuditEntry]):
    before = serializers.DictField(allow_null=True)
    after = serializers.DictField(allow_null=True)

    class Meta:
        model = AuditEntry
        fields = ("id", "at", "actor", "role", "via", "ip", "action", "object_type", "object_id", "before", "after")


class AuditList(serializers.Serializer[Any]):
    results = AuditData(many=True)
    next = serializers.CharField(allow_null=True, help_text="Path of the next page.")


class AuditView(ApiView):
    resource = "audit"

    @extend_schema(parameters=[AuditQuery], responses=AuditList, operation_id="list_audit")
    def get(self, request: Request) -> Response:
        """Every change of configuration and every sensitive read, newest first."""
        query = checked_query(AuditQuery, request)
        limit = query.pop("limit")
        # Whoever may read the log reads all of it: `check_permissions` has asked.
        rows = AuditEntry.objects.filter(**{_LOOKUPS.get(name, name): value for name, value in query.items()})
        page = list(rows.order_by("-id")[: limit + 1])
        following = next_page(request, cursor(page[limit - 1].pk)) if len(page) > limit else None
        return Response({"results": AuditData(page[:limit], many=True).data, "next": following})
