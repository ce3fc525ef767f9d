"""The figures of a window of time, of all gateway processes: for HTTP, gRPC and whoever else wants to know."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import msgspec
from django.conf import settings
from django.db.models import QuerySet, Sum

from gateway import liveness
from gateway.circuits import State
from gateway.models import Deployment, GatewayProcess, ProcessLoad, Provider, RoutingStatistics
from gateway.statistics import requests, storage
from gateway.statistics.tallies import SPAN, Key, LastError, Load, Tally

WINDOWS: Mapping[str, timedelta] = MappingProxyType(
    {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7), "30d": storage.LONGEST}
)
"""By the names that doors take. They begin with a whole span (1h), hour (24h) or day: see `storage.condense`."""


class Figures(msgspec.Struct, frozen=True):
    """Of one deployment, or of all of one provider. Latencies are milliseconds of answers, from the request's arrival
    to the last byte, the gateway's own share included; percentiles are off by 1 % at most. None: there were none.
    """

    requests: int
    """Times that it was asked: answers and failed attempts, so that one whose failures another made good is seen."""
    success_rate: float | None
    """The share of answers, 0 to 1."""
    avg_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    in_flight: int
    circuit: str
    """closed, half_open or open: of a provider, the worst of its deployments'; of several processes, the worst."""
    last_error: LastError | None


class Totals(msgspec.Struct, frozen=True):
    """Of requests, however many attempts each took."""

    total_requests: int
    successful_requests: int
    failed_requests: int


class Statistics(Totals, frozen=True):
    """The totals, and what they are made of."""

    providers: dict[str, Figures]
    deployments: dict[str, Figures]


def statistics_of(window: timedelta) -> Statistics:
    """How requests went since `window` ago: what is configured, and what was and is gone."""
    since = datetime.now(UTC) - window
    tallies = _merged(since)
    in_flight, circuits = _loads()
    owners: defaultdict[str, set[str]] = defaultdict(set, {slug: set() for slug in _slugs()})
    for name, slug in Deployment.objects.values_list("name", "provider__slug"):
        owners[slug].add(name)
    by_provider = _grouped((provider, tally) for (provider, _), tally in tallies.items() if provider)
    by_name = _grouped((name, tally) for (_, name), tally in tallies.items() if name)
    succeeded = sum(tally.succeeded for tally in tallies.values())
    failed = sum(tally.failed for tally in tallies.values())
    return Statistics(
        total_requests=succeeded + failed,
        successful_requests=succeeded,
        failed_requests=failed,
        providers={
            slug: _figures(
                by_provider[slug],
                sum(in_flight[name] for name in owners[slug]),
                max((circuits[name] for name in owners[slug]), default=State.CLOSED),
            )
            for slug in sorted(owners.keys() | by_provider.keys())
        },
        deployments={
            name: _figures(by_name[name], in_flight[name], circuits[name])
            for name in sorted(set().union(*owners.values()) | by_name.keys())
        },
    )


def totals_of(window: timedelta) -> Totals:
    """The same totals, which everybody may see and the database can add up."""
    since = datetime.now(UTC) - window
    ours = [tally for _, tally in _counted(storage.since(since).filter(process=requests.process_id), since)]
    others = storage.since(since).exclude(process=requests.process_id)
    told = others.aggregate(succeeded=Sum("succeeded", default=0), failed=Sum("failed", default=0))
    succeeded = told["succeeded"] + sum(tally.succeeded for tally in ours)
    failed = told["failed"] + sum(tally.failed for tally in ours)
    return Totals(succeeded + failed, succeeded, failed)


def _slugs() -> Iterable[str]:
    return Provider.objects.values_list("slug", flat=True)


def _merged(since: datetime) -> dict[tuple[str, str], Tally]:
    """What was counted, by provider and deployment."""
    found: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    for key, tally in _counted(storage.since(since), since):
        found[key.provider, key.deployment].merge(tally)
    return found


def _counted(rows: QuerySet[RoutingStatistics], since: datetime) -> Iterator[tuple[Key, Tally]]:
    """What the rows hold and what is in memory, each tally once: of two copies the one that knows more."""
    # Memory first: what is written between the two readings is then seen in both, and not in neither.
    process_id, ours = requests.process_id, requests.tallies.copy()
    for row in rows.iterator():
        key, written = Key(int(row.start.timestamp()), row.provider, row.deployment), storage.tally_of(row)
        if row.process == process_id and row.seconds == SPAN and key in ours:
            if written.age < ours[key].age:
                continue
            del ours[key]
        yield key, written
    earliest = since.timestamp() - SPAN
    yield from ((key, tally) for key, tally in ours.items() if key.start > earliest)


def _loads() -> tuple[Counter[str], defaultdict[str, State]]:
    """What living processes have in flight, and the worst state of each circuit."""
    in_flight: Counter[str] = Counter()
    circuits: defaultdict[str, State] = defaultdict(lambda: State.CLOSED)
    for load in _told_by_living():
        in_flight.update(load.in_flight)
        for name, state in load.circuits.items():
            circuits[name] = max(circuits[name], State(state))
    return in_flight, circuits


def _told_by_living() -> Iterator[Load | ProcessLoad]:
    serving = GatewayProcess.objects.filter(stopped_at=None, swept_at=None)
    living = set(serving.exclude(liveness.dead(data_dir=settings.DATA_DIR)).values_list("pk", flat=True))
    yield from ProcessLoad.objects.filter(pk__in=living - {requests.process_id})
    yield requests.load


def _grouped(tallies: Iterable[tuple[str, Tally]]) -> defaultdict[str, Tally]:
    found: defaultdict[str, Tally] = defaultdict(Tally)
    for name, tally in tallies:
        found[name].merge(tally)
    return found


def _figures(tally: Tally, in_flight: int, circuit: State) -> Figures:
    asked = tally.succeeded + tally.failed_attempts
    p50, p95, p99 = (_rounded(value) for value in tally.latencies.quantiles(0.5, 0.95, 0.99))
    return Figures(
        requests=asked,
        success_rate=round(tally.succeeded / asked, 6) if asked else None,
        avg_latency_ms=_rounded(tally.latencies.mean()),
        p50_latency_ms=p50,
        p95_latency_ms=p95,
        p99_latency_ms=p99,
        in_flight=in_flight,
        circuit=circuit.name.lower(),
        last_error=tally.error,
    )


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 3)
