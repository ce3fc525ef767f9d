"""`manage.py run_jobs`: the scheduled tasks in one process, where no Celery worker runs them."""

import heapq
import signal
import threading
import time
from typing import Any

import structlog
from celery import Task
from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections
from django.utils.module_loading import import_string

from ailb_project.children import until_parent_dies
from ailb_project.jobs import JOBS

log = structlog.get_logger()


class Command(BaseCommand):
    help = "Run the scheduled jobs until SIGTERM, or until standard input closes."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        ending = until_parent_dies()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ending.set())
        run(ending)


def run(ending: threading.Event) -> None:
    """Run each job when it is due, one at a time, until `ending`."""
    due = [(time.monotonic() + job.seconds, index) for index, job in enumerate(JOBS)]
    heapq.heapify(due)
    while not ending.wait(max(due[0][0] - time.monotonic(), 0)):
        _, index = heapq.heappop(due)
        _run(import_string(JOBS[index].task))
        heapq.heappush(due, (time.monotonic() + JOBS[index].seconds, index))


def _run(task: "Task[Any, Any]") -> None:
    close_old_connections()
    try:
        task()
    except DatabaseError as error:
        # It runs again: the database may be back by then.
        log.error("job_failed", job=task.name, error=type(error).__name__)
