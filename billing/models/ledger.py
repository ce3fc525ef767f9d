"""The ledger: what every answer held and cost. Rows are added, never changed."""

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from billing.fields import MoneyField


class AppendOnlyError(Exception):
    """Somebody tried to change or remove what was written down."""


class AppendOnlyQuerySet(models.QuerySet[Any]):
    """Reads and inserts only; retention has its own job."""

    def update(self, **kwargs: Any) -> int:
        raise AppendOnlyError("the ledger is corrected by adjustment entries, never changed")

    def delete(self) -> tuple[int, dict[str, int]]:
        raise AppendOnlyError("entries of the ledger are not deleted")


class Kind(models.TextChoices):
    HOLD = "hold"
    SETTLEMENT = "settlement"
    RELEASE = "release"
    ADJUSTMENT = "adjustment"


# Spelt out, as in the condition of the index `one_closing_a_request`: with bound parameters SQLite cannot tell that the
# two are the same, and reads the whole ledger for every hold.
IS_CLOSING = models.Func(
    models.F("kind"), template="%(expressions)s IN ('settlement', 'release')", output_field=models.BooleanField()
)


class LedgerEntry(models.Model):
    """One entry. A request has one hold and one closing entry (settlement, or release where nothing was served), and
    any number of adjustments. Owners are kept by name, not by reference: they outlive what they name.
    """

    id = models.BigAutoField(primary_key=True)
    request_id = models.CharField(max_length=40)
    kind = models.CharField(max_length=12, choices=Kind.choices)
    created_at = models.DateTimeField(help_text="When the request arrived.")
    written_at = models.DateTimeField(help_text="When this entry was made.")
    process_id = models.CharField(max_length=40)
    client_request_id = models.CharField(max_length=200, null=True)  # noqa: DJ001  # null is not told
    key_id = models.CharField(max_length=40)
    user_id = models.CharField(max_length=200, null=True)  # noqa: DJ001
    team = models.CharField(max_length=200, null=True)  # noqa: DJ001
    provider = models.CharField(max_length=60)
    deployment = models.CharField(max_length=200)
    requested_model = models.CharField(max_length=200)
    routed_model = models.CharField(max_length=200)
    served_model = models.CharField(max_length=200, null=True)  # noqa: DJ001
    status = models.PositiveSmallIntegerField(null=True, help_text="HTTP status; 499: the client left. Null on a hold.")
    stream = models.BooleanField()
    held_usd = MoneyField(null=True, help_text="On a hold: the most the request could cost.")
    held_prompt_tokens = models.PositiveBigIntegerField(null=True)
    held_output_tokens = models.PositiveBigIntegerField(null=True)
    prompt_tokens = models.BigIntegerField(null=True)  # signed: an adjustment may take back
    completion_tokens = models.BigIntegerField(null=True)
    cached_tokens = models.BigIntegerField(null=True)
    cache_write_tokens = models.BigIntegerField(null=True)
    reasoning_tokens = models.BigIntegerField(null=True)
    cost_usd = MoneyField(null=True, help_text="Null: no price was known. Never 0 for that.")
    price_id = models.BigIntegerField(null=True)
    unpriced = models.BooleanField(default=False)
    estimated = models.BooleanField(default=False, help_text="Tokens were counted here, not reported upstream.")
    latency_ms = models.FloatField(null=True)
    ttft_ms = models.FloatField(null=True, help_text="To the first content.")
    overhead_ms = models.FloatField(null=True, help_text="The gateway's own share of the latency.")
    session_id = models.CharField(max_length=200, null=True)  # noqa: DJ001
    tags = models.JSONField(default=list)
    attempts = models.JSONField(default=list)
    security_action = models.CharField(max_length=12, null=True)  # noqa: DJ001
    detail = models.JSONField(default=dict, help_text="Service tier, finish reason, end user, error code.")

    objects = models.Manager.from_queryset(AppendOnlyQuerySet)()

    class Meta:
        verbose_name_plural = "ledger entries"
        ordering: ClassVar = ["-id"]
        indexes: ClassVar = [
            # Each index is a page more in every commit. Holds and closings are found by request through the
            # constraints below, so a query by request names the kind; holds of a process by their time of arrival.
            models.Index(fields=["created_at"], name="ledger_created"),
            models.Index(fields=["key_id", "created_at"], name="ledger_key"),
            models.Index(fields=["request_id"], name="ledger_adjustments", condition=Q(kind="adjustment")),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["request_id"], condition=Q(kind="hold"), name="one_hold_a_request"),
            models.UniqueConstraint(
                fields=["request_id"],
                condition=Q(kind__in=["settlement", "release"]),
                name="one_closing_a_request",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.kind}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnlyError("the ledger is corrected by adjustment entries, never changed")
        super().save(*args, **{**kwargs, "force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise AppendOnlyError("entries of the ledger are not deleted")
