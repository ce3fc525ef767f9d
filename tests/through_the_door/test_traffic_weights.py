"""Versions and their weights: what splits the traffic before a deployment's own weight does."""

import random
from collections import Counter

import pytest

from gateway.circuits import FAILURES_WITH_ANOTHER
from gateway.models import Deployment, TrafficWeight
from gateway.routing import strategies
from tests.support.answers import assert_error
from tests.support.upstream import refuses
from tests.support.world import fall_back, make_deployment, make_group, make_price, make_weight


@pytest.fixture
def versions(gateway, provider, alice):
    """`versions(a="v1", b="v2")`: priced deployments of these versions in a group."""
    gateway.set(ENABLE_MEMORY=False)
    gateway.plane.signals.rng = random.Random(11)

    def made(strategy="random", **of):
        for name in of:
            make_price(name)
        members = [make_deployment(provider, name, version=version) for name, version in of.items()]
        return make_group("group", *members, strategy=strategy)

    return made


def by(answer):
    assert answer.status == 200, answer.raw
    return answer.headers["x-ailb-model"]


def spread(gateway, key, number=300, **body):
    return Counter(by(gateway.chat(key, **{"model": "group", **body})) for _ in range(number))


def asked(upstream):
    return [received.body["model"] for received in upstream.requests]


