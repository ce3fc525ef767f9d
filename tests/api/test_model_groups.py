"""`/api/models`: one public name for several deployments, in order. Who may: `test_providers.py`."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from gateway.models import ConfigVersion, Deployment, GroupMember, ModelGroup
from security.models import AuditEntry
from tests.api.doors import Answer, Cast, Door, make_key
from tests.api.test_providers import at_once
from tests.support.upstream import refuses, says
from tests.support.world import make_deployment, make_group, make_price, make_provider


@pytest.fixture
def ada(cast: Cast) -> Door:
    return cast["ada"]


@pytest.fixture
def three(db: None) -> list[Deployment]:
    provider = make_provider("http://127.0.0.1:9/v1")
    return [make_deployment(provider, name) for name in ("a", "lib/b:1", "c")]


def told_for(answer: Answer) -> set[str]:
    assert answer.status == 400, answer.body
    return set(answer.body["errors"])


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(object_type__startswith="gateway.").order_by("id"))


def members(name: str = "fast") -> list[tuple[str, int]]:
    rows = GroupMember.objects.filter(group__name=name).order_by("position")
    return list(rows.values_list("deployment__name", "position"))


def test_a_group_keeps_the_order(ada: Door, three: list[Deployment]):
    answer = ada.post("/api/models", name="team/fast:1", strategy="failover", deployments=["c", "lib/b:1", "a"])
    assert answer.status == 201, answer.body
    shown = dict(answer.body)
    assert shown.pop("created_at")
    assert shown == {
        "name": "team/fast:1", "strategy": "failover", "deployments": ["c", "lib/b:1", "a"], "fallbacks": [],
        "hedging": False, "managed_by": "",
    }  # fmt: skip
    assert members("team/fast:1") == [("c", 0), ("lib/b:1", 1), ("a", 2)]
    assert ada.get("/api/models/team/fast:1").body == ada.get("/api/models/team%2Ffast%3A1").body == answer.body
    assert ada.get("/api/models").body == {"models": [answer.body], "total": 1, "limit": 50, "offset": 0}
    (entry,) = entries()
    assert (entry.action, entry.object_type) == ("create", "gateway.modelgroup")
    assert entry.after["members"] == ["c", "lib/b:1", "a"]


def test_a_strategy_may_be_left_to_the_gateway(ada: Door, three: list[Deployment]):
    assert ada.post("/api/models", name="fast", deployments=["a"]).body["strategy"] is None
    assert ada.patch("/api/models/fast", strategy="random").body["strategy"] == "random"
    assert ada.patch("/api/models/fast", strategy=None).body["strategy"] is None


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": None}, "name"), ({"name": ""}, "name"), ({"name": "two words"}, "name"), ({"name": 5}, "name"),
        ({"name": "x" * 201}, "name"), ({"strategy": "fastest"}, "strategy"), ({"strategy": []}, "strategy"),
        ({"deployments": None}, "deployments"), ({"deployments": "a"}, "deployments"),
        ({"deployments": []}, "deployments"),
        ({"deployments": ["a", "nope"]}, "deployments"), ({"deployments": ["a", "a"]}, "deployments"),
        ({"deployments": ["a", 5]}, "deployments"), ({"deployments": [{"name": "a"}]}, "deployments"),
        ({"deployments": ["a"] * 201}, "deployments"), ({"deployments": ["a\0"]}, "deployments"),
        ({"fallbacks": ["a"]}, "fallbacks"), ({"fallbacks": None}, "fallbacks"), ({"fallbacks": "a"}, "fallbacks"),
        ({"hedging": "true"}, "hedging"), ({"hedging": None}, "hedging"), ({"deployments": ["up/a"]}, "deployments"),
        ({"managed_by": "x"}, "managed_by"), ({"surprise": 1}, "surprise"), ({"members": ["a"]}, "members"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_refused(ada: Door, three: list[Deployment], fields: dict[str, Any], wrong: str):
    assert told_for(ada.post("/api/models", **{"name": "g", "deployments": ["a"], **fields})) == {wrong}
    assert not ModelGroup.objects.exists()
    make_group("fast", *three)
    assert told_for(ada.patch("/api/models/fast", **fields)) == {wrong}
    assert members() == [("a", 0), ("lib/b:1", 1), ("c", 2)]
    assert not entries()


@pytest.mark.parametrize("missing", ["name", "deployments"])
def test_what_must_be_said(ada: Door, three: list[Deployment], missing: str):
    said = {"name": "g", "deployments": ["a"]}
    assert told_for(ada.post("/api/models", **{k: v for k, v in said.items() if k != missing})) == {missing}


def test_deployments_take_the_place_of_the_whole_list(ada: Door, three: list[Deployment]):
    make_group("fast", *three)
    body = ada.patch("/api/models/fast", deployments=["lib/b:1", "a"]).body
    assert (body["deployments"], body["strategy"]) == (["lib/b:1", "a"], "failover")
    assert members() == [("lib/b:1", 0), ("a", 1)]
    (entry,) = entries()
    assert (entry.before, entry.after) == ({"members": ["a", "lib/b:1", "c"]}, {"members": ["lib/b:1", "a"]})
    assert ada.patch("/api/models/fast", name="slow").body["deployments"] == ["lib/b:1", "a"]
    assert ada.get("/api/models/fast").status == 404


def test_a_change_that_is_refused_changes_no_member_either(ada: Door, three: list[Deployment]):
    make_group("fast", *three)
    make_group("taken", three[0])
    answer = ada.patch("/api/models/fast", name="taken", deployments=["c"])
    assert (answer.status, answer.body["type"]) == (409, "conflict_error")
    assert members() == [("a", 0), ("lib/b:1", 1), ("c", 2)]
    assert not entries()


def test_what_changes_nothing_is_not_written(ada: Door, three: list[Deployment]):
    make_group("fast", *three)
    number = ConfigVersion.objects.get(section="catalog").number
    for said in ({}, {"strategy": "failover"}, {"deployments": ["a", "lib/b:1", "c"], "name": "fast"}):
        assert ada.patch("/api/models/fast", **said).status == 200
    assert ConfigVersion.objects.get(section="catalog").number == number
    assert not entries()


def test_a_name_that_is_taken(ada: Door, three: list[Deployment]):
    make_group("fast", *three)
    assert ada.post("/api/models", name="fast", deployments=["a"]).status == 409
    assert len(members()) == 3


def test_a_models_name_stands_for_all_its_deployments(ada: Door, three: list[Deployment]):
    upstream = three[0].provider
    other = make_provider("http://127.0.0.1:8/v1", slug="other")
    for at, name, priority in ((other, "late", 9), (upstream, "second", 0), (other, "first", -1)):
        make_deployment(at, name, "gpt-4o", priority=priority)
    made = ada.post("/api/models", name="g", deployments=["c", "gpt-4o"]).body
    assert made["deployments"] == ["c", "first", "second", "late"]
    by_provider = ada.patch("/api/models/g", deployments=["other/gpt-4o", "upstream/a", "second"]).body
    assert by_provider["deployments"] == ["first", "late", "a", "second"]
    # One that is named itself and by its model has the first of the two places.
    assert ada.patch("/api/models/g", deployments=["late", "gpt-4o"]).body["deployments"] == ["late", "first", "second"]
    # A deployment's own name comes first, even where a model is called the same.
    make_deployment(upstream, "gpt-4o", "something-else")
    assert ada.patch("/api/models/g", deployments=["gpt-4o"]).body["deployments"] == ["gpt-4o"]


def test_no_group_has_more_deployments_than_its_plan_can_sort(ada: Door, three: list[Deployment]):
    Deployment.objects.bulk_create(
        Deployment(name=f"n{i}", provider=three[0].provider, upstream_model="many") for i in range(201)
    )
    assert told_for(ada.post("/api/models", name="g", deployments=["many"])) == {"deployments"}


def test_fallbacks_keep_their_order(ada: Door, three: list[Deployment]):
    for name in ("x", "y", "fast"):
        make_group(name, three[0])
    body = ada.patch("/api/models/fast", fallbacks=["y", "x"], hedging=True).body
    assert (body["fallbacks"], body["hedging"]) == (["y", "x"], True)
    assert ada.get("/api/models").body["models"][0] == ada.get("/api/models/fast").body == body
    (entry,) = entries()
    assert entry.before == {"fallbacks": [], "hedging": False}
    assert entry.after == {"fallbacks": ["y", "x"], "hedging": True}
    made = ada.post("/api/models", name="z", deployments=["a"], fallbacks=["fast", "x"]).body
    assert made["fallbacks"] == ["fast", "x"]
    assert entries()[-1].after["fallbacks"] == ["fast", "x"]
    number = ConfigVersion.objects.get(section="catalog").number
    assert ada.patch("/api/models/z", fallbacks=["fast", "x"]).status == 200
    assert ConfigVersion.objects.get(section="catalog").number == number
    assert ada.patch("/api/models/z", fallbacks=[]).body["fallbacks"] == []


@pytest.mark.parametrize("names", [["fast"], ["x", "nope"], ["x", "x"], ["x"] * 21, [1]])
def test_what_is_no_fallback(ada: Door, three: list[Deployment], names: list[Any]):
    make_group("x", three[0])
    make_group("fast", three[0])
    assert told_for(ada.patch("/api/models/fast", fallbacks=names, strategy="random")) == {"fallbacks"}
    assert ada.get("/api/models/fast").body["fallbacks"] == []
    assert not entries()


def test_deleting_one_that_others_fall_back_to_takes_its_places(ada: Door, three: list[Deployment]):
    make_group("x", three[0])
    make_group("fast", three[0])
    ada.patch("/api/models/fast", fallbacks=["x"])
    ada.send("PUT", "/api/routing/weights", {"version": "v", "weight": 1, "group": "x"})
    assert ada.delete("/api/models/x").status == 204
    assert ada.get("/api/models/fast").body["fallbacks"] == []
    entry = entries()[-1]
    assert entry.before["along"] == {"gateway.groupfallback": 1, "gateway.trafficweight": 1}
    assert (entry.before["members"], entry.before["fallbacks"]) == (["a"], [])


def test_deleting_one_leaves_its_deployments(ada: Door, three: list[Deployment]):
    make_group("fast", *three)
    assert ada.delete("/api/models/fast").status == 204
    assert ada.delete("/api/models/fast").status == 404
    assert ada.get("/api/models").body["models"] == []
    assert Deployment.objects.count() == 3
    (entry,) = entries()
    assert (entry.action, entry.before["members"]) == ("delete", ["a", "lib/b:1", "c"])


def test_a_list_asks_the_database_as_often_for_many_as_for_one(ada: Door, three: list[Deployment]):
    make_group("one", *three)
    with CaptureQueriesContext(connection) as few:
        ada.get("/api/models")
    for number in range(5):
        make_group(f"g{number}", *three)
    with CaptureQueriesContext(connection) as many:
        assert len(ada.get("/api/models").body["models"]) == 6
    assert len(many) == len(few)


def test_of_two_who_make_one_name_at_once_one_succeeds(committed: None):
    make_deployment(make_provider("http://127.0.0.1:9/v1"), "a")
    admin = Door(secret=make_key("admin key", role="admin")[1])
    calls = [lambda: admin.post("/api/models", name="g", deployments=["a"])] * 2
    assert sorted(at_once(calls)) == [201, 409]
    assert members("g") == [("a", 0)]


def test_the_order_is_that_of_the_attempts(gateway: Any, upstream: Any, alice: Any):
    provider = make_provider(upstream.url)
    for name in ("first", "second"):
        make_deployment(provider, name)
        make_price(name)
    admin = Door(secret=make_key("admin key", role="admin")[1])
    assert admin.post("/api/models", name="g", strategy="failover", deployments=["first", "second"]).status == 201
    upstream.will(refuses(500), says("Hello"))
    assert gateway.chat(alice, model="g").status == 200
    assert admin.patch("/api/models/g", deployments=["second", "first"]).status == 200
    upstream.will(refuses(500), says("Hello"))
    assert gateway.chat(alice, model="g").status == 200
    assert [received.body["model"] for received in upstream.requests] == ["first", "second", "second", "first"]
