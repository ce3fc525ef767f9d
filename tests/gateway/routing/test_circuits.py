"""The circuit of a deployment: the pure state machine with a clock of its own, and the two stores by one contract."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise

import msgspec
import pytest
from structlog.testing import capture_logs

from ailb_project.shared_redis import SharedRedis
from gateway.circuits import FAILURES, LONGEST_OPEN, LONGEST_WAIT, OPEN, REJECTED, THROTTLED, Circuit, State
from gateway.circuits_memory import MemoryCircuits
from gateway.circuits_redis import RedisCircuits
from gateway.providers.waits import asked_wait
from gateway.providers.waits import seconds as seconds_of
from tests.gateway.routing.contract import candidate
from tests.support.redis_server import OwnRedis, own_prefix


class Machine:
    """A circuit and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.told: list[str] = []
        self.circuit = Circuit(candidate("a"), self.hear)

    def hear(self, _: Circuit, what: str) -> None:
        if what != "trying":
            self.told.append(what)

    @property
    def state(self) -> State:
        return self.circuit.state(self.now)

    def enter(self):
        return self.circuit.enter(self.now)

    def fail(self, times=1, **how) -> None:
        for _ in range(times):
            self.circuit.failed(self.enter(), self.now, **how)

    def succeed(self, times=1) -> None:
        for _ in range(times):
            self.circuit.succeeded(self.enter(), self.now)


@pytest.fixture
def machine():
    return Machine()


class TestCircuit:
    def test_it_opens_at_the_fifth_failure_in_a_row(self, machine):
        machine.fail(FAILURES - 1)
        machine.succeed()
        machine.fail(FAILURES - 1)
        assert machine.state is State.CLOSED
        machine.fail()
        assert machine.state is State.OPEN
        assert machine.enter() is None
        assert machine.told == ["opened"]

    def test_it_opens_early_where_another_can_answer_and_is_tried_in_need(self, machine):
        machine.fail(2, another=True)
        assert machine.state is State.OPEN
        assert not machine.circuit.offers(machine.now)
        machine.fail(3)
        assert machine.enter() is None

    def test_who_tried_it_in_need_and_was_answered_closes_it(self, machine):
        machine.fail(2, another=True)
        machine.succeed()
        assert machine.state is State.CLOSED

    def test_a_share_of_failures_opens_it(self, machine):
        for _ in range(9):
            machine.succeed()
            machine.fail()
            machine.now += 1
        assert machine.state is State.CLOSED
        machine.succeed()
        machine.fail()
        assert machine.state is State.OPEN

    def test_old_failures_are_forgotten(self, machine):
        for _ in range(9):
            machine.succeed()
            machine.fail()
        machine.now += 30
        for _ in range(9):
            machine.succeed()
            machine.fail()
        assert machine.state is State.CLOSED

    def test_one_probe_at_a_time(self, machine):
        machine.fail(FAILURES)
        machine.now += OPEN
        assert machine.state is State.HALF_OPEN
        probe = machine.enter()
        assert probe.trial
        assert machine.enter() is None
        machine.circuit.succeeded(probe, machine.now)
        assert machine.state is State.CLOSED
        assert machine.told == ["opened", "probing", "closed"]

    def test_a_probe_that_says_nothing_is_given_back(self, machine):
        machine.fail(FAILURES)
        machine.now += OPEN
        machine.circuit.gave_back(machine.enter())
        assert machine.state is State.HALF_OPEN
        assert machine.enter() is not None

    def test_probes_that_fail_open_it_for_longer_up_to_a_cap(self, machine):
        machine.fail(FAILURES)
        waits = []
        for _ in range(4):
            waits.append(machine.circuit.until - machine.now)
            machine.now = machine.circuit.until
            machine.fail()
        assert waits == [OPEN, LONGEST_OPEN, LONGEST_OPEN, LONGEST_OPEN]
        machine.now = machine.circuit.until
        machine.succeed()
        machine.fail(FAILURES)
        assert machine.circuit.until == machine.now + OPEN

    def test_late_answers_neither_close_nor_extend_it(self, machine):
        early = [machine.enter() for _ in range(3)]
        machine.fail(FAILURES)
        until = machine.circuit.until
        machine.now += 1
        machine.circuit.succeeded(early[0], machine.now)
        machine.circuit.failed(early[1], machine.now)
        machine.circuit.throttled(early[2], machine.now)
        assert machine.state is State.OPEN
        assert machine.circuit.until == until

    @pytest.mark.parametrize(("wait", "seconds"), [(3.0, OPEN), (40.0, 40.0), (10**6, LONGEST_WAIT), (None, OPEN)])
    def test_a_longer_wish_extends_and_a_shorter_one_does_not_shorten(self, machine, wait, seconds):
        machine.fail(FAILURES - 1)
        late = machine.enter()
        machine.fail()
        machine.circuit.failed(late, machine.now, wait=wait)
        assert machine.circuit.until == machine.now + seconds

    def test_a_429_opens_it_without_being_a_failure(self, machine):
        machine.circuit.throttled(machine.enter(), machine.now)
        assert machine.circuit.until == machine.now + THROTTLED
        assert machine.circuit.failures == 0
        machine.now += THROTTLED
        machine.circuit.throttled(machine.enter(), machine.now, wait=90.0)
        assert machine.circuit.until == machine.now + 90

    def test_rejected_credentials_open_it_at_once(self, machine):
        machine.circuit.rejected(machine.enter(), machine.now)
        assert machine.circuit.until == machine.now + REJECTED
        assert machine.enter() is None

    @pytest.mark.parametrize("end", [Circuit.throttled, Circuit.succeeded])
    def test_who_was_finding_out_when_it_opened_keeps_nobody_away_once_it_is_closed_elsewhere(self, machine, end):
        circuit, first = machine.circuit, machine.enter()
        assert not circuit.invites(machine.now)
        circuit.adopt(machine.now + 5, firm=True, trips=1, reason="failures", elsewhere_until=0.0)
        end(circuit, first, machine.now)
        circuit.release()
        assert circuit.invites(machine.now)

    def test_a_stream_that_began_is_on_parole(self, machine):
        machine.fail(FAILURES)
        machine.now += OPEN
        probe = machine.enter()
        machine.circuit.answered(probe, machine.now)
        assert machine.state is State.CLOSED
        machine.circuit.failed(probe, machine.now)
        assert machine.state is State.OPEN
        assert machine.circuit.until == machine.now + LONGEST_OPEN

    def test_a_dead_one_of_a_group_gets_six_requests_in_its_first_minute_and_five_in_any_other(self, machine):
        tried = []
        for tick in range(18_000):  # 100 a second for three minutes
            machine.now = 1000 + tick / 100
            if machine.circuit.offers(machine.now):
                tried.append(machine.now - 1000)
                machine.fail(another=True)
        assert sum(at < 60 for at in tried) == 6
        assert all(sum(since <= at < since + 60 for at in tried) <= 6 for since in tried)
        assert max(later - at for at, later in pairwise(tried)) <= 14.02


