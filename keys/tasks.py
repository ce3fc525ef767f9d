"""The keys' scheduled work."""

from celery import shared_task

from keys import usage


@shared_task(name="keys.tasks.record_last_used")
def record_last_used() -> int:
    """Bring `last_used` of the keys up to the ledger."""
    return usage.record_last_used()
