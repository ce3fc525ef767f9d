"""Conversations: what was asked and answered in a session, each owner's apart."""

from typing import ClassVar

from django.db import models
from django.utils import timezone


class Session(models.Model):
    """A conversation under the name that its owner gave it. The same name of two owners is two sessions."""

    owner = models.CharField(max_length=250, help_text="`user:` or `key:` and whose: gateway.types.Caller.owner.")
    session_id = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_turn_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["-last_turn_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["owner", "session_id"], name="one_session_a_name"),
        ]

    def __str__(self) -> str:
        return self.session_id


class TurnRole(models.TextChoices):
    USER = "user"
    ASSISTANT = "assistant"


class Turn(models.Model):
    """One message of a session. Turns follow each other in the order of their ids."""

    # The index below serves the reference too.
    session = models.ForeignKey(Session, on_delete=models.CASCADE, related_name="turns", db_index=False)
    role = models.CharField(max_length=12, choices=TurnRole.choices)
    content = models.TextField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["session", "-id"], name="turn_newest")]

    def __str__(self) -> str:
        return f"{self.session} {self.role}"
