"""What a configuration file defines, section by section: the API's own bodies, brought to the database by the services
that the API calls.

An entry says everything about its row: what it omits is as it would be in a new one. The actor is `FILE`; the rows are
`managed_by` the file.
"""

import hmac
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet
from django.utils import timezone
from rest_framework import serializers

from billing import services as billing
from billing.api.serializers import NewBudget
from billing.models import Budget
from billing.models.budgets import Period
from billing.models.budgets import Scope as BudgetScope
from gateway import environment, services
from gateway.api.bodies import NewDeployment, NewModelGroup, NewProvider, NewTrafficWeight
from gateway.models import Deployment, ModelGroup, Provider, TrafficWeight
from keys import secrets
from keys import services as keys
from keys.actors import FILE
from keys.api.fields import Name, StrictSerializer
from keys.api.limits import NewLimit
from keys.api.serializers import NewKey, NewTeam
from keys.models import KeyStatus, LimitScope, RateLimit, Team, VirtualKey
from security import services as security
from security.api import NewPolicy
from security.models import Policy
from security.policies import Scope as PolicyScope

Entry = dict[str, Any]
"""As the section's body validated it."""


class Section:
    """A list of the file. `named` is the column, and the field, that an entry is known by."""

    name: ClassVar[str]
    body: ClassVar[type[StrictSerializer]]
    model: ClassVar[type[Model]]
    named: ClassVar[str] = "name"

    def resolve(self, entry: Entry) -> Entry:
        """The entry with names of this file's other rows in their database's terms; those sections are applied by now.
        Raises `ValidationError`.
        """
        return entry

    def identity(self, entry: Entry) -> Hashable:
        """What no two entries have in common."""
        named: Hashable = entry[self.named]
        return named

    def find(self, entry: Entry) -> Any:
        """The row that the entry is about, whoever defined it; None where it is new."""
        return self.model._default_manager.filter(**{self.named: entry[self.named]}).first()

    def is_free(self, row: Any) -> bool:
        """Whether the file may have a row that is not its own."""
        return False

    def managed(self) -> QuerySet[Any]:
        """The rows that the file defined when it was last applied."""
        return self.model._default_manager.filter(managed_by=FILE.via)

    def create(self, entry: Entry) -> Any:
        raise NotImplementedError

    def update(self, row: Any, entry: Entry) -> None:
        """Bring the row in line, also right after `create`: by now all rows of the section are there."""
        raise NotImplementedError

    def end(self, row: Any) -> None:
        """The row has gone from the file. What may be named elsewhere is switched off and stays."""
        raise NotImplementedError


def _whole(create: Callable[..., Any], entry: Entry, *, besides: Hashable = "name") -> Entry:
    """All that `create` takes and an update may change: what the entry omits is as it is in a new row."""
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(create).parameters.values()
        if parameter.default is not parameter.empty and parameter.name != "managed_by"
    }
    return {name: value for name, value in {**defaults, **entry}.items() if name != besides}


# ── what the data plane calls ───────────────────────────────────────────────────────────────────────────────────────


class Providers(Section):
    name, body, model, named = "providers", NewProvider, Provider, "slug"

    def is_free(self, row: Provider) -> bool:
        return environment.has_let_go_of(settings.ENV, row)

    def create(self, entry: Entry) -> Provider:
        return services.create_provider(actor=FILE, managed_by=FILE.via, **entry)

    def update(self, row: Provider, entry: Entry) -> None:
        changes = _whole(services.create_provider, entry, besides="slug")
        services.update_provider(actor=FILE, provider=row, changes=changes)

    def end(self, row: Provider) -> None:
        services.update_provider(actor=FILE, provider=row, changes={"enabled": False})


class Deployments(Section):
    name, body, model = "deployments", NewDeployment, Deployment

    def is_free(self, row: Deployment) -> bool:
        """By now its provider is perhaps the file's, and was the environment's a moment ago."""
        left = row.provider.managed_by == FILE.via or environment.has_let_go_of(settings.ENV, row.provider)
        return row.managed_by == environment.MANAGED_BY and left

    def create(self, entry: Entry) -> Deployment:
        return services.create_deployment(actor=FILE, managed_by=FILE.via, **entry)

    def update(self, row: Deployment, entry: Entry) -> None:
        changes = _whole(services.create_deployment, entry)
        services.update_deployment(actor=FILE, deployment=row, changes=changes)

    def end(self, row: Deployment) -> None:
        services.update_deployment(actor=FILE, deployment=row, changes={"enabled": False})


