"""Bodies and answers of `/api/providers`, `/api/deployments` and `/api/models`."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from gateway import providers, services
from gateway.models import Deployment, ModelGroup, Provider
from gateway.routing import strategies
from keys.api import fields
from keys.api.fields import Boolean, Integer, Name, StrictSerializer

MIN_INTEGER = -(2**31)
MAX_MEMBERS = 200
"""Deployments of a group: each request's plan sorts them."""


class Seconds(serializers.FloatField):
    """A JSON number; "5" and true are none."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        try:
            return float(data)
        except OverflowError:  # an integer of hundreds of digits
            self.fail("invalid")


@extend_schema_field({"type": "object", "additionalProperties": {"type": "string"}})
class Headers(serializers.Field[dict[str, str], Any, Any, Any]):
    """An object of strings, which `gateway.services` looks into. Its errors repeat nothing: all of it is secret."""

    default_error_messages = {"invalid": "An object of header names and values, all of them strings."}

    def to_internal_value(self, data: Any) -> dict[str, str]:
        if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
            self.fail("invalid")
        return data


class Strategy(serializers.ChoiceField):
    """null: that of the group, of the request or ROUTING_STRATEGY."""

    def __init__(self, **options: Any) -> None:
        super().__init__(strategies(), **{"allow_null": True, "required": False, **options})

    def to_representation(self, value: Any) -> Any:
        return value or None


# ── providers ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Timeouts(StrictSerializer):
    """Seconds."""

    connect = Seconds(source="connect_timeout", min_value=0.1, max_value=120, required=False)
    first_byte = Seconds(source="first_byte_timeout", min_value=0.1, max_value=3600, required=False)
    idle = Seconds(
        source="idle_timeout", min_value=0.1, max_value=3600, required=False, help_text="Between two chunks."
    )


class ProviderPatch(StrictSerializer):
    """The slug is for good: ledger and prices know the provider by it."""

    kind = serializers.ChoiceField(providers.kinds())
    base_url = Name(max_length=500, required=False, allow_blank=True, help_text="Empty: the vendor's own.")
    api_key = Name(
        max_length=services.MAX_SECRET, required=False, allow_null=True, help_text="Never shown again. null: forgotten."
    )
    headers = Headers(
        required=False, allow_null=True, help_text="Sent with each request, and as secret as the key. null: forgotten."
    )
    timeouts = Timeouts(source="*", required=False)
    price_book = Name(
        max_length=60, required=False, allow_blank=True, help_text="Whose prices apply; empty: the slug's or kind's."
    )
    enabled = Boolean(required=False)


class NewProvider(ProviderPatch):
    slug = Name(max_length=60)


class ProviderData(serializers.Serializer[Provider]):
    """A provider. To a role that reads names: slug, kind and enabled alone."""

    slug = serializers.CharField()
    kind = serializers.CharField()
    base_url = serializers.CharField(required=False)
    api_key_set = serializers.SerializerMethodField(required=False, help_text="Whether there is one: it is never read.")
    headers_set = serializers.SerializerMethodField(required=False)
    timeouts = Timeouts(source="*", required=False)
    price_book = serializers.CharField(required=False)
    enabled = serializers.BooleanField()
    managed_by = serializers.CharField(required=False, help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField(required=False)

    def get_api_key_set(self, provider: Provider) -> bool:
        return services.credentials_set(provider)["api_key"]

    def get_headers_set(self, provider: Provider) -> bool:
        return services.credentials_set(provider)["headers"]


class ProviderList(serializers.Serializer[Any]):
    providers = ProviderData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class Discovery(StrictSerializer):
    """Nothing is said: the provider's server is asked."""


class DiscoveredModels(serializers.Serializer[Any]):
    models = serializers.ListField(child=serializers.CharField(), help_text="As the server names them.")


# ── deployments ─────────────────────────────────────────────────────────────────────────────────────────────────────


class NewDeployment(StrictSerializer):
    """`POST` and `PATCH` of a deployment."""

    name = Name(max_length=200, help_text="What clients ask for; may hold `/` and `:`.")
    provider = Name(max_length=60, help_text="Its slug.")
    upstream_model = Name(max_length=200, help_text="The provider's own name of the model.")
    weight = Integer(
        min_value=0, max_value=fields.MAX_INTEGER, required=False, help_text="Share among deployments; 0 drains."
    )
    priority = Integer(
        min_value=MIN_INTEGER, max_value=fields.MAX_INTEGER, required=False, help_text="Lower goes first."
    )
    max_output = fields.limit(help_text="Tokens; null: unknown, 4 096.")
    context_window = fields.limit(help_text="Tokens; null: unknown.")
    strategy = Strategy()
    enabled = Boolean(required=False)


class DeploymentData(serializers.Serializer[Deployment]):
    """A deployment. To a role that reads names: name and enabled alone."""

    name = serializers.CharField()
    provider = serializers.CharField(source="provider.slug", required=False)
    upstream_model = serializers.CharField(required=False)
    weight = serializers.IntegerField(required=False)
    priority = serializers.IntegerField(required=False)
    max_output = serializers.IntegerField(required=False, allow_null=True)
    context_window = serializers.IntegerField(required=False, allow_null=True)
    strategy = Strategy()
    enabled = serializers.BooleanField()
    managed_by = serializers.CharField(required=False, help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField(required=False)


class DeploymentList(serializers.Serializer[Any]):
    deployments = DeploymentData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


# ── model groups ────────────────────────────────────────────────────────────────────────────────────────────────────


class NewModelGroup(StrictSerializer):
    """`POST` and `PATCH` of a model group."""

    name = Name(max_length=200, help_text="What clients ask for; may hold `/` and `:`.")
    strategy = Strategy()
    deployments = serializers.ListField(
        child=Name(max_length=200),
        min_length=1,
        max_length=MAX_MEMBERS,
        help_text="Names of deployments, in the order in which failover tries them; always the whole list.",
    )


class ModelGroupData(serializers.Serializer[ModelGroup]):
    """A model group. To a role that reads names: its name alone."""

    name = serializers.CharField()
    strategy = Strategy()
    deployments = serializers.SerializerMethodField(required=False)
    managed_by = serializers.CharField(required=False, help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField(required=False)

    def get_deployments(self, group: ModelGroup) -> list[str]:
        members = sorted(group.members.all(), key=lambda member: (member.position, member.pk))
        return [member.deployment.name for member in members]


class ModelGroupList(serializers.Serializer[Any]):
    models = ModelGroupData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()
