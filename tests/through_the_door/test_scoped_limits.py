"""Limits of everybody, and waiting one's turn where one would refuse."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from keys.models import RateLimit, Team, VirtualKey
from tests.support.answers import assert_error
from tests.support.gateway import asking
from tests.support.upstream import says, waits_for
from tests.support.waiting import eventually
from tests.support.world import make_deployment, make_group, make_key

RPM = {"rate_limit_rpm": 2}


def limit(scope, owner="", model="", **limits):
    row = RateLimit(scope=scope, owner=owner, model=model, **(limits or RPM))
    row.full_clean()
    row.save()
    return row


@pytest.fixture
def models(provider):
    return [make_deployment(provider, "gpt-other"), make_deployment(provider, "gpt-third")]


def statuses(gateway, *calls):
    return [gateway.chat(key, model=model).status for key, model in calls]


def test_the_organisations_is_everybodys(gateway, model, alice, charlie):
    limit("organisation")
    assert statuses(gateway, (alice, "gpt-test"), (charlie, "gpt-test")) == [200, 200]
    answer = gateway.chat(alice)
    assert_error(answer, 429, "rate_limit_error", "rate_limit_exceeded", says="limit of this organisation")
    assert answer.headers["x-ratelimit-limit-requests"] == "2"


def test_a_models_is_of_that_model_whatever_it_is_called(gateway, model, models, alice, charlie):
    limit("model", model="gpt-test")
    assert statuses(gateway, (alice, "gpt-test"), (charlie, "upstream/gpt-test"), (alice, "gpt-test")) == [
        200,
        200,
        429,
    ]
    assert statuses(gateway, (alice, "gpt-other")) == [200]


def test_a_keys_for_a_model_is_nobody_elses(gateway, model, models, alice, charlie):
    limit("key_model", alice.id, "gpt-test")
    calls = [(alice, "gpt-test")] * 3 + [(charlie, "gpt-test"), (alice, "gpt-other")]
    assert statuses(gateway, *calls) == [200, 200, 429, 200, 200]


def test_a_providers_is_met_by_its_deployments_together(gateway, model, models, alice):
    limit("provider", "upstream")
    make_group("all", *models)
    assert statuses(gateway, (alice, "gpt-test"), (alice, "gpt-other"), (alice, "all")) == [200, 200, 429]


def test_tokens_are_held_at_every_scope(gateway, model, alice):
    limit("organisation", rate_limit_tpm=6000)
    answer = gateway.chat(alice, max_tokens=10)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
    assert_error(gateway.chat(alice, max_tokens=2000), 429, "rate_limit_error", "request_too_large_for_limit")


def test_a_change_is_in_force_at_once(gateway, model, alice):
    row = limit("organisation", rate_limit_rpm=1)
    assert statuses(gateway, (alice, "gpt-test"), (alice, "gpt-test")) == [200, 429]
    row.delete()
    assert statuses(gateway, (alice, "gpt-test")) == [200]


@pytest.mark.parametrize(
    ("scope", "owner", "model"),
    [("organisation", "x", ""), ("provider", "", ""), ("model", "", ""), ("key_model", "k", "")],
)
def test_what_a_scope_needs(committed, scope, owner, model):
    with pytest.raises(Exception, match="This scope"):
        limit(scope, owner, model)


class TestWaiting:
    @pytest.fixture
    def patient(self, committed):
        key = make_key("pat", team="red", max_parallel=1)
        VirtualKey.objects.filter(pk=key.id).update(max_wait_ms=5000)
        return key

    def test_a_request_waits_its_turn(self, gateway, model, patient, upstream, stream):
        go = threading.Event()
        upstream.will(waits_for(go, says()), says())
        with ThreadPoolExecutor(2) as clients:
            first = clients.submit(gateway.chat, patient, stream=stream)
            upstream.wait_for_requests(1)
            second = clients.submit(gateway.chat, patient, stream=stream)
            eventually(lambda: gateway.plane.queues._lines)
            assert len(upstream.requests) == 1
            go.set()
            answers = [first.result(), second.result()]
        assert [answer.status for answer in answers] == [200, 200]
        assert "x-ailb-queue-position" not in answers[0].headers
        assert answers[1].headers["x-ailb-queue-position"] == "1"
        assert gateway.plane.queues._lines == {}

    def test_not_longer_than_it_may(self, gateway, model, patient, upstream):
        VirtualKey.objects.filter(pk=patient.id).update(max_wait_ms=100)
        go = threading.Event()
        upstream.always(waits_for(go, says()))
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(gateway.chat, patient)
            upstream.wait_for_requests(1)
            assert_error(gateway.chat(patient), 429, "rate_limit_error", "rate_limit_exceeded", says="Concurrency")
            go.set()
            assert first.result().status == 200

    def test_the_teams_wait_is_its_keys(self, gateway, model, upstream, committed):
        key = make_key("pat", team="blue", max_parallel=1)
        Team.objects.filter(name="blue").update(max_wait_ms=5000)
        upstream.always(says(delay=0.05))
        with ThreadPoolExecutor(5) as clients:
            answers = list(clients.map(lambda _: gateway.chat(key).status, range(5)))
        assert answers == [200] * 5

    def test_a_client_that_leaves_the_line_is_gone(self, gateway, model, patient, upstream):
        go = threading.Event()
        upstream.always(waits_for(go, says()))
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(gateway.chat, patient)
            upstream.wait_for_requests(1)
            with asking(gateway, patient):
                eventually(lambda: gateway.plane.queues._lines)
            eventually(lambda: not gateway.plane.queues._lines)
            go.set()
            assert first.result().status == 200
        assert len(upstream.requests) == 1

    def test_tokens_are_waited_for_too(self, gateway, model, committed, upstream):
        key = make_key("pat", rate_limit_tpm=60_000)  # a thousand a second, ten thousand at once
        VirtualKey.objects.filter(pk=key.id).update(max_wait_ms=10_000)
        usage = {"prompt_tokens": 1000, "completion_tokens": 4000, "total_tokens": 5000}
        upstream.always(says(usage=usage))
        answers = [gateway.chat(key, max_tokens=4000) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert answers[2].headers["x-ailb-queue-position"] == "1"
