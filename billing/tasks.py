"""Billing's scheduled work."""

from celery import shared_task
from django.conf import settings

from billing import sweeper
from gateway import liveness


@shared_task(name="billing.tasks.close_orphans")
def close_orphans() -> int:
    """Close what dead gateway processes held."""
    return sweeper.close_orphans(dead=liveness.dead(data_dir=settings.DATA_DIR))
