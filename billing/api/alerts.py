"""`/api/alerts` and `/api/webhooks`: what was raised, who is told, and how that went."""

from typing import Any

from django.http import Http404
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from billing.alerts import messages, services
from billing.models import Alert, Delivery, Webhook
from billing.models.alerts import LONGEST_URL, AlertKind, DeliveryStatus
from keys.api.base import ApiView, actor_of, checked, checked_query, page, paged
from keys.api.fields import Boolean, Name, StrictSerializer
from keys.api.queries import PageQuery

_LONGEST_SECRET = 100

# ── bodies and answers ──────────────────────────────────────────────────────────────────────────────────────────────


class AlertQuery(PageQuery):
    kind = serializers.ChoiceField(AlertKind.choices, required=False)
    acknowledged = serializers.BooleanField(required=False)


class AlertData(serializers.Serializer[Any]):
    """An alert; `detail` is by its kind."""

    id = serializers.IntegerField()
    kind = serializers.ChoiceField(AlertKind.choices)
    subject = serializers.CharField(help_text="A budget's id, a deployment's name.")
    period_start = serializers.DateTimeField()
    level = serializers.IntegerField(help_text="The threshold in per cent; 0 for other kinds.")
    at = serializers.DateTimeField()
    text = serializers.SerializerMethodField()
    detail = serializers.DictField()
    acknowledged_by = serializers.CharField(help_text="Empty: nobody has.")
    acknowledged_at = serializers.DateTimeField(allow_null=True)

    def get_text(self, alert: Alert) -> str:
        return messages.text(alert)


class AlertList(serializers.Serializer[Any]):
    alerts = AlertData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class Acknowledgement(StrictSerializer):
    """Nothing is said: who asks is who acknowledges."""


class NewWebhook(StrictSerializer):
    """`POST` and `PATCH` of a webhook."""

    url = Name(max_length=LONGEST_URL, help_text="Of a public address; may have a query.")
    events = serializers.ListField(
        child=serializers.ChoiceField(AlertKind.choices),
        max_length=len(AlertKind),
        required=False,
        help_text="Kinds of alerts that it is told of; empty: all.",
    )
    secret = Name(
        max_length=_LONGEST_SECRET,
        required=False,
        help_text="whsec_ and 24 to 64 bytes in base64, as Standard Webhooks has it; omitted on POST: made.",
    )
    enabled = Boolean(required=False)


class DeliveryData(serializers.Serializer[Any]):
    """One alert on its way."""

    id = serializers.IntegerField()
    alert_id = serializers.IntegerField()
    status = serializers.ChoiceField(DeliveryStatus.choices)
    tries = serializers.IntegerField()
    next_at = serializers.SerializerMethodField(help_text="When it is tried again; null where it is not.")
    last_at = serializers.DateTimeField(allow_null=True)
    http_status = serializers.IntegerField(allow_null=True)
    error = serializers.CharField()

    @extend_schema_field({"type": "string", "format": "date-time", "nullable": True})
    def get_next_at(self, delivery: Delivery) -> Any:
        pending = delivery.status == DeliveryStatus.PENDING
        return serializers.DateTimeField().to_representation(delivery.next_at) if pending else None


class DeliveryList(serializers.Serializer[Any]):
    deliveries = DeliveryData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class WebhookData(serializers.Serializer[Any]):
    """A webhook; its secret is never shown again."""

    id = serializers.IntegerField()
    url = serializers.CharField()
    events = serializers.ListField(child=serializers.ChoiceField(AlertKind.choices))
    enabled = serializers.BooleanField()
    created_at = serializers.DateTimeField()
    last_delivery = serializers.SerializerMethodField()

    @extend_schema_field(DeliveryData(allow_null=True))
    def get_last_delivery(self, webhook: Webhook) -> Any:
        last = webhook.deliveries.order_by("-id").first()
        return None if last is None else DeliveryData(last).data


