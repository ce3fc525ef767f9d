"""Putting in order what dead gateway processes left: their journals first, then their open holds."""

from datetime import timedelta
from functools import partial
from pathlib import Path

from django.utils import timezone

from billing import ledger, sweeper
from billing.periods import BEGINNING
from gateway import liveness
from gateway.models import GatewayProcess

# Of a process whose row was removed, its journal alone remembers when it ran: all of the ledger is looked at.
_LONG_AGO = BEGINNING + timedelta(days=1)


def recover(*, data_dir: Path) -> int:
    """Replay journals of dead processes and close their holds; returns how many holds. Safe to run at any time."""
    replayed = ledger.replay_of_dead(ledger.journals(data_dir), partial(liveness.lives_here, data_dir=data_dir))
    # Holds may have come with them, of a process that was swept already: it is swept once more.
    for process_id in replayed:
        row, known = {"host": "", "pid": 0, "stopped_at": timezone.now(), "heartbeat_at": _LONG_AGO}, {"swept_at": None}
        GatewayProcess.objects.update_or_create(id=process_id, defaults=known, create_defaults=row)
    closed = sweeper.close_orphans(dead=liveness.dead(data_dir=data_dir))
    liveness.clean_up(data_dir=data_dir)
    return closed
