"""Bodies and answers of `/api/keys`, `/api/users` and `/api/teams`."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from gateway.types import Role
from keys.api import fields
from keys.api.fields import Boolean, Dollars, Integer, Metadata, Name, StrictSerializer
from keys.api.queries import PageQuery
from keys.models import KeyStatus
from keys.services import MAX_GRACE

ROLES = [role.value for role in Role]
KEY_ROLES = [Role.MEMBER.value, Role.ADMIN.value]
"""What a key may be: an admin's, or its user's own. A finance or viewer key would promise what no key does."""


@extend_schema_field({"type": "string", "pattern": f"^({'|'.join(KEY_ROLES)})$", "default": Role.MEMBER.value})
class KeyRole(serializers.ChoiceField):
    """Described by a pattern: as an enum it would clash with the name of a person's roles."""


class NewKey(StrictSerializer):
    """`POST` and `PATCH` of a key. Omitted or null limits: none."""

    name = Name(max_length=200)
    user_id = Name(max_length=200, required=False, allow_null=True)
    team = Name(max_length=200, required=False, allow_null=True)
    role = KeyRole(KEY_ROLES, required=False)
    monthly_quota_dollars = Dollars(required=False, allow_null=True)
    monthly_quota_tokens = Integer(min_value=0, max_value=fields.MAX_BIGINT, required=False, allow_null=True)
    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)
    max_wait_ms = fields.longest_wait()
    queue_weight = fields.queue_weight()
    allowed_models = fields.names(
        most=1000, length=200, allow_null=True, allow_empty=False, help_text="null: every model."
    )
    expires_at = serializers.DateTimeField(required=False, allow_null=True)
    metadata = Metadata(required=False)
    tags = fields.names(most=50, length=100)


class Rotation(StrictSerializer):
    """`POST /api/keys/{id}/rotate`."""

    grace_seconds = Integer(
        min_value=0, max_value=int(MAX_GRACE.total_seconds()), default=0, help_text="How long the old secret lasts."
    )
    rotation_id = Name(
        max_length=100, required=False, allow_null=True, help_text="The same again answers with the same secret."
    )


class KeyQuery(PageQuery):
    status = serializers.ChoiceField(KeyStatus.choices, required=False)


class KeyUsage(serializers.Serializer[Any]):
    """What the key has used in its current month."""

    spend = Dollars(source="current_spend")
    tokens = serializers.IntegerField(source="current_tokens")
    resets_at = serializers.DateTimeField()
    status = serializers.CharField()


class KeyData(serializers.Serializer[Any]):
    """A key as it is shown; its secret never is. Made from a `selectors.KeyRow`."""

    id = serializers.CharField(source="key.pk")
    name = serializers.CharField(source="key.name")
    user_id = serializers.CharField(allow_null=True)
    team = serializers.CharField(allow_null=True)
    role = serializers.CharField(source="key.role")
    status = serializers.CharField(source="key.status")
    hint = serializers.CharField(source="key.hint", help_text="The secret's last characters.")
    monthly_quota_dollars = Dollars(source="quota.limit_usd", allow_null=True, default=None)
    monthly_quota_tokens = serializers.IntegerField(source="quota.limit_tokens", allow_null=True, default=None)
    rate_limit_rpm = serializers.IntegerField(source="key.rate_limit_rpm", allow_null=True)
    rate_limit_tpm = serializers.IntegerField(source="key.rate_limit_tpm", allow_null=True)
    max_parallel = serializers.IntegerField(source="key.max_parallel", allow_null=True)
    max_wait_ms = serializers.IntegerField(source="key.max_wait_ms", allow_null=True)
    queue_weight = serializers.IntegerField(source="key.queue_weight")
    allowed_models = serializers.ListField(source="key.allowed_models", child=serializers.CharField(), allow_null=True)
    expires_at = serializers.DateTimeField(source="key.expires_at", allow_null=True)
    revoked_at = serializers.DateTimeField(source="key.revoked_at", allow_null=True)
    previous_until = serializers.DateTimeField(
        source="key.previous_until", allow_null=True, help_text="End of the last rotation's grace."
    )
    metadata = Metadata(source="key.metadata")
    tags = serializers.ListField(source="key.tags", child=serializers.CharField())
    managed_by = serializers.CharField(source="key.managed_by")
    created_at = serializers.DateTimeField(source="key.created_at")
    last_used = serializers.DateTimeField(source="key.last_used", allow_null=True)


