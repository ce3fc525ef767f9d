"""Reading closed requests out of the ledger in bulk, in the order in which they arrived: for replays."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from billing.models.ledger import IS_CLOSING, Kind, LedgerEntry

_BATCH = 2000  # rows in memory at a time
_NO_FAULT = frozenset({"ok", "cancelled", "invalid_request"})
"""Outcomes of an attempt that do not speak against its deployment."""


class Try(msgspec.Struct, frozen=True):
    """One call of one deployment. Seconds; `started` is since the request's arrival."""

    deployment: str
    outcome: str
    started: float
    seconds: float

    @property
    def answered(self) -> bool:
        return self.outcome == "ok"

    @property
    def failed(self) -> bool:
        """By a fault of the deployment's."""
        return self.outcome not in _NO_FAULT


class Closed(msgspec.Struct, frozen=True):
    """A request as the ledger knows it in the end, corrections included. Seconds, and US dollars."""

    at: float
    """Its arrival, since the epoch."""
    key_id: str
    owner: str
    """Whose sessions its session is one of, as `Caller.owner` says it."""
    model: str
    """What was asked for."""
    deployment: str
    """The one that answered, or was tried last."""
    routed_model: str
    served_model: str | None
    settled: bool
    """It was answered, if only in part; else nothing was served."""
    status: int
    stream: bool
    session: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: Decimal | None
    """None where no price was known."""
    seconds: float | None
    """From its arrival to its end."""
    first: float | None
    """To its first content, of streams."""
    tries: tuple[Try, ...]

    @property
    def answered(self) -> Try | None:
        """The call that answered it to the end."""
        return next((made for made in self.tries if made.answered), None)


_COLUMNS = (
    "request_id", "created_at", "key_id", "user_id", "requested_model", "deployment", "routed_model", "served_model",
    "kind", "status", "stream", "session_id", "prompt_tokens", "completion_tokens", "cached_tokens",
    "cache_write_tokens", "reasoning_tokens", "cost_usd", "latency_ms", "ttft_ms", "attempts",
)  # fmt: skip
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_Correction = Mapping[str, Any]


def closed_requests(since: datetime, until: datetime, model: str | None = None) -> Iterator[Closed]:
    """Every request that arrived in [since, until) and is closed, in the order of arrival, a batch in memory at a time.
    `model` narrows it to what was asked for by this name.
    """
    rows = LedgerEntry.objects.filter(created_at__gte=since, created_at__lt=until)
    if model is not None:
        rows = rows.filter(requested_model=model)
    corrections = _corrections(rows.filter(kind=Kind.ADJUSTMENT).order_by().values("request_id", "cost_usd", *_TOKENS))
    closings = rows.filter(IS_CLOSING).order_by("created_at", "id").values_list(*_COLUMNS)
    for values in closings.iterator(chunk_size=_BATCH):
        row = dict(zip(_COLUMNS, values, strict=True))
        yield _closed(row, corrections.get(row["request_id"], {}))


def _corrections(adjustments: Any) -> dict[str, _Correction]:
    """What adjustments add to each request: few, since they follow only on a process's death."""
    found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for row in adjustments.iterator(chunk_size=_BATCH):
        sums = found[row["request_id"]]
        for name in ("cost_usd", *_TOKENS):
            if row[name] is not None:
                sums[name] = sums.get(name, 0) + row[name]
    return dict(found)


def _closed(row: Mapping[str, Any], correction: _Correction) -> Closed:
    tokens = {name: max((row[name] or 0) + correction.get(name, 0), 0) for name in _TOKENS}
    cost = row["cost_usd"]
    if (more := correction.get("cost_usd")) is not None:
        cost = (cost or Decimal(0)) + more
    return Closed(
        at=row["created_at"].astimezone(UTC).timestamp(),
        key_id=row["key_id"],
        owner=f"user:{row['user_id']}" if row["user_id"] is not None else f"key:{row['key_id']}",
        model=row["requested_model"],
        deployment=row["deployment"],
        routed_model=row["routed_model"],
        served_model=row["served_model"],
        settled=row["kind"] == Kind.SETTLEMENT,
        status=row["status"] or 0,
        stream=row["stream"],
        session=row["session_id"],
        cost=cost,
        seconds=_seconds(row["latency_ms"]),
        first=_seconds(row["ttft_ms"]) if row["stream"] else None,
        tries=tuple(_try(made) for made in row["attempts"]),
        **tokens,
    )


def _try(made: Mapping[str, Any]) -> Try:
    return Try(made["deployment"], made["outcome"], made["started_ms"] / 1000, made["latency_ms"] / 1000)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
