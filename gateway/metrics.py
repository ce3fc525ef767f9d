"""Prometheus series of the contract. Labels hold providers, deployments and statuses: never a key, user or prompt."""

from functools import lru_cache

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
TOKENS = Counter("ailb_tokens", "Tokens billed", ["provider", "model", "direction"])
COST = Counter("ailb_cost_usd", "US dollars billed")
ACTIVE = Gauge("ailb_active_requests", "Inference requests in flight", multiprocess_mode="livesum")
RATE_LIMITED = Counter("ailb_rate_limited", "Requests refused by a limit or budget", ["limit"])
SECURITY_EVENTS = Counter("ailb_security_events", "Findings of the prompt scanner", ["category", "action"])
LEDGER_PENDING = Gauge("ailb_ledger_pending", "Ledger rows not yet written", multiprocess_mode="livesum")
UNMETERED = Counter("ailb_unmetered_requests", "Answers whose tokens or price were not known", ["reason"])
OVERRUNS = Counter("ailb_hold_overruns", "Settlements above their hold")
SKIPPED = Counter("ailb_steps_skipped", "Optional steps that failed and were left out", ["step"])
MEMORY_LOOKUP = Histogram("ailb_memory_lookup_seconds", "Recall of a session", buckets=_OVERHEAD)
RAG_QUERIES = Counter("ailb_rag_queries", "Requests that drew on a collection")
RAG_SEARCH = Histogram("ailb_rag_search_seconds", "Search of a collection", buckets=_LATENCY)


class Series:
    """The children of one (provider, model, status), looked up once: `labels()` costs more than `inc()`."""

    def __init__(self, provider: str, model: str, status: str) -> None:
        self.requests = REQUESTS.labels(provider, model, status)
        self.duration = DURATION.labels(provider, model)
        self.first_token = FIRST_TOKEN.labels(provider, model)
        self.tokens_in = TOKENS.labels(provider, model, "input")
        self.tokens_out = TOKENS.labels(provider, model, "output")


@lru_cache(maxsize=4096)
def series(provider: str, model: str, status: int) -> Series:
    """`model` is a deployment's name: configured by an admin, so its number is bounded."""
    return Series(provider, model, str(status))


@lru_cache(maxsize=1024)
def attempts(provider: str, outcome: str) -> Counter:
    """The counter of one provider's outcome."""
    return ATTEMPTS.labels(provider, outcome)
