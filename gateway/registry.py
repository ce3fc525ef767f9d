"""Which deployments stand behind a name: the data plane's side of providers, deployments and groups."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from gateway import vault
from gateway.errors import ModelNotAllowed, ModelNotFound
from gateway.providers import vendor
from gateway.types import Deployment, ProviderConfig

log = structlog.get_logger()

AUTO = "auto"


class Group(msgspec.Struct, frozen=True):
    """A model group: its deployments in order."""

    name: str
    strategy: str | None
    deployments: tuple[Deployment, ...]


class ModelCard(msgspec.Struct, frozen=True):
    """A line of `/v1/models`. `created` is in seconds since the epoch."""

    id: str
    created: int
    owned_by: str
    provider: str


class Catalog(msgspec.Struct, frozen=True):
    """Everything that can be asked for, enabled things only."""

    deployments: Mapping[str, Deployment]
    groups: Mapping[str, Group]
    by_model: Mapping[str, tuple[Deployment, ...]]
    """By `provider/name`, `provider/upstream model` and upstream model."""
    cards: Mapping[str, ModelCard]


class Route(msgspec.Struct, frozen=True):
    """What a name means for one caller."""

    name: str
    candidates: tuple[Deployment, ...]
    strategy: str | None


def resolve(catalog: Catalog, name: str, allowed_models: frozenset[str] | None) -> Route:
    """The deployments that `name` stands for and the caller may use.

    `name` is a deployment, a group, `provider/model`, an upstream model or `auto`. Raises `ModelNotFound`,
    `ModelNotAllowed`.
    """
    route = _lookup(catalog, name)
    if route is None:
        raise ModelNotFound(f"The model '{name[:200]}' does not exist or is not yours to use.", param="model")
    if allowed_models is None or name in allowed_models:
        return route
    allowed = tuple(d for d in route.candidates if d.name in allowed_models)
    if not allowed:
        raise ModelNotAllowed(f"This key may not use the model '{name[:200]}'.", param="model")
    return Route(name, allowed, route.strategy)


def _lookup(catalog: Catalog, name: str) -> Route | None:
    deployment = catalog.deployments.get(name)
    if deployment is not None:
        return Route(name, (deployment,), deployment.strategy)
    group = catalog.groups.get(name)
    if group is not None:
        return Route(name, group.deployments, group.strategy) if group.deployments else None
    if name == AUTO:
        return Route(name, tuple(catalog.deployments.values()), None) if catalog.deployments else None
    candidates = catalog.by_model.get(name)
    return Route(name, candidates, candidates[0].strategy) if candidates else None


def visible(catalog: Catalog, allowed_models: frozenset[str] | None) -> list[ModelCard]:
    """What a key with this allow-list sees in `/v1/models`, by name."""
    return [card for name, card in sorted(catalog.cards.items()) if _usable(catalog, name, allowed_models)]


def _usable(catalog: Catalog, name: str, allowed_models: frozenset[str] | None) -> bool:
    if allowed_models is None or name in allowed_models:
        return True
    group = catalog.groups.get(name)
    return group is not None and any(d.name in allowed_models for d in group.deployments)


def load() -> Catalog:
    """Read providers, deployments and groups: for the snapshot."""
    from gateway import models

    enabled = models.Provider.objects.filter(enabled=True)
    providers = {row.pk: config for row in enabled if (config := provider_config(row))}
    rows = models.Deployment.objects.filter(enabled=True, provider__in=providers).order_by("priority", "id")
    by_pk = {row.pk: _deployment(row, providers[row.provider_id]) for row in rows}
    deployments = {d.name: d for d in by_pk.values()}
    cards = {row.name: _card(row.name, row.created_at.timestamp(), by_pk[row.pk].provider.slug) for row in rows}
    groups: dict[str, Group] = {}
    for group in models.ModelGroup.objects.prefetch_related("members"):
        members = tuple(by_pk[m.deployment_id] for m in group.members.all() if m.deployment_id in by_pk)
        groups[group.name] = Group(group.name, group.strategy or None, members)
        if members and group.name not in cards:
            cards[group.name] = _card(group.name, group.created_at.timestamp(), members[0].provider.slug)
    return Catalog(deployments, groups, _by_model(deployments.values()), cards)


def _by_model(deployments: Iterable[Deployment]) -> dict[str, tuple[Deployment, ...]]:
    found: dict[str, dict[str, Deployment]] = defaultdict(dict)
    for d in deployments:
        for name in (f"{d.provider.slug}/{d.name}", f"{d.provider.slug}/{d.upstream_model}", d.upstream_model):
            found[name][d.name] = d
    return {name: tuple(members.values()) for name, members in found.items()}


def _card(name: str, created: float, provider: str) -> ModelCard:
    return ModelCard(id=name, created=int(created), owned_by=provider, provider=provider)


def provider_config(row: "models.Provider") -> ProviderConfig | None:  # type: ignore[name-defined]  # noqa: F821  # no ORM import on the data plane
    """One provider as the data plane uses it; one that cannot be used is left out and told, the others serve on."""
    try:
        sealed = vault.open_sealed(row.credentials)
        kind = vendor(row.kind)
    except (vault.VaultError, LookupError, ValueError) as error:
        log.error("provider_left_out", provider=row.slug, reason=type(error).__name__)
        return None
    return ProviderConfig(
        id=row.pk,
        slug=row.slug,
        kind=row.kind,
        base_url=(row.base_url or kind.default_base_url).rstrip("/"),
        headers={**kind.auth_headers(sealed.get("api_key")), **sealed.get("headers", {})},
        price_book=row.price_book or kind.price_book or row.slug,
        connect_timeout=row.connect_timeout,
        first_byte_timeout=row.first_byte_timeout,
        idle_timeout=row.idle_timeout,
        trusted_network=True,
    )


def _deployment(row: "models.Deployment", provider: ProviderConfig) -> Deployment:  # type: ignore[name-defined]  # noqa: F821
    return Deployment(
        name=row.name,
        provider=provider,
        upstream_model=row.upstream_model,
        weight=row.weight,
        priority=row.priority,
        max_output=row.max_output,
        context_window=row.context_window,
        strategy=row.strategy or None,
    )
