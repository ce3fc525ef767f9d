"""Which deployments stand behind a name: the data plane's side of providers, deployments and groups."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property

import msgspec
import structlog

from gateway import vault
from gateway.errors import ModelNotAllowed, ModelNotFound
from gateway.providers import vendor
from gateway.types import Deployment, Limit, ProviderConfig

log = structlog.get_logger()

AUTO = "auto"


class Pool(msgspec.Struct, frozen=True):
    """Deployments that are tried before any of the next pool: a group's own, in order, or those of one fallback."""

    name: str
    deployments: tuple[Deployment, ...]
    strategy: str | None = None
    weights: Mapping[str, int] = {}
    """Of versions: what splits the traffic before a deployment's own weight does."""
    picky: bool = False
    """Something is known of what one of them cannot do: a request's needs must be looked at."""
    draining: bool = False
    """One of them has weight 0: it is tried where nothing else answers."""


class Group(msgspec.Struct, frozen=True):
    """A model group: its own pool, then its fallbacks' and theirs."""

    name: str
    pools: tuple[Pool, ...]
    hedging: bool = False


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
    weights: Mapping[str, int] = {}
    """Of versions, for traffic that is no group's."""
    routes: dict[str, "Route"] = {}
    """By what was asked for and found: made at the first request."""


class Route(msgspec.Struct, frozen=True, dict=True):
    """What a name means for one caller: pools, none of them empty."""

    name: str
    pools: tuple[Pool, ...]
    hedging: bool = False
    is_group: bool = False

    @cached_property
    def candidates(self) -> tuple[Deployment, ...]:
        """Those of the first pool, which answer while one of them can."""
        return self.pools[0].deployments

    @cached_property
    def size(self) -> int:
        """How many deployments there are, in all pools."""
        return sum(len(pool.deployments) for pool in self.pools)

    @cached_property
    def limited_as(self) -> str:
        """The name that limits of models go by: a deployment's own, where this is another of its names. A group's is
        the group's, however little of it there is, or is left for the caller.
        """
        return self.candidates[0].name if self.size == 1 and not self.is_group else self.name

    @cached_property
    def picky(self) -> bool:
        """See `Pool.picky`."""
        return any(pool.picky for pool in self.pools)


def resolve(catalog: Catalog, name: str, allowed_models: frozenset[str] | None) -> Route:
    """The deployments that `name` stands for and the caller may use.

    `name` is a deployment, a group, `provider/model`, an upstream model or `auto`. Raises `ModelNotFound`,
    `ModelNotAllowed`.
    """
    route = catalog.routes.get(name) or _lookup(catalog, name)
    if route is None:
        raise ModelNotFound(f"The model '{name[:200]}' does not exist or is not yours to use.", param="model")
    catalog.routes[name] = route
    if allowed_models is None or name in allowed_models:
        return route
    pools = tuple(allowed for pool in route.pools if (allowed := _allowed(pool, allowed_models)).deployments)
    if not pools:
        raise ModelNotAllowed(f"This key may not use the model '{name[:200]}'.", param="model")
    return Route(name, pools, route.hedging, route.is_group)


def _pool(
    name: str, deployments: tuple[Deployment, ...], strategy: str | None, weights: Mapping[str, int] | None = None
) -> Pool:
    picky = any(d.lacks or d.context_window is not None or d.max_output is not None for d in deployments)
    return Pool(name, deployments, strategy, weights or {}, picky, any(not d.weight for d in deployments))


def _allowed(pool: Pool, models: frozenset[str]) -> Pool:
    return msgspec.structs.replace(pool, deployments=tuple(d for d in pool.deployments if d.name in models))


