"""The processes that `serve` runs beside HTTP: started with it, restarted when they fall, stopped with it.

Each holds the read end of a pipe from its parent: when the parent dies, however it dies, the pipe closes and the
child ends (`until_parent_dies`).
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import structlog
from django.conf import settings

log = structlog.get_logger()

_MANAGE = Path(__file__).resolve().parent.parent / "manage.py"
_RESTART_SECONDS = 2.0
_STOP_SECONDS = 10.0  # beyond what requests in flight are given


class Children:
    """Management commands as child processes."""

    def __init__(self, commands: list[list[str]], *, pass_fds: tuple[int, ...] = ()) -> None:
        self._commands = commands
        self._pass_fds = pass_fds
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for index in range(len(self._commands)):
            thread = threading.Thread(target=self._keep, args=(index,), name=f"ailb-child-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Ask all to end, then wait."""
        self._stopping.set()
        for child in self._running.values():
            child.terminate()
        deadline = time.monotonic() + settings.ENV.AILB_SHUTDOWN_SECONDS + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        for child in self._running.values():
            if child.poll() is None:
                child.kill()

    def _keep(self, index: int) -> None:
        command = self._commands[index]
        while not self._stopping.is_set():
            child = subprocess.Popen(
                [sys.executable, str(_MANAGE), *command],
                stdin=subprocess.PIPE,
                pass_fds=self._pass_fds,
                # A Ctrl-C at the terminal goes to the parent, which ends its children in order.
                start_new_session=True,
            )
            self._running[index] = child
            if self._stopping.is_set():
                child.terminate()
            code = child.wait()
            if child.stdin is not None:
                child.stdin.close()
            if not self._stopping.is_set():
                log.error("child_ended", command=command[0], code=code)
                self._stopping.wait(_RESTART_SECONDS)


def until_parent_dies() -> threading.Event:
    """An event that is set when standard input closes, which is when the parent is gone."""
    gone = threading.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        gone.set()

    threading.Thread(target=watch, name="ailb-parent", daemon=True).start()
    return gone
