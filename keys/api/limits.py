"""`/api/limits`: limits of all requests, of those to a provider, of those for a model, of a key's for a model."""

from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from keys import selectors, services
from keys.api import fields
from keys.api.base import ApiView, actor_of, checked, checked_query, page, paged
from keys.api.fields import Name, StrictSerializer
from keys.api.queries import PageQuery
from keys.api.serializers import Problem
from keys.models import LimitScope, RateLimit

DEFINED_ELSEWHERE = OpenApiResponse(Problem, "It is defined elsewhere, by its `managed_by`.")

_FIELDS_ELSEWHERE = {
    "key": "A key's limits are fields of the key: /api/keys.",
    "user": "A user's limits are fields of the user: /api/users.",
    "team": "A team's limits are fields of the team: /api/teams.",
    "deployment": "A deployment's limits are its rpm, tpm and max_parallel: /api/deployments.",
}
"""Scopes that have no rows here, and where their limits are."""

# ── bodies and answers ──────────────────────────────────────────────────────────────────────────────────────────────


class ScopeField(serializers.ChoiceField):
    """Says of a scope that has no limits here where they are."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, str) and data in _FIELDS_ELSEWHERE:
            raise serializers.ValidationError(_FIELDS_ELSEWHERE[data])
        return super().to_internal_value(data)


class LimitPatch(StrictSerializer):
    """`PATCH` of a limit: what is omitted stays, null lifts. What it limits is for good."""

    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)


class NewLimit(LimitPatch):
    """`PUT` and `POST` of a limit: there is one for each scope, owner and model. Omitted or null: not limited."""

    scope = ScopeField(LimitScope.choices)
    owner = Name(
        max_length=200,
        required=False,
        allow_null=True,
        help_text="The provider's slug (provider) or the key's id (key_model).",
    )
    model = Name(
        max_length=200,
        required=False,
        allow_null=True,
        help_text="The name of a deployment or model group (model, key_model).",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """To what `keys.services.set_limit` takes."""
        return {**attrs, "owner": attrs.get("owner") or "", "model": attrs.get("model") or ""}


class LimitQuery(PageQuery):
    scope = serializers.ChoiceField(LimitScope.choices, required=False)


class LimitData(serializers.Serializer[Any]):
    """A limit; `owner` and `model` are null where its scope has none."""

    id = serializers.IntegerField()
    scope = serializers.ChoiceField(LimitScope.choices)
    owner = serializers.SerializerMethodField()
    model = serializers.SerializerMethodField()
    rate_limit_rpm = serializers.IntegerField(allow_null=True)
    rate_limit_tpm = serializers.IntegerField(allow_null=True)
    max_parallel = serializers.IntegerField(allow_null=True)
    managed_by = serializers.CharField(help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField()

    def get_owner(self, limit: RateLimit) -> str | None:
        return limit.owner or None

    def get_model(self, limit: RateLimit) -> str | None:
        return limit.model or None


class LimitList(serializers.Serializer[Any]):
    limits = LimitData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


# ── views ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _set_limit(request: Request) -> Response:
    limit, is_new = services.set_limit(actor=actor_of(request), **checked(NewLimit, request))
    return Response(LimitData(limit).data, status.HTTP_201_CREATED if is_new else status.HTTP_200_OK)


_SET_LIMIT: dict[str, Any] = {
    "request": NewLimit,
    "responses": {200: LimitData, 201: LimitData, 409: DEFINED_ELSEWHERE},
}


class LimitsView(ApiView):
    resource = "limits"
    actions = {**ApiView.actions, "PUT": "update"}

    @extend_schema(parameters=[LimitQuery], responses=LimitList, operation_id="list_limits")
    def get(self, request: Request) -> Response:
        """The limits of everybody, by scope, owner and model."""
        query = checked_query(LimitQuery, request)
        limits = selectors.limits(actor=actor_of(request), scope=query.get("scope"))
        return paged("limits", LimitData(page(limits, query), many=True).data, limits.count(), query)

    @extend_schema(**_SET_LIMIT, operation_id="set_limit")
    def put(self, request: Request) -> Response:
        """Limit a scope to this and no more: what is omitted is not limited. The same again changes nothing."""
        return _set_limit(request)

    @extend_schema(**_SET_LIMIT, operation_id="add_limit")
    def post(self, request: Request) -> Response:
        """As `PUT`, for clients that make things with `POST`."""
        return _set_limit(request)


class LimitView(ApiView):
    resource = "limits"

    @extend_schema(responses=LimitData, operation_id="get_limit")
    def get(self, request: Request, limit_id: int) -> Response:
        """A limit."""
        return Response(LimitData(selectors.find_limit(actor=actor_of(request), limit_id=limit_id)).data)

    @extend_schema(request=LimitPatch, responses={200: LimitData, 409: DEFINED_ELSEWHERE}, operation_id="update_limit")
    def patch(self, request: Request, limit_id: int) -> Response:
        """Change a limit; what is omitted stays. One that limits nothing any more is deleted, not emptied."""
        actor = actor_of(request)
        changes = checked(LimitPatch, request, partial=True)
        limit = selectors.find_limit(actor=actor, limit_id=limit_id)
        return Response(LimitData(services.update_limit(actor=actor, limit=limit, changes=changes)).data)

    @extend_schema(responses={204: None, 409: DEFINED_ELSEWHERE}, operation_id="delete_limit")
    def delete(self, request: Request, limit_id: int) -> Response:
        """Lift a limit."""
        actor = actor_of(request)
        services.delete_limit(actor=actor, limit=selectors.find_limit(actor=actor, limit_id=limit_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
