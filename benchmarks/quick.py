"""The two figures a developer asks for between two edits: CPU of a chat and of a stream, times the bare consumer's."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks import bars
from benchmarks.measure import Bed, Load, Strangers, cpu_rounds, ratios, right_answering
from benchmarks.processes import Server, ServerFailed
from benchmarks.scenarios import Scenario
from benchmarks.targets import Cores, start_ailb, start_bare

# Many short rounds: their median holds on a busy machine, where one long round would meet all of its bad minute.
ROUNDS, REQUESTS = 15, 500
# Of one scenario's rounds; with start and stop of the servers two of them stay under 40 s.
SECONDS = 13.0


def load(*, rounds: int | None, requests: int | None, concurrency: int) -> Load:
    """What was asked for, or the defaults; rounds that were asked for take as long as they take."""
    seconds = math.inf if rounds else SECONDS
    return Load(requests or REQUESTS, concurrency, rounds or ROUNDS, seconds=seconds)


def compare(scenarios: Sequence[Scenario], how: Load, *, upstream: Server, work: Path, cores: Cores) -> list[str]:
    """Prints a line for each scenario; returns what went wrong."""
    failures: list[str] = []
    strangers = Strangers()
    with contextlib.ExitStack() as running:
        bare = start_bare("channels", upstream, work, cores)
        running.enter_context(bare.server)
        ailb = start_ailb(upstream, data=work / "data", logs=work, cores=cores)
        running.enter_context(ailb.server)
        bed = Bed(upstream, [bare, ailb], cores, how, failures, [], set())
        for scenario in scenarios:
            print(_line(bed, scenario), flush=True)
        others = strangers.cores()
    print(f"other processes of the machine took {others:.2f} of {len(os.sched_getaffinity(0))} cores meanwhile")
    return failures


def _line(bed: Bed, scenario: Scenario) -> str:
    targets = right_answering(bed, scenario)
    if len(targets) < len(bed.targets):
        raise ServerFailed("\n".join(bed.failures))
    rounds = cpu_rounds(bed, scenario, targets)
    times = ratios(rounds, "ailb")
    taken = len(rounds["ailb"])
    spread = f"{times.low:.2f} to {times.high:.2f} in {taken} rounds"
    bar = f"; bar {scenario.bar:g}: {bars.verdict(times.median, scenario.bar)}" if scenario.bar else ""
    return f"{scenario.title}: {times.median:.2f} x the bare Channels consumer's CPU ({spread}){bar}"
