"""What was promised beside what was measured."""

from __future__ import annotations

from benchmarks.findings import Findings
from benchmarks.measure import Spread, ratios
from benchmarks.scenarios import TRANSLATED, UNTRANSLATED, Scenario

# The bars of the brief; the CPU bars stand with their scenarios.
FIRST_START_SECONDS = 12.0
SECOND_START_SECONDS = 5.0
MEMORY_MB = 200.0
ADDED_P50_MS = 2.0
ADDED_P99_MS = 5.0
# Of a peer's CPU: the gateway does more, and is to cost less.
TIMES_THE_PEER = 1.0

HEADER = ["what", "measured", "bar", ""]


def rows_of(findings: Findings) -> list[list[str]]:
    """A row for each bar that the run can judge, under HEADER."""
    rows = [row for scenario in findings.rounds for row in _of_scenario(findings, scenario)]
    return [*rows, *_of_translations(findings), *_of_start_up(findings), *_of_memory(findings)]


def verdict(measured: float, limit: float, *, disturbed: bool = False) -> str:
    """Whether a bar was met. Where the machine was disturbed, a miss proves nothing."""
    return "PASS" if measured <= limit else "**OVER**, but disturbed" if disturbed else "**OVER**"


def _of_scenario(findings: Findings, scenario: Scenario) -> list[list[str]]:
    """CPU and latency of one scenario; a server that answered wrongly is not judged by how fast it did."""
    if (scenario.name, "ailb") in findings.faulty:
        return [_wrong(scenario)]
    if "ailb" not in findings.rounds[scenario]:
        return []
    return [*_of_cpu(findings, scenario), *_of_latency(findings, scenario)]


def _of_cpu(findings: Findings, scenario: Scenario) -> list[list[str]]:
    rounds, what = findings.rounds[scenario], f"{scenario.title}: CPU of a request, times"
    rows = []
    if scenario.bar is not None:
        rows.append(_bar(f"{what} the bare Channels consumer's", ratios(rounds, "ailb").median, scenario.bar, "×"))
    if "portkey" in rounds and (scenario.name, "portkey") not in findings.faulty:
        rows.append(_bar(f"{what} Portkey's", ratios(rounds, "ailb", "portkey").median, TIMES_THE_PEER, "×"))
    return rows


def _of_latency(findings: Findings, scenario: Scenario) -> list[list[str]]:
    latency = findings.latencies.get(scenario, {}).get("ailb")
    if latency is None:
        return []
    disturbed = findings.is_disturbed(f"{scenario.title}, latency")
    p50, p99 = latency.added_p50_us / 1e3, latency.added_p99_us / 1e3
    return [
        _bar(f"{scenario.title}: added to the median at half load", p50, ADDED_P50_MS, "ms", disturbed),
        _bar(f"{scenario.title}: added to p99 at half load", p99, ADDED_P99_MS, "ms", disturbed),
    ]


def _of_translations(findings: Findings) -> list[list[str]]:
    measured = {scenario.name: scenario for scenario in findings.translations}
    rows = []
    for scenario in (UNTRANSLATED, *TRANSLATED):
        if (scenario.name, "ailb") in findings.faulty:
            rows.append(_wrong(scenario))
        elif scenario.name in measured and scenario.bar is not None:
            times = times_untranslated(findings, measured[scenario.name])
            what = f"{scenario.title}: CPU of a stream, times the untranslated one's"
            rows.append(_bar(what, times.median, scenario.bar, "×"))
    return rows


def times_untranslated(findings: Findings, scenario: Scenario) -> Spread:
    """CPU of a translated stream as a multiple of the untranslated one's, round by round."""
    by_name = {each.name: rounds for each, rounds in findings.translations.items()}
    return ratios(by_name, scenario.name, next(iter(by_name)))


def _of_start_up(findings: Findings) -> list[list[str]]:
    if findings.start_up is None:
        return []
    first, second = max(findings.start_up.first), max(findings.start_up.second)
    disturbed = findings.is_disturbed("start-up")
    return [
        _bar("ready on an empty folder, slowest", first, FIRST_START_SECONDS, "s", disturbed),
        _bar("ready on the second start, slowest", second, SECOND_START_SECONDS, "s", disturbed),
    ]


def _of_memory(findings: Findings) -> list[list[str]]:
    if memory := findings.memory.get("ailb"):
        return [_bar("memory of the largest process after the load", memory.largest / 1e6, MEMORY_MB, "MB")]
    if start := findings.start_up:
        return [_bar("memory of the HTTP process when ready", start.memory_bytes / 1e6, MEMORY_MB, "MB")]
    return []


def _bar(what: str, measured: float, limit: float, unit: str, disturbed: bool = False) -> list[str]:
    return [what, f"{measured:.2f} {unit}", f"≤ {limit:g} {unit}", verdict(measured, limit, disturbed=disturbed)]


def _wrong(scenario: Scenario) -> list[str]:
    return [scenario.title, "wrong answers", "", "**FAILED**"]
