"""The circuits of one process: a deployment's by its name, closed anew where its configuration changed."""

import math
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter

import structlog

from billing import alerts
from gateway.circuits import Circuit, Pass, State
from gateway.types import Deployment

log = structlog.get_logger()


class MemoryCircuits:
    """All methods run on the event loop; none waits."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self.clock = clock
        self.troubled: set[str] = set()
        """The deployments whose circuit is not closed."""
        self.trying: set[str] = set()
        """Those that are being asked for the first time."""
        self._circuits: dict[str, Circuit] = {}

    @property
    def all_well(self) -> bool:
        """A plan need not ask about each of its candidates."""
        return not self.troubled and not self.trying

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def enter(self, deployment: Deployment) -> Pass | None:
        """Leave to try it now, to be given back with how it went; None where it is to be left alone."""
        circuit = self._circuits.get(deployment.name)
        if circuit is None or circuit.deployment is not deployment:
            circuit = self._of(deployment)
        return circuit.enter(self.clock())

    def offers(self, deployment: Deployment) -> bool:
        """Whether a request may count on trying it."""
        return self._of(deployment).offers(self.clock())

    def is_closed(self, deployment: Deployment) -> bool:
        return deployment.name not in self.troubled or not self._of(deployment).opened

    def sorted_out(self, candidates: Iterable[Deployment]) -> tuple[list[Deployment], list[Deployment]]:
        """Those that may be tried, and those to be tried only where nothing else answers: such as are open early, or
        are being asked for the first time, unless these are all there is.
        """
        healthy: list[Deployment] = []
        busy: list[Deployment] = []
        spare: list[Deployment] = []
        now = self.clock()
        for deployment in candidates:
            circuit = self._of(deployment)
            if circuit.invites(now):
                healthy.append(deployment)
            elif circuit.offers(now):
                busy.append(deployment)
            elif not circuit.firm:
                spare.append(deployment)
        return (healthy, busy + spare) if healthy else (busy, spare)

    def wait(self, candidates: Iterable[Deployment]) -> int:
        """Whole seconds until the first of these may be tried; 1 where it is being tried now."""
        now = self.clock()
        return max(math.ceil(min(self._of(deployment).until - now for deployment in candidates)), 1)

    def states(self, configured: Mapping[str, Deployment]) -> dict[str, State]:
        """By deployment, for the gauge; circuits of those that are gone are forgotten."""
        now = self.clock()
        for name in [name for name in self._circuits if name not in configured]:
            del self._circuits[name]
            self.troubled.discard(name)
            self.trying.discard(name)
        return {
            name: self._of(deployment).state(now) if name in self.troubled else State.CLOSED
            for name, deployment in configured.items()
        }

    def states_of(self, deployments: Iterable[Deployment]) -> dict[str, str]:
        """closed, half_open or open, by deployment."""
        now = self.clock()
        return {
            d.name: (self._of(d).state(now) if d.name in self.troubled else State.CLOSED).name.lower()
            for d in deployments
        }

    # ── how it went ─────────────────────────────────────────────────────────────────────────────────────────────────

    def answered(self, way: Pass) -> None:
        if way.trial or not way.circuit.proven:
            way.circuit.answered(way, self.clock())

    def succeeded(self, way: Pass) -> None:
        way.circuit.succeeded(way, self.clock())

    def failed(self, way: Pass, *, wait: float | None, another: bool) -> None:
        way.circuit.failed(way, self.clock(), wait=wait, another=another)

    def throttled(self, way: Pass, *, wait: float | None) -> None:
        way.circuit.throttled(way, self.clock(), wait=wait)

    def rejected(self, way: Pass, *, wait: float | None) -> None:
        way.circuit.rejected(way, self.clock(), wait=wait)

    def gave_back(self, way: Pass) -> None:
        if way.trial or not way.circuit.proven:
            way.circuit.gave_back(way)

    async def close(self) -> None:
        """Nothing is open."""

    # ── within ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _of(self, deployment: Deployment) -> Circuit:
        name = deployment.name
        circuit = self._circuits.get(name)
        if circuit is not None and circuit.deployment is deployment:
            return circuit
        if circuit is not None and circuit.deployment == deployment:
            circuit.deployment = deployment  # the snapshot was read again, and this is as it was
            return circuit
        if circuit is not None and circuit.opened:
            self._note_closed(circuit, "configuration_changed")
        found = self._circuits[name] = Circuit(deployment, self._told)
        return found

    def _told(self, circuit: Circuit, what: str) -> None:
        """A circuit changed. One that was replaced meanwhile is nobody's any more."""
        if self._circuits.get(circuit.deployment.name) is not circuit:
            return
        if what == "trying":
            (self.trying.add if circuit.trying else self.trying.discard)(circuit.deployment.name)
            return
        if what == "opened":
            self._note_opened(circuit)
        elif what == "closed":
            self._note_closed(circuit, "answered")
        self._share(circuit, what)

    def _share(self, circuit: Circuit, what: str) -> None:
        """Nobody else is there."""

    def _note_opened(self, circuit: Circuit, *, elsewhere: bool = False) -> None:
        self.troubled.add(circuit.deployment.name)
        log.warning(
            "circuit_opened",
            deployment=circuit.deployment.name,
            reason=circuit.reason,
            seconds=round(max(circuit.until - self.clock(), 0.0), 1),
            elsewhere=elsewhere,
        )
        if circuit.reason == "credentials" and not elsewhere:
            provider = circuit.deployment.provider.slug
            alerts.raise_soon("upstream_credentials", circuit.deployment.name, {"provider": provider})

    def _note_closed(self, circuit: Circuit, reason: str) -> None:
        self.troubled.discard(circuit.deployment.name)
        log.info("circuit_closed", deployment=circuit.deployment.name, reason=reason)
