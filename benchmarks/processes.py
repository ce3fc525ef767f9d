"""Child processes of a run: pinned to a core, measured through /proc and the kernel's clocks, stopped by their id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Long enough to drain what is in flight; a server that needs more is reported and killed.
STOP_SECONDS = 20.0
# For descendants that outlive the process which started them.
ORPHAN_SECONDS = 5.0


class ServerFailed(Exception):
    """A server did not start, died or would not stop; the text holds the end of its log."""


class Server:
    """A server under test in its own process.

    `log` takes its standard output and error. Use `stop`, or let `with` do it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        cores: Iterable[int],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name, self.port, self.log = name, port, log
        with log.open("ab") as output, pinned_to(cores):
            self.started = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until(self, path: str, *, seconds: float) -> float:
        """Waits for `GET path` to answer 200; returns the seconds since the process was started."""
        return self._wait(lambda: status_of(self.port, path) == 200, f"answer {path} with 200", seconds)

    def wait_until_any_answer(self, *, seconds: float) -> float:
        """For a server without a page that is 200: waits for an answer of any kind."""
        return self._wait(lambda: status_of(self.port, "/") is not None, "answer", seconds)

    def _wait(self, done: Callable[[], bool], what: str, seconds: float) -> float:
        deadline = self.started + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerFailed(f"{self.name} ended with status {self.process.returncode}\n{self.log_tail()}")
            if done():
                return time.monotonic() - self.started
            time.sleep(0.01)
        raise ServerFailed(f"{self.name} did not {what} in {seconds:.0f} s\n{self.log_tail()}")

    def serving_pid(self) -> int:
        """The process that answers HTTP: of those that hold the listening socket, the one that worked most."""
        holders = [pid for pid in family(self.pid) if listens(pid, self.port)]
        if not holders:
            raise ServerFailed(f"{self.name}: nobody in its process tree listens on port {self.port}")
        return max(holders, key=cpu_seconds)

    def stop(self) -> None:
        """SIGTERM to the process started here; what is left of its family after a while is killed, by its ids."""
        members = {pid: birth(pid) for pid in family(self.pid)}
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"warning: {self.name} did not stop within {STOP_SECONDS:.0f} s of SIGTERM; killed", flush=True)
            self.process.kill()
            self.process.wait()
        # The start time guards against an id that meanwhile belongs to somebody else.
        descendants = {pid: born for pid, born in members.items() if born is not None and pid != self.pid}
        deadline = time.monotonic() + ORPHAN_SECONDS
        while (
            left := [pid for pid, born in descendants.items() if birth(pid) == born]
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            print(f"warning: {self.name} left process {pid} behind; killed", flush=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def pinned_to(cores: Iterable[int]) -> Iterator[None]:
    """Processes started inside inherit the affinity from their first instruction on, threads included."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A loopback TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def status_of(port: int, path: str) -> int | None:
    """The status that `GET path` is answered with on loopback, or None where nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; see proc(5). None for a process that is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is a name in brackets that may hold spaces and brackets itself.
    return text.rpartition(")")[2].split()


def birth(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or only waits to be reaped."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] != "Z" else None


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    members = [pid]
    for member in members:
        members += [child for child, parent in parents.items() if parent == member]
    return members


def cpu_by_process(pids: Iterable[int]) -> dict[int, float]:
    return {pid: cpu_seconds(pid) for pid in pids}


def cpu_since(before: Mapping[int, float], pids: Iterable[int]) -> float:
    """CPU seconds that the processes used since `before`; all of the time of those that were not there then."""
    return sum(cpu_seconds(pid) - before.get(pid, 0.0) for pid in pids)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, in seconds, with all its threads, living and ended."""
    # The process's own CPU clock, as clock_getcpuclockid(3) makes its id: nanoseconds, where /proc counts in 10 ms.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        fields = stat_fields(pid)
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND if fields else 0.0


def strangers_cpu_seconds() -> float:
    """CPU time of all processes of the machine but this one and its descendants, ended ones included.

    What an ended process used is found with the parent that reaped it. /proc/stat would be shorter, but it samples at
    the timer's tick, and a load at a fixed rate falls between the ticks or on them.
    """
    ours = set(family(os.getpid()))
    strangers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sum(_with_ended_children(pid) for pid in strangers if pid not in ours)


def _with_ended_children(pid: int) -> float:
    fields = stat_fields(pid)
    return (sum(map(int, fields[11:15])) / TICKS_PER_SECOND) if fields else 0.0


def memory_bytes(pid: int) -> tuple[int, int]:
    """Resident set of a process in bytes: now, and the most it ever was; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    now, most = (int(fields.get(name, "0").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def listens(pid: int, port: int) -> bool:
    """Whether a process holds a listening TCP (IPv4 or IPv6) socket on this port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(descriptor.readlink()) in inodes:
                return True
        except FileNotFoundError:
            continue
    return False