class WebhookWithSecret(WebhookData):
    """The only answer that holds the secret."""

    secret = serializers.SerializerMethodField()

    def get_secret(self, webhook: Webhook) -> str:
        return str(self.context["secret"])


class WebhookList(serializers.Serializer[Any]):
    webhooks = WebhookData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


# ── alerts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class AlertsView(ApiView):
    resource = "alerts"

    @extend_schema(parameters=[AlertQuery], responses=AlertList, operation_id="list_alerts")
    def get(self, request: Request) -> Response:
        """What was raised, newest first."""
        query = checked_query(AlertQuery, request)
        rows = Alert.objects.order_by("-id")
        if "kind" in query:
            rows = rows.filter(kind=query["kind"])
        if "acknowledged" in query:
            rows = rows.filter(acknowledged_at__isnull=not query["acknowledged"])
        return paged("alerts", AlertData(page(rows, query), many=True).data, rows.count(), query)


class AlertAcknowledgementView(ApiView):
    resource = "alerts"
    actions = {"POST": "update"}

    @extend_schema(request=Acknowledgement, responses=AlertData, operation_id="acknowledge_alert")
    def post(self, request: Request, alert_id: int) -> Response:
        """Say that somebody has seen to it. Once more changes nothing."""
        checked(Acknowledgement, request)
        alert = Alert.objects.filter(pk=alert_id).first()
        if alert is None:
            raise Http404("No such alert.")
        return Response(AlertData(services.acknowledge(actor=actor_of(request), alert=alert)).data)


# ── webhooks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _found(webhook_id: int) -> Webhook:
    found = Webhook.objects.filter(pk=webhook_id).first()
    if found is None:
        raise Http404("No such webhook.")
    return found


class WebhooksView(ApiView):
    resource = "webhooks"

    @extend_schema(parameters=[PageQuery], responses=WebhookList, operation_id="list_webhooks")
    def get(self, request: Request) -> Response:
        """Who is told of alerts, and how it went last."""
        query, rows = checked_query(PageQuery, request), Webhook.objects.order_by("id")
        return paged("webhooks", WebhookData(page(rows, query), many=True).data, rows.count(), query)

    @extend_schema(request=NewWebhook, responses={201: WebhookWithSecret}, operation_id="create_webhook")
    def post(self, request: Request) -> Response:
        """Have a server told of alerts. The answer holds the secret that messages are signed with, once."""
        webhook, secret = services.create_webhook(actor=actor_of(request), **checked(NewWebhook, request))
        shown = WebhookWithSecret(webhook, context={"secret": secret})
        return Response(shown.data, status.HTTP_201_CREATED)


class WebhookView(ApiView):
    resource = "webhooks"

    @extend_schema(responses=WebhookData, operation_id="get_webhook")
    def get(self, request: Request, webhook_id: int) -> Response:
        """A webhook."""
        return Response(WebhookData(_found(webhook_id)).data)

    @extend_schema(request=NewWebhook, responses=WebhookData, operation_id="update_webhook")
    def patch(self, request: Request, webhook_id: int) -> Response:
        """Change a webhook; what is omitted stays."""
        changes = checked(NewWebhook, request, partial=True)
        webhook = services.update_webhook(actor=actor_of(request), webhook=_found(webhook_id), changes=changes)
        return Response(WebhookData(webhook).data)

    @extend_schema(responses={204: None}, operation_id="delete_webhook")
    def delete(self, request: Request, webhook_id: int) -> Response:
        """Delete a webhook; what it was not told yet it is not told."""
        services.delete_webhook(actor=actor_of(request), webhook=_found(webhook_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class DeliveriesView(ApiView):
    resource = "webhooks"

    @extend_schema(parameters=[PageQuery], responses=DeliveryList, operation_id="list_deliveries")
    def get(self, request: Request, webhook_id: int) -> Response:
        """What a webhook was told, or is to be, newest first."""
        query, rows = checked_query(PageQuery, request), _found(webhook_id).deliveries.order_by("-id")
        return paged("deliveries", DeliveryData(page(rows, query), many=True).data, rows.count(), query)
