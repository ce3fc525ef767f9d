"""Which models a provider has, asked of itself: its deployments follow what its server lists.

Only kinds whose vendor has `models()` can be asked. What has gone from a server is disabled, never deleted: the ledger
names it.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import msgspec
import structlog
from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError

from gateway import providers, registry
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.models import Deployment, Provider
from gateway.types import ProviderConfig
from keys.actors import Actor
from keys.writing import alone
from security import audit

log = structlog.get_logger()

SECONDS = 5.0  # for the whole question: a start, and a person at the console, wait for it


@runtime_checkable
class ListsModels(Protocol):
    """A vendor that can say which models its server has."""

    async def models(self) -> list[str]: ...

    async def close(self) -> None: ...


class NotDiscoverable(Exception):
    """A kind that cannot be asked, or a provider that cannot be used."""


def can_discover(kind: str) -> bool:
    return kind in providers.kinds() and issubclass(providers.vendor(kind), ListsModels)


def discover(provider: Provider, actor: Actor) -> list[str]:
    """Ask the provider, and bring its deployments in line; returns its models.

    What people made is left as they made it, but for models that are gone. Raises `UpstreamError` where the server
    does not answer (nothing is changed then), `NotDiscoverable`.
    """
    models = ask(provider)
    with alone(Provider):
        # Locked: of two that discover at once, the second finds what the first made. Gone: it was deleted meanwhile.
        locked = Provider.objects.select_for_update().filter(pk=provider.pk).first()
        if locked is not None:
            (follow if locked.managed_by else _complete)(locked, models, actor)
    return models


def ask(provider: Provider) -> list[str]:
    """The models that the server has, within `SECONDS`; the row need not be saved.

    Raises `UpstreamError`, `NotDiscoverable`.
    """
    config = registry.provider_config(provider) if can_discover(provider.kind) else None
    if config is None:
        raise NotDiscoverable
    listed = async_to_sync(_listed)(config)
    return [model for model in dict.fromkeys(listed) if _can_be_served(provider, model)]


async def _listed(config: ProviderConfig) -> list[str]:
    impatient = msgspec.structs.replace(config, connect_timeout=SECONDS, first_byte_timeout=SECONDS)
    client = providers.vendor(config.kind)(impatient)
    assert isinstance(client, ListsModels)
    try:
        async with asyncio.timeout(SECONDS):
            return await client.models()
    except TimeoutError:
        raise UpstreamTimeout("The provider did not answer in time.") from None
    finally:
        await client.close()


def _can_be_served(provider: Provider, model: str) -> bool:
    """Whether its name can be a deployment's: a server may call its models what it likes."""
    try:
        Deployment(name=model, upstream_model=model).clean_fields(exclude=["provider"])
    except ValidationError:
        log.warning("model_left_out", provider=provider.slug, model=model[:200])
        return False
    return True


# ── deployments that follow a list ──────────────────────────────────────────────────────────────────────────────────


def follow(provider: Provider, models: Iterable[str], actor: Actor) -> None:
    """Make the provider's managed deployments exactly these models."""
    mine = {d.upstream_model: d for d in provider.deployments.filter(managed_by=provider.managed_by)}
    for model in dict.fromkeys(models):
        deployment = mine.pop(model, None) or _new(provider, model)
        before = audit.state(deployment)
        deployment.enabled = True
        deployment.full_clean(validate_unique=False)
        save_if_changed(deployment, before, actor)
    for gone in mine.values():
        disable(gone, actor)


def _complete(provider: Provider, models: Iterable[str], actor: Actor) -> None:
    """Add what is missing and disable what is gone; what somebody disabled stays so."""
    known = list(provider.deployments.all())
    names = {_tagged(deployment.upstream_model) for deployment in known}
    there = {_tagged(model): model for model in models}
    for model in there.keys() - names:
        deployment = _new(provider, there[model])
        save_if_changed(deployment, audit.state(deployment), actor)
    for deployment in known:
        if not deployment.managed_by and _tagged(deployment.upstream_model) not in there:
            disable(deployment, actor)


def _tagged(model: str) -> str:
    """As Ollama completes a name: without a tag it is the latest."""
    return model if ":" in model else f"{model}:latest"


def _new(provider: Provider, model: str) -> Deployment:
    return Deployment(
        name=_free_name(provider, model), provider=provider, upstream_model=model, managed_by=provider.managed_by
    )


def _free_name(provider: Provider, model: str) -> str:
    """The model's own name, or with the provider's before it where another deployment has that."""
    return f"{provider.slug}/{model}" if Deployment.objects.filter(name=model).exists() else model


def disable(row: Provider | Deployment | None, actor: Actor) -> None:
    """Where there is such a row and it is not disabled yet."""
    if row is not None and row.enabled:
        before = audit.state(row)
        row.enabled = False
        save_if_changed(row, before, actor)


def save_if_changed(row: Provider | Deployment, before: dict[str, Any], actor: Actor) -> None:
    """Save and record. What is unchanged writes nothing, so that it raises no version and fills no log."""
    new = row.pk is None
    was, now = audit.difference(before, audit.state(row))
    if not new and isinstance(row, Provider) and row.credentials != _stored_credentials(row):
        was["credentials"], now["credentials"] = "(set)", "(changed)"
    if not new and not now:
        return
    row.save()
    audit.record(
        actor=actor,
        action="create" if new else "update",
        target=row,
        before=None if new else was,
        after=audit.state(row) if new else now,
    )


def _stored_credentials(provider: Provider) -> str:
    return Provider.objects.values_list("credentials", flat=True).get(pk=provider.pk)


# ── servers that come and go ────────────────────────────────────────────────────────────────────────────────────────


class Watch:
    """Tells the log of a server that stops answering, and of its return, once each."""

    def __init__(self) -> None:
        self._down: set[str] = set()

    def failed(self, slug: str, error: Exception) -> None:
        if slug not in self._down:
            self._down.add(slug)
            reason = error.message if isinstance(error, UpstreamError) else "The provider cannot be used."
            log.warning("models_not_discovered", provider=slug, reason=reason, kept="the models known so far")

    def succeeded(self, slug: str) -> None:
        if slug in self._down:
            self._down.remove(slug)
            log.info("models_discovered_again", provider=slug)


watch = Watch()
