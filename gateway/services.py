"""Writing providers, deployments and model groups. Every change asks the policy, is audited in the same transaction,
and reaches the data plane by the model's own version: in this process before the caller goes on.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field), `policy.Conflict` (409), and
`Http404` where somebody else deleted the row meanwhile.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.http import Http404

from gateway import discovery, environment, providers, vault
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.models import Deployment, GroupMember, ModelGroup, Provider
from keys import policy
from keys.actors import Actor
from keys.policy import Conflict
from keys.writing import alone
from security import audit

Row = Provider | Deployment | ModelGroup
R = TypeVar("R", Provider, Deployment, ModelGroup)

CREDENTIALS = ("api_key", "headers")

MAX_HEADERS = 50
MAX_SECRET = 4096
"""Characters of a header's value, and of a key: servers refuse more than 8 kB of header, which holds both."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}\Z")  # RFC 9110, 5.6.2: a token
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say where a request goes and where it ends: set by whoever writes the request, or it is two."""

_PORTS = {"http": 80, "https": 443}


# ── providers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@alone(Provider)
def create_provider(
    *,
    actor: Actor,
    slug: str,
    kind: str,
    base_url: str = "",
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    price_book: str = "",
    connect_timeout: float | None = None,
    first_byte_timeout: float | None = None,
    idle_timeout: float | None = None,
    enabled: bool = True,
) -> Provider:
    """Make a provider. An empty `base_url` is the vendor's own; timeouts are in seconds, None is the default."""
    policy.require(actor, "providers", "create")
    provider = Provider(slug=slug, kind=kind, base_url=base_url, price_book=price_book, enabled=enabled)
    timeouts = {"connect_timeout": connect_timeout, "first_byte_timeout": first_byte_timeout}
    for name, seconds in {**timeouts, "idle_timeout": idle_timeout}.items():
        if seconds is not None:
            setattr(provider, name, seconds)
    _check_provider(provider)
    _seal(provider, {"api_key": api_key, "headers": headers})
    _insert(actor, provider, "There is a provider of this slug already.")
    return provider


@alone(Provider)
def update_provider(*, actor: Actor, provider: Provider, changes: Mapping[str, Any]) -> Provider:
    """Change a provider's columns and credentials; the slug is for good, since ledger and prices know it by that.

    A credential that is given replaces the stored one, None forgets it. Where scheme, host or port of the base URL
    change, each that is stored must be given again or forgotten: it goes to the host that it was given for.
    """
    policy.require(actor, "providers", "update")
    provider = _found_again(Provider, provider)
    _refuse_managed(provider)
    before, was = audit.state(provider), origin(provider)
    for name, value in changes.items():
        if name not in CREDENTIALS:
            setattr(provider, name, value)
    _check_provider(provider)
    given = {name: changes[name] for name in CREDENTIALS if name in changes}
    if origin(provider) != was:
        _require_credentials_again(provider, given)
    sealed = provider.credentials
    _seal(provider, given)
    after = audit.state(provider)
    if before["credentials"] and after["credentials"] and provider.credentials != sealed:
        after["credentials"] = "(replaced)"  # secrets look alike in the log
    _save(actor, provider, before, after)
    return provider


@alone(Provider)
def delete_provider(*, actor: Actor, provider: Provider) -> None:
    """Delete a provider, and its deployments with it; the ledger keeps their names."""
    policy.require(actor, "providers", "delete")
    provider = _found_again(Provider, provider)
    _refuse_managed(provider)
    deployments = list(provider.deployments.all())
    along = {"gateway.deployment": len(deployments), "gateway.groupmember": _places(deployments)}
    _record_delete(actor, provider, along)
    for deployment in deployments:
        _record_delete(actor, deployment, {"gateway.groupmember": _places([deployment])})
    provider.delete()


def discover_models(*, actor: Actor, provider: Provider) -> list[str]:
    """Ask the provider's server for its models, and bring its deployments in line.

    Raises `UpstreamError` where the server does not answer; nothing is changed then.
    """
    policy.require(actor, "providers", "update")
    if not discovery.can_discover(provider.kind):
        raise ValidationError({"kind": f"A provider of kind {provider.kind} cannot be asked for its models."})
    if environment.names_models_of(settings.ENV, provider):
        raise Conflict("The environment names its models: change them there.")
    try:
        return discovery.discover(provider, actor)
    except discovery.NotDiscoverable:
        raise Conflict("Its credentials cannot be opened: give them again.") from None
    except UpstreamTimeout as late:
        raise UpstreamError(late.message) from None


