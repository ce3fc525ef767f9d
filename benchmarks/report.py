"""What a run found, as the Markdown that is printed and kept."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks import bars
from benchmarks.findings import Findings
from benchmarks.measure import Round, Spread, ratios
from benchmarks.scenarios import Scenario

PACKAGES = ("django", "channels", "uvicorn", "uvloop", "httptools", "aiohttp", "msgspec")


def render(findings: Findings) -> str:
    """The whole report."""
    parts = [
        "# Benchmark results\n\nWritten by `benchmarks/run.py`; what the figures mean is in [README.md](README.md).\n",
        _circumstances(findings),
        _bars(findings),
    ]
    if findings.remarks:
        parts.append("\n".join(f"- {remark}" for remark in findings.remarks) + "\n")
    parts += [_cpu_table(findings, scenario) for scenario in findings.rounds]
    if findings.translations:
        parts.append(_translation_table(findings))
    if findings.latencies:
        parts.append(_latency_table(findings))
    if findings.start_up or findings.other_starts:
        parts.append(_start_up_table(findings))
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
    rows = bars.rows_of(findings)
    if not rows:
        return "AILB was not measured: no bar is judged.\n"
    return "## Bars\n\n" + table(bars.HEADER, rows)


def _cpu_table(findings: Findings, scenario: Scenario) -> str:
    rounds = findings.rounds[scenario]
    rows = [_cpu_row(findings, name, rounds) for name in rounds]
    header = ["server", "CPU µs a request", "ratio to bare Channels", "requests/s", "core busy", "all its processes µs"]
    helpers = _helpers(list(rounds.values()))
    if not scenario.saturates:
        helpers += "\nThe servers mostly wait for the upstream here: requests/s is the load, not what they could do.\n"
    return f"## {scenario.title[0].upper()}{scenario.title[1:]}\n\n{table(header, rows)}\n{helpers}"


def _helpers(taken: Sequence[Sequence[Round]]) -> str:
    """What the two programs that every round needs cost beside those that it measures."""
    every = [one for rounds in taken for one in rounds]
    return (
        f"Beside them, a request: the upstream {statistics.median(r.upstream_us for r in every):.0f} µs, "
        f"the load generator {statistics.median(r.client_us for r in every):.0f} µs, on the other core. "
        f"{len(taken[0])} rounds each; median (lowest to highest).\n"
    )


def _cpu_row(findings: Findings, name: str, rounds: dict[str, list[Round]]) -> list[str]:
    return _row_of(findings.titles[name], rounds[name], ratios(rounds, name))


def _row_of(title: str, rounds: Sequence[Round], ratio: Spread) -> list[str]:
    return [
        title,
        _spread(Spread.of([r.cpu_us for r in rounds]), ".0f"),
        _spread(ratio, ".2f"),
        _spread(Spread.of([r.requests_per_second for r in rounds]), ".0f"),
        f"{statistics.median(r.busy for r in rounds):.0%}",
        f"{statistics.median(r.all_cpu_us for r in rounds):.0f}",
    ]


def _translation_table(findings: Findings) -> str:
    taken = findings.translations
    rows = [_row_of(each.title, taken[each], bars.times_untranslated(findings, each)) for each in taken]
    header = ["AILB", "CPU µs a stream", "ratio to the first", "streams/s", "core busy", "all its processes µs"]
    return f"## Streams in translation\n\n{table(header, rows)}\n{_helpers(list(taken.values()))}"


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


def _start_up_table(findings: Findings) -> str:
    rows, memory = [], ""
    if start := findings.start_up:
        rows = [["AILB, empty data folder", *_seconds(start.first)], ["AILB, the same again", *_seconds(start.second)]]
        memory = f" AILB's HTTP process when ready: {start.memory_bytes / 1e6:.0f} MB resident."
    rows += [[title, *_seconds(times)] for title, times in findings.other_starts.items()]
    text = f"With all cores, from exec to `/readyz` 200, of the others to the first answer of any kind.{memory}\n"
    return f"## Start-up\n\n{table(['server', 'median s', 'slowest s', 'starts'], rows)}\n{text}"


def _seconds(times: Sequence[float]) -> list[str]:
    return [f"{statistics.median(times):.2f}", f"{max(times):.2f}", str(len(times))]


def _memory_table(findings: Findings) -> str:
    rows = [
        [
            findings.titles[name],
            f"{memory.resident / 1e6:.0f}",
            f"{memory.peak / 1e6:.0f}",
            f"{memory.largest / 1e6:.0f}",
            f"{findings.idle_cpu_ms[name]:.1f}",
        ]
        for name, memory in findings.memory.items()
    ]
    header = [
        "HTTP process",
        "resident after the load, MB",
        "peak, MB",
        "largest of all its processes, MB",
        "idle CPU of all its processes, ms/s",
    ]
    return f"## Memory, and CPU at rest\n\n{table(header, rows)}"


def _strangers_table(findings: Findings) -> str:
    cores = len(os.sched_getaffinity(0))
    rows = [
        [part, f"{used:.2f}", "**disturbed**" if findings.is_disturbed(part) else "quiet"]
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
