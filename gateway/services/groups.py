"""Writing model groups: one public name for several deployments, and the groups that answer where none of them can."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q

from gateway.models import Deployment, GroupFallback, GroupMember, ModelGroup, TrafficWeight
from gateway.services.rows import assign, check, found_again, insert, record_delete, save
from keys import policy
from keys.actors import Actor
from keys.writing import alone
from security import audit

MAX_MEMBERS = 200
"""Deployments of a group: each request's plan sorts them."""

_TAKEN = "There is a model group of this name already."
_NAMES_TOLD = 20


@alone(ModelGroup)
def create_group(
    *,
    actor: Actor,
    name: str,
    deployments: Sequence[str],
    strategy: str | None = None,
    fallbacks: Sequence[str] = (),
    hedging: bool = False,
    managed_by: str = "",
) -> ModelGroup:
    """Make a model group of these deployments, in this order. A model's name stands for all deployments of the model
    that there are now; `fallbacks` are groups that answer, in this order, where no deployment of this one can.
    """
    policy.require(actor, "routing", "create")
    group = ModelGroup(name=name, strategy=strategy or "", hedging=hedging, managed_by=managed_by)
    check(group)
    members, groups = _deployments(deployments), _groups(fallbacks)
    insert(actor, group, _TAKEN, members=_names(members), fallbacks=_names(groups))
    _set_members(group, members)
    _set_fallbacks(group, groups)
    return group


@alone(ModelGroup)
def update_group(*, actor: Actor, group: ModelGroup, changes: Mapping[str, Any]) -> ModelGroup:
    """Change fields of a model group; `deployments` and `fallbacks` take the place of the whole lists."""
    policy.require(actor, "routing", "update")
    group = found_again(ModelGroup, group)
    policy.refuse_managed(actor, group.managed_by)
    before = group_state(group)
    values = dict(changes)
    members = _deployments(values.pop("deployments")) if "deployments" in values else None
    fallbacks = _groups(values.pop("fallbacks"), of=group) if "fallbacks" in values else None
    assign(group, values)
    check(group)
    if members is not None and _names(members) != before["members"]:
        _set_members(group, members)
    if fallbacks is not None and _names(fallbacks) != before["fallbacks"]:
        _set_fallbacks(group, fallbacks)
    save(actor, group, before, group_state(group), _TAKEN)
    return group


@alone(ModelGroup)
def delete_group(*, actor: Actor, group: ModelGroup) -> None:
    """Delete a model group, its traffic weights and its places among others' fallbacks; its deployments stay."""
    policy.require(actor, "routing", "delete")
    group = found_again(ModelGroup, group)
    policy.refuse_managed(actor, group.managed_by)
    for weight in group.traffic_weights.all():
        policy.refuse_managed(actor, weight.managed_by)
    along = {
        "gateway.groupfallback": GroupFallback.objects.filter(fallback=group).count(),
        "gateway.trafficweight": TrafficWeight.objects.filter(group=group).count(),
    }
    record_delete(actor, group, group_state(group), along)
    group.delete()


def group_state(group: ModelGroup) -> dict[str, Any]:
    """As the audit log keeps it: with members and fallbacks, by name, which are rows of their own."""
    members = GroupMember.objects.filter(group=group).order_by("position", "id")
    fallbacks = GroupFallback.objects.filter(group=group).order_by("position", "id")
    return audit.state(group) | {
        "members": list(members.values_list("deployment__name", flat=True)),
        "fallbacks": list(fallbacks.values_list("fallback__name", flat=True)),
    }


# ── members ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _deployments(names: Sequence[str]) -> list[Deployment]:
    """What the names stand for, in their order; one that two of them stand for has the first place."""
    if len(set(names)) != len(names):
        raise ValidationError({"deployments": "Each deployment has one place in a group."})
    by_name = {deployment.name: deployment for deployment in Deployment.objects.filter(name__in=names)}
    found = {name: [by_name[name]] if name in by_name else _of_model(name) for name in names}
    if unknown := [name for name in names if not found[name]]:
        told = ", ".join(unknown[:_NAMES_TOLD])
        raise ValidationError({"deployments": f"There is no deployment or model of this name: {told}."})
    members = {deployment.pk: deployment for each in found.values() for deployment in each}
    if len(members) > MAX_MEMBERS:
        raise ValidationError({"deployments": f"These are {len(members)} deployments; a group has {MAX_MEMBERS}."})
    return list(members.values())


def _of_model(name: str) -> list[Deployment]:
    """All deployments of an upstream model, or of `provider/model`, as the data plane understands the name too."""
    slug, _, model = name.partition("/")
    at_provider = Q(provider__slug=slug) & (Q(upstream_model=model) | Q(name=model))
    return list(Deployment.objects.filter(Q(upstream_model=name) | at_provider).order_by("priority", "id"))


def _set_members(group: ModelGroup, deployments: Iterable[Deployment]) -> None:
    group.members.all().delete()
    GroupMember.objects.bulk_create(
        GroupMember(group=group, deployment=deployment, position=position)
        for position, deployment in enumerate(deployments)
    )


# ── fallbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _groups(names: Sequence[str], *, of: ModelGroup | None = None) -> list[ModelGroup]:
    """The groups of these names; `of` is the one whose fallbacks they are to be, where there is one yet."""
    if len(set(names)) != len(names):
        raise ValidationError({"fallbacks": "Each group has one place among the fallbacks."})
    found = {group.name: group for group in ModelGroup.objects.filter(name__in=names)}
    if unknown := [name for name in names if name not in found]:
        told = ", ".join(unknown[:_NAMES_TOLD])
        raise ValidationError({"fallbacks": f"There is no model group of this name: {told}."})
    if of is not None and any(group.pk == of.pk for group in found.values()):
        raise ValidationError({"fallbacks": "A group does not fall back to itself."})
    return [found[name] for name in names]


def _set_fallbacks(group: ModelGroup, fallbacks: Iterable[ModelGroup]) -> None:
    group.fallbacks.all().delete()
    GroupFallback.objects.bulk_create(
        GroupFallback(group=group, fallback=fallback, position=position) for position, fallback in enumerate(fallbacks)
    )


def _names(rows: Iterable[Deployment] | Iterable[ModelGroup]) -> list[str]:
    return [row.name for row in rows]
