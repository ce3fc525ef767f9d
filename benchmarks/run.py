"""Runs the benchmark: `python -m benchmarks.run`, or `make bench`. README.md says what is measured and why so.

Ends with status 0 when everything ran and every answer was right, whether or not the bars were met; 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# `python benchmarks/run.py` works as well as `-m`: the folder above is where the package is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import portkey, quick
from benchmarks.findings import Findings
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
    right_translations,
    start_up,
    starts_of,
    translation_rounds,
)
from benchmarks.processes import Server, ServerFailed
from benchmarks.replies import WrongAnswer
from benchmarks.report import render
from benchmarks.scenarios import CHAT, SPACED, STREAM, TRANSLATED, UNTRANSLATED, Scenario
from benchmarks.targets import (
    BARE,
    Cores,
    Target,
    further_providers,
    launch_bare,
    start_ailb,
    start_bare,
    start_portkey,
    start_upstream,
)
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
        if options.quick:
            return _quick(options, upstream, work, cores)
        findings = Findings(command=" ".join(["python -m benchmarks.run", *words]))
        try:
            _Run(options, findings, upstream, work, cores, running).measure()
        except (ServerFailed, WrongAnswer) as error:
            findings.failures.append(str(error))
    _publish(options, render(findings))
    return 1 if findings.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute: the two CPU ratios, and no report")
    parser.add_argument("--short", action="store_true", help="everything, in short rounds, to try things out")
    parser.add_argument("--rounds", type=int, help="bursts at each server (default 7; 5 with --short, 15 with --quick)")
    parser.add_argument("--requests", type=int, help="chats in a burst; half as many streams (default 3000; 600; 500)")
    parser.add_argument("--concurrency", type=int, default=16, help="connections of the closed loop (default 16)")
    parser.add_argument("--only", choices=["chat", "stream", "translation", "startup"])
    parser.add_argument("--without-ailb", action="store_true", help="measure the others alone")
    parser.add_argument("--without-portkey", action="store_true", help="install and measure no peer")
    parser.add_argument("--profile", action="store_true", help="no measurement: print where AILB's time goes")
    parser.add_argument("--output", type=Path, help="where the report goes (default: RESULTS.md for a whole run)")
    return parser


@dataclass(frozen=True)
class _Run:
    """One run's parts, in their order."""

    options: argparse.Namespace
    findings: Findings
    upstream: Server
    work: Path
    cores: Cores
    running: contextlib.ExitStack

    def measure(self) -> None:
        peer = self._peer()
        if self._wants("startup"):
            self._start_ups(peer)
        if scenarios := _scenarios(self.options):
            self._compare(scenarios, peer)
        if self._wants("translation") and not self.options.without_ailb:
            self._translations()

    def _wants(self, part: str) -> bool:
        return self.options.only in (None, part)

    def _peer(self) -> portkey.Program | None:
        """Portkey's program, or None and a remark why not."""
        if self.options.without_portkey or self.options.only == "translation":
            return None
        _say(f"installing {portkey.TITLE}, unless it is there")
        try:
            return portkey.install()
        except portkey.Unavailable as why:
            self.findings.remarks.append(f"{portkey.TITLE} was not measured: {why}")
            return None

    def _start_ups(self, peer: portkey.Program | None) -> None:
        times = 1 if self.options.short else 3
        with self._part("start-up"):
            if not self.options.without_ailb:
                self.findings.start_up = start_up(times, upstream=self.upstream, logs=self.work, cores=self.cores)
            for title, launch in self._other_launches(peer).items():
                try:
                    self.findings.other_starts[title] = starts_of(times, launch)
                except ServerFailed as error:
                    self.findings.remarks.append(f"{title} did not start: {error}")

    def _other_launches(self, peer: portkey.Program | None) -> dict[str, Callable[[], Server]]:
        log, cores = self.work / "start.log", self.cores.all
        launches: dict[str, Callable[[], Server]] = {
            title: partial(launch_bare, kind, self.upstream, log=log, cores=cores) for kind, title in BARE.items()
        }
        if peer is not None:
            launches[portkey.TITLE] = partial(portkey.launch, peer, log=log, cores=cores)
        return launches

    def _compare(self, scenarios: Sequence[Scenario], peer: portkey.Program | None) -> None:
        """AILB beside all others."""
        targets = self._start_targets(peer)
        self.findings.titles = {target.name: target.title for target in targets}
        bed = self._bed(targets)
        for scenario in scenarios:
            self._measure_scenario(bed, scenario)
        _say("memory and CPU at rest")
        for target in targets:
            self.findings.memory[target.name] = memory_of(target)
            self.findings.idle_cpu_ms[target.name] = idle_cpu(target)

    def _start_targets(self, peer: portkey.Program | None) -> list[Target]:
        targets = [self._running(start_bare(kind, self.upstream, self.work, self.cores)) for kind in BARE]
        if peer is not None:
            try:
                targets.append(self._running(start_portkey(peer, self.upstream, self.work, self.cores)))
            except ServerFailed as error:
                self.findings.remarks.append(f"{portkey.TITLE} was not measured: {error}")
        if not self.options.without_ailb:
            data = self.work / "data"
            targets.append(self._running(start_ailb(self.upstream, data=data, logs=self.work, cores=self.cores)))
        return targets

    def _measure_scenario(self, bed: Bed, scenario: Scenario) -> None:
        _say(f"{scenario.title}: answers, then {bed.load.rounds} rounds")
        # Where servers mostly wait, a peer's figures would tell little and take long.
        targets = [target for target in right_answering(bed, scenario) if scenario.saturates or not target.peer]
        if "channels" not in (target.name for target in targets):
            raise ServerFailed(f"{scenario.name}: the bare consumer answers wrongly; there is nothing to compare with")
        with self._part(f"{scenario.title}, rounds"):
            rounds = self.findings.rounds[scenario] = cpu_rounds(bed, scenario, targets)
        if scenario.saturates:
            _say(f"{scenario.title}: latency at half load")
            with self._part(f"{scenario.title}, latency"):
                self.findings.latencies[scenario] = latency_at_half_load(bed, scenario, targets, rounds)

    def _translations(self) -> None:
        """An AILB with three providers, alone: what it costs to speak otherwise than they do."""
        _say("streams in translation")
        providers = further_providers(self.upstream)
        target = self._running(
            start_ailb(self.upstream, data=self.work / "data-3", logs=self.work, cores=self.cores, extra=providers)
        )
        bed = self._bed([target])
        right = right_translations(bed, target, (UNTRANSLATED, *TRANSLATED))
        if UNTRANSLATED.name not in (scenario.name for scenario in right):
            raise ServerFailed("AILB's untranslated stream is wrong; there is nothing to compare with")
        with self._part("streams in translation"):
            rounds = translation_rounds(bed, target, right)
        self.findings.translations = {scenario: rounds[scenario.name] for scenario in right}

    def _running(self, target: Target) -> Target:
        """The same, stopped when the run ends."""
        self.running.enter_context(target.server)
        return target

    def _bed(self, targets: Sequence[Target]) -> Bed:
        found = self.findings
        load = _load(self.options)
        return Bed(self.upstream, targets, self.cores, load, found.failures, found.remarks, found.faulty)

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """A part of the run during which the machine's other processes are metered."""
        strangers = Strangers()
        yield
        self.findings.strangers[name] = strangers.cores()


