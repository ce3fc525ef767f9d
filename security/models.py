"""The audit log. Policies and security events are beside it, in their own modules."""

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from security.policies import Policy, SecurityEvent

__all__ = ["AuditEntry", "Policy", "SecurityEvent"]


class AuditEntry(models.Model):
    """One change or sensitive read: who, from where, what, before and after. Added, never changed."""

    at = models.DateTimeField(default=timezone.now, db_index=True)
    actor = models.CharField(max_length=250)
    role = models.CharField(max_length=20)
    via = models.CharField(max_length=20)
    ip = models.CharField(max_length=60, blank=True, default="")
    action = models.CharField(max_length=40)
    object_type = models.CharField(max_length=60)
    object_id = models.CharField(max_length=250)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)

    class Meta:
        verbose_name_plural = "audit entries"
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [models.Index(fields=["object_type", "object_id"], name="audit_object")]

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.object_type} {self.object_id}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("audit entries are never changed")
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise TypeError("audit entries are never deleted")
