"""Bodies, queries and answers of `/api/billing`."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing.models.budgets import HIGHEST_THRESHOLD, LONGEST_PERIOD, MOST_THRESHOLDS, Mode, Period, Scope
from keys.api import fields
from keys.api.fields import Boolean, Dollars, Integer, Name, StrictSerializer
from keys.api.queries import RangeQuery, TimeZoneName

_OWNERS = {"key_id": Scope.KEY, "user_id": Scope.USER, "team": Scope.TEAM, "organisation": Scope.ORGANISATION}
_MONTHLY = {"monthly_limit_dollars": "limit_dollars", "monthly_limit_tokens": "limit_tokens"}


class BudgetPatch(StrictSerializer):
    tz = TimeZoneName(max_length=60, required=False)
    limit_dollars = Dollars(required=False, allow_null=True)
    limit_tokens = Integer(min_value=0, max_value=fields.MAX_BIGINT, required=False, allow_null=True)
    starts_on = serializers.DateField(required=False, help_text="First day of a custom period, in `tz`.")
    days = Integer(min_value=1, max_value=LONGEST_PERIOD, required=False, help_text="Length of a custom period.")
    repeats = Boolean(required=False, help_text="A custom period is followed by another; false: it ends for good.")
    mode = serializers.ChoiceField(
        Mode.choices,
        required=False,
        help_text="hard (the default): nothing beyond the limit. grace: up to `grace_percent` above it.",
    )
    grace_percent = Integer(min_value=1, max_value=100, required=False, help_text="Of the limit; default 10.")
    alert_thresholds = serializers.ListField(
        child=Integer(min_value=1, max_value=HIGHEST_THRESHOLD),
        max_length=MOST_THRESHOLDS,
        required=False,
        help_text="Per cents of the limit at which to raise an alert, each once a period; default 50, 80, 100.",
    )


class NewBudget(BudgetPatch):
    """Whose it is (one of four), the period, and what it limits."""

    key_id = Name(max_length=40, required=False)
    user_id = Name(max_length=200, required=False)
    team = Name(max_length=200, required=False)
    organisation = Boolean(required=False)
    period = serializers.ChoiceField(Period.choices, default=Period.MONTHLY.value)
    monthly_limit_dollars = Dollars(required=False, allow_null=True, help_text="`limit_dollars`, for monthly budgets.")
    monthly_limit_tokens = Integer(
        min_value=0,
        max_value=fields.MAX_BIGINT,
        required=False,
        allow_null=True,
        help_text="`limit_tokens`, for monthly budgets.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """To what `billing.services.set_budget` takes."""
        owner = _owner({name: attrs.pop(name) for name in _OWNERS if name in attrs})
        limits = {"limit_dollars": None, "limit_tokens": None, **_without_synonyms(attrs)}
        if limits["limit_dollars"] is None and limits["limit_tokens"] is None:
            raise serializers.ValidationError({"limit_dollars": ["A budget limits dollars, tokens or both."]})
        return {**owner, **limits}


def _owner(named: dict[str, Any]) -> dict[str, str]:
    if len(named) != 1 or named.get("organisation") is False:
        raise serializers.ValidationError(f"One of {', '.join(_OWNERS)} (which is true) says whose it is.")
    ((field, value),) = named.items()
    return {"scope": _OWNERS[field].value, "owner": "" if field == "organisation" else value}


def _without_synonyms(attrs: dict[str, Any]) -> dict[str, Any]:
    for synonym, name in _MONTHLY.items():
        if synonym not in attrs:
            continue
        if attrs["period"] != Period.MONTHLY or name in attrs:
            raise serializers.ValidationError({synonym: [f"Another name of {name}, for monthly budgets only."]})
        attrs[name] = attrs.pop(synonym)
    return attrs


def _owned_by(scope: Scope) -> Any:
    def owner(self: "BudgetData", budget: Any) -> str | None:
        return budget.owner if budget.scope == scope else None

    return extend_schema_field({"type": "string", "nullable": True})(owner)


class BudgetData(serializers.Serializer[Any]):
    """A budget: one of `key_id`, `user_id`, `team` and `organisation` says whose."""

    id = serializers.IntegerField()
    scope = serializers.CharField()
    key_id = serializers.SerializerMethodField()
    user_id = serializers.SerializerMethodField()
    team = serializers.SerializerMethodField()
    organisation = serializers.SerializerMethodField()
    period = serializers.CharField()
    tz = serializers.CharField()
    limit_dollars = Dollars(allow_null=True)
    limit_tokens = serializers.IntegerField(allow_null=True)
    starts_on = serializers.DateField(allow_null=True)
    days = serializers.IntegerField(allow_null=True)
    repeats = serializers.BooleanField()
    mode = serializers.ChoiceField(Mode.choices)
    grace_percent = serializers.IntegerField()
    alert_thresholds = serializers.ListField(child=serializers.IntegerField())
    managed_by = serializers.CharField(help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField()

    get_key_id = _owned_by(Scope.KEY)
    get_user_id = _owned_by(Scope.USER)
    get_team = _owned_by(Scope.TEAM)

    def get_organisation(self, budget: Any) -> bool:
        return bool(budget.scope == Scope.ORGANISATION)


class Current(serializers.Serializer[Any]):
    """The figures of the current period, from the ledger. Made from `selectors.Figures`."""

    current_spend = Dollars()
    current_tokens = serializers.IntegerField()
    reserved = Dollars()
    reserved_tokens = serializers.IntegerField()
    remaining_budget = Dollars(source="remaining", allow_null=True)
    resets_at = serializers.DateTimeField(allow_null=True)
    status = serializers.ChoiceField(["healthy", "warning", "exceeded"])


class BudgetDetail(BudgetData):
    """A budget with its figures, which are in `context`."""

    current = serializers.SerializerMethodField()

    @extend_schema_field(Current)
    def get_current(self, budget: Any) -> Any:
        return Current(self.context["figures"]).data


class BudgetList(serializers.Serializer[Any]):
    budgets = BudgetData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class KeyBudget(Current):
    """A key's month: `id` and limits are null where it has no quota."""

    id = serializers.IntegerField(allow_null=True)
    key_id = serializers.CharField()
    period = serializers.CharField()
    monthly_limit_dollars = Dollars(source="limit_usd", allow_null=True)
    monthly_limit_tokens = serializers.IntegerField(source="limit_tokens", allow_null=True)


