"""Thousands of streams at once through one gateway process: `python -m benchmarks.many_streams`.

Each brings a chunk every two seconds, as a model that thinks does. Printed are what a stream costs the process in
memory, and what the gateway adds to the delay of a chunk: the same client is first sent straight to the upstream, which
writes the time of sending into every chunk. Ends with status 0 when every stream came whole, whether or not the bars
were met; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bars import verdict
from benchmarks.measure import Strangers
from benchmarks.processes import Server, ServerFailed, cpu_seconds, free_port, memory_bytes, pinned_to
from benchmarks.scenarios import STREAM
from benchmarks.targets import ANY_KEY, Cores, openai_headers, set_pacing, start_ailb
from benchmarks.tools import BUILD, Times, build

INTERVAL = 2.0  # seconds between two chunks of a stream
OPENED_A_SECOND = 250  # streams: a third of what one core of the gateway can begin, as the machine may be busy
WARM_UP = 200  # short streams that come to their end before memory is first read: imports, caches, pools
MOST_KB = 60.0
MOST_ADDED_MS = 50.0
# Descriptors: a stream has two in the gateway; beside them the process has its database, log, listener and so on.
SPARE_FILES = 500


class Streams(msgspec.Struct, frozen=True):
    """What streams.c prints: of the chunks that came while all streams were open, their delays and how far the gaps
    between them were from `INTERVAL`.
    """

    whole: int
    broken: int
    chunks: int
    delay_us: Times
    gap_us: Times
    first_broken: str
    client_cpu_seconds: float


@dataclass(frozen=True)
class Load:
    """So many streams, all open for so many seconds."""

    streams: int
    seconds: float

    @property
    def ramp(self) -> float:
        """Seconds over which they are opened: whole intervals, so that their chunks come evenly."""
        return INTERVAL * max(math.ceil(self.streams / OPENED_A_SECOND / INTERVAL), 1)

    @property
    def chunks(self) -> int:
        """Of each stream, so that the first one lasts until the last has been measured."""
        return math.ceil((self.ramp + self.seconds) / INTERVAL) + 1


@dataclass(frozen=True)
class Found:
    """One run through the gateway. Memory in bytes: at rest, with all streams, and after them."""

    streams: Streams
    before: int
    during: int
    after: int
    busy: float
    """Share of a core that the process took while all streams were open."""

    def kb_a_stream(self, streams: int) -> float:
        return (self.during - self.before) / streams / 1000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    build()
    load = Load(_affordable(options.streams), options.seconds)
    cores = Cores.available()
    with tempfile.TemporaryDirectory(prefix="ailb-bench-") as folder:
        try:
            return _compare(load, Path(folder), cores)
        except ServerFailed as error:
            print(error)
            return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=5000, help="at once (default 5000)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for which all of them are open (default 30)")
    return parser


def _affordable(wanted: int) -> int:
    """As many as the limit of open files allows, which this process and its children raise as far as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = (hard - SPARE_FILES) // 2 if hard != resource.RLIM_INFINITY else wanted
    if most < wanted:
        print(f"this machine allows {hard} open files a process: {most} streams instead of {wanted}")
    return min(wanted, most)


def _compare(load: Load, work: Path, cores: Cores) -> int:
    strangers = Strangers()
    with _upstream(load, work, cores) as upstream:
        _say(f"{load.streams} streams straight to the upstream, {load.ramp + load.seconds:.0f} s")
        direct = _ask(load, upstream.port, openai_headers(ANY_KEY), cores)
        target = start_ailb(upstream, data=work / "data", logs=work, cores=cores)
        with target.server:
            _say(f"{WARM_UP} streams to warm up, then {load.streams} through AILB")
            headers = target.headers_for(STREAM)
            _warm_up(upstream, target.server.port, headers, cores)
            found = _through(target.server, load, headers, cores)
    others = strangers.cores()
    print(_report(load, direct, found))
    print(f"other processes of the machine took {others:.2f} of {len(cores.all)} cores meanwhile")
    return 1 if direct.broken or found.streams.broken else 0


