"""Deployments, model groups and traffic weights in the console."""

from gateway.models import Deployment, GroupFallback, ModelGroup, TrafficWeight
from security.models import AuditEntry
from tests.console.pages import World, last_entry, submit, url
from tests.console.test_keys import errors


def deployment() -> Deployment:
    return Deployment.objects.get(name="gpt-test")


def test_capabilities_are_chosen_one_by_one(ada, world: World):
    page = url("change", world["gateway.deployment"])
    assert 'name="can_json_schema"' in ada.get(page).content.decode()
    response = submit(ada, page, can_tools="yes", can_vision="no", version="v1", rpm="60")
    assert response.status_code == 302, errors(response)
    assert (deployment().capabilities, deployment().version, deployment().rpm) == (
        {"tools": True, "vision": False}, "v1", 60,
    )  # fmt: skip
    entry = AuditEntry.objects.get(object_type="gateway.deployment")
    assert entry.before == {"capabilities": {}, "version": "", "rpm": None}
    assert entry.after == {"capabilities": {"tools": True, "vision": False}, "version": "v1", "rpm": 60}
    # The form comes back with what is stored, and one is forgotten by itself.
    assert submit(ada, page, can_vision="").status_code == 302
    assert deployment().capabilities == {"tools": True}


def test_a_deployment_that_is_only_read_shows_them(ada, world: World):
    Deployment.objects.update(managed_by="file", capabilities={"tools": True, "audio": False})
    page = ada.get(url("change", world["gateway.deployment"])).content.decode()
    assert "has it not" in page
    assert "This is defined by the file" in page


def fallbacks(*groups: ModelGroup, total: int | None = None) -> dict[str, str]:
    """What a browser sends for the rows of fallbacks."""
    told = {"fallbacks-TOTAL_FORMS": str(total or len(groups))}
    for index, group in enumerate(groups):
        told |= {f"fallbacks-{index}-position": str(index), f"fallbacks-{index}-fallback": str(group.pk)}
    return told


def test_fallbacks_are_on_the_groups_page_and_audited_with_it(ada, world: World):
    page = url("change", world["gateway.modelgroup"])
    spare, last = (ModelGroup.objects.create(name=name) for name in ("spare", "last"))
    response = submit(ada, page, hedging="on", **fallbacks(spare, last))
    assert response.status_code == 302, errors(response)
    names = GroupFallback.objects.order_by("position").values_list("fallback__name", flat=True)
    assert list(names) == ["spare", "last"]
    entry = last_entry(object_type="gateway.modelgroup")
    assert entry.before == {"fallbacks": [], "hedging": False}
    assert entry.after == {"fallbacks": ["spare", "last"], "hedging": True}


def test_a_group_does_not_fall_back_to_itself_nor_twice_to_another(ada, world: World):
    fast, spare = world["gateway.modelgroup"], ModelGroup.objects.create(name="spare")
    page = ada.get(url("change", fast))
    assert page.status_code == 200
    itself = submit(ada, url("change", fast), **fallbacks(fast))
    assert "A group does not fall back to itself." in itself.content.decode()
    assert submit(ada, url("change", fast), **fallbacks(spare, spare)).status_code == 200
    assert not GroupFallback.objects.exists()


def test_a_weight_is_made_changed_and_taken_away(ada, world: World):
    response = submit(ada, url("add", "gateway.trafficweight"), version="v2", weight="7")
    assert response.status_code == 302, errors(response)
    made = TrafficWeight.objects.get(version="v2")
    assert (made.group, made.weight) == (None, 7)
    assert submit(ada, url("change", made), weight="101").status_code == 200
    assert submit(ada, url("change", made), weight="0").status_code == 302
    assert last_entry(object_type="gateway.trafficweight").after == {"weight": 0}
    again = submit(ada, url("add", "gateway.trafficweight"), version="v2", weight="8")
    assert again.status_code == 200, "one weight a version"
    assert ada.post(url("delete", made), {"post": "yes"}).status_code == 302
    assert not TrafficWeight.objects.filter(version="v2").exists()


def test_what_a_file_defines_does_not_go_with_what_it_names(ada, world: World):
    Deployment.objects.update(managed_by="file")
    TrafficWeight.objects.update(managed_by="file")
    for label in ("gateway.provider", "gateway.modelgroup"):
        page = ada.post(url("delete", world[label]), {"post": "yes"}, follow=True).content.decode()
        assert "It is defined by the file" in page
    assert (Deployment.objects.count(), TrafficWeight.objects.count()) == (1, 1)
