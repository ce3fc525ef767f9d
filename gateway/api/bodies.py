"""Bodies and answers of `/api/providers`, `/api/deployments`, `/api/models` and `/api/routing/weights`.

The entries of a configuration file are the same bodies (`gateway.config_file`).
"""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from gateway import providers, services
from gateway.capabilities import CAPABILITIES
from gateway.models import Deployment, ModelGroup, Provider, TrafficWeight
from gateway.routing import strategies
from keys.api import fields
from keys.api.fields import Boolean, Integer, Name, StrictSerializer
from keys.api.queries import PageQuery

MIN_INTEGER = -(2**31)
MAX_FALLBACKS = 20
"""Groups: each request may walk through all of them, and those behind them."""

_OPTIONAL = frozenset({"tools", "vision", "audio", "documents", "json_schema"})
"""What a list is taken to tell all of. Of chat and streaming, which hardly anything lacks, it need not speak."""

_DEFINED = "Not empty: defined elsewhere, and only read here."


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


@extend_schema_field(
    {
        "oneOf": [
            {
                "type": "object",
                "properties": {name: {"type": "boolean"} for name in CAPABILITIES},
                "additionalProperties": False,
            },
            {"type": "array", "items": {"type": "string", "enum": list(CAPABILITIES)}},
        ]
    }
)
class Capabilities(serializers.Field[dict[str, bool], Any, Any, Any]):
    """`{name: there}`, or the names of those that are there: then the others of `_OPTIONAL` are not. Shown as the
    object; which names there are the model says.
    """

    default_error_messages = {"invalid": "An object of capabilities, each true or false; or a list of their names."}

    def to_internal_value(self, data: Any) -> dict[str, bool]:
        if isinstance(data, list) and all(isinstance(name, str) for name in data):
            return dict.fromkeys(sorted(_OPTIONAL), False) | dict.fromkeys(data, True)
        if not isinstance(data, dict):
            self.fail("invalid")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class Version(Name):
    """null: none, which is a version too, as far as traffic weights go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"max_length": 60, "allow_null": True, "required": False, **options})

    def to_representation(self, value: Any) -> Any:
        return value or None


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
    managed_by = serializers.CharField(required=False, help_text=_DEFINED)
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
    version = Version(help_text="What traffic weights split by.")
    max_parallel = fields.limit(fields.MAX_INTEGER, help_text="Requests at a time; null: no limit.")
    rpm = fields.limit(fields.MAX_INTEGER, help_text="Requests a minute; null: no limit.")
    tpm = fields.limit(help_text="Tokens a minute; null: no limit.")
    context_window = fields.limit(help_text="Tokens; null: unknown.")
    max_output = fields.limit(help_text="Tokens; null: unknown, 4 096.")
    capabilities = Capabilities(required=False, help_text="Unknown ones count as there.")
    strategy = Strategy()
    enabled = Boolean(required=False)


class DeploymentData(serializers.Serializer[Deployment]):
    """A deployment. To a role that reads names: name and enabled alone."""

    name = serializers.CharField()
    provider = serializers.CharField(source="provider.slug", required=False)
    upstream_model = serializers.CharField(required=False)
    weight = serializers.IntegerField(required=False)
    priority = serializers.IntegerField(required=False)
    version = Version()
    max_parallel = serializers.IntegerField(required=False, allow_null=True)
    rpm = serializers.IntegerField(required=False, allow_null=True)
    tpm = serializers.IntegerField(required=False, allow_null=True)
    context_window = serializers.IntegerField(required=False, allow_null=True)
    max_output = serializers.IntegerField(required=False, allow_null=True)
    capabilities = serializers.DictField(child=serializers.BooleanField(), required=False)
    strategy = Strategy()
    enabled = serializers.BooleanField()
    managed_by = serializers.CharField(required=False, help_text=_DEFINED)
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
        max_length=services.MAX_MEMBERS,
        help_text="Names of deployments, in the order in which failover tries them; always the whole list. "
        "`provider/model` or a model's own name stands for all deployments that the model has now.",
    )
    fallbacks = serializers.ListField(
        child=Name(max_length=200),
        max_length=MAX_FALLBACKS,
        required=False,
        help_text="Names of groups that answer where none of these deployments can, in order; always the whole list.",
    )
    hedging = Boolean(
        required=False,
        help_text="Ask a second deployment once the first is slower than 19 in 20 of its answers; both are paid for.",
    )


class ModelGroupData(serializers.Serializer[ModelGroup]):
    """A model group. To a role that reads names: its name alone."""

    name = serializers.CharField()
    strategy = Strategy()
    deployments = serializers.SerializerMethodField(required=False)
    fallbacks = serializers.SerializerMethodField(required=False)
    hedging = serializers.BooleanField(required=False)
    managed_by = serializers.CharField(required=False, help_text=_DEFINED)
    created_at = serializers.DateTimeField(required=False)

    def get_deployments(self, group: ModelGroup) -> list[str]:
        members = sorted(group.members.all(), key=lambda member: (member.position, member.pk))
        return [member.deployment.name for member in members]

    def get_fallbacks(self, group: ModelGroup) -> list[str]:
        rows = sorted(group.fallbacks.all(), key=lambda row: (row.position, row.pk))
        return [row.fallback.name for row in rows]


class ModelGroupList(serializers.Serializer[Any]):
    models = ModelGroupData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


# ── traffic weights ─────────────────────────────────────────────────────────────────────────────────────────────────


class GroupName(Name):
    """null: all traffic, where a group has no weight of its own for the version."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"max_length": 200, "allow_null": True, "required": False, **options})


class NewTrafficWeight(StrictSerializer):
    """`PUT` and `POST` of a weight: there is one for each version and group."""

    version = Name(max_length=60)
    weight = Integer(min_value=0, max_value=100, help_text="Among those of the other versions; 0 drains.")
    group = GroupName()


class TrafficWeightData(serializers.Serializer[TrafficWeight]):
    """A weight. To a role that reads names: version and group alone."""

    version = serializers.CharField()
    group = serializers.CharField(source="group.name", allow_null=True, default=None)
    weight = serializers.IntegerField(required=False)
    managed_by = serializers.CharField(required=False, help_text=_DEFINED)


class TrafficWeightQuery(StrictSerializer):
    group = Name(max_length=200, required=False, help_text="Whose weight; omitted: the one for all traffic.")


class TrafficWeightsQuery(PageQuery):
    group = Name(max_length=200, required=False, help_text="Those of this model group alone.")


class TrafficWeightList(serializers.Serializer[Any]):
    weights = TrafficWeightData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()
