"""People, teams and virtual keys."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from gateway.types import Role
from gateway.versioning import Versioned, VersionedQuerySet
from keys import secrets

ROLE_CHOICES = [(role.value, role.value.replace("_", " ")) for role in Role]


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


class Team(Limited, Versioned):
    """People and keys that share limits, budgets and a place in reports."""

    snapshot_section = "keys"

    name = models.CharField(max_length=200, unique=True)
    cost_centre = models.CharField(max_length=100, blank=True, help_text="For charging back.")
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


class VirtualKey(Limited, Versioned):
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


class LoginFailure(models.Model):
    """A wrong password at the console, as long as it counts (`keys.lockout`)."""

    account = models.CharField(max_length=64, help_text="Keyed hash of what was typed as a name.")
    address = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["account", "at"], name="login_failures_of_account")]

    def __str__(self) -> str:
        return f"{self.address} {self.at}"
