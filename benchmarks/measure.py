"""The measurements: CPU in interleaved rounds, latency at half load, start-up, memory."""

from __future__ import annotations

import math
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.processes import (
    Server,
    cpu_by_process,
    cpu_seconds,
    cpu_since,
    free_port,
    memory_bytes,
    strangers_cpu_seconds,
)
from benchmarks.replies import WrongAnswer, ask
from benchmarks.scenarios import UNTRANSLATED, Scenario
from benchmarks.targets import START_SECONDS, Cores, Target, ailb_environment, launch_ailb, set_pacing
from benchmarks.tools import LoadResult, run_load

# After a round, before its CPU is read: work that an answer leaves behind (a ledger's last commit) is charged to it.
AFTERMATH_SECONDS = 0.25
# Enough connections in the open loop that a free one is found even while answers are late.
OPEN_LOOP_CONNECTIONS = 64
# A median of fewer says nothing, however little time there is.
FEWEST_ROUNDS = 3
# Streams that mostly wait: so many at once that the server is busy at all.
PACED_CONNECTIONS = 64


@dataclass(frozen=True)
class Spread:
    """A median and how far the rounds lay apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Strangers:
    """How many cores' worth of CPU the machine's other processes have used since this was made."""

    def __init__(self) -> None:
        self.began, self.before = time.monotonic(), strangers_cpu_seconds()

    def cores(self) -> float:
        return max(strangers_cpu_seconds() - self.before, 0.0) / (time.monotonic() - self.began)


@dataclass(frozen=True)
class Round:
    """One burst at one server. CPU in microseconds a request; `busy` is the share of the wall time it had its core."""

    cpu_us: float
    all_cpu_us: float
    upstream_us: float
    client_us: float
    requests_per_second: float
    busy: float


@dataclass(frozen=True)
class Load:
    """How hard to push. `requests` are chats in a burst; other scenarios take fewer by their weight.

    `seconds` bounds the rounds of one scenario, after the third.
    """

    requests: int
    concurrency: int
    rounds: int
    latency_rounds: int = 0
    latency_seconds: float = 0
    seconds: float = math.inf


@dataclass
class Bed:
    """The running servers, the load for them, and everything that went wrong on the way.

    `faulty` names the pairs of scenario and server whose figures are worth nothing because answers were wrong; of
    peers that stands in `remarks`.
    """

    upstream: Server
    targets: Sequence[Target]
    cores: Cores
    load: Load
    failures: list[str]
    remarks: list[str]
    faulty: set[tuple[str, str]]

    def note(self, scenario: Scenario, target: Target, what: str) -> None:
        """Keeps the first thing that went wrong with a server in a scenario; those after it are mostly the same."""
        if (scenario.name, target.name) not in self.faulty:
            self.faulty.add((scenario.name, target.name))
            told = self.remarks if target.peer else self.failures
            told.append(f"{target.title}, {scenario.name}: {what}")

    def send(
        self, scenario: Scenario, target: Target, *, requests: int, connections: int, rate: float | None = None
    ) -> LoadResult:
        """Load for one server; answers that were wrong are noted."""
        return self._send(scenario, target.server.port, target, target.title, requests, connections, rate)

    def send_to_upstream(
        self, scenario: Scenario, target: Target, *, requests: int, connections: int, rate: float
    ) -> LoadResult:
        """The same straight to the upstream, with that server's headers."""
        return self._send(scenario, self.upstream.port, target, "the upstream", requests, connections, rate)

    def _send(
        self,
        scenario: Scenario,
        port: int,
        target: Target,
        title: str,
        requests: int,
        connections: int,
        rate: float | None,
    ) -> LoadResult:
        result = run_load(
            scenario,
            port=port,
            headers=target.headers_for(scenario),
            requests=requests,
            connections=connections,
            cores=[self.cores.clients],
            rate=rate,
        )
        if result.errors:
            kinds = {kind: count for kind, count in result.errors_by.items() if count}
            pace = f" at {rate:.0f}/s" if rate else ""
            self.note(scenario, target, f"{title} gave{pace} {kinds} wrong answers; first: {result.first_error[:300]}")
        return result