class TestTheSplit:
    @pytest.mark.parametrize("strategy", strategies())
    def test_ninety_to_ten(self, gateway, versions, alice, strategy):
        group = versions(strategy, a="v1", b="v2")
        make_weight("v1", 90, group)
        make_weight("v2", 10, group)
        found = spread(gateway, alice)
        assert 250 <= found["a"] <= 288  # 270, give or take three and a half standard deviations
        assert found["a"] + found["b"] == 300

    def test_comes_before_a_deployments_own_weight(self, gateway, versions, alice):
        group = versions(a="v1", b="v2", c="v2")
        Deployment.objects.filter(name="a").update(weight=50)
        Deployment.objects.filter(name="c").update(weight=3)
        make_weight("v1", 20, group)
        make_weight("v2", 80, group)
        found = spread(gateway, alice)
        assert 35 <= found["a"] <= 85
        assert found["c"] > 2 * found["b"] > 0

    def test_of_equal_weights_versions_and_not_deployments_are_equal(self, gateway, versions, alice):
        group = versions(a="v1", b="v2", c="v2", d="v2")
        make_weight("v1", 50, group)
        make_weight("v2", 50, group)
        assert 115 <= spread(gateway, alice)["a"] <= 185

    def test_one_without_a_weight_counts_a_hundred(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        make_weight("v2", 25, group)
        assert 210 <= spread(gateway, alice)["a"] <= 268  # 240

    def test_one_without_a_version_counts_a_hundred(self, gateway, versions, alice):
        group = versions(a="", b="v2")
        make_weight("v2", 25, group)
        assert 210 <= spread(gateway, alice)["a"] <= 268

    def test_that_for_all_applies_where_the_group_says_nothing(self, gateway, versions, alice):
        versions(a="v1", b="v2")
        make_weight("v1", 10)
        make_weight("v2", 90)
        assert 250 <= spread(gateway, alice)["b"] <= 288

    def test_a_groups_own_beats_that_for_all(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        make_weight("v1", 10)
        make_weight("v2", 90)
        make_weight("v1", 90, group)
        make_weight("v2", 10, group)
        assert 250 <= spread(gateway, alice)["a"] <= 288

    def test_another_groups_is_nothing_to_it(self, gateway, versions, alice):
        versions(a="v1", b="v2")
        other = make_group("other", Deployment.objects.get(name="a"))
        make_weight("v1", 0, other)
        assert 115 <= spread(gateway, alice)["a"] <= 185

    def test_that_for_all_splits_what_is_no_groups(self, gateway, versions, alice):
        versions(a="v1", b="v2")
        Deployment.objects.update(upstream_model="shared")
        make_price("shared")
        make_weight("v1", 0)
        for model in ("shared", "upstream/shared", "auto"):
            assert spread(gateway, alice, 20, model=model) == {"b": 20}

    def test_the_row_tells_the_version(self, gateway, versions, alice, stream):
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        answer = gateway.chat(alice, model="group", stream=stream)
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.detail["routing"]["version"]) == ("b", "v2")

    def test_a_change_is_in_force_with_the_next_request(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        one, other = make_weight("v1", 100, group), make_weight("v2", 0, group)
        assert spread(gateway, alice, 20) == {"a": 20}
        one.weight, other.weight = 0, 100
        one.save()
        other.save()
        assert spread(gateway, alice, 20) == {"b": 20}
        TrafficWeight.objects.all().delete()
        assert len(spread(gateway, alice, 40)) == 2


class TestDraining:
    def test_it_is_never_tried(self, gateway, versions, alice, upstream, stream):
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        assert spread(gateway, alice, 30, stream=stream) == {"b": 30}
        assert set(asked(upstream)) == {"b"}

    @pytest.mark.parametrize("strategy", strategies())
    def test_not_on_failover_either(self, gateway, versions, alice, upstream, strategy):
        group = versions(strategy, a="v1", b="v2")
        make_weight("v1", 0, group)
        upstream.always(refuses(500), model="b")
        for _ in range(8):
            assert gateway.chat(alice, model="group").status in (502, 503)
        assert set(asked(upstream)) == {"b"}

    def test_nor_where_the_others_circuit_is_open(self, gateway, versions, alice, upstream, stream):
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        upstream.will(refuses(401), model="b")
        assert gateway.chat(alice, model="group", stream=stream).status == 502
        answer = gateway.chat(alice, model="group", stream=stream)
        assert_error(answer, 503, "overloaded_error", "no_healthy_deployment")
        assert "retry-after" in answer.headers
        assert asked(upstream) == ["b"]

    def test_what_is_left_is_tried_as_long_as_one_without_another(self, gateway, versions, alice, upstream):
        """A drained one is no other: what is left must not be left alone as early as one that has a stand-in."""
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        upstream.will(*[refuses(500)] * FAILURES_WITH_ANOTHER, model="b")
        for _ in range(FAILURES_WITH_ANOTHER):
            assert gateway.chat(alice, model="group").status == 502
        assert by(gateway.chat(alice, model="group")) == "b"

    def test_all_drained_is_503(self, gateway, versions, alice, upstream, stream):
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        make_weight("v2", 0, group)
        answer = gateway.chat(alice, model="group", stream=stream)
        assert_error(answer, 503, "overloaded_error", "no_healthy_deployment", says="drained")
        assert int(answer.headers["retry-after"]) >= 1
        assert not upstream.requests

    def test_all_drained_is_told_as_that_whatever_fails_elsewhere(self, gateway, versions, provider, alice, upstream):
        group = versions(a="v1", b="v2")
        make_price()
        make_deployment(provider)
        upstream.will(refuses(401), model="gpt-test")
        gateway.chat(alice)
        make_weight("v1", 0, group)
        make_weight("v2", 0, group)
        answer = gateway.chat(alice, model="group")
        assert_error(answer, 503, "overloaded_error", "no_healthy_deployment", says="drained")

    def test_all_drained_is_a_fallbacks_turn(self, gateway, versions, provider, alice, upstream, stream):
        group = versions(a="v1")
        make_price("c")
        fall_back(group, make_group("spare", make_deployment(provider, "c", version="v9")))
        make_weight("v1", 0, group)
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (by(answer), answer.headers["x-ailb-attempts"]) == ("c", "1")
        row = gateway.settlement(answer.id)
        assert (row.requested_model, row.deployment) == ("group", "c")
        assert row.detail["routing"]["pool"] == "spare"

    def test_a_fallbacks_weights_are_its_own(self, gateway, versions, provider, alice):
        group = versions(a="v1")
        for name in ("c", "d"):
            make_price(name)
        spare = make_group(
            "spare", make_deployment(provider, "c", version="v1"), make_deployment(provider, "d", version="v2")
        )
        fall_back(group, spare)
        make_weight("v1", 0, group)
        make_weight("v2", 0, spare)
        assert spread(gateway, alice, 10) == {"c": 10}

    def test_a_deployment_that_is_asked_for_by_name_answers(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        make_weight("v1", 0, group)
        assert by(gateway.chat(alice, model="a")) == "a"


class TestASession:
    @pytest.mark.parametrize("strategy", strategies())
    def test_meets_one_version(self, gateway, versions, alice, strategy):
        group = versions(strategy, a="v1", b="v2")
        make_weight("v1", 50, group)
        make_weight("v2", 50, group)
        for session in range(6):
            assert len(spread(gateway, alice, 6, session_id=f"session {session}")) == 1

    def test_sessions_are_split_as_the_weights_say(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        make_weight("v1", 90, group)
        make_weight("v2", 10, group)
        found = Counter(by(gateway.chat(alice, model="group", session_id=f"session {n}")) for n in range(300))
        assert 250 <= found["a"] <= 288

    def test_where_its_version_is_gone_it_moves(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        weights = {"a": make_weight("v1", 50, group), "b": make_weight("v2", 50, group)}
        home = by(gateway.chat(alice, model="group", session_id="one"))
        weights[home].weight = 0
        weights[home].save()
        assert set(spread(gateway, alice, 5, session_id="one")) == {"a", "b"} - {home}

    def test_it_is_sticky_among_several_of_its_version(self, gateway, versions, alice):
        group = versions("round_robin", a="v1", b="v1", c="v2", d="v2")
        make_weight("v1", 50, group)
        make_weight("v2", 50, group)
        for session in range(4):
            assert len(spread(gateway, alice, 6, session_id=f"session {session}")) == 1


class TestFailover:
    def test_goes_to_its_own_version_first(self, gateway, versions, alice, upstream, stream):
        group = versions("failover", a="v1", b="v1", c="v2")
        make_weight("v1", 100, group)
        make_weight("v2", 1, group)
        gateway.plane.signals.rng = random.Random(3)
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert by(answer) == "b"
        row = gateway.settlement(answer.id)
        assert [attempt["deployment"] for attempt in row.attempts] == ["a", "b"]

    def test_then_to_the_others(self, gateway, versions, alice, upstream, stream):
        group = versions(a="v1", b="v2", c="v3")
        make_weight("v3", 0, group)
        upstream.always(refuses(500), model="a")
        for _ in range(20):
            assert by(gateway.chat(alice, model="group", stream=stream)) == "b"
        assert set(asked(upstream)) == {"a", "b"}

    def test_a_session_too(self, gateway, versions, alice, upstream):
        group = versions(a="v1", b="v2")
        make_weight("v1", 50, group)
        make_weight("v2", 50, group)
        home = by(gateway.chat(alice, model="group", session_id="one"))
        upstream.will(refuses(500), model=home)
        assert by(gateway.chat(alice, model="group", session_id="one")) != home

    def test_what_only_a_drained_one_has_nobody_is_left_out_for(self, gateway, versions, alice):
        group = versions(a="v1", b="v2")
        Deployment.objects.filter(name="a").update(max_output=10)
        make_weight("v2", 0, group)
        assert by(gateway.chat(alice, model="group", max_tokens=20)) == "a"