def credentials_set(provider: Provider) -> dict[str, bool]:
    """Which credentials are stored. What no key opens counts as all of them: nobody can say that they are not."""
    try:
        stored = vault.open_sealed(provider.credentials)
    except vault.VaultError:
        return dict.fromkeys(CREDENTIALS, True)
    return {name: bool(stored.get(name)) for name in CREDENTIALS}


def origin(provider: Provider) -> tuple[str, str | None, int | None]:
    """Scheme, host and port that the credentials go to."""
    base_url = provider.base_url
    if not base_url and provider.kind in providers.kinds():
        base_url = providers.vendor(provider.kind).default_base_url
    try:
        parts = urlsplit(base_url)
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return "", None, None  # no URL: its own validation says so


def _check_provider(provider: Provider) -> None:
    provider.clean_fields()
    try:
        provider.clean()
    except ValidationError as error:
        if hasattr(error, "error_dict"):
            raise
        raise ValidationError({"base_url": error.messages}) from None


def _require_credentials_again(provider: Provider, given: Mapping[str, Any]) -> None:
    missing = [name for name, is_set in credentials_set(provider).items() if is_set and name not in given]
    if missing:
        told = "The host changes: give it again, or null to have it forgotten."
        raise ValidationError(dict.fromkeys(missing, told))


def _seal(provider: Provider, given: Mapping[str, Any]) -> None:
    """Encrypt what is given in the place of what is stored; the same again stays as it is."""
    if not given:
        return
    try:
        stored = vault.open_sealed(provider.credentials)
    except vault.VaultError:
        stored = {}
    checked = {"headers": checked_headers(given["headers"] or {})} if "headers" in given else {}
    merged = {name: {**stored, **given, **checked}.get(name) or None for name in CREDENTIALS}
    if not any(merged.values()):
        provider.credentials = ""
    elif merged != {name: stored.get(name) or None for name in CREDENTIALS}:
        provider.set_credentials(**merged)


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """By their names in lower case. Errors never repeat a line: it may hold the secret in the wrong place."""
    if len(headers) > MAX_HEADERS:
        raise ValidationError({"headers": f"At most {MAX_HEADERS} headers."})
    checked: dict[str, str] = {}
    for name, value in ((name.lower(), value.strip()) for name, value in headers.items()):
        if not _HEADER_NAME.match(name):
            raise ValidationError({"headers": "A header's name is letters, digits and '-'."})
        if not value or len(value) > MAX_SECRET or not value.isprintable():
            raise ValidationError({"headers": f"A header's value is one line of 1 to {MAX_SECRET} characters."})
        if name in _FRAMING:
            raise ValidationError({"headers": f"The gateway sets these itself: {', '.join(sorted(_FRAMING))}."})
        if name in checked:
            raise ValidationError({"headers": "Two headers have the same name."})
        checked[name] = value
    return checked


# ── deployments ─────────────────────────────────────────────────────────────────────────────────────────────────────


@alone(Deployment)
def create_deployment(
    *,
    actor: Actor,
    name: str,
    provider: str,
    upstream_model: str,
    weight: int = 1,
    priority: int = 0,
    max_output: int | None = None,
    context_window: int | None = None,
    strategy: str | None = None,
    enabled: bool = True,
) -> Deployment:
    """Make a deployment: a model at the provider of this slug, under a public name."""
    policy.require(actor, "routing", "create")
    deployment = Deployment(
        name=name,
        provider=_provider(provider),
        upstream_model=upstream_model,
        weight=weight,
        priority=priority,
        max_output=max_output,
        context_window=context_window,
        strategy=strategy or "",
        enabled=enabled,
    )
    deployment.clean_fields(exclude={"provider"})
    _insert(actor, deployment, "There is a deployment of this name already.")
    return deployment


@alone(Deployment)
def update_deployment(*, actor: Actor, deployment: Deployment, changes: Mapping[str, Any]) -> Deployment:
    """Change fields of a deployment, by their names in the API."""
    policy.require(actor, "routing", "update")
    deployment = _found_again(Deployment, deployment)
    _refuse_managed(deployment)
    before = audit.state(deployment)
    values = dict(changes)
    if "provider" in values:
        values["provider"] = _provider(values["provider"])
    _set(deployment, values)
    deployment.clean_fields(exclude={"provider"})
    _save(actor, deployment, before, audit.state(deployment), "There is a deployment of this name already.")
    return deployment


