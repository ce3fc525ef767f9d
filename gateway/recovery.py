"""Putting in order what dead gateway processes left: their journals first, then their open holds."""

from functools import partial
from pathlib import Path

from billing import ledger, sweeper
from gateway import liveness


def recover(*, data_dir: Path) -> int:
    """Replay journals of dead processes and close their holds; returns how many holds. Safe to run at any time."""
    ledger.replay_of_dead(ledger.journals(data_dir), partial(liveness.lives_here, data_dir=data_dir))
    return sweeper.close_orphans(dead=liveness.dead(data_dir=data_dir))
