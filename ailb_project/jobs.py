"""What runs on a schedule: Celery tasks, the same with a broker (beat and worker) and without (`run_jobs`)."""

from typing import NamedTuple


class Job(NamedTuple):
    """`task` is a dotted path; `seconds` the time between two runs."""

    task: str
    seconds: float


JOBS = (
    Job("gateway.tasks.recover", 5.0),
    Job("billing.tasks.watch_budgets", 5.0),
    Job("billing.tasks.deliver_alerts", 5.0),
    Job("keys.tasks.record_last_used", 15.0),
    Job("gateway.tasks.discover_models", 60.0),
    Job("billing.tasks.verify_counters", 86400.0),
    Job("gateway.tasks.forget_old_processes", 3600.0),
    Job("gateway.tasks.condense_statistics", 600.0),
)