def _lookup(catalog: Catalog, name: str) -> Route | None:
    deployment = catalog.deployments.get(name)
    if deployment is not None:
        return Route(name, (_pool(name, (deployment,), deployment.strategy),))
    group = catalog.groups.get(name)
    if group is not None:
        return Route(name, group.pools, group.hedging, is_group=True) if group.pools else None
    found = tuple(catalog.deployments.values()) if name == AUTO else catalog.by_model.get(name)
    if not found:
        return None
    return Route(name, (_pool(name, found, None if name == AUTO else found[0].strategy, catalog.weights),))


def visible(catalog: Catalog, allowed_models: frozenset[str] | None) -> list[ModelCard]:
    """What a key with this allow-list sees in `/v1/models`, by name."""
    return [card for name, card in sorted(catalog.cards.items()) if _usable(catalog, name, allowed_models)]


def _usable(catalog: Catalog, name: str, allowed_models: frozenset[str] | None) -> bool:
    if allowed_models is None or name in allowed_models:
        return True
    group = catalog.groups.get(name)
    return group is not None and any(d.name in allowed_models for pool in group.pools for d in pool.deployments)


def load() -> Catalog:
    """Read providers, deployments and groups: for the snapshot."""
    from gateway import models

    enabled = models.Provider.objects.filter(enabled=True)
    providers = {row.pk: config for row in enabled if (config := provider_config(row))}
    rows = models.Deployment.objects.filter(enabled=True, provider__in=providers).order_by("priority", "id")
    by_pk = {row.pk: _deployment(row, providers[row.provider_id]) for row in rows}
    deployments = {d.name: d for d in by_pk.values()}
    cards = {row.name: _card(row.name, row.created_at.timestamp(), by_pk[row.pk].provider.slug) for row in rows}
    weights = _weights()
    groups = _groups(by_pk, weights)
    for name, created in models.ModelGroup.objects.values_list("name", "created_at"):
        if name not in cards and groups[name].pools:
            first = groups[name].pools[0].deployments[0]
            cards[name] = _card(name, created.timestamp(), first.provider.slug)
    return Catalog(deployments, groups, _by_model(deployments.values()), cards, weights[None])


def _groups(by_pk: Mapping[int, Deployment], weights: Mapping[int | None, dict[str, int]]) -> dict[str, Group]:
    """By name; `weights` are the versions'."""
    from gateway.models import ModelGroup

    rows = list(ModelGroup.objects.prefetch_related("members", "fallbacks").order_by("name"))
    pools: dict[int, Pool] = {}
    for row in rows:
        members = tuple(by_pk[m.deployment_id] for m in row.members.all() if m.deployment_id in by_pk)
        merged = {**weights[None], **weights[row.pk]}
        pools[row.pk] = _pool(row.name, members, row.strategy or None, merged)
    fallbacks = {row.pk: [fallback.fallback_id for fallback in row.fallbacks.all()] for row in rows}
    return {
        row.name: Group(
            row.name,
            tuple(pools[pk] for pk in _in_reach(row.pk, fallbacks) if pools[pk].deployments),
            row.hedging,
        )
        for row in rows
    }


def _in_reach(group: int, fallbacks: Mapping[int, list[int]]) -> Iterable[int]:
    """The group, then its fallbacks and theirs, depth first: each once, so that a circle of them ends."""
    seen: dict[int, None] = {}
    waiting = [group]
    while waiting:
        pk = waiting.pop()
        if pk not in seen:
            seen[pk] = None
            waiting += reversed(fallbacks[pk])
    return seen


def _weights() -> defaultdict[int | None, dict[str, int]]:
    """Of versions, by group; None: of all traffic."""
    from gateway.models import TrafficWeight

    found: defaultdict[int | None, dict[str, int]] = defaultdict(dict)
    for row in TrafficWeight.objects.all():
        found[row.group_id][row.version] = row.weight
    return found


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
        version=row.version or None,
        limit=Limit("deployment", row.name, row.rpm, row.tpm, row.max_parallel)
        if row.rpm or row.tpm or row.max_parallel
        else None,
        lacks=frozenset(name for name, there in row.capabilities.items() if not there),
    )
