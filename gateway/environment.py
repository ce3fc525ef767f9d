"""Providers that the environment defines: applied at each start, read-only in the console.

What has gone from the environment is disabled, never deleted: the ledger names it.
"""

from typing import NamedTuple

import structlog
from django.db import transaction
from django.db.models import QuerySet
from pydantic import SecretStr

from ailb_project.env import Env
from gateway import discovery, providers, vault
from gateway.discovery import NotDiscoverable, disable, follow, save_if_changed
from gateway.errors import UpstreamError
from gateway.models import Deployment, Provider
from gateway.providers.demo import MODEL as DEMO_MODEL
from keys.actors import ENVIRONMENT
from security import audit

log = structlog.get_logger()

MANAGED_BY = "environment"


class _Definition(NamedTuple):
    """What the environment says of one kind of provider."""

    kind: str
    needs_key: bool
    api_key: str | None
    base_url: str | None
    models: tuple[str, ...]

    @property
    def defined(self) -> bool:
        """A kind that needs no key is there once it is said where it is: its base URL has no default."""
        return bool(self.models or (self.api_key if self.needs_key else self.base_url))

    @property
    def discovers(self) -> bool:
        """Its models are those that its server has."""
        return self.defined and not self.models and discovery.can_discover(self.kind)


def apply(env: Env) -> None:
    """Bring the environment's providers into the database, and the demo provider where there is no other."""
    definitions = _definitions(env)
    # Asked before the transaction, which must not wait for a server's answer.
    listed = {definition.kind: _listed(definition) for definition in definitions if definition.discovers}
    with transaction.atomic():
        for definition in definitions:
            _apply_provider(definition, listed.get(definition.kind))
        apply_demo()


def rediscover(env: Env) -> None:
    """Ask again those providers whose models are not named: a model that was pulled is served without a restart."""
    definitions = [definition for definition in _definitions(env) if definition.discovers]
    for provider in _managed(definitions).filter(enabled=True):
        try:
            discovery.discover(provider, ENVIRONMENT)
        except (UpstreamError, NotDiscoverable) as error:
            discovery.watch.failed(provider.slug, error)
        else:
            discovery.watch.succeeded(provider.slug)
    if definitions:
        with transaction.atomic():
            apply_demo()


def names_models_of(env: Env, provider: Provider) -> bool:
    """Whether the environment says which models this provider has, so that nobody else may."""
    mine = [definition for definition in _definitions(env) if definition.kind == provider.slug]
    return provider.managed_by == MANAGED_BY and not any(definition.discovers for definition in mine)


def has_let_go_of(env: Env, provider: Provider) -> bool:
    """Whether the environment made this provider and says nothing of its kind any more: it is free for a file."""
    defined = [definition.kind for definition in _definitions(env) if definition.defined]
    return provider.managed_by == MANAGED_BY and provider.slug not in (*defined, "demo")


def _definitions(env: Env) -> list[_Definition]:
    found = [(kind, providers.vendor(kind).env_prefix) for kind in providers.kinds()]
    return [_definition(env, kind, prefix) for kind, prefix in found if prefix is not None]


def _definition(env: Env, kind: str, prefix: str) -> _Definition:
    return _Definition(
        kind=kind,
        needs_key=f"{prefix}_API_KEY" in Env.model_fields,
        api_key=_setting(env, prefix, "API_KEY"),
        base_url=_setting(env, prefix, "BASE_URL"),
        models=getattr(env, f"{prefix}_MODELS", ()),
    )


def _setting(env: Env, prefix: str, name: str) -> str | None:
    value = getattr(env, f"{prefix}_{name}", None)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _managed(definitions: list[_Definition]) -> QuerySet[Provider]:
    slugs = [definition.kind for definition in definitions]
    return Provider.objects.filter(slug__in=slugs, managed_by=MANAGED_BY)


def _listed(definition: _Definition) -> list[str] | None:
    """The models that its server has; None where it does not say."""
    kind = definition.kind
    if Provider.objects.filter(slug=kind).exclude(managed_by=MANAGED_BY).exists():
        return None
    provider = Provider(slug=kind, kind=kind, base_url=definition.base_url or "")
    if definition.api_key:
        provider.set_credentials(api_key=definition.api_key)
    try:
        models = discovery.ask(provider)
    except (UpstreamError, NotDiscoverable) as error:
        discovery.watch.failed(kind, error)
        return None
    discovery.watch.succeeded(kind)
    return models


def _apply_provider(definition: _Definition, listed: list[str] | None) -> None:
    """`listed`: the models that its server has, where it was asked and answered."""
    slug = definition.kind
    if definition.defined and not definition.models and not definition.discovers:
        log.warning("provider_without_models", provider=slug, hint=f"{slug.upper()}_MODELS names the models it serves")
    existing = Provider.objects.filter(slug=slug).first()
    if existing is not None and existing.managed_by != MANAGED_BY:
        if definition.defined:
            definer = existing.managed_by or "console"
            log.warning("environment_provider_ignored", provider=slug, reason=f"the {definer} has one of this name")
        return
    if not definition.defined:
        disable(existing, ENVIRONMENT)
        return
    provider = existing or Provider(slug=slug, kind=slug, managed_by=MANAGED_BY)
    before = audit.state(provider)
    provider.base_url, provider.enabled = definition.base_url or "", True
    if _stored_key(provider) != definition.api_key:
        provider.set_credentials(api_key=definition.api_key)
    provider.clean()
    save_if_changed(provider, before, ENVIRONMENT)
    if not definition.discovers:
        follow(provider, definition.models, ENVIRONMENT)
    elif listed is not None:
        follow(provider, listed, ENVIRONMENT)


def _stored_key(provider: Provider) -> str | None:
    """Empty, as no setting is, where none of AILB_ENCRYPTION_KEYS opens it: what the environment has is sealed anew."""
    try:
        return vault.open_sealed(provider.credentials).get("api_key")
    except vault.VaultError:
        return ""


def apply_demo() -> None:
    """With nothing configured a newcomer still gets an answer; beside real models a demo would only confuse."""
    others = Deployment.objects.filter(enabled=True, provider__enabled=True).exclude(provider__slug="demo").exists()
    provider = Provider.objects.filter(slug="demo").first()
    if provider is not None and provider.managed_by != MANAGED_BY:
        return
    if others:
        disable(provider, ENVIRONMENT)
        return
    provider = provider or Provider(slug="demo", kind="demo", managed_by=MANAGED_BY)
    before = audit.state(provider)
    provider.enabled = True
    save_if_changed(provider, before, ENVIRONMENT)
    follow(provider, (DEMO_MODEL,), ENVIRONMENT)
