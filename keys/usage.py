"""When keys were last used, as the ledger knows it: no write on a request's path."""

from datetime import timedelta

from django.db.models import Max, Q
from django.utils import timezone

from billing.models import LedgerEntry
from billing.models.ledger import Kind
from keys.models import VirtualKey

_WINDOW = timedelta(hours=1)  # looked at anew in each run: late rows are found, the index keeps it short


def record_last_used() -> int:
    """Set `last_used` of the keys that were used in the last hour; returns how many moved."""
    recent = LedgerEntry.objects.filter(kind=Kind.HOLD, created_at__gte=timezone.now() - _WINDOW).order_by()
    moved = 0
    for key_id, at in recent.values_list("key_id").annotate(at=Max("created_at")):
        older = VirtualKey.objects.filter(Q(last_used=None) | Q(last_used__lt=at), pk=key_id)
        moved += older.update_quietly(last_used=at)
    return moved
