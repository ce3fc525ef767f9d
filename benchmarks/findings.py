"""What a run found, before it is judged and written down."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from benchmarks.measure import Latency, Memory, Round, StartUp
from benchmarks.scenarios import Scenario

# Cores' worth of CPU that others may take before throughput and latency say more about them than about us: little
# where they must share the two cores of the run, more where they have others.
QUIET = 0.05
QUIET_FOR_EACH_FURTHER_CORE = 0.5


@dataclass
class Findings:
    """All that a run measured; what it left out stays empty."""

    command: str
    titles: dict[str, str] = field(default_factory=dict)
    rounds: dict[Scenario, dict[str, list[Round]]] = field(default_factory=dict)
    # AILB's streams, the untranslated one first.
    translations: dict[Scenario, list[Round]] = field(default_factory=dict)
    latencies: dict[Scenario, dict[str, Latency]] = field(default_factory=dict)
    start_up: StartUp | None = None
    # Seconds to the first answer, by title.
    other_starts: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    idle_cpu_ms: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    # What a reader must know and no failure is: that a peer is absent, or did what.
    remarks: list[str] = field(default_factory=list)
    # Cores' worth of CPU that processes that are none of ours used, by part of the run.
    strangers: dict[str, float] = field(default_factory=dict)
    # Scenario and server, by name, where an answer was wrong.
    faulty: set[tuple[str, str]] = field(default_factory=set)
    load_average: float = field(default_factory=lambda: os.getloadavg()[0])

    def is_disturbed(self, part: str) -> bool:
        """Whether other processes of the machine used so much of it during a part of the run that it shows."""
        further = max(len(os.sched_getaffinity(0)) - 2, 0)
        return self.strangers[part] > QUIET + QUIET_FOR_EACH_FURTHER_CORE * further
