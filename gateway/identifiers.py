"""Names that the gateway mints."""

import random
import secrets
import time

# Seeded by the system at start: an id must not repeat, it need not be secret, and asking the kernel each time is a
# system call on every request.
_random = random.Random(secrets.randbits(256))  # noqa: S311


def new_request_id() -> str:
    """A request's id: sortable by time of arrival, so that the ledger's index grows at its end."""
    return f"req_{time.time_ns() // 1000:014x}{_random.getrandbits(64):016x}"


def new_process_id() -> str:
    """A gateway process's epoch: one run of one process, never used again."""
    return f"gw_{time.time_ns() // 1_000_000:011x}{secrets.token_hex(6)}"
