"""Tallies as rows: what each process wrote of its spans, and the hours and days that old ones are merged into.

A process writes the whole of its tally each time, never what came on top: to write it again, or after a commit whose
answer was lost, changes nothing.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from django.db import transaction
from django.db.models import Q, QuerySet

from gateway.models import GatewayProcess, ProcessLoad, RoutingStatistics
from gateway.statistics.sketch import Sketch
from gateway.statistics.tallies import SPAN, Key, LastError, Load, Tally

HOUR, DAY = 3600, 86400  # seconds
LONGEST = timedelta(days=30)
"""The longest window that can be asked for."""

# Which spans become which, and how long they stay what they are: for the windows of an hour and of a day. Each row
# costs a reader 50 µs, so there should not be many: four processes busy with 20 deployments come to 4 000.
_CONDENSED = ((SPAN, HOUR, timedelta(hours=1, seconds=SPAN)), (HOUR, DAY, timedelta(hours=25)))
_KEPT = LONGEST + timedelta(days=2)
_IDENTITY = ("start", "seconds", "process", "provider", "deployment")
_COUNTED = ("succeeded", "failed", "failed_attempts", "latency_sum", "latencies", "error_at", "error_code",
            "error_status")  # fmt: skip

_counts = msgspec.msgpack.Decoder(dict[int, int])


def write(process_id: str, tallies: Mapping[Key, Tally], load: Load) -> None:
    """Write a process's tallies and its load, in place of what was there of them. Raises `django.db.Error`."""
    with transaction.atomic():
        _put(_row(key, tally, SPAN, process_id) for key, tally in tallies.items())
        ProcessLoad.objects.bulk_create(
            [ProcessLoad(process=process_id, in_flight=load.in_flight, circuits=load.circuits)],
            update_conflicts=True, unique_fields=["process"], update_fields=["in_flight", "circuits"],
        )  # fmt: skip


def since(moment: datetime) -> QuerySet[RoutingStatistics]:
    """The rows of all spans that reach beyond `moment`."""
    reaching = [Q(seconds=step, start__gt=moment - timedelta(seconds=step)) for step in (SPAN, HOUR, DAY)]
    return RoutingStatistics.objects.filter(reaching[0] | reaching[1] | reaching[2])


def tally_of(row: RoutingStatistics) -> Tally:
    """What a row holds."""
    tally = Tally()
    tally.succeeded, tally.failed, tally.failed_attempts = row.succeeded, row.failed, row.failed_attempts
    tally.latencies = Sketch(_counts.decode(row.latencies), row.latency_sum)
    if row.error_at is not None:
        tally.error = LastError(row.error_at, row.error_code, row.error_status)
    return tally


def condense(now: datetime) -> int:
    """Make hours of old spans and days of old hours; returns how many rows were merged. Safe to run twice at once."""
    return sum(_condense(fine, coarse, now - kept) for fine, coarse, kept in _CONDENSED)


def forget(now: datetime) -> int:
    """Remove what no window reaches any more, and the load of processes that ended; returns how many rows."""
    count, _ = RoutingStatistics.objects.filter(start__lt=now - _KEPT).delete()
    ended = GatewayProcess.objects.exclude(stopped_at=None, swept_at=None).values("pk")
    gone, _ = ProcessLoad.objects.filter(process__in=ended).delete()
    return count + gone


def _condense(fine: int, coarse: int, until: datetime) -> int:
    """Whole spans of `coarse` seconds that ended by `until`."""
    end = datetime.fromtimestamp(until.timestamp() // coarse * coarse, UTC)
    old = RoutingStatistics.objects.filter(seconds=fine, start__lt=end)
    named = old.values_list("start", "provider", "deployment").distinct()
    keys = {Key(int(start.timestamp()) // coarse * coarse, *names) for start, *names in named}
    return sum(_merge_into(key, coarse, old) for key in keys)


def _merge_into(key: Key, seconds: int, old: QuerySet[RoutingStatistics]) -> int:
    """One deployment's rows of one span. A transaction each: requests wait for SQLite's one writer."""
    start = _moment(key.start)
    whole = RoutingStatistics.objects.filter(provider=key.provider, deployment=key.deployment)
    within = {"start__gte": start, "start__lt": start + timedelta(seconds=seconds)}
    with transaction.atomic():
        # Of two that do this at once the second finds nothing left. There may be an hour already, of spans that were
        # written in time: these are those of a process that was cut off from the database.
        mine = old.filter(**within, provider=key.provider, deployment=key.deployment)
        rows = list(mine.order_by("pk").select_for_update())
        merged = Tally()
        for row in [*rows, *whole.filter(start=start, seconds=seconds, process="")]:
            merged.merge(tally_of(row))
        if rows:
            _put([_row(key, merged, seconds, "")])
        RoutingStatistics.objects.filter(pk__in=[row.pk for row in rows]).delete()
    return len(rows)


def _put(rows: Iterable[RoutingStatistics]) -> None:
    RoutingStatistics.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=_IDENTITY, update_fields=_COUNTED, batch_size=50
    )


def _row(key: Key, tally: Tally, seconds: int, process_id: str) -> RoutingStatistics:
    error = tally.error
    return RoutingStatistics(
        start=_moment(key.start),
        seconds=seconds,
        process=process_id,
        provider=key.provider,
        deployment=key.deployment,
        succeeded=tally.succeeded,
        failed=tally.failed,
        failed_attempts=tally.failed_attempts,
        latency_sum=tally.latencies.total,
        latencies=msgspec.msgpack.encode(tally.latencies.counts.copy()),  # a copy: the event loop may be adding
        error_at=error.at if error is not None else None,
        error_code=error.code[:100] if error is not None else "",
        error_status=error.status if error is not None else None,
    )


def _moment(start: int) -> datetime:
    return datetime.fromtimestamp(start, UTC)
