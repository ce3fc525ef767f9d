"""Read by Python at its start when this folder is on PYTHONPATH: a profile that can be switched on from outside.

SIGUSR2 starts cProfile in the main thread, the next SIGUSR2 writes `PID.prof` into the folder that
AILB_BENCH_PROFILE names. Signals, because what is wanted is the load and not the start-up, and because uvicorn ends
on SIGTERM in a way that skips atexit.
"""

import cProfile
import os
import signal
import types
from pathlib import Path

_running: cProfile.Profile | None = None


def _toggle(number: int, frame: types.FrameType | None) -> None:
    global _running
    if _running is None:
        _running = cProfile.Profile()
        _running.enable()
        return
    _running.disable()
    unfinished = Path(os.environ["AILB_BENCH_PROFILE"]) / f"{os.getpid()}.part"
    _running.dump_stats(unfinished)
    # Renamed when whole: the file's appearance is what the reader waits for.
    unfinished.rename(unfinished.with_suffix(".prof"))
    _running = None


if "AILB_BENCH_PROFILE" in os.environ:
    signal.signal(signal.SIGUSR2, _toggle)