def _load(options: argparse.Namespace) -> Load:
    short = options.short
    return Load(
        requests=options.requests or (600 if short else 3000),
        concurrency=options.concurrency,
        rounds=options.rounds or (5 if short else 7),
        latency_rounds=1 if short else 3,
        latency_seconds=1.5 if short else 4.0,
    )


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    """Those that all servers are asked."""
    streams = [STREAM] if options.short else [STREAM, SPACED]
    wanted = {None: [CHAT, *streams], "chat": [CHAT], "stream": streams}
    return wanted.get(options.only, [])


def _quick(options: argparse.Namespace, upstream: Server, work: Path, cores: Cores) -> int:
    wanted = {"chat": [CHAT], "stream": [STREAM]}.get(options.only, [CHAT, STREAM])
    load = quick.load(rounds=options.rounds, requests=options.requests, concurrency=options.concurrency)
    try:
        failures = quick.compare(wanted, load, upstream=upstream, work=work, cores=cores)
    except (ServerFailed, WrongAnswer) as error:
        failures = [str(error)]
    for failure in failures:
        print(failure)
    return 1 if failures else 0


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
    whole = not (options.short or options.only or options.without_ailb or options.without_portkey)
    # A partial run must not replace the figures of a whole one.
    target: Path = options.output or (RESULTS if whole else BUILD / "RESULTS-partial.md")
    target.write_text(text)
    print(f"written to {target.name}")


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