class Groups(Section):
    name, body, model = "groups", NewModelGroup, ModelGroup

    def create(self, entry: Entry) -> ModelGroup:
        """Without fallbacks, which may be groups further down."""
        told = {name: value for name, value in entry.items() if name != "fallbacks"}
        return services.create_group(actor=FILE, managed_by=FILE.via, **told)

    def update(self, row: ModelGroup, entry: Entry) -> None:
        services.update_group(actor=FILE, group=row, changes=_whole(services.create_group, entry))

    def end(self, row: ModelGroup) -> None:
        """A group has no switch: one without members serves nobody."""
        services.update_group(actor=FILE, group=row, changes={"deployments": [], "fallbacks": []})


class Weights(Section):
    name, body, model = "weights", NewTrafficWeight, TrafficWeight

    def identity(self, entry: Entry) -> Hashable:
        return entry["version"], entry.get("group")

    def find(self, entry: Entry) -> TrafficWeight | None:
        return TrafficWeight.objects.filter(version=entry["version"], group__name=entry.get("group")).first()

    def create(self, entry: Entry) -> TrafficWeight:
        return services.set_traffic_weight(actor=FILE, managed_by=FILE.via, **entry)[0]

    def update(self, row: TrafficWeight, entry: Entry) -> None:
        services.set_traffic_weight(actor=FILE, **entry)

    def end(self, row: TrafficWeight) -> None:
        """A setting that nothing names: its absence is its off."""
        group = row.group.name if row.group is not None else None
        services.remove_traffic_weight(actor=FILE, version=row.version, group=group)


# ── who calls, and what they may spend ──────────────────────────────────────────────────────────────────────────────


class Teams(Section):
    name, body, model = "teams", NewTeam, Team

    def create(self, entry: Entry) -> Team:
        return keys.create_team(actor=FILE, managed_by=FILE.via, **entry)

    def update(self, row: Team, entry: Entry) -> None:
        keys.update_team(actor=FILE, team=row, changes=_whole(keys.create_team, entry))

    def end(self, row: Team) -> None:
        """A team has no switch, and its keys are their own entries: it stays, with its limits."""


class FileKey(NewKey):
    """A key whose secret is given: `keys.secrets.new_secret()` makes one."""

    secret = Name(max_length=secrets.LENGTH)

    def validate_secret(self, value: str) -> str:
        if not secrets.well_formed(value):
            raise serializers.ValidationError("A virtual key, sk-ailb_…, with its checksum.")
        return value


class Keys(Section):
    """A key is known by its secret, so that it can be renamed; else by its name, so that its secret can be replaced."""

    name, body, model = "keys", FileKey, VirtualKey

    def resolve(self, entry: Entry) -> Entry:
        _require_team(entry.get("team"))
        return entry

    def find(self, entry: Entry) -> VirtualKey | None:
        of_secret = VirtualKey.objects.filter(digest=_digest(entry)).first()
        return of_secret or self.managed().filter(name=entry["name"]).order_by("created_at").first()

    def create(self, entry: Entry) -> VirtualKey:
        return keys.create_key(actor=FILE, managed_by=FILE.via, **entry)[0]

    def update(self, row: VirtualKey, entry: Entry) -> None:
        if not hmac.compare_digest(row.digest, _digest(entry)):
            keys.replace_secret(actor=FILE, key=row, secret=entry["secret"])
        changes = _whole(keys.create_key, entry, besides="secret")
        changes |= {"metadata": dict(changes["metadata"] or {}), "tags": list(changes["tags"] or [])}
        if not self._quota_is_ours(row, entry):
            changes = {name: value for name, value in changes.items() if name not in keys.QUOTA_FIELDS}
        keys.update_key(actor=FILE, key=row, changes=changes)

    def _quota_is_ours(self, row: VirtualKey, entry: Entry) -> bool:
        """A monthly budget that the console gave the key stays, as long as the file gives none."""
        budget = Budget.objects.filter(scope=BudgetScope.KEY, owner=row.pk, period=Period.MONTHLY).first()
        ours = budget is None or budget.managed_by == FILE.via
        if not ours and any(entry.get(name) is not None for name in keys.QUOTA_FIELDS):
            raise ValidationError({"monthly_quota_dollars": "The key has a monthly budget of the console's already."})
        return ours

    def end(self, row: VirtualKey) -> None:
        """Expired and not revoked, which would be for good: named again, it works again."""
        if row.status is KeyStatus.ACTIVE:
            keys.update_key(actor=FILE, key=row, changes={"expires_at": timezone.now()})