@contextlib.contextmanager
def _upstream(load: Load, work: Path, cores: Cores) -> Iterator[Server]:
    port = free_port()
    pacing = ["--chunks", str(load.chunks), "--delay-us", str(int(INTERVAL * 1e6))]
    command = [str(BUILD / "upstream"), "--port", str(port), *pacing]
    with Server("upstream", command, port=port, log=work / "upstream.log", cores=[cores.clients]) as server:
        server.wait_until("/v1/models", seconds=5)
        yield server


def _through(server: Server, load: Load, headers: Sequence[str], cores: Cores) -> Found:
    pid = server.serving_pid()
    before, _ = memory_bytes(pid)
    with _Asking(load, server.port, headers, cores) as asking:
        asking.wait_for("steady")
        began, cpu = time.monotonic(), cpu_seconds(pid)
        asking.wait_for("measured")
        during, _ = memory_bytes(pid)
        busy = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
        streams = asking.result()
    after, _ = memory_bytes(pid)
    return Found(streams, before, during, after, busy)


def _warm_up(upstream: Server, port: int, headers: Sequence[str], cores: Cores) -> None:
    """Short streams, to their end: a client that leaves would have the gateway load its tokenizer, of 50 MB."""
    set_pacing(upstream, 1000)
    _ask(Load(WARM_UP, 0), port, headers, cores)
    set_pacing(upstream, int(INTERVAL * 1e6))


def _ask(load: Load, port: int, headers: Sequence[str], cores: Cores) -> Streams:
    with _Asking(load, port, headers, cores) as asking:
        asking.wait_for("measured")
        return asking.result()


class _Asking:
    """streams.c at work; it is ended, and its streams with it, when the block is left."""

    def __init__(self, load: Load, port: int, headers: Sequence[str], cores: Cores) -> None:
        self._port = port
        command = [str(BUILD / "streams"), "--port", str(port), "--path", STREAM.path, "--body", STREAM.body]
        command += ["--streams", str(load.streams), "--ramp-s", str(load.ramp), "--seconds", str(load.seconds)]
        command += ["--interval-s", str(INTERVAL)]
        for header in headers:
            command += ["--header", header]
        with pinned_to([cores.clients]):
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def wait_for(self, word: str) -> None:
        """`steady`: all are open; `measured`: they were for as long as was asked."""
        said: list[str] = []
        while not said or said[-1] not in (word, ""):
            said.append(self._line())
        if not said[-1]:
            raise ServerFailed(f"the clients ended before they said {word!r}: {said}")

    def result(self) -> Streams:
        return msgspec.json.decode(self._line(), type=Streams)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def _report(load: Load, direct: Streams, found: Found) -> str:
    through = found.streams
    size = found.kb_a_stream(load.streams)
    added = (through.delay_us.p99 - direct.delay_us.p99) / 1000
    megabytes = [f"{bytes_ / 1e6:.0f}" for bytes_ in (found.before, found.during, found.after)]
    lines = [
        f"{load.streams} streams of a chunk every {INTERVAL:g} s, {load.seconds:g} s long, one gateway process",
        f"memory: {size:.1f} kB a stream; bar {MOST_KB:g}: {verdict(size, MOST_KB)} "
        f"({megabytes[0]} MB before, {megabytes[1]} MB with them, {megabytes[2]} MB after)",
        f"added to a chunk's delay: p50 {(through.delay_us.p50 - direct.delay_us.p50) / 1000:.2f} ms, "
        f"p99 {added:.2f} ms; bar {MOST_ADDED_MS:g}: {verdict(added, MOST_ADDED_MS)}",
        *_times("delay of a chunk", direct.delay_us, through.delay_us),
        *_times(f"difference of a gap from {INTERVAL:g} s", direct.gap_us, through.gap_us),
        f"the gateway took {found.busy:.2f} of a core; {direct.chunks} and {through.chunks} chunks were measured",
    ]
    for name, streams in (("direct", direct), ("through AILB", through)):
        if streams.broken:
            lines.append(f"{name}: {streams.broken} of {load.streams} streams broke; the first: {streams.first_broken}")
    return "\n".join(lines)


def _times(title: str, direct: Times, through: Times) -> Iterator[str]:
    for name, times in (("direct", direct), ("through AILB", through)):
        figures = ((label, getattr(times, label) / 1000) for label in ("p50", "p90", "p99", "max"))
        yield f"{title}, {name}: " + ", ".join(f"{label} {value:.2f}" for label, value in figures) + " ms"


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
