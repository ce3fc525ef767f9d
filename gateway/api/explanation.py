"""`POST /api/routing/explain`: where a request would go, and why."""

from typing import Any

import msgspec
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.circuits import State
from gateway.doors.chat import ChatDoor
from gateway.errors import InvalidRequest
from gateway.explanation import explain
from gateway.render import NO_FIELD
from gateway.types import ChatRequest
from keys import policy
from keys.api.base import ApiView, actor_of
from keys.api.serializers import Problem


class CandidateData(serializers.Serializer[Any]):
    """A deployment of the route."""

    deployment = serializers.CharField()
    provider = serializers.CharField()
    pool = serializers.CharField(help_text="The group, or fallback, that it is a member of.")
    position = serializers.IntegerField(allow_null=True, help_text="When it would be tried; null: not at all.")
    left_out = serializers.CharField(
        allow_null=True, help_text="A capability that it lacks, context, output, circuit or drained."
    )
    score = serializers.FloatField(allow_null=True, help_text="What the strategy goes by.")
    circuit = serializers.ChoiceField([state.name.lower() for state in State])
    in_flight = serializers.IntegerField()
    has_room = serializers.BooleanField(help_text="Whether its own limits leave something, as far as is known here.")
    holds_cache = serializers.BooleanField(help_text="Whether it served the same session or prompt prefix lately.")
    weight = serializers.IntegerField()
    version = serializers.CharField(allow_null=True)


class ExplanationData(serializers.Serializer[Any]):
    """Scores are in-flight work for its weight (load_balanced), turns (round_robin: the highest is next), 1e-18 US
    dollars (cost_optimized), seconds (latency_optimized), priority (failover) or weight (random).
    """

    model = serializers.CharField()
    chosen = serializers.CharField(allow_null=True)
    strategy = serializers.CharField(allow_null=True)
    version = serializers.CharField(allow_null=True, help_text="The one that traffic weights choose.")
    candidates = CandidateData(many=True)


class RoutingExplanationView(ApiView):
    resource = "routing"
    actions = {"POST": "read"}

    @extend_schema(
        request={"application/json": {"type": "object", "description": "A body of POST /v1/chat/completions."}},
        responses={
            200: ExplanationData,
            503: OpenApiResponse(Problem, "No data plane in this process, or a busy one."),
        },
        operation_id="explain_routing",
    )
    def post(self, request: Request) -> Response:
        """Where a chat request would go now: its candidates, their scores, why some are left out. Sends nothing."""
        actor = actor_of(request)
        if policy.allowed_fields(actor, self.resource, "read") is not None:
            raise PermissionDenied("Only roles that read all of routing may see this.")
        asked = _asked(request.data)
        owner = f"user:{actor.user_id}" if actor.user_id is not None else f"key:{actor.key_id}"
        return Response(ExplanationData(explain(asked, owner)).data)


def _asked(body: Any) -> ChatRequest:
    """The request as the chat door reads it. What the door refuses is told in `/api`'s shape: by field."""
    try:
        return ChatDoor().parse(msgspec.json.encode(body), {})
    except InvalidRequest as refusal:
        raise ValidationError({refusal.param or NO_FIELD: [refusal.message]}) from None
