"""Billing's scheduled work."""

import redis
import structlog
from celery import shared_task
from django.conf import settings

from billing import verification
from billing.alerts import delivery, thresholds

log = structlog.get_logger()

_watch = thresholds.Watch()


@shared_task(name="billing.tasks.watch_budgets")
def watch_budgets() -> int:
    """Raise an alert for each threshold that a budget has reached; returns how many."""
    return thresholds.notice(_watch)


@shared_task(name="billing.tasks.deliver_alerts")
def deliver_alerts() -> int:
    """Tell webhooks and people of alerts; returns how many were told."""
    return delivery.deliver_due()


@shared_task(name="billing.tasks.verify_counters")
def verify_counters() -> int:
    """Compare the counters in Redis with the ledger and make them the same; returns how many differed."""
    if settings.ENV.REDIS_URL is None:
        return 0  # the gateway's process compares its own
    try:
        return sum(result.differs for result in verification.verify(repair=True))
    except redis.RedisError as error:
        log.error("counters_not_verified", error=type(error).__name__)
        return 0
