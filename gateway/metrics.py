"""Prometheus series of the contract. Labels hold providers, deployments and statuses: never a key, user or prompt.

What every request counts is added up in plain numbers on the event loop and handed to prometheus_client once a second
and before each scrape (`publish`): eleven of its increments cost 15 µs a request, these cost 3.
"""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram

_LATENCY = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)

REQUESTS = Counter("ailb_requests", "Inference requests by outcome", ["provider", "model", "status"])
DURATION = Histogram(
    "ailb_request_duration_seconds", "From arrival to the last byte", ["provider", "model"], buckets=_LATENCY
)
FIRST_TOKEN = Histogram(
    "ailb_time_to_first_token_seconds", "From arrival to the first content", ["provider", "model"], buckets=_LATENCY
)
OVERHEAD = Histogram("ailb_gateway_overhead_seconds", "The gateway's own share of the latency", buckets=_OVERHEAD)
ATTEMPTS = Counter("ailb_upstream_attempts", "Upstream calls by outcome", ["provider", "outcome"])
HEDGES = Counter("ailb_hedged_requests", "Requests that a second deployment was asked for as well")
TOKENS = Counter("ailb_tokens", "Tokens billed", ["provider", "model", "direction"])
COST = Counter("ailb_cost_usd", "US dollars billed")
ACTIVE = Gauge("ailb_active_requests", "Inference requests in flight", multiprocess_mode="livesum")
CIRCUIT_STATE = Gauge(
    "ailb_circuit_state", "0 closed, 1 half-open, 2 open", ["deployment"], multiprocess_mode="livemax"
)
RATE_LIMITED = Counter("ailb_rate_limited", "Requests refused by a limit or budget", ["scope", "limit"])
SECURITY_EVENTS = Counter("ailb_security_events", "Findings of the prompt scanner", ["category", "action"])
LEDGER_PENDING = Gauge("ailb_ledger_pending", "Ledger rows not yet written", multiprocess_mode="livesum")
REDIS_UP = Gauge("ailb_redis_up", "1 while Redis answers, 0 while it does not", multiprocess_mode="livemin")
COUNTER_DRIFT = Counter("ailb_counter_drift", "Budgets whose counter was not what the ledger adds up to", ["scope"])
UNMETERED = Counter("ailb_unmetered_requests", "Answers whose tokens or price were not known", ["reason"])
UNKNOWN_STOPS = Counter("ailb_unknown_stop_reasons", "Answers that ended for a reason we do not know")
OVERRUNS = Counter("ailb_hold_overruns", "Settlements above their hold")
SKIPPED = Counter("ailb_steps_skipped", "Optional steps that failed and were left out", ["step"])
MEMORY_LOOKUP = Histogram("ailb_memory_lookup_seconds", "Recall of a session", buckets=_OVERHEAD)
RAG_QUERIES = Counter("ailb_rag_queries", "Requests that drew on a collection")
RAG_SEARCH = Histogram("ailb_rag_search_seconds", "Search of a collection", buckets=_LATENCY)


class Samples:
    """A histogram's samples since the last `publish`."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def publish(self, histogram: Histogram) -> None:
        # prometheus_client takes samples one by one only; a bucket's own value takes many at once.
        for bucket, count in zip(histogram._buckets, self.counts, strict=True):
            if count:
                bucket.inc(count)
        histogram._sum.inc(self.total)
        self.counts = [0] * len(self.counts)
        self.total = 0.0


class Tally:
    """What one (provider, model, status) has added up to since the last `publish`."""

    __slots__ = ("cost", "duration", "first_token", "requests", "tokens_in", "tokens_out")

    def __init__(self) -> None:
        self.requests = self.tokens_in = self.tokens_out = 0
        self.cost = 0.0
        self.duration = Samples(_LATENCY)
        self.first_token = Samples(_LATENCY)

    def publish(self, provider: str, model: str, status: int) -> None:
        REQUESTS.labels(provider, model, str(status)).inc(self.requests)
        TOKENS.labels(provider, model, "input").inc(self.tokens_in)
        TOKENS.labels(provider, model, "output").inc(self.tokens_out)
        COST.inc(self.cost)
        self.duration.publish(DURATION.labels(provider, model))
        self.first_token.publish(FIRST_TOKEN.labels(provider, model))
        self.requests = self.tokens_in = self.tokens_out = 0
        self.cost = 0.0


overhead = Samples(_OVERHEAD)
attempts: defaultdict[tuple[str, str], int] = defaultdict(int)
"""By (provider, outcome)."""
_tallies: defaultdict[tuple[str, str, int], Tally] = defaultdict(Tally)
_active = 0
circuits: Callable[[], Mapping[str, int]] = dict
"""By configured deployment, the state of its circuit: set by the plane while it is open."""
_circuits_told: set[str] = set()


def tally(provider: str, model: str, status: int) -> Tally:
    """`model` is a deployment's name: configured by an admin, so that their number is bounded."""
    return _tallies[provider, model, status]


def active(change: int) -> None:
    """A request begins (1) or ends (-1)."""
    global _active
    _active += change


def publish() -> None:
    """Hand everything to prometheus_client; on the event loop's thread, like all that adds up here."""
    for (provider, model, status), counted in _tallies.items():
        counted.publish(provider, model, status)
    _tallies.clear()
    for (provider, outcome), number in attempts.items():
        ATTEMPTS.labels(provider, outcome).inc(number)
    attempts.clear()
    overhead.publish(OVERHEAD)
    ACTIVE.set(_active)
    _publish_circuits()


def _publish_circuits() -> None:
    global _circuits_told
    states = circuits()
    for deployment, state in states.items():
        CIRCUIT_STATE.labels(deployment).set(state)
    for gone in _circuits_told - states.keys():
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            CIRCUIT_STATE.labels(gone).set(0)  # prometheus_client cannot take a series away there
        else:
            CIRCUIT_STATE.remove(gone)
    _circuits_told = set(states)
