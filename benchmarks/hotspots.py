"""Where AILB's time goes under load: py-spy where it is installed, else cProfile of the HTTP process's main thread."""

from __future__ import annotations

import io
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.processes import Server, ServerFailed
from benchmarks.scenarios import Scenario
from benchmarks.targets import Cores, Target, start_ailb
from benchmarks.tools import FOLDER, run_load

TOP = 45


def profile_ailb(
    scenario: Scenario, *, requests: int, concurrency: int, upstream: Server, work: Path, cores: Cores
) -> str:
    """Runs AILB alone under load and returns its top functions as text; times are inflated by the profiler."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    extra = {"PYTHONPATH": str(FOLDER / "profiling"), "AILB_BENCH_PROFILE": str(work)}
    target = start_ailb(upstream, data=work / "data", logs=work, cores=cores, extra=None if spy else extra)
    with target.server:
        _send(scenario, target, requests // 2, concurrency, cores)
        if spy:
            return _with_py_spy(spy, scenario, target, requests, concurrency, work, cores)
        return _with_cprofile(scenario, target, requests, concurrency, work, cores)


def _send(scenario: Scenario, target: Target, requests: int, concurrency: int, cores: Cores) -> None:
    result = run_load(
        scenario,
        port=target.server.port,
        headers=target.headers_for(scenario),
        requests=requests,
        connections=concurrency,
        cores=[cores.clients],
    )
    if result.errors:
        raise ServerFailed(f"{result.errors} wrong answers; first: {result.first_error}\n{target.server.log_tail()}")


def _with_cprofile(
    scenario: Scenario, target: Target, requests: int, concurrency: int, work: Path, cores: Cores
) -> str:
    pid = target.server.serving_pid()
    os.kill(pid, signal.SIGUSR2)
    _send(scenario, target, requests, concurrency, cores)
    os.kill(pid, signal.SIGUSR2)
    written = work / f"{pid}.prof"
    deadline = time.monotonic() + 15
    while not written.exists():
        if time.monotonic() > deadline:
            raise ServerFailed("the HTTP process did not write its profile")
        # A request wakes an event loop that sleeps: Python runs signal handlers only between its own instructions.
        _send(scenario, target, 1, 1, cores)
        time.sleep(0.1)
    output = io.StringIO()
    stats = pstats.Stats(str(written), stream=output).strip_dirs()
    print(f"{scenario.title}: cProfile, main thread, {requests} requests; divide by that", file=output)
    stats.sort_stats("tottime").print_stats(TOP)
    stats.sort_stats("cumtime").print_stats(TOP)
    return output.getvalue()


def _with_py_spy(
    spy: str, scenario: Scenario, target: Target, requests: int, concurrency: int, work: Path, cores: Cores
) -> str:
    stacks = work / f"{scenario.name}.stacks"
    command = [spy, "record", "--pid", str(target.server.serving_pid()), "--rate", "500", "--format", "raw"]
    recorder = subprocess.Popen([*command, "--duration", "3600", "--output", str(stacks)])
    try:
        _send(scenario, target, requests, concurrency, cores)
    finally:
        recorder.send_signal(signal.SIGINT)
        recorder.wait(30)
    return _top_of(stacks.read_text(), scenario)


def _top_of(stacks: str, scenario: Scenario) -> str:
    """Collapses `frame;frame count` lines to the share of samples in and below each function."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            below[frame] += int(count)
    total = max(own.total(), 1)
    lines = [f"{scenario.title}: py-spy, {total} samples of all threads", "  own   with callees"]
    lines += [f"{count / total:6.1%} {below[name] / total:6.1%}  {name}" for name, count in own.most_common(TOP)]
    return "\n".join(lines) + "\n"
