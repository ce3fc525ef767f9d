"""Statistics of routing: the sketch's error, what is counted, and what the rows of several processes add up to."""

from datetime import UTC, datetime, timedelta
from time import time
from unittest.mock import Mock

import pytest
from django.db import OperationalError
from hypothesis import given
from hypothesis import strategies as st

from gateway import liveness, tasks
from gateway.circuits import State
from gateway.models import GatewayProcess, ProcessLoad, RoutingStatistics
from gateway.statistics import publisher, requests, storage
from gateway.statistics.publisher import Publisher
from gateway.statistics.selectors import WINDOWS, Totals, statistics_of, totals_of
from gateway.statistics.sketch import ACCURACY, SMALLEST, Sketch
from gateway.statistics.tallies import SPAN, Key, Load, Recorder, Tally
from tests.support.world import make_deployment, make_provider

DAY = timedelta(hours=24)
QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)
LATENCIES = st.lists(st.floats(min_value=SMALLEST, max_value=86_400_000), min_size=1, max_size=300)


def sketch_of(values):
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


# ── the sketch ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(LATENCIES)
def test_a_quantile_is_off_by_one_percent_at_most(values):
    ascending = sorted(values)
    for quantile, found in zip(QUANTILES, sketch_of(values).quantiles(*QUANTILES), strict=True):
        exact = ascending[int(quantile * (len(values) - 1))]
        # A value on a bucket's border is a rounding error away from the next bucket.
        assert found == pytest.approx(exact, rel=ACCURACY + 1e-9)


@given(st.lists(LATENCIES, min_size=1, max_size=5))
def test_merging_is_as_good_as_adding_all_to_one(parts):
    merged, whole = Sketch(), sketch_of(value for part in parts for value in part)
    for part in parts:
        merged.merge(sketch_of(part))
    assert merged.counts == whole.counts
    assert merged.quantiles(*QUANTILES) == whole.quantiles(*QUANTILES)
    assert merged.mean() == pytest.approx(whole.mean())


def test_the_mean_is_exact():
    assert sketch_of([10.0, 20.0, 60.0]).mean() == 30.0


def test_of_nothing_there_is_nothing_to_tell():
    assert Sketch().quantiles(0.5, 0.99) == [None, None]
    assert Sketch().mean() is None


def test_what_took_no_time_counts_as_the_smallest():
    assert sketch_of([0.0]).quantiles(0.5)[0] == pytest.approx(SMALLEST, rel=ACCURACY)


# ── counting ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def recorder():
    return Recorder()


def only(recorder):
    (tally,) = recorder.tallies.values()
    return tally


@pytest.mark.parametrize("status", [200, 201])
def test_an_answer_counts_with_its_latency(recorder, status):
    recorder.ended("p", "d", status, 120.0)
    assert (only(recorder).succeeded, only(recorder).failed) == (1, 0)
    assert only(recorder).latencies.mean() == 120.0


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failure_counts_without(recorder, status):
    recorder.ended("p", "d", status, 120.0)
    assert (only(recorder).succeeded, only(recorder).failed) == (0, 1)
    assert only(recorder).latencies.mean() is None


@pytest.mark.parametrize("status", [400, 402, 404, 413, 429, 499])
def test_what_ended_for_the_clients_own_reasons_does_not_count(recorder, status):
    recorder.ended("p", "d", status, 120.0)
    assert not recorder.tallies


def test_a_span_has_its_tally_and_is_forgotten_once_it_is_written(recorder):
    recorder.ended("p", "d", 200, 1.0)
    (first,) = recorder.tallies
    recorder.roll(first.start + SPAN + 0.5)
    recorder.ended("p", "d", 200, 1.0)
    assert {key.start for key in recorder.changed()} == {first.start, first.start + SPAN}
    recorder.tallies[first].written = 1
    recorder.roll(first.start + 2 * SPAN)
    assert set(recorder.tallies) == {Key(first.start + SPAN, "p", "d")}, "what is not written yet is kept"


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tally(*latencies, failed=0, attempts=0):
    made = Recorder()
    for latency in latencies:
        made.ended("p", "d", 200, latency)
    for _ in range(failed):
        made.ended("p", "d", 502, 0.0)
    for _ in range(attempts):
        made.attempt_failed("p", "d", "timeout", None)
    return next(iter(made.tallies.values()), Tally())


def wrote(process, counted, *, ago=timedelta(), provider="p", deployment="d", **load):
    """`process` wrote this for the span that was `ago`."""
    start = int((datetime.now(UTC) - ago).timestamp()) // SPAN * SPAN
    storage.write(process, {Key(start, provider, deployment): counted}, Load(**load))


@pytest.fixture(autouse=True)
def nothing_counted():
    requests.begin("")
    yield
    requests.begin("")