class Limits(Section):
    name, body, model = "limits", NewLimit, RateLimit

    def resolve(self, entry: Entry) -> Entry:
        if entry["scope"] == LimitScope.KEY_MODEL and entry["owner"]:
            return {**entry, "owner": _key(entry["owner"], field="owner").pk}
        return entry

    def identity(self, entry: Entry) -> Hashable:
        return entry["scope"], entry["owner"], entry["model"]

    def find(self, entry: Entry) -> RateLimit | None:
        return RateLimit.objects.filter(scope=entry["scope"], owner=entry["owner"], model=entry["model"]).first()

    def create(self, entry: Entry) -> RateLimit:
        return keys.set_limit(actor=FILE, managed_by=FILE.via, **entry)[0]

    def update(self, row: RateLimit, entry: Entry) -> None:
        keys.set_limit(actor=FILE, **entry)

    def end(self, row: RateLimit) -> None:
        """A limit that nothing names: its absence is its off."""
        keys.delete_limit(actor=FILE, limit=row)


class Budgets(Section):
    name, body, model = "budgets", NewBudget, Budget

    def resolve(self, entry: Entry) -> Entry:
        scope, owner = entry["scope"], entry["owner"]
        if scope == BudgetScope.TEAM:
            _require_team(owner)
        elif scope == BudgetScope.USER:
            keys.ensure_user(actor=FILE, user_id=owner)
        elif scope == BudgetScope.KEY:
            key = _key(owner, field="key_id")
            if key.managed_by == FILE.via and entry["period"] == Period.MONTHLY:
                raise ValidationError(
                    {"key_id": "A key of this file has its month as monthly_quota_dollars or _tokens."}
                )
            return {**entry, "owner": key.pk}
        return entry

    def identity(self, entry: Entry) -> Hashable:
        return entry["scope"], entry["owner"], entry["period"]

    def find(self, entry: Entry) -> Budget | None:
        return Budget.objects.filter(scope=entry["scope"], owner=entry["owner"], period=entry["period"]).first()

    def managed(self) -> QuerySet[Budget]:
        """Without the months of this file's keys, which are fields of theirs."""
        of_keys = VirtualKey.objects.filter(managed_by=FILE.via).values("pk")
        months = Budget.objects.filter(scope=BudgetScope.KEY, period=Period.MONTHLY, owner__in=of_keys)
        return super().managed().exclude(pk__in=months.values("pk"))

    def create(self, entry: Entry) -> Budget:
        return billing.set_budget(actor=FILE, managed_by=FILE.via, **entry)

    def update(self, row: Budget, entry: Entry) -> None:
        billing.set_budget(actor=FILE, **entry)

    def end(self, row: Budget) -> None:
        """A limit that nothing names: what was spent is on the ledger."""
        billing.delete_budget(actor=FILE, budget=row)


class Policies(Section):
    name, body, model = "policies", NewPolicy, Policy

    def resolve(self, entry: Entry) -> Entry:
        owner = entry.get("owner", "")
        if entry.get("scope") == PolicyScope.KEY:
            return {**entry, "owner": _key(owner, field="owner").pk}
        if entry.get("scope") == PolicyScope.TEAM:
            _require_team(owner, field="owner")
        return entry

    def create(self, entry: Entry) -> Policy:
        return security.create_policy(actor=FILE, managed_by=FILE.via, **entry)

    def update(self, row: Policy, entry: Entry) -> None:
        security.update_policy(actor=FILE, row=row, changes=_whole(security.create_policy, entry))

    def end(self, row: Policy) -> None:
        security.update_policy(actor=FILE, row=row, changes={"enabled": False})


def _digest(entry: Mapping[str, Any]) -> str:
    return secrets.digest(entry["secret"], settings.KEY_PEPPER)


def _require_team(name: str | None, *, field: str = "team") -> None:
    """The API makes a team that is named for the first time. A file has a place for it, and a slip makes none."""
    if name is not None and not Team.objects.filter(name=name).exists():
        raise ValidationError({field: "There is no team of this name: define it under teams."})


def _key(name: str, *, field: str) -> VirtualKey:
    """A key of the file by its name, any other by its id."""
    found = (
        VirtualKey.objects.filter(managed_by=FILE.via, name=name).first() or VirtualKey.objects.filter(pk=name).first()
    )
    if found is None:
        raise ValidationError({field: "There is no key of this name in the file, and none of this id."})
    return found


SECTIONS: tuple[Section, ...] = (
    Providers(), Deployments(), Groups(), Weights(), Teams(), Keys(), Limits(), Budgets(), Policies(),
)  # fmt: skip
"""In the order in which they name each other."""
