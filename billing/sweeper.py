"""Closing what dead processes held: as prompt and held output, `estimated`; corrected if usage turns up later."""

from datetime import timedelta

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from billing.counters.base import Owners
from billing.counters.redis import give_back_process
from billing.models import LedgerEntry
from billing.models.ledger import IS_CLOSING, Kind
from gateway.models import GatewayProcess

log = structlog.get_logger()

# No request lives longer: the overall timeouts of a call are far below. Bounds how much of a long-lived process's
# ledger is looked at when it dies.
_LONGEST_REQUEST = timedelta(hours=6)
_BATCH = 500


def close_orphans(*, dead: Q) -> int:
    """Close the holds of processes that match `dead`; returns how many there were. Safe to run twice, and at once in
    two processes: a hold is closed by whoever comes first.
    """
    closed = 0
    for process in GatewayProcess.objects.filter(dead, swept_at=None):
        owners: set[Owners] = set()
        count = _close_holds_of(process, owners)
        if give_back_process(process.pk, owners):
            # Where Redis did not answer it is tried again: what the dead held there must not stay reserved.
            GatewayProcess.objects.filter(pk=process.pk).update(swept_at=timezone.now())
        if count:
            log.warning("orphaned_holds_closed", process_id=process.pk, count=count)
        closed += count
    return closed


def _close_holds_of(process: GatewayProcess, owners: set[Owners]) -> int:
    """Close them, and add whose they were to `owners`."""
    closing = LedgerEntry.objects.filter(IS_CLOSING, request_id=OuterRef("request_id"))
    orphans = LedgerEntry.objects.filter(
        ~Exists(closing),
        kind=Kind.HOLD,
        process_id=process.pk,
        created_at__gte=process.heartbeat_at - _LONGEST_REQUEST,
    ).order_by("id")
    closed = 0
    while batch := list(orphans[:_BATCH]):
        closed += len(batch)
        owners.update(Owners(hold.key_id, hold.user_id, hold.team) for hold in batch)
        with transaction.atomic():
            LedgerEntry.objects.bulk_create([_closing(hold) for hold in batch], ignore_conflicts=True)
    return closed


def _closing(hold: LedgerEntry) -> LedgerEntry:
    copied = (
        "request_id", "created_at", "client_request_id", "key_id", "user_id", "team", "provider", "deployment",
        "requested_model", "routed_model", "stream", "session_id", "tags", "security_action", "unpriced",
    )  # fmt: skip
    return LedgerEntry(
        **{name: getattr(hold, name) for name in copied},
        kind=Kind.SETTLEMENT,
        written_at=timezone.now(),
        process_id="sweeper",
        status=500,
        prompt_tokens=hold.held_prompt_tokens,
        completion_tokens=hold.held_output_tokens,
        cost_usd=hold.held_usd,
        estimated=True,
        detail={**hold.detail, "error": "process_died"},
    )
