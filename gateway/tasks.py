"""The gateway's scheduled work."""

from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from gateway import environment, recovery
from gateway.models import GatewayProcess
from gateway.statistics import storage as statistics

_KEPT = timedelta(days=30)


@shared_task(name="gateway.tasks.recover")
def recover() -> int:
    """Put in order what dead gateway processes left; returns how many holds were closed."""
    return recovery.recover(data_dir=settings.DATA_DIR)


@shared_task(name="gateway.tasks.forget_old_processes")
def forget_old_processes() -> int:
    """Remove the rows of processes that ended, and were swept, a month ago."""
    count, _ = GatewayProcess.objects.filter(swept_at__lt=timezone.now() - _KEPT).delete()
    return count


@shared_task(name="gateway.tasks.discover_models")
def discover_models() -> None:
    """Ask the servers whose models the environment does not name which they have now."""
    environment.rediscover(settings.ENV)


@shared_task(name="gateway.tasks.condense_statistics")
def condense_statistics() -> int:
    """Make hours of old spans and days of old hours, remove what no window reaches; returns how many rows."""
    now = timezone.now()
    return statistics.condense(now) + statistics.forget(now)
