"""People, teams and virtual keys."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from gateway.types import Role
from gateway.versioning import Versioned, VersionedQuerySet
from keys import secrets

ROLE_CHOICES = [(role.value, role.value.replace("_", " ")) for role in Role]


LONGEST_WAIT_MS = 600_000
"""Ten minutes: no client and no proxy before us has the patience for more."""
MOST_QUEUE_WEIGHT = 100


class Limited(models.Model):
    """Rate limits of one owner; empty is unlimited."""

    rate_limit_rpm = models.PositiveBigIntegerField(
        "requests a minute", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )
    rate_limit_tpm = models.PositiveBigIntegerField(
        "tokens a minute", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )
    max_parallel = models.PositiveIntegerField(
        "requests at once", null=True, blank=True, validators=[MinValueValidator(1)], help_text="Empty: no limit."
    )

    class Meta:
        abstract = True


class Queued(models.Model):
    """Whether an owner's requests wait where a limit would refuse them."""

    max_wait_ms = models.PositiveIntegerField(
        "longest wait", null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(LONGEST_WAIT_MS)],
        help_text="Milliseconds that a request waits its turn where a rate limit would refuse it; empty: not at all.",
    )  # fmt: skip
    queue_weight = models.PositiveSmallIntegerField(
        "share of the queue", default=1, validators=[MinValueValidator(1), MaxValueValidator(MOST_QUEUE_WEIGHT)],
        help_text="Of two that wait at one limit, one of weight 3 is served three times as often as one of 1.",
    )  # fmt: skip

    class Meta:
        abstract = True


class Team(Limited, Queued, Versioned):
    """People and keys that share limits, budgets and a place in reports."""

    snapshot_section = "keys"

    name = models.CharField(max_length=200, unique=True)
    cost_centre = models.CharField(max_length=100, blank=True, help_text="For charging back.")
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class UserManager(BaseUserManager.from_queryset(VersionedQuerySet)):  # type: ignore[misc]  # built at run time
    """Makes people; those that only own keys get no usable password."""

    def create_user(self, username: str, password: str | None = None, **fields: Any) -> "User":
        user: User = self.model(username=username, **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, username: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(username, password, **{**fields, "role": Role.ADMIN.value})

    def get_by_natural_key(self, username: str | None) -> "User":
        found: User = self.get(username=username)
        return found


class User(AbstractBaseUser, Limited, Versioned):
    """A person or program owner: owns keys, may sign in to the console where a password is set."""

    snapshot_section = "keys"
    quiet_fields = frozenset({"last_login", "password", "must_change_password"})

    username = models.CharField("user id", max_length=200, unique=True, help_text="The `user_id` of the API.")
    display_name = models.CharField(max_length=200, blank=True)
    email = models.EmailField(blank=True)
    role = models.CharField(max_length=20, choices=ROLE_CHOICES, default=Role.MEMBER.value)
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.PROTECT, related_name="members")
    is_active = models.BooleanField("may sign in", default=True)
    must_change_password = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = UserManager()  # type: ignore[misc]  # the stubs take the base's for a class variable

    USERNAME_FIELD = "username"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        ordering: ClassVar = ["username"]

    def __str__(self) -> str:
        return self.username

    def get_full_name(self) -> str:
        return self.display_name or self.username

    def get_short_name(self) -> str:
        return self.username

    @property
    def is_staff(self) -> bool:
        """Everyone who may sign in sees the console; the policy module decides what of it."""
        return self.is_active

    @property
    def is_superuser(self) -> bool:
        return self.role == Role.ADMIN

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        return self.is_active and self.is_superuser

    def has_perms(self, perms: Any, obj: Any = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perms)

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active


class KeyStatus(models.TextChoices):
    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


class VirtualKey(Limited, Queued, Versioned):
    """A key that programs call the gateway with. The secret itself is never stored, only its keyed hash."""

    snapshot_section = "keys"
    quiet_fields = frozenset({"last_used", "metadata"})

    id = models.CharField(primary_key=True, max_length=40, default=secrets.new_key_id, editable=False)
    name = models.CharField(max_length=200)
    user = models.ForeignKey(User, null=True, blank=True, on_delete=models.PROTECT, related_name="keys")
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.PROTECT, related_name="keys")
    role = models.CharField(
        max_length=20, choices=ROLE_CHOICES, default=Role.MEMBER.value, help_text="admin: a key for /api as a whole."
    )
    digest = models.CharField(max_length=64, unique=True, editable=False)
    previous_digest = models.CharField(max_length=64, blank=True, default="", db_index=True, editable=False)
    previous_until = models.DateTimeField(null=True, editable=False, help_text="End of the last rotation's grace.")
    rotation_id = models.CharField(max_length=100, blank=True, default="", editable=False)
    hint = models.CharField(max_length=20, editable=False, help_text="Last characters of the secret.")
    allowed_models = models.JSONField(null=True, blank=True, help_text="List of model names; empty: all.")
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, editable=False)
    revoked_reason = models.CharField(max_length=200, blank=True, default="", editable=False)
    metadata = models.JSONField(default=dict, blank=True)
    tags = models.JSONField(default=list, blank=True, help_text="Tags on every request of this key, for reports.")
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_used = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"

    @property
    def status(self) -> KeyStatus:
        if self.revoked_at is not None:
            return KeyStatus.REVOKED
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return KeyStatus.EXPIRED
        return KeyStatus.ACTIVE


class LimitScope(models.TextChoices):
    """What a `RateLimit` is of. A key's, user's, team's and deployment's limits are fields of their own."""

    ORGANISATION = "organisation"
    PROVIDER = "provider"
    MODEL = "model"
    KEY_MODEL = "key_model", "key and model"


class RateLimit(Limited, Versioned):
    """A limit of everybody's requests: all of them, those to a provider, those for a model, or a key's for a model."""

    snapshot_section = "limits"

    scope = models.CharField(max_length=20, choices=LimitScope.choices)
    owner = models.CharField(
        max_length=200, blank=True, default="", help_text="Slug of the provider, or id of the key; else empty."
    )
    model = models.CharField(
        max_length=200, blank=True, default="", help_text="The name that clients ask for, of a deployment or group."
    )
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["scope", "owner", "model"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "owner", "model"], name="one_limit_a_scope"),
        ]

    def __str__(self) -> str:
        return " ".join(part for part in (self.scope, self.owner, self.model) if part)

    def clean(self) -> None:
        """Raises `ValidationError` for an owner or model that the scope needs, or has none of."""
        named = {"owner": self.scope in _OWNED, "model": self.scope in _MODELLED}
        wrong = {
            name: "This scope needs one." if needed else "This scope has none."
            for name, needed in named.items()
            if bool(getattr(self, name)) != needed
        }
        if wrong:
            raise ValidationError(wrong)
        if self.rate_limit_rpm is None and self.rate_limit_tpm is None and self.max_parallel is None:
            raise ValidationError({"rate_limit_rpm": "A limit limits something: to lift it, delete it."})


_OWNED = (LimitScope.PROVIDER, LimitScope.KEY_MODEL)
_MODELLED = (LimitScope.MODEL, LimitScope.KEY_MODEL)


class LoginFailure(models.Model):
    """A wrong password at the console, as long as it counts (`keys.lockout`)."""

    account = models.CharField(max_length=64, help_text="Keyed hash of what was typed as a name.")
    address = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["account", "at"], name="login_failures_of_account")]

    def __str__(self) -> str:
        return f"{self.address} {self.at}"
