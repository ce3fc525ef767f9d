"""`/api/routing/weights`: a version's share of the traffic. Who may: `test_providers.py`."""

from typing import Any

import pytest
from django.http import Http404

from gateway import services
from gateway.models import ConfigVersion, TrafficWeight
from keys.actors import COMMAND
from security.models import AuditEntry
from tests.api.doors import Answer, Cast, Door
from tests.support.world import make_deployment, make_group, make_provider

PATH = "/api/routing/weights"


@pytest.fixture
def ada(cast: Cast) -> Door:
    make_group("fast", make_deployment(make_provider("http://127.0.0.1:9/v1")))
    return cast["ada"]


def put(door: Door, **said: Any) -> Answer:
    return door.send("PUT", PATH, said)


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(object_type="gateway.trafficweight").order_by("id"))


def test_one_is_made_then_changed(ada: Door):
    answer = put(ada, version="v2", weight=5)
    assert (answer.status, answer.body) == (201, {"version": "v2", "group": None, "weight": 5, "managed_by": ""})
    answer = put(ada, version="v2", weight=0)
    assert (answer.status, answer.body["weight"]) == (200, 0)
    assert TrafficWeight.objects.get().weight == 0
    made, changed = entries()
    assert (made.action, made.after["version"], made.after["weight"], made.actor) == ("create", "v2", 5, "user:ada")
    assert (changed.action, changed.before, changed.after) == ("update", {"weight": 5}, {"weight": 0})


def test_the_same_again_is_not_written(ada: Door):
    put(ada, version="v2", weight=5)
    number = ConfigVersion.objects.get(section="catalog").number
    assert put(ada, version="v2", weight=5).status == 200
    assert ada.post(PATH, version="v2", weight=5, group=None).status == 200
    assert ConfigVersion.objects.get(section="catalog").number == number
    assert len(entries()) == 1


def test_a_groups_and_that_of_all_are_two(ada: Door):
    assert put(ada, version="v2", weight=5).status == 201
    assert ada.post(PATH, version="v2", weight=50, group="fast").status == 201
    body = ada.get(PATH).body
    assert [(row["group"], row["weight"]) for row in body.pop("weights")] == [(None, 5), ("fast", 50)]
    assert body == {"total": 2, "limit": 50, "offset": 0}
    assert [row["weight"] for row in ada.get(f"{PATH}?group=fast").body["weights"]] == [50]
    assert ada.get(f"{PATH}?group=nope").body["weights"] == []
    assert ada.get(f"{PATH}?limit=1&offset=1").body["weights"][0]["group"] == "fast"


def test_each_is_removed_for_itself(ada: Door):
    put(ada, version="a/b", weight=5)
    put(ada, version="a/b", weight=6, group="fast")
    assert ada.delete(f"{PATH}/a/b?group=nope").status == 404
    assert ada.delete(f"{PATH}/a/b?group=fast").status == 204
    assert ada.delete(f"{PATH}/a/b?group=fast").status == 404
    assert TrafficWeight.objects.get().group is None
    assert ada.delete(f"{PATH}/a/b").status == 204
    assert ada.delete(f"{PATH}/a/b").status == 404
    assert [entry.action for entry in entries()] == ["create", "create", "delete", "delete"]
    assert entries()[-1].before["weight"] == 5


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"version": None}, "version"), ({"version": ""}, "version"), ({"version": "a b"}, "version"),
        ({"version": "x" * 61}, "version"), ({"version": 2}, "version"), ({"weight": -1}, "weight"),
        ({"weight": 101}, "weight"), ({"weight": 0.5}, "weight"), ({"weight": "5"}, "weight"),
        ({"weight": None}, "weight"), ({"group": "nope"}, "group"), ({"group": ""}, "group"), ({"group": 1}, "group"),
        ({"managed_by": ""}, "managed_by"), ({"surprise": 1}, "surprise"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(ada: Door, said: dict[str, Any], wrong: str):
    for method in ("PUT", "POST"):
        answer = ada.send(method, PATH, {"version": "v2", "weight": 5, **said})
        assert (answer.status, set(answer.body["errors"])) == (400, {wrong})
    assert not TrafficWeight.objects.exists()


def test_a_misspelt_filter_is_refused(ada: Door):
    assert ada.get(f"{PATH}?grp=fast").status == 400
    assert ada.delete(f"{PATH}/v2?grp=fast").status == 400


def test_what_a_file_defines_is_only_read(ada: Door):
    TrafficWeight.objects.create(version="v2", weight=5, managed_by="file")
    assert ada.get(PATH).body["weights"][0]["managed_by"] == "file"
    for answer in (put(ada, version="v2", weight=6), ada.delete(f"{PATH}/v2")):
        assert (answer.status, answer.body["detail"]) == (409, "It is defined by the file: change it there.")
    assert TrafficWeight.objects.get().weight == 5


def test_services_for_other_doors(ada: Door):
    row, is_new = services.set_traffic_weight(actor=COMMAND, version="v2", weight=5, group="fast")
    assert (row.weight, is_new) == (5, True)
    services.remove_traffic_weight(actor=COMMAND, version="v2", group="fast")
    with pytest.raises(Http404):
        services.remove_traffic_weight(actor=COMMAND, version="v2", group="fast")