class CircuitsContract:
    """What both stores keep. Subclasses give `circuits`; `circuits.clock` may be moved."""

    async def fail(self, circuits, times=FAILURES, **how):
        for _ in range(times):
            circuits.failed(circuits.enter(candidate("a")), **{"wait": None, "another": False, **how})
        await asyncio.sleep(0.4)

    def later(self, circuits, seconds):
        before = circuits.clock
        circuits.clock = lambda: before() + seconds

    async def test_open_and_closed_again_with_a_line_each(self, circuits):
        with capture_logs() as lines:
            await self.fail(circuits)
            assert circuits.enter(candidate("a")) is None
            assert circuits.troubled == {"a"}
            assert circuits.sorted_out([candidate("a"), candidate("b")]) == ([candidate("b")], [])
            assert 5 <= circuits.wait([candidate("a")]) <= 7
            self.later(circuits, OPEN)
            circuits.succeeded(circuits.enter(candidate("a")))
            await asyncio.sleep(0.4)
        assert circuits.enter(candidate("a")) is not None
        assert not circuits.troubled
        found = [(line["event"], line["deployment"], line["reason"]) for line in lines]
        assert found == [("circuit_opened", "a", "failures"), ("circuit_closed", "a", "answered")]

    async def test_one_probe(self, circuits):
        await self.fail(circuits)
        self.later(circuits, OPEN)
        ways = [circuits.enter(candidate("a")) for _ in range(20)]
        assert sum(way is not None for way in ways) == 1

    async def test_a_changed_configuration_starts_closed(self, circuits):
        circuits.rejected(circuits.enter(candidate("a")), wait=None)
        changed = msgspec.structs.replace(candidate("a"), upstream_model="another")
        way = circuits.enter(changed)
        assert way is not None
        assert not way.trial
        assert not circuits.troubled

    async def test_the_same_read_again_stays_open(self, circuits):
        await self.fail(circuits)
        assert circuits.enter(msgspec.structs.replace(candidate("a"))) is None

    async def test_states_are_of_what_is_configured(self, circuits):
        await self.fail(circuits)
        assert circuits.states({"a": candidate("a"), "b": candidate("b")}) == {"a": 2, "b": 0}
        self.later(circuits, OPEN)
        assert circuits.states({"a": candidate("a")}) == {"a": 1}
        assert circuits.states({"b": candidate("b")}) == {"b": 0}
        assert not circuits.troubled


