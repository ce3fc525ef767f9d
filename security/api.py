"""`/api/audit`: who changed what."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from keys.api.base import ApiView, checked_query, next_page
from keys.api.fields import Name
from keys.api.queries import RangeQuery, cursor
from security.models import AuditEntry

_LOOKUPS = {"start": "at__gte", "end": "at__lt", "cursor": "id__lt"}


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
