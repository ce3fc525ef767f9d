"""Policies: what the screen does for whom; and the events it writes. Models, and their form on the data plane."""

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec
import structlog
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from gateway.types import Caller
from gateway.versioning import Versioned
from security.detectors import terms
from security.detectors.base import BALANCED, Action, Category, ScreenPolicy

log = structlog.get_logger()

MOST_TERMS: Final = 100
"""Each costs a search of the whole prompt: 100 add some 30 µs a kB."""
SHORTEST_TERM: Final = 3
"""Terms are found inside words too: one of two letters would block most prompts."""
LONGEST_TERM: Final = 200


def check_actions(value: Any) -> None:
    """Refuse what is not `{category: action}`."""
    if not isinstance(value, dict):
        raise ValidationError("An object of categories and actions.")
    for category, action in value.items():
        if category not in list(Category):
            raise ValidationError(f"Categories are: {', '.join(Category)}.")
        if action not in list(Action):
            raise ValidationError(f"Actions are: {', '.join(Action)}.")


def check_terms(value: Any) -> None:
    """Refuse what is not a list of terms that can be looked for."""
    if not isinstance(value, list) or len(value) > MOST_TERMS:
        raise ValidationError(f"A list of at most {MOST_TERMS} terms.")
    for term in value:
        if not isinstance(term, str) or any(unicodedata.category(c) in {"Cc", "Cs"} for c in term):
            raise ValidationError("Terms are texts without control characters.")
        # As it is looked for: spaces around it and invisible characters do not count.
        if len(term) > LONGEST_TERM or len(terms.fold(term.strip())) < SHORTEST_TERM:
            raise ValidationError(f"Terms have {SHORTEST_TERM} to {LONGEST_TERM} characters.")


class Scope(models.TextChoices):
    KEY = "key"
    TEAM = "team"
    ORGANISATION = "organisation"


class Policy(Versioned):
    """What the screen does with the prompts of a key, a team or everyone; the narrowest one applies, whole."""

    snapshot_section = "policies"

    name = models.CharField(max_length=200, unique=True)
    scope = models.CharField(max_length=20, choices=Scope.choices, default=Scope.ORGANISATION)
    owner = models.CharField(
        max_length=200, blank=True, default="", help_text="Key id or team name; empty for the organisation."
    )
    actions = models.JSONField(
        default=dict,
        blank=True,
        validators=[check_actions],
        help_text="What to do about each category (secret, custom): block, sanitize, flag or off. "
        "A category that is not named: secrets are sanitised, blocked terms block.",
    )
    blocked_terms = models.JSONField(
        default=list,
        blank=True,
        validators=[check_terms],
        help_text="Plain terms of 3 to 200 characters, found in any case and inside longer words: category custom.",
    )
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name_plural = "policies"
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "owner"], condition=Q(enabled=True), name="one_policy_in_force"),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if (self.scope == Scope.ORGANISATION) != (not self.owner):
            raise ValidationError({"owner": "A key id or team name; none for the organisation."})
        # Validators are not asked about what is empty, whatever its type.
        if not isinstance(self.actions, dict):
            raise ValidationError({"actions": "An object of categories and actions."})
        if not isinstance(self.blocked_terms, list):
            raise ValidationError({"blocked_terms": "A list of terms."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuses a bad rule, whichever way it comes. Raises `ValidationError`."""
        self.clean_fields()
        self.clean()
        super().save(*args, **kwargs)


class SecurityEvent(models.Model):
    """One finding of the screen: what and where, never the text. Added, never changed."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    request_id = models.CharField(max_length=40, db_index=True)
    key_id = models.CharField(max_length=40)
    user_id = models.CharField(max_length=200, null=True)  # noqa: DJ001  # null is not told, as in the ledger
    team = models.CharField(max_length=200, null=True)  # noqa: DJ001
    category = models.CharField(max_length=30)
    detector = models.CharField(max_length=60)
    action = models.CharField(max_length=12)
    severity = models.CharField(max_length=12)
    part = models.CharField(max_length=200, help_text="Where in the request, such as messages[2].content.")
    start = models.PositiveIntegerField(help_text="First character within the part.")
    end = models.PositiveIntegerField(help_text="The character after the last.")

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.request_id} {self.category} {self.action}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("security events are never changed")
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("security events are never deleted")


_BUILT_IN: Final = ScreenPolicy("balanced", BALANCED)


class ScreenPolicies(msgspec.Struct, frozen=True):
    """Every policy in force."""

    by_key: Mapping[str, ScreenPolicy] = {}
    by_team: Mapping[str, ScreenPolicy] = {}
    organisation: ScreenPolicy = _BUILT_IN

    def for_caller(self, caller: Caller) -> ScreenPolicy:
        """The narrowest: the key's, else its team's, else the organisation's, else the built-in balanced one."""
        found = self.by_key.get(caller.key_id)
        if found is None and caller.team is not None:
            found = self.by_team.get(caller.team)
        return self.organisation if found is None else found


def load_policies() -> ScreenPolicies:
    """Read the policies in force: for the snapshot."""
    by_scope: dict[str, dict[str, ScreenPolicy]] = defaultdict(dict)
    for row in Policy.objects.filter(enabled=True):
        by_scope[row.scope][row.owner] = _screen_policy(row)
    return ScreenPolicies(
        by_key=by_scope[Scope.KEY],
        by_team=by_scope[Scope.TEAM],
        organisation=by_scope[Scope.ORGANISATION].get("", _BUILT_IN),
    )


def _screen_policy(row: Policy) -> ScreenPolicy:
    try:
        row.clean_fields(exclude={"name", "scope", "owner"})
        row.clean()
    except ValidationError as error:
        # Written past `save`. A policy that cannot be read refuses; the others, and the process, go on.
        log.error("policy_unreadable", policy=row.name, fields=sorted(error.message_dict))
        return ScreenPolicy(row.name, dict.fromkeys(Category, Action.BLOCK), ())
    actions = {category: Action(row.actions.get(category, default)) for category, default in BALANCED.items()}
    return ScreenPolicy(row.name, actions, tuple(dict.fromkeys(terms.fold(term.strip()) for term in row.blocked_terms)))
