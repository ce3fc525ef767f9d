"""Names that the gateway mints."""

import secrets
import time


def new_request_id() -> str:
    """A request's id: sortable by time of arrival, so that the ledger's index grows at its end."""
    return f"req_{time.time_ns() // 1000:014x}{secrets.token_hex(8)}"


def new_process_id() -> str:
    """A gateway process's epoch: one run of one process, never used again."""
    return f"gw_{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"