class TestMemoryCircuits(CircuitsContract):
    @pytest.fixture
    def circuits(self):
        return MemoryCircuits()


@pytest.fixture
async def processes(redis_url, monkeypatch) -> AsyncIterator[list[RedisCircuits]]:
    monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
    with own_prefix(redis_url) as prefix:
        clients = [SharedRedis(redis_url, prefix=prefix) for _ in range(2)]
        found = [RedisCircuits(client, f"gw_{n}", b"pepper") for n, client in enumerate(clients)]
        yield found
        for circuits, client in zip(found, clients, strict=True):
            await circuits.close()
            await client.close()


async def until(found, within=5.0):
    deadline = asyncio.get_running_loop().time() + within
    while not found():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.redis
class TestRedisCircuits(CircuitsContract):
    @pytest.fixture
    def circuits(self, processes):
        return processes[0]

    async def test_what_opens_and_closes_in_one_does_in_the_other(self, processes):
        one, other = processes
        await self.fail(one)
        await until(lambda: other.enter(candidate("a")) is None, 1.0)
        self.later(one, OPEN)
        one.succeeded(one.enter(candidate("a")))
        await until(lambda: not other.troubled, 1.0)
        assert not other.enter(candidate("a")).trial

    async def test_a_probe_of_one_keeps_the_other_away(self, processes):
        one, other = processes
        one.throttled(one.enter(candidate("a")), wait=1.0)
        await until(lambda: other.enter(candidate("a")) is None, 1.0)
        await until(lambda: one.offers(candidate("a")))
        assert not other.offers(candidate("a")), "who opened it goes first"
        probe = one.enter(candidate("a"))
        await asyncio.sleep(1)
        assert other.enter(candidate("a")) is None
        one.gave_back(probe)
        await until(lambda: other.offers(candidate("a")), 1.0)

    async def test_another_configuration_is_another_circuit(self, processes):
        one, other = processes
        await self.fail(one)
        assert other.enter(msgspec.structs.replace(candidate("a"), upstream_model="another")) is not None


@pytest.mark.redis
async def test_without_redis_each_goes_on_by_itself(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    client = SharedRedis(server.url)
    circuits = RedisCircuits(client, "gw", b"pepper")
    for _ in range(FAILURES):
        circuits.failed(circuits.enter(candidate("a")), wait=None, another=False)
    await asyncio.sleep(0.4)
    server.kill()
    for _ in range(FAILURES):
        circuits.failed(circuits.enter(candidate("b")), wait=None, another=False)
    await asyncio.sleep(0.6)
    assert [circuits.enter(candidate(name)) for name in "ab"] == [None, None]
    server.start()  # it comes back without memory, and is told again
    await until(lambda: len(server.client().hkeys("ailb:circuits")) == 2)
    await asyncio.sleep(0.6)
    assert [circuits.enter(candidate(name)) for name in "ab"] == [None, None]
    await circuits.close()
    await client.close()
    server.kill()


class TestWhatAnUpstreamAsksFor:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [("1", 1), ("0.5", 0.5), ("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3600), ("99999", 3600), ("inf", 3600),
         ("", None), (None, None), ("-1", None), ("nan", None), ("soon", None), ("2026-99-99", None)],
    )  # fmt: skip
    def test_numbers_and_spans(self, value, seconds):
        assert seconds_of(value) == seconds

    def test_dates(self):
        moment = datetime.now(UTC) + timedelta(seconds=30)
        for text in (format_datetime(moment, usegmt=True), moment.isoformat(), moment.isoformat()[:19] + "Z"):
            assert 27 < seconds_of(text) <= 30
        assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0

    def test_limits_of_which_nothing_is_left(self):
        assert asked_wait({"retry-after": "2", "x-ratelimit-remaining-requests": "0",
                            "x-ratelimit-reset-requests": "1m30s"}) == 90  # fmt: skip
        assert asked_wait({"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "1m30s"}) is None