@alone(Deployment)
def delete_deployment(*, actor: Actor, deployment: Deployment) -> None:
    """Delete a deployment, and its places in groups; the ledger keeps its name."""
    policy.require(actor, "routing", "delete")
    deployment = _found_again(Deployment, deployment)
    _refuse_managed(deployment)
    _record_delete(actor, deployment, {"gateway.groupmember": _places([deployment])})
    deployment.delete()


def _provider(slug: str) -> Provider:
    found = Provider.objects.filter(slug=slug).first()
    if found is None:
        raise ValidationError({"provider": "There is no provider of this slug."})
    return found


# ── model groups ────────────────────────────────────────────────────────────────────────────────────────────────────


@alone(ModelGroup)
def create_group(*, actor: Actor, name: str, deployments: Sequence[str], strategy: str | None = None) -> ModelGroup:
    """Make a model group of the deployments of these names, in this order."""
    policy.require(actor, "routing", "create")
    group = ModelGroup(name=name, strategy=strategy or "")
    group.clean_fields()
    members = _named(deployments)
    _insert(actor, group, "There is a model group of this name already.", members=list(deployments))
    _set_members(group, members)
    return group


@alone(ModelGroup)
def update_group(*, actor: Actor, group: ModelGroup, changes: Mapping[str, Any]) -> ModelGroup:
    """Change fields of a model group; `deployments` takes the place of the whole list."""
    policy.require(actor, "routing", "update")
    group = _found_again(ModelGroup, group)
    _refuse_managed(group)
    before = _group_state(group)
    values = dict(changes)
    names = values.pop("deployments", None)
    _set(group, values)
    group.clean_fields()
    if names is not None and list(names) != before["members"]:
        _set_members(group, _named(names))
    _save(actor, group, before, _group_state(group), "There is a model group of this name already.")
    return group


@alone(ModelGroup)
def delete_group(*, actor: Actor, group: ModelGroup) -> None:
    """Delete a model group; its deployments stay."""
    policy.require(actor, "routing", "delete")
    group = _found_again(ModelGroup, group)
    _refuse_managed(group)
    audit.record(actor=actor, action="delete", target=group, before=_group_state(group))
    group.delete()


def _group_state(group: ModelGroup) -> dict[str, Any]:
    """With its members, which are rows of their own."""
    members = GroupMember.objects.filter(group=group).order_by("position", "id")
    return audit.state(group) | {"members": list(members.values_list("deployment__name", flat=True))}


def _named(names: Sequence[str]) -> list[Deployment]:
    if len(set(names)) != len(names):
        raise ValidationError({"deployments": "Each deployment has one place in a group."})
    found = {deployment.name: deployment for deployment in Deployment.objects.filter(name__in=names)}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValidationError({"deployments": f"There is no deployment of this name: {', '.join(unknown[:20])}."})
    return [found[name] for name in names]


def _set_members(group: ModelGroup, deployments: Iterable[Deployment]) -> None:
    group.members.all().delete()
    GroupMember.objects.bulk_create(
        GroupMember(group=group, deployment=deployment, position=position)
        for position, deployment in enumerate(deployments)
    )


# ── rows and their audit ────────────────────────────────────────────────────────────────────────────────────────────


def _found_again(model: type[R], row: R) -> R:
    """The row as it is now, kept from others until the transaction ends."""
    found = model._base_manager.select_for_update().filter(pk=row.pk).first()
    if found is None:
        raise Http404("It was deleted meanwhile.")
    return found


def _refuse_managed(row: Row) -> None:
    if row.managed_by:
        raise Conflict(f"It is defined by the {row.managed_by}: change it there.")


def _set(row: Row, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(row, name, "" if name == "strategy" and value is None else value)


def _insert(actor: Actor, row: Row, taken: str, **notes: Any) -> None:
    """A unique column decides between two at once: a look beforehand could not."""
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None
    audit.record(actor=actor, action="create", target=row, after=audit.state(row) | notes)


def _save(actor: Actor, row: Row, before: dict[str, Any], after: dict[str, Any], taken: str = "") -> None:
    """Save and record. What is unchanged writes nothing, so that it raises no version and fills no log."""
    was, now = audit.difference(before, after)
    if not now:
        return
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError:
        raise Conflict(taken) from None
    audit.record(actor=actor, action="update", target=row, before=was, after=now)


def _record_delete(actor: Actor, row: Row, along: Mapping[str, int]) -> None:
    counts = {label: number for label, number in along.items() if number}
    before = audit.state(row) | ({"along": counts} if counts else {})
    audit.record(actor=actor, action="delete", target=row, before=before)


def _places(deployments: Iterable[Deployment]) -> int:
    return GroupMember.objects.filter(deployment__in=list(deployments)).count()