class KeyDetail(KeyData):
    usage = KeyUsage()


class KeyWithSecret(serializers.Serializer[Any]):
    """The only answer that ever holds a secret."""

    key = serializers.CharField()
    key_data = KeyData()


class KeyList(serializers.Serializer[Any]):
    keys = KeyData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class NewUser(StrictSerializer):
    user_id = Name(max_length=200)
    display_name = Name(max_length=200, required=False, allow_blank=True)
    email = serializers.EmailField(max_length=254, required=False, allow_blank=True)
    role = serializers.ChoiceField(ROLES, required=False)
    team = Name(max_length=200, required=False, allow_null=True)
    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)


class UserPatch(StrictSerializer):
    """The id is for good: the ledger knows the user by it."""

    display_name = Name(max_length=200, allow_blank=True)
    email = serializers.EmailField(max_length=254, allow_blank=True)
    role = serializers.ChoiceField(ROLES)
    team = Name(max_length=200, allow_null=True)
    is_active = Boolean()
    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)


class UserData(serializers.Serializer[Any]):
    user_id = serializers.CharField(source="username")
    display_name = serializers.CharField()
    email = serializers.CharField()
    role = serializers.CharField()
    team = serializers.CharField(source="team.name", allow_null=True, default=None)
    is_active = serializers.BooleanField()
    rate_limit_rpm = serializers.IntegerField(allow_null=True)
    rate_limit_tpm = serializers.IntegerField(allow_null=True)
    max_parallel = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    last_login = serializers.DateTimeField(allow_null=True)


class UserList(serializers.Serializer[Any]):
    users = UserData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class NewTeam(StrictSerializer):
    name = Name(max_length=200)
    cost_centre = Name(max_length=100, required=False, allow_blank=True)
    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)
    max_wait_ms = fields.longest_wait()
    queue_weight = fields.queue_weight()


class TeamPatch(StrictSerializer):
    """The name is for good: the ledger and budgets know the team by it."""

    cost_centre = Name(max_length=100, allow_blank=True)
    rate_limit_rpm = fields.limit()
    rate_limit_tpm = fields.limit()
    max_parallel = fields.limit(fields.MAX_INTEGER)
    max_wait_ms = fields.longest_wait()
    queue_weight = fields.queue_weight()


class TeamData(serializers.Serializer[Any]):
    name = serializers.CharField()
    cost_centre = serializers.CharField()
    rate_limit_rpm = serializers.IntegerField(allow_null=True)
    rate_limit_tpm = serializers.IntegerField(allow_null=True)
    max_parallel = serializers.IntegerField(allow_null=True)
    max_wait_ms = serializers.IntegerField(allow_null=True)
    queue_weight = serializers.IntegerField()
    managed_by = serializers.CharField(help_text="Not empty: defined elsewhere, and only read here.")
    created_at = serializers.DateTimeField()


class TeamList(serializers.Serializer[Any]):
    teams = TeamData(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class Problem(serializers.Serializer[Any]):
    """Every refusal of `/api`."""

    detail = serializers.CharField()
    type = serializers.CharField()
    status_code = serializers.IntegerField()
    errors = serializers.DictField(  # type: ignore[assignment]  # a field, which DRF takes off the class
        child=serializers.ListField(child=serializers.CharField()), required=False, help_text="By field, on 400."
    )