@pytest.fixture
def ours(db):
    """This process, with rows as `one`."""
    requests.begin("one")


def test_the_rows_of_all_processes_are_one(db):
    slow, fast = [1000.0 + n for n in range(50)], [10.0 + n for n in range(50)]
    wrote("one", tally(*slow, failed=1))
    wrote("two", tally(*fast, failed=2))
    told = statistics_of(DAY)
    assert (told.total_requests, told.successful_requests, told.failed_requests) == (103, 100, 3)
    figures = told.deployments["d"]
    assert figures.p50_latency_ms == pytest.approx(59, rel=ACCURACY)
    assert figures.p95_latency_ms == pytest.approx(1044, rel=ACCURACY)
    assert figures.p99_latency_ms == pytest.approx(1048, rel=ACCURACY)
    assert figures.avg_latency_ms == pytest.approx(sum(slow + fast) / 100)
    assert told.providers["p"] == figures


def test_what_is_written_again_counts_once(db):
    for answers in (1, 2, 2, 3):
        wrote("one", tally(*[5.0] * answers))
    assert statistics_of(DAY).total_requests == 3


def test_what_this_process_has_not_written_is_in(ours):
    def total():
        told = statistics_of(DAY)
        assert totals_of(DAY) == Totals(told.total_requests, told.successful_requests, told.failed_requests)
        return told.total_requests

    wrote("two", tally(5.0))
    requests.ended("p", "d", 200, 5.0)
    assert total() == 2
    storage.write("one", requests.changed(), requests.load)
    assert total() == 2, "not twice"
    requests.ended("p", "d", 502, 5.0)
    assert total() == 3, "nor the older copy"
    requests.begin("three")
    assert total() == 2, "and after a restart what was written"


def test_a_provider_is_all_its_deployments(db):
    wrote("one", tally(10.0, attempts=1), deployment="a")
    wrote("one", tally(20.0, 30.0, attempts=1), deployment="b")
    wrote("one", tally(500.0), provider="q", deployment="c")
    told = statistics_of(DAY)
    assert (told.providers["p"].requests, told.providers["p"].avg_latency_ms) == (5, 20.0)
    assert told.providers["p"].success_rate == 0.6
    assert told.deployments["a"].success_rate == 0.5
    assert told.providers["q"].success_rate == 1.0


def test_a_deployment_whose_failures_another_made_good_is_seen(ours):
    requests.attempt_failed("p", "bad", "upstream_error", 500)
    requests.ended("p", "good", 200, 5.0)
    told = statistics_of(DAY)
    assert (told.total_requests, told.failed_requests) == (1, 0)
    assert (told.deployments["bad"].requests, told.deployments["bad"].success_rate) == (1, 0.0)
    assert told.deployments["bad"].last_error.code == "upstream_error"
    assert told.deployments["bad"].last_error.status == 500
    assert told.deployments["good"].last_error is None


def test_the_last_error_is_the_latest_of_all_processes(db):
    older, newer = Recorder(), Recorder()
    older.attempt_failed("p", "d", "upstream_error", 500)
    newer.attempt_failed("p", "d", "timeout", None)
    wrote("one", only(newer))
    wrote("two", only(older))
    assert statistics_of(DAY).deployments["d"].last_error == only(newer).error
    assert only(newer).error.at > only(older).error.at


def test_requests_that_no_deployment_took_are_in_the_totals_alone(ours):
    requests.turned_away()
    told = statistics_of(DAY)
    assert (told.total_requests, told.failed_requests) == (1, 1)
    assert told.providers == told.deployments == {}


def test_what_is_configured_is_listed(db):
    make_deployment(make_provider("http://127.0.0.1:9/v1"), "idle")
    make_provider("http://127.0.0.1:9/v1", slug="bare")
    told = statistics_of(DAY)
    assert set(told.providers) == {"upstream", "bare"}
    for figures in (told.deployments["idle"], told.providers["upstream"], told.providers["bare"]):
        assert (figures.requests, figures.in_flight, figures.circuit) == (0, 0, "closed")
        assert figures.success_rate is figures.avg_latency_ms is figures.p99_latency_ms is figures.last_error is None


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

AGES = {
    timedelta(minutes=30): {"1h", "24h", "7d", "30d"},
    timedelta(hours=5): {"24h", "7d", "30d"},
    timedelta(days=3): {"7d", "30d"},
    timedelta(days=20): {"30d"},
    timedelta(days=40): set(),
}


@pytest.mark.parametrize("condensed", [False, True])
def test_a_window_has_what_is_younger(db, condensed):
    for ago in AGES:
        wrote("one", tally(5.0, failed=1), ago=ago)
    if condensed:
        tasks.condense_statistics()
    for name, window in WINDOWS.items():
        within = sum(name in windows for windows in AGES.values())
        assert statistics_of(window).total_requests == totals_of(window).total_requests == 2 * within, name