def right_answering(bed: Bed, scenario: Scenario) -> list[Target]:
    """Asks each server once; those whose answer differs from the upstream's own are noted and left out."""
    expected = ask(scenario, port=bed.upstream.port, headers=bed.targets[0].headers_for(scenario))
    right = []
    for target in bed.targets:
        try:
            got = ask(scenario, port=target.server.port, headers=target.headers_for(scenario))
        except WrongAnswer as error:
            bed.note(scenario, target, str(error))
            continue
        if got == expected:
            right.append(target)
        else:
            bed.note(scenario, target, f"answered {got}, not {expected}")
    return right


def right_translations(bed: Bed, target: Target, scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Asks AILB for each once; what says something else than the upstream's OpenAI stream is noted and left out.

    How many events an answer has is the gateway's to choose, and from here on the number that it must keep to.
    """
    expected = ask(UNTRANSLATED, port=bed.upstream.port, headers=target.headers_for(UNTRANSLATED))
    right = []
    for scenario in scenarios:
        try:
            got = ask(scenario, port=target.server.port, headers=target.headers_for(scenario))
        except WrongAnswer as error:
            bed.note(scenario, target, str(error))
            continue
        if got.says_as(expected):
            right.append(replace(scenario, events=got.events))
        else:
            bed.note(scenario, target, f"answered {got}, not as {expected}")
    return right


def cpu_rounds(bed: Bed, scenario: Scenario, targets: Sequence[Target]) -> dict[str, list[Round]]:
    """Bursts of one scenario at each server in turn, by the servers' names."""
    set_pacing(bed.upstream, scenario.delay_us)
    results = _rounds(bed, {target.name: (scenario, target) for target in targets})
    set_pacing(bed.upstream, 0)
    return results


def translation_rounds(bed: Bed, target: Target, scenarios: Sequence[Scenario]) -> dict[str, list[Round]]:
    """Bursts of each scenario in turn at one server, by the scenarios' names."""
    return _rounds(bed, {scenario.name: (scenario, target) for scenario in scenarios})


def _rounds(bed: Bed, contenders: Mapping[str, tuple[Scenario, Target]]) -> dict[str, list[Round]]:
    """All in turn, over and over, so that what the machine does meanwhile meets all alike."""
    for scenario, target in contenders.values():
        _burst(bed, scenario, target, share=0.5)
    results: dict[str, list[Round]] = {name: [] for name in contenders}
    names = list(contenders)
    deadline = time.monotonic() + bed.load.seconds
    for number in range(bed.load.rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        # Each round begins with another: none always runs behind the same one.
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            results[name].append(_burst(bed, *contenders[name]))
    return results


def _burst(bed: Bed, scenario: Scenario, target: Target, *, share: float = 1.0) -> Round:
    connections = bed.load.concurrency if scenario.saturates else PACED_CONNECTIONS
    requests = max(int(bed.load.requests * share / scenario.weight), connections)
    before, all_before = cpu_by_process(target.measured_pids()), cpu_by_process(target.all_pids())
    upstream_before = cpu_seconds(bed.upstream.pid)
    result = bed.send(scenario, target, requests=requests, connections=connections)
    upstream_seconds = cpu_seconds(bed.upstream.pid) - upstream_before
    busy = cpu_since(before, target.measured_pids()) / result.seconds
    time.sleep(AFTERMATH_SECONDS)
    microseconds = 1e6 / requests
    return Round(
        cpu_us=cpu_since(before, target.measured_pids()) * microseconds,
        all_cpu_us=cpu_since(all_before, target.all_pids()) * microseconds,
        upstream_us=upstream_seconds * microseconds,
        client_us=result.client_cpu_seconds * microseconds,
        requests_per_second=result.requests_per_second,
        busy=busy,
    )


def ratios(rounds: dict[str, list[Round]], name: str, base: str = "channels") -> Spread:
    """CPU of a server as a multiple of the base's, round by round."""
    pairs = zip(rounds[name], rounds[base], strict=True)
    return Spread.of([one.cpu_us / other.cpu_us for one, other in pairs])


@dataclass(frozen=True)
class Latency:
    """One server at a fixed rate: what it adds to the upstream's own latency, in microseconds."""

    rate: float
    p50_us: float
    p99_us: float
    added_p50_us: float
    added_p99_us: float
    added_first_byte_p50_us: float


def latency_at_half_load(
    bed: Bed, scenario: Scenario, targets: Sequence[Target], rounds: dict[str, list[Round]]
) -> dict[str, Latency]:
    """An open loop at half of each server's own throughput, directly before it the upstream alone at that rate."""
    samples: dict[str, list[Latency]] = {target.name: [] for target in targets}
    for _ in range(bed.load.latency_rounds):
        for target in targets:
            rate = statistics.median(r.requests_per_second for r in rounds[target.name]) / 2
            requests = max(int(rate * bed.load.latency_seconds), 1)
            connections = OPEN_LOOP_CONNECTIONS
            direct = bed.send_to_upstream(scenario, target, requests=requests, connections=connections, rate=rate)
            through = bed.send(scenario, target, requests=requests, connections=connections, rate=rate)
            samples[target.name].append(_compare(rate, direct, through))
    return {name: _median_of(taken) for name, taken in samples.items()}


def _compare(rate: float, direct: LoadResult, through: LoadResult) -> Latency:
    return Latency(
        rate=rate,
        p50_us=through.latency_us.p50,
        p99_us=through.latency_us.p99,
        added_p50_us=through.latency_us.p50 - direct.latency_us.p50,
        added_p99_us=through.latency_us.p99 - direct.latency_us.p99,
        added_first_byte_p50_us=through.first_byte_us.p50 - direct.first_byte_us.p50,
    )


def _median_of(samples: Sequence[Latency]) -> Latency:
    return Latency(
        rate=samples[0].rate,
        p50_us=statistics.median(s.p50_us for s in samples),
        p99_us=statistics.median(s.p99_us for s in samples),
        added_p50_us=statistics.median(s.added_p50_us for s in samples),
        added_p99_us=statistics.median(s.added_p99_us for s in samples),
        added_first_byte_p50_us=statistics.median(s.added_first_byte_p50_us for s in samples),
    )


@dataclass(frozen=True)
class StartUp:
    """Seconds from exec to the first 200 of /readyz, on an empty data folder and again on the same one."""

    first: list[float]
    second: list[float]
    # Of the HTTP process, when ready and before any request.
    memory_bytes: int


def start_up(times: int, *, upstream: Server, logs: Path, cores: Cores) -> StartUp:
    """Starts AILB twice on each of `times` fresh data folders, with all cores, as an operator would."""
    first, second, memory = [], [], 0
    for _ in range(times):
        with tempfile.TemporaryDirectory(prefix="ailb-bench-") as data:
            seconds, _ = _start_once(Path(data), upstream=upstream, logs=logs, cores=cores)
            first.append(seconds)
            seconds, memory = _start_once(Path(data), upstream=upstream, logs=logs, cores=cores)
            second.append(seconds)
    return StartUp(first, second, memory)


def starts_of(times: int, launch: Callable[[], Server]) -> list[float]:
    """Seconds from exec to the first answer of a server that keeps nothing between its starts."""
    seconds = []
    for _ in range(times):
        with launch() as server:
            seconds.append(server.wait_until_any_answer(seconds=START_SECONDS))
    return seconds


def _start_once(data: Path, *, upstream: Server, logs: Path, cores: Cores) -> tuple[float, int]:
    port = free_port()
    environment = ailb_environment(upstream, data, port, secrets.token_urlsafe(32))
    with launch_ailb(environment, port=port, log=logs / "ailb-start.log", cores=cores.all) as server:
        seconds = server.wait_until("/readyz", seconds=START_SECONDS)
        resident, _ = memory_bytes(server.serving_pid())
        return seconds, resident


@dataclass(frozen=True)
class Memory:
    """After all rounds, in bytes: the HTTP process's resident set, the most it ever was, the largest process's."""

    resident: int
    peak: int
    largest: int


def memory_of(target: Target) -> Memory:
    resident, peak = memory_bytes(target.server.serving_pid())
    return Memory(resident, peak, max(memory_bytes(pid)[0] for pid in target.all_pids()))


def idle_cpu(target: Target, seconds: float = 3.0) -> float:
    """CPU milliseconds a second that a server's whole family uses while nobody asks anything."""
    before = cpu_by_process(target.all_pids())
    time.sleep(seconds)
    return cpu_since(before, target.all_pids()) / seconds * 1e3