class UsageQuery(RangeQuery):
    key_id = Name(max_length=200, required=False)
    user_id = Name(max_length=200, required=False)
    team = Name(max_length=200, required=False)
    model = Name(max_length=200, required=False, help_text="Requested, routed or served.")
    provider = Name(max_length=200, required=False)


# ── usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@extend_schema_field({"oneOf": [{"type": "integer"}, {"type": "string", "enum": ["in_flight"]}]})
class Status(serializers.ReadOnlyField):
    """`in_flight`, or the HTTP status that the client got."""


class ExactDollars(serializers.CharField):
    """US dollars as an exact string, never in scientific notation."""

    def to_representation(self, value: Any) -> str:
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text


class UsageData(serializers.Serializer[Any]):
    """One request of the ledger. Made from `selectors.UsageRow`."""

    request_id = serializers.CharField()
    client_request_id = serializers.CharField(allow_null=True)
    created_at = serializers.DateTimeField()
    key_id = serializers.CharField()
    user_id = serializers.CharField(allow_null=True)
    team = serializers.CharField(allow_null=True)
    requested_model = serializers.CharField()
    routed_model = serializers.CharField()
    served_model = serializers.CharField(allow_null=True)
    provider = serializers.CharField()
    status = Status()
    prompt_tokens = serializers.IntegerField(allow_null=True)
    completion_tokens = serializers.IntegerField(allow_null=True)
    cached_tokens = serializers.IntegerField(allow_null=True)
    cache_write_tokens = serializers.IntegerField(allow_null=True)
    reasoning_tokens = serializers.IntegerField(allow_null=True)
    cost_usd = ExactDollars(allow_null=True)
    currency = serializers.CharField()
    unpriced = serializers.BooleanField()
    estimated = serializers.BooleanField()
    stream = serializers.BooleanField()
    attempts = serializers.ListField(child=serializers.DictField())
    latency_ms = serializers.FloatField(allow_null=True)
    ttft_ms = serializers.FloatField(allow_null=True)
    overhead_ms = serializers.FloatField(allow_null=True)
    session_id = serializers.CharField(allow_null=True)
    tags = serializers.ListField(child=serializers.CharField())
    security_action = serializers.CharField(allow_null=True)
    routing = serializers.DictField(
        required=False,
        help_text="How the deployment was chosen: pool, strategy, of (so many). Only where there was a choice.",
    )

    def to_representation(self, instance: Any) -> dict[str, Any]:
        data = super().to_representation(instance)
        if data["routing"] is None:
            del data["routing"]
        return data


class UsageList(serializers.Serializer[Any]):
    results = UsageData(many=True)
    next = serializers.CharField(allow_null=True, help_text="Path of the next page.")
