"""What a run found, as the Markdown that is printed and kept."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.measure import Latency, Memory, Round, Spread, StartUp, ratios
from benchmarks.scenarios import Scenario

# The bars of the brief; the CPU bars stand with their scenarios.
FIRST_START_SECONDS = 12.0
SECOND_START_SECONDS = 5.0
MEMORY_MB = 200.0
ADDED_P50_MS = 2.0
ADDED_P99_MS = 5.0

# Cores' worth of CPU that others may take before throughput and latency say more about them than about us: little
# where they must share the two cores of the run, more where they have others.
QUIET = 0.05
QUIET_FOR_EACH_FURTHER_CORE = 0.5

PACKAGES = ("django", "channels", "uvicorn", "uvloop", "httptools", "aiohttp", "msgspec")


@dataclass
class Findings:
    """All that a run measured; what it left out stays empty."""

    command: str
    titles: dict[str, str] = field(default_factory=dict)
    rounds: dict[Scenario, dict[str, list[Round]]] = field(default_factory=dict)
    latencies: dict[Scenario, dict[str, Latency]] = field(default_factory=dict)
    start_up: StartUp | None = None
    memory: dict[str, Memory] = field(default_factory=dict)
    idle_cpu_ms: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    # Cores' worth of CPU that processes that are none of ours used, by part of the run.
    strangers: dict[str, float] = field(default_factory=dict)
    # Scenario and server, by name, where an answer was wrong.
    faulty: set[tuple[str, str]] = field(default_factory=set)
    load_average: float = field(default_factory=lambda: os.getloadavg()[0])


def render(findings: Findings) -> str:
    """The whole report."""
    parts = [
        "# Benchmark results\n\nWritten by `benchmarks/run.py`; what the figures mean is in [README.md](README.md).\n",
        _circumstances(findings),
        _bars(findings),
    ]
    parts += [_cpu_table(findings, scenario) for scenario in findings.rounds]
    if findings.latencies:
        parts.append(_latency_table(findings))
    if findings.start_up:
        parts.append(_start_up_table(findings.start_up))
    if findings.memory:
        parts.append(_memory_table(findings))
    if findings.strangers:
        parts.append(_strangers_table(findings))
    if findings.failures:
        parts.append("## What went wrong\n\n" + "\n".join(f"- {failure}" for failure in findings.failures) + "\n")
    return "\n".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column left and all others right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _circumstances(findings: Findings) -> str:
    rows = [
        ["date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())],
        ["command", f"`{findings.command}`"],
        ["commit", _commit()],
        ["processor", f"{_processor()}, {len(os.sched_getaffinity(0))} cores"],
        ["system", f"Linux {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}"],
        ["load average before", f"{findings.load_average:.2f}"],
        ["Python", platform.python_version()],
        ["packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)],
    ]
    return table(["", ""], rows).replace("---:", "---")


def _bars(findings: Findings) -> str:
    rows = [row for scenario in findings.rounds for row in _scenario_bars(findings, scenario)]
    if start := findings.start_up:
        disturbed = is_disturbed(findings, "start-up")
        rows.append(_bar("ready on an empty folder, slowest", max(start.first), FIRST_START_SECONDS, "s", disturbed))
        rows.append(_bar("ready on the second start, slowest", max(start.second), SECOND_START_SECONDS, "s", disturbed))
    if memory := findings.memory.get("ailb"):
        rows.append(_bar("memory of the HTTP process after the load", memory.resident / 1e6, MEMORY_MB, "MB"))
    elif start:
        rows.append(_bar("memory of the HTTP process when ready", start.memory_bytes / 1e6, MEMORY_MB, "MB"))
    if not rows:
        return "AILB was not measured: no bar is judged.\n"
    return "## Bars\n\n" + table(["what", "measured", "bar", ""], rows)


def _scenario_bars(findings: Findings, scenario: Scenario) -> list[list[str]]:
    """CPU and latency of one scenario; a server that answered wrongly is not judged by how fast it did."""
    if (scenario.name, "ailb") in findings.faulty:
        return [[scenario.title, "wrong answers", "", "**FAILED**"]]
    rounds, latencies = findings.rounds[scenario], findings.latencies.get(scenario, {})
    if "ailb" not in rounds:
        return []
    rows = []
    if scenario.bar is not None:
        what = f"{scenario.title}: CPU of a request, times the bare Channels consumer's"
        rows.append(_bar(what, ratios(rounds, "ailb").median, scenario.bar, "×"))
    if latency := latencies.get("ailb"):
        disturbed = is_disturbed(findings, f"{scenario.title}, latency")
        p50, p99 = latency.added_p50_us / 1e3, latency.added_p99_us / 1e3
        rows.append(_bar(f"{scenario.title}: added to the median at half load", p50, ADDED_P50_MS, "ms", disturbed))
        rows.append(_bar(f"{scenario.title}: added to p99 at half load", p99, ADDED_P99_MS, "ms", disturbed))
    return rows


def _bar(what: str, measured: float, limit: float, unit: str, disturbed: bool = False) -> list[str]:
    verdict = "PASS" if measured <= limit else "**OVER**, but disturbed" if disturbed else "**OVER**"
    return [what, f"{measured:.2f} {unit}", f"≤ {limit:g} {unit}", verdict]


def _cpu_table(findings: Findings, scenario: Scenario) -> str:
    rounds = findings.rounds[scenario]
    rows = [_cpu_row(findings, name, rounds) for name in rounds]
    taken = [r for rows_of_one in rounds.values() for r in rows_of_one]
    header = ["server", "CPU µs a request", "ratio to bare Channels", "requests/s", "core busy", "all its processes µs"]
    helpers = (
        f"Beside them, a request: the upstream {statistics.median(r.upstream_us for r in taken):.0f} µs, "
        f"the load generator {statistics.median(r.client_us for r in taken):.0f} µs, on the other core. "
        f"{len(next(iter(rounds.values())))} rounds each; median (lowest to highest).\n"
    )
    if not scenario.saturates:
        helpers += "\nThe servers mostly wait for the upstream here: requests/s is the load, not what they could do.\n"
    return f"## {scenario.title[0].upper()}{scenario.title[1:]}\n\n{table(header, rows)}\n{helpers}"


def _cpu_row(findings: Findings, name: str, rounds: dict[str, list[Round]]) -> list[str]:
    own = rounds[name]
    return [
        findings.titles[name],
        _spread(Spread.of([r.cpu_us for r in own]), ".0f"),
        _spread(ratios(rounds, name), ".2f"),
        _spread(Spread.of([r.requests_per_second for r in own]), ".0f"),
        f"{statistics.median(r.busy for r in own):.0%}",
        f"{statistics.median(r.all_cpu_us for r in own):.0f}",
    ]


def _spread(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"


def _latency_table(findings: Findings) -> str:
    header = ["what", "server", "requests/s", "p50 µs", "p99 µs", "added p50", "added p99", "added to first byte p50"]
    rows = [
        [
            scenario.title,
            findings.titles[name],
            *(f"{figure:.0f}" for figure in (one.rate, one.p50_us, one.p99_us)),
            *(f"{figure:+.0f}" for figure in (one.added_p50_us, one.added_p99_us, one.added_first_byte_p50_us)),
        ]
        for scenario, latencies in findings.latencies.items()
        for name, one in latencies.items()
    ]
    text = "An open loop at half of each server's own requests/s; added: less the upstream alone at the same rate.\n"
    return f"## Latency at half load\n\n{table(header, rows)}\n{text}"


def _start_up_table(start: StartUp) -> str:
    rows = [
        ["empty data folder", *_seconds(start.first)],
        ["the same folder again", *_seconds(start.second)],
    ]
    header = ["start, from exec to `/readyz` 200, all cores", "median s", "slowest s", "starts"]
    memory = f"HTTP process when ready: {start.memory_bytes / 1e6:.0f} MB resident.\n"
    return f"## Start-up\n\n{table(header, rows)}\n{memory}"


def _seconds(times: Sequence[float]) -> list[str]:
    return [f"{statistics.median(times):.2f}", f"{max(times):.2f}", str(len(times))]


def _memory_table(findings: Findings) -> str:
    rows = [
        [
            findings.titles[name],
            f"{memory.resident / 1e6:.0f}",
            f"{memory.peak / 1e6:.0f}",
            f"{findings.idle_cpu_ms[name]:.1f}",
        ]
        for name, memory in findings.memory.items()
    ]
    header = ["HTTP process", "resident after the load, MB", "peak, MB", "idle CPU of all its processes, ms/s"]
    return f"## Memory, and CPU at rest\n\n{table(header, rows)}"


def is_disturbed(findings: Findings, part: str) -> bool:
    """Whether other processes of the machine used so much of it during a part of the run that it shows."""
    further = max(len(os.sched_getaffinity(0)) - 2, 0)
    return findings.strangers[part] > QUIET + QUIET_FOR_EACH_FURTHER_CORE * further


def _strangers_table(findings: Findings) -> str:
    cores = len(os.sched_getaffinity(0))
    rows = [
        [part, f"{used:.2f}", "**disturbed**" if is_disturbed(findings, part) else "quiet"]
        for part, used in findings.strangers.items()
    ]
    text = (
        f"Of {cores} cores. Where it was disturbed, CPU and its ratios hold; throughput, latency and start-up are "
        "worse than on a quiet machine.\n"
    )
    return f"## What other processes of the machine used meanwhile\n\n{table(['part', 'cores', ''], rows)}\n{text}"


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return answer.stdout.strip() if answer.returncode == 0 else "none yet"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
