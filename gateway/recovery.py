"""Putting in order what dead gateway processes left: their journals first, then their open holds."""

from functools import partial
from pathlib import Path

from billing import ledger, sweeper
from gateway import liveness
from gateway.models import GatewayProcess


def recover(*, data_dir: Path) -> int:
    """Replay journals of dead processes and close their holds; returns how many holds. Safe to run at any time."""
    replayed = ledger.replay_of_dead(ledger.journals(data_dir), partial(liveness.lives_here, data_dir=data_dir))
    # Holds may have come with them, of a process that was swept already: it is swept once more.
    GatewayProcess.objects.filter(pk__in=replayed).update(swept_at=None)
    closed = sweeper.close_orphans(dead=liveness.dead(data_dir=data_dir))
    liveness.clean_up(data_dir=data_dir)
    return closed
