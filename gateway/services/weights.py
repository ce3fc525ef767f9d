"""Writing traffic weights: which share of the traffic goes to which version of the deployments."""

from django.core.exceptions import ValidationError
from django.http import Http404

from gateway.models import ModelGroup, TrafficWeight
from gateway.services.rows import check, insert, record_delete, save
from keys import policy
from keys.actors import Actor
from keys.writing import alone
from security import audit


@alone(TrafficWeight)
def set_traffic_weight(
    *, actor: Actor, version: str, weight: int, group: str | None = None, managed_by: str = ""
) -> tuple[TrafficWeight, bool]:
    """Give a version this weight (0 to 100; 0 drains), in one group's traffic or in all where the group does not say.

    Whether it had none before is the second value. No deployment need have the version yet.
    """
    policy.require(actor, "routing", "update")
    of = _group(group)
    row = TrafficWeight.objects.select_for_update().filter(version=version, group=of).first()
    if row is None:
        row = TrafficWeight(version=version, weight=weight, group=of, managed_by=managed_by)
        check(row, besides={"group"})
        insert(actor, row, "This version was given a weight at the same moment.")
        return row, True
    policy.refuse_managed(actor, row.managed_by)
    before = audit.state(row)
    row.weight = weight
    check(row, besides={"group"})
    save(actor, row, before, audit.state(row))
    return row, False


@alone(TrafficWeight)
def remove_traffic_weight(*, actor: Actor, version: str, group: str | None = None) -> None:
    """Leave a version to the weight for all traffic (of a group), or to the one of versions without a weight: 100."""
    policy.require(actor, "routing", "delete")
    rows = TrafficWeight.objects.select_for_update(of=("self",))
    row = rows.filter(version=version, group__name=group).first()
    if row is None:
        raise Http404("This version has no weight here.")
    policy.refuse_managed(actor, row.managed_by)
    record_delete(actor, row, audit.state(row), {})
    row.delete()


def _group(name: str | None) -> ModelGroup | None:
    if name is None:
        return None
    found = ModelGroup.objects.filter(name=name).first()
    if found is None:
        raise ValidationError({"group": "There is no model group of this name."})
    return found
