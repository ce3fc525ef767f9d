"""Runs the benchmark: `python -m benchmarks.run`, or `make bench`. README.md says what is measured and why so.

Ends with status 0 when everything ran and every answer was right, whether or not the bars were met; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# `python benchmarks/run.py` works as well as `-m`: the folder above is where the package is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hotspots import profile_ailb
from benchmarks.measure import (
    Bed,
    Load,
    Strangers,
    cpu_rounds,
    idle_cpu,
    latency_at_half_load,
    memory_of,
    right_answering,
    start_up,
)
from benchmarks.processes import Server, ServerFailed
from benchmarks.report import Findings, render
from benchmarks.scenarios import CHAT, SPACED, STREAM, Scenario, WrongAnswer
from benchmarks.targets import Cores, Target, start_ailb, start_bare, start_upstream
from benchmarks.tools import BUILD, FOLDER, build

RESULTS = FOLDER / "RESULTS.md"


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words)
    build()
    cores = Cores.available()
    if cores.server == cores.clients:
        print("warning: one core only; the load generator competes with what it measures", flush=True)
    with tempfile.TemporaryDirectory(prefix="ailb-bench-") as folder, contextlib.ExitStack() as running:
        work = Path(folder)
        upstream = running.enter_context(start_upstream(work, cores))
        if options.profile:
            return _profile(options, upstream, work, cores)
        findings = Findings(command=" ".join(["python -m benchmarks.run", *words]))
        try:
            _measure(options, findings, upstream, work, cores, running)
        except (ServerFailed, WrongAnswer) as error:
            findings.failures.append(str(error))
    _publish(options, render(findings))
    return 1 if findings.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: short rounds, one start, to try things out")
    parser.add_argument("--rounds", type=int, help="bursts at each server (default 7; 5 with --quick)")
    parser.add_argument("--requests", type=int, help="chats in a burst; half as many streams (default 3000; 600)")
    parser.add_argument("--concurrency", type=int, default=16, help="connections of the closed loop (default 16)")
    parser.add_argument("--only", choices=["chat", "stream", "startup"])
    parser.add_argument("--without-ailb", action="store_true", help="measure the baselines alone")
    parser.add_argument("--profile", action="store_true", help="no measurement: print where AILB's time goes")
    parser.add_argument("--output", type=Path, help="where the report goes (default: RESULTS.md for a whole run)")
    return parser


def _measure(
    options: argparse.Namespace,
    findings: Findings,
    upstream: Server,
    work: Path,
    cores: Cores,
    running: contextlib.ExitStack,
) -> None:
    if not options.without_ailb and options.only in (None, "startup"):
        _say("start-up")
        strangers = Strangers()
        findings.start_up = start_up(1 if options.quick else 3, upstream=upstream, logs=work, cores=cores)
        findings.strangers["start-up"] = strangers.cores()
    if options.only == "startup":
        return
    targets = _start_targets(options, upstream, work, cores, running)
    findings.titles = {target.name: target.title for target in targets}
    bed = Bed(upstream, targets, cores, _load(options), findings.failures, findings.faulty)
    for scenario in _scenarios(options):
        _measure_scenario(bed, scenario, findings)
    _say("memory and CPU at rest")
    for target in targets:
        findings.memory[target.name] = memory_of(target)
        findings.idle_cpu_ms[target.name] = idle_cpu(target)


def _measure_scenario(bed: Bed, scenario: Scenario, findings: Findings) -> None:
    _say(f"{scenario.title}: answers, then {bed.load.rounds} rounds")
    targets = right_answering(bed, scenario)
    if "channels" not in (target.name for target in targets):
        raise ServerFailed(f"{scenario.name}: the bare consumer answers wrongly; there is nothing to compare with")
    strangers = Strangers()
    findings.rounds[scenario] = cpu_rounds(bed, scenario, targets)
    findings.strangers[f"{scenario.title}, rounds"] = strangers.cores()
    if scenario.saturates:
        _say(f"{scenario.title}: latency at half load")
        strangers = Strangers()
        findings.latencies[scenario] = latency_at_half_load(bed, scenario, targets, findings.rounds[scenario])
        findings.strangers[f"{scenario.title}, latency"] = strangers.cores()


def _start_targets(
    options: argparse.Namespace, upstream: Server, work: Path, cores: Cores, running: contextlib.ExitStack
) -> list[Target]:
    targets = []
    for kind in ("asgi", "channels"):
        targets.append(start_bare(kind, upstream, work, cores))
        running.enter_context(targets[-1].server)
    if not options.without_ailb:
        targets.append(start_ailb(upstream, data=work / "data", logs=work, cores=cores))
        running.enter_context(targets[-1].server)
    return targets


def _load(options: argparse.Namespace) -> Load:
    quick = options.quick
    return Load(
        requests=options.requests or (600 if quick else 3000),
        concurrency=options.concurrency,
        rounds=options.rounds or (5 if quick else 7),
        latency_rounds=1 if quick else 3,
        latency_seconds=1.5 if quick else 4.0,
    )


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    if options.only == "chat":
        return [CHAT]
    streams = [STREAM] if options.quick else [STREAM, SPACED]
    return streams if options.only == "stream" else [CHAT, *streams]


def _profile(options: argparse.Namespace, upstream: Server, work: Path, cores: Cores) -> int:
    scenario = STREAM if options.only == "stream" else CHAT
    try:
        text = profile_ailb(
            scenario,
            requests=options.requests or 2000,
            concurrency=options.concurrency,
            upstream=upstream,
            work=work,
            cores=cores,
        )
    except ServerFailed as error:
        print(error)
        return 1
    print(text)
    return 0


def _publish(options: argparse.Namespace, text: str) -> None:
    print(text)
    whole = not (options.quick or options.only or options.without_ailb)
    # A partial run must not replace the figures of a whole one.
    target: Path = options.output or (RESULTS if whole else BUILD / "RESULTS-partial.md")
    target.write_text(text)
    print(f"written to {target.name}")


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