def test_spans_become_hours_and_hours_days(db):
    for minute in range(0, 180, 7):
        for process in ("one", "two"):
            wrote(process, tally(5.0 + minute, attempts=1), ago=timedelta(hours=10, minutes=minute))
            wrote(process, tally(5.0 + minute, failed=1), ago=timedelta(days=12, minutes=minute))
    before, seconds = statistics_of(WINDOWS["30d"]), RoutingStatistics.objects.values_list("seconds", flat=True)
    assert tasks.condense_statistics() > 0
    assert set(seconds) == {3600, 86400}
    assert seconds.count() <= 4 + 2
    assert statistics_of(WINDOWS["30d"]) == before
    assert tasks.condense_statistics() == 0


def test_a_span_that_comes_late_is_added_to_its_hour(db):
    """Of a process that was cut off from the database for hours."""
    ago = timedelta(hours=10)
    for process in ("one", "two"):
        wrote(process, tally(5.0), ago=ago)
        tasks.condense_statistics()
    assert statistics_of(DAY).total_requests == 2
    assert RoutingStatistics.objects.get().succeeded == 2


# ── what processes do at the moment ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def data_dir(settings, tmp_path):
    settings.DATA_DIR = tmp_path
    return tmp_path


def test_load_is_of_the_living(ours, data_dir):
    provider = make_provider("http://127.0.0.1:9/v1")
    make_deployment(provider, "a")
    make_deployment(provider, "b")
    living = liveness.sign_on(data_dir=data_dir)
    for process, stopped in ((living, None), ("stopped", datetime.now(UTC)), ("crashed", None)):
        if process != living:
            long_ago = datetime.now(UTC) - timedelta(minutes=5)
            GatewayProcess.objects.create(id=process, host="h", pid=1, stopped_at=stopped, heartbeat_at=long_ago)
        storage.write(process, {}, Load(in_flight={"a": 2, "b": 1}, circuits={"b": int(State.HALF_OPEN)}))
    requests.begin("one", {"a": 1, "b": 0})
    requests.circuits = {"b": int(State.OPEN)}
    told = statistics_of(DAY)
    assert {name: figures.in_flight for name, figures in told.deployments.items()} == {"a": 3, "b": 1}
    assert {name: figures.circuit for name, figures in told.deployments.items()} == {"a": "closed", "b": "open"}
    assert (told.providers["upstream"].in_flight, told.providers["upstream"].circuit) == (4, "open")
    requests.circuits = {}
    assert statistics_of(DAY).deployments["b"].circuit == "half_open"
    assert tasks.condense_statistics() == 1
    assert set(ProcessLoad.objects.values_list("pk", flat=True)) == {living, "crashed"}
    liveness.sign_off(living)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class WriterAtOnce:
    """A ledger's writer without a thread."""

    def run_in_order(self, work):
        work()


@pytest.fixture
def publishing(db, monkeypatch):
    """A publisher whose clock is the test's: `publishing._tick()`."""
    loop = Mock()
    monkeypatch.setattr(publisher, "asyncio", Mock(get_running_loop=lambda: loop))
    return Publisher("one", WriterAtOnce(), {}, lambda: 0.0)


def written():
    return sum(RoutingStatistics.objects.values_list("succeeded", flat=True))


def test_what_changed_is_written_and_nothing_else(publishing, django_assert_num_queries):
    requests.ended("p", "d", 200, 5.0)
    publishing._tick()
    assert written() == 1
    with django_assert_num_queries(0):
        publishing._tick()
    requests.ended("p", "d", 200, 5.0)
    publishing._tick()
    assert written() == 2


def test_what_could_not_be_written_is_written_later(publishing, monkeypatch):
    write = storage.write
    monkeypatch.setattr(storage, "write", fails)
    monkeypatch.setattr(publisher.connection, "close", lambda: None)
    requests.ended("p", "d", 200, 5.0)
    publishing._tick()
    requests.roll(time() + SPAN)
    requests.ended("p", "d", 200, 5.0)
    publishing._tick()
    assert written() == 0
    assert statistics_of(DAY).total_requests == 2
    monkeypatch.setattr(storage, "write", write)
    publishing._tick()
    assert written() == 2


def fails(*_):
    raise OperationalError


def test_a_database_out_of_reach_is_left_alone(publishing, monkeypatch):
    """The ledger's thread is the one that waits for it."""
    monkeypatch.setattr(publishing, "_cut_off", lambda: 10.0)
    requests.ended("p", "d", 200, 5.0)
    publishing._tick()
    publishing.close()
    assert written() == 0


def test_the_end_writes_the_rest(publishing):
    requests.ended("p", "d", 200, 5.0)
    publishing.close()
    assert written() == 1
    assert not requests.tallies
