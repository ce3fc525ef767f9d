"""`/api/routing/stats`: how requests went."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway.circuits import State
from gateway.statistics.selectors import WINDOWS, statistics_of, totals_of
from keys import policy
from keys.api.base import ApiView, actor_of, checked_query
from keys.api.fields import StrictSerializer


class WindowQuery(StrictSerializer):
    """Up to now, from a whole five minutes (1h), hour (24h) or day (7d, 30d; UTC) on."""

    window = serializers.ChoiceField(list(WINDOWS), default="24h")


class LastErrorData(serializers.Serializer[Any]):
    """Why it last did not answer. `status` is the upstream's, null where it never answered."""

    code = serializers.CharField()
    status = serializers.IntegerField(allow_null=True)
    at = serializers.DateTimeField()


class FiguresData(serializers.Serializer[Any]):
    """Latencies are milliseconds of answers; null where there were none."""

    requests = serializers.IntegerField()
    success_rate = serializers.FloatField(allow_null=True)
    avg_latency_ms = serializers.FloatField(allow_null=True)
    p50_latency_ms = serializers.FloatField(allow_null=True)
    p95_latency_ms = serializers.FloatField(allow_null=True)
    p99_latency_ms = serializers.FloatField(allow_null=True)
    in_flight = serializers.IntegerField()
    circuit = serializers.ChoiceField([state.name.lower() for state in State])
    last_error = LastErrorData(allow_null=True)


class TotalsData(serializers.Serializer[Any]):
    total_requests = serializers.IntegerField()
    successful_requests = serializers.IntegerField()
    failed_requests = serializers.IntegerField()


class StatisticsData(TotalsData):
    providers = serializers.DictField(child=FiguresData(), required=False, help_text="Left out of totals.")
    deployments = serializers.DictField(child=FiguresData(), required=False, help_text="Left out of totals.")


class RoutingStatisticsView(ApiView):
    resource = "routing_stats"

    @extend_schema(parameters=[WindowQuery], responses=StatisticsData, operation_id="get_routing_stats")
    def get(self, request: Request) -> Response:
        """How requests went, of all gateway processes. Without an admin's or viewer's role, only the totals."""
        window = WINDOWS[checked_query(WindowQuery, request)["window"]]
        if policy.allowed_fields(actor_of(request), self.resource, "read") is None:
            return Response(StatisticsData(statistics_of(window)).data)
        return Response(TotalsData(totals_of(window)).data)
