"""Servers that the gateway runs for itself on loopback: started at their first use, ended with it.

There is one of a name in a data folder, however many gateway processes use it. `run/<name>.lock` says so: whoever
starts the server takes an exclusive lock on that file and hands the open file to the child, which holds it to its end,
however it ends. So a lock that can be had means that no server runs, and one that is held, with a line `<pid> <port>`
in the file, that one does; the line is written once the server answers.

The child holds the read end of a pipe from the process that started it, and ends when the pipe closes
(`end_with_parent`). Not PR_SET_PDEATHSIG: that fires when the *thread* that started the child ends.
"""

import asyncio
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

log = structlog.get_logger()

ROOT = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.02
_STOP_SECONDS = 5.0
# A server that falls again and again is started after 2, 4, 8 … 60 seconds; one that fell once, at once.
_REMEMBERED_SECONDS = 300.0
_LONGEST_PAUSE = 60.0
# What a child may know: no credential of the gateway's environment is its business.
_HANDED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")


class LoopbackServerError(Exception):
    """The server is not there. The message is a whole sentence and may be shown to a client."""


class LoopbackServer:
    """One server, as one process of the gateway sees it. For one event loop.

    `command` is what to run, in the repository's root, each `{port}` in it replaced; `health` is the path that answers
    200 once it can be used; `title` is its name in sentences ("The demo model").
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        command: Sequence[str],
        *,
        title: str,
        health: str = "/health",
        within: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`folder`: AILB_DATA_DIR. `within`: seconds that a start may take. `environment`: what the child gets too."""
        self._lock_path = folder / "run" / f"{name}.lock"
        self._log_path = folder / "run" / f"{name}.log"
        self._name = name
        self._command = command
        self._title = title
        self._health = health
        self._within = within
        self._environment = environment or {}
        self._asking = asyncio.Lock()
        self._guard = threading.Lock()
        """Of `_child` and `_stopped`."""
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._starts: list[float] = []

    async def url(self) -> str:
        """Where it is, `http://127.0.0.1:<port>`; started where it is not running. Raises `LoopbackServerError`.

        Costs 20 µs where it runs.
        """
        # One thread waits for a start, not one a request.
        if (found := self._found()) is None:
            async with self._asking:
                if (found := self._found()) is None:
                    found = await asyncio.to_thread(self._found_or_started)
        return found

    def stop(self) -> None:
        """End the server where this process started it: SIGTERM, then SIGKILL. There is no `url` afterwards."""
        with self._guard:
            self._stopped = True
            child, self._child = self._child, None
        if child is not None:
            _end(child)

    # ── finding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _found(self) -> str | None:
        try:
            lock = os.open(self._lock_path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return None if _taken(lock) else _url_in(lock)
        finally:
            os.close(lock)

    def _found_or_started(self) -> str:
        deadline = time.monotonic() + self._within
        self._lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _taken(lock):
                    return self._started(lock, deadline)
                if (url := _url_in(lock)) is not None:
                    return url
            finally:
                os.close(lock)
            if time.monotonic() > deadline:
                raise LoopbackServerError(f"{self._title} is being started by another process, which takes too long.")
            time.sleep(_POLL_SECONDS)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _started(self, lock: int, deadline: float) -> str:
        os.truncate(lock, 0)
        if (pause := self._pause()) > 0:
            raise LoopbackServerError(f"{self._title} fell repeatedly; it is started again in {pause:.0f} s.")
        began = time.monotonic()
        port = _free_port()
        child = self._spawned(lock, port)
        try:
            self._wait_until_healthy(child, port, deadline)
        except LoopbackServerError:
            _end(child)
            log.error("loopback_server_failed", name=self._name, code=child.returncode, log=str(self._log_path))
            raise
        os.pwrite(lock, b"%d %d\n" % (child.pid, port), 0)
        log.info("loopback_server_started", name=self._name, pid=child.pid, seconds=round(time.monotonic() - began, 2))
        return _url(port)

    def _pause(self) -> float:
        """Seconds for which it is not started again, for how often it was of late."""
        now = time.monotonic()
        self._starts = [start for start in self._starts if start > now - _REMEMBERED_SECONDS]
        if len(self._starts) < 2:
            return 0.0
        return self._starts[-1] + min(2.0 ** (len(self._starts) - 1), _LONGEST_PAUSE) - now

    def _spawned(self, lock: int, port: int) -> subprocess.Popen[bytes]:
        self._starts.append(time.monotonic())
        environment = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        with self._guard, open(self._log_path, "wb", opener=_private) as output:
            if self._stopped:
                raise LoopbackServerError(f"{self._title} has been stopped.")
            if self._child is not None:
                _end(self._child)  # has ended: its lock was free; this takes note of it
            self._child = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in self._command],
                cwd=ROOT,
                env={**environment, **self._environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                # A Ctrl-C at the terminal goes to the gateway, which ends its children in order.
                start_new_session=True,
            )
            return self._child

    def _wait_until_healthy(self, child: subprocess.Popen[bytes], port: int, deadline: float) -> None:
        while not _is_healthy(port, self._health):
            if child.poll() is not None:
                raise LoopbackServerError(
                    f"{self._title} could not be started: it ended with status {child.returncode}."
                )
            if time.monotonic() > deadline:
                raise LoopbackServerError(f"{self._title} did not start within {self._within:.0f} s.")
            time.sleep(_POLL_SECONDS)
        if child.poll() is not None:
            # Something answered, but not the child: another program took the port first.
            raise LoopbackServerError(f"{self._title} could not be started: it ended with status {child.returncode}.")


def _taken(lock: int) -> bool:
    """Whether the lock was free, and is ours until the file is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _url_in(lock: int) -> str | None:
    """What the file says; None while the server is being started."""
    line = os.pread(lock, 64, 0)
    return _url(int(line.split()[1])) if line.endswith(b"\n") else None


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _is_healthy(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def end_with_parent() -> None:
    """For the child, first of all: end this process when standard input closes, which is when the parent is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_STOP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="ailb-parent", daemon=True).start()
