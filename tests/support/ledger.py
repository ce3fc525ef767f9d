"""Rows for the ledger, made without a request."""

import itertools
import time
from decimal import Decimal
from typing import Any

from billing.rows import LedgerRow

_numbers = itertools.count(1)


def make_row(kind: str = "hold", request_id: str | None = None, **fields: Any) -> LedgerRow:
    """A row as the data plane queues it: a hold of a cent, or the closing of one."""
    now = time.time()
    hold = kind == "hold"
    values: dict[str, Any] = {
        "request_id": request_id or f"req_test_{next(_numbers)}",
        "kind": kind,
        "created_at": now,
        "written_at": now,
        "process_id": "gw_test",
        "client_request_id": None,
        "key_id": "key_1",
        "user_id": "alice",
        "team": "red",
        "provider": "upstream",
        "deployment": "gpt-test",
        "requested_model": "gpt-test",
        "routed_model": "gpt-test",
        "served_model": None if hold else "gpt-test",
        "status": None if hold else 200,
        "stream": False,
        "held_usd": Decimal("0.01") if hold else None,
        "held_prompt_tokens": 100 if hold else None,
        "held_output_tokens": 900 if hold else None,
        "prompt_tokens": None if hold else 11,
        "completion_tokens": None if hold else 4,
        "cached_tokens": None if hold else 0,
        "cache_write_tokens": None if hold else 0,
        "reasoning_tokens": None if hold else 0,
        "cost_usd": None if hold else Decimal("0.0000675"),
        "price_id": None,
        "unpriced": False,
        "estimated": False,
        "latency_ms": None if hold else 12.5,
        "ttft_ms": None,
        "overhead_ms": None if hold else 0.5,
        "session_id": None,
        "tags": (),
        "attempts": (),
        "security_action": None,
        "detail": {},
    }
    return LedgerRow(**{**values, **fields})
