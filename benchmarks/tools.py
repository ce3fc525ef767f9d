"""The C programs of a run: compiled when their source is newer, and the load generator called."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from benchmarks.processes import pinned_to
from benchmarks.scenarios import Scenario

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER / "build"
# Beyond this an answer is an error, so that a hung server ends the run.
ANSWER_SECONDS = 30


class Times(msgspec.Struct, frozen=True):
    """Percentiles in microseconds, by nearest rank."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class LoadResult(msgspec.Struct, frozen=True):
    """What load.c prints. `errors` counts answers that were not 200, not whole, or lacked events."""

    completed: int
    errors: int
    errors_by: dict[str, int]
    first_error: str
    seconds: float
    requests_per_second: float
    body_bytes: int
    latency_us: Times
    first_byte_us: Times
    client_cpu_seconds: float


def build() -> None:
    """Compiles the C programs into benchmarks/build."""
    BUILD.mkdir(exist_ok=True)
    for name in ("upstream", "load", "streams"):
        source, program = FOLDER / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)


def run_load(
    scenario: Scenario,
    *,
    port: int,
    headers: Iterable[str],
    requests: int,
    connections: int,
    cores: Iterable[int],
    rate: float | None = None,
) -> LoadResult:
    """Sends a scenario's request so many times: as fast as answers come, or at `rate` requests a second."""
    command = [str(BUILD / "load"), "--port", str(port), "--path", scenario.path, "--body", scenario.body]
    command += ["--requests", str(requests), "--connections", str(connections), "--timeout-s", str(ANSWER_SECONDS)]
    for header in headers:
        command += ["--header", header]
    if scenario.ending:
        command += ["--ending", scenario.ending, "--events", str(scenario.events)]
    if rate is not None:
        command += ["--rate", f"{rate:.3f}"]
    with pinned_to(cores):
        output = subprocess.run(command, check=True, capture_output=True).stdout
    return msgspec.json.decode(output, type=LoadResult)
