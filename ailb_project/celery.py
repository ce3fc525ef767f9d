"""Celery: the worker and beat of an installation with a broker. Without one, `run_jobs` runs the same tasks."""

import os

from celery import Celery

from ailb_project.jobs import JOBS

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ailb_project.settings")

app = Celery("ailb")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = {job.task: {"task": job.task, "schedule": job.seconds} for job in JOBS}
app.autodiscover_tasks()
