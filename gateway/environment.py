"""Providers that the environment defines: applied at each start, read-only in the console.

What has gone from the environment is disabled, never deleted: the ledger names it.
"""

from typing import Any

import structlog
from django.db import transaction
from pydantic import SecretStr

from ailb_project.env import Env
from gateway import providers, vault
from gateway.models import Deployment, Provider
from gateway.providers.demo import MODEL as DEMO_MODEL
from keys.actors import ENVIRONMENT
from security import audit

log = structlog.get_logger()

MANAGED_BY = "environment"


@transaction.atomic
def apply(env: Env) -> None:
    """Bring the environment's providers into the database, and the demo provider where there is no other."""
    for kind in providers.kinds():
        prefix = providers.vendor(kind).env_prefix
        if prefix is not None:
            _apply_provider(
                kind, _setting(env, prefix, "API_KEY"), _setting(env, prefix, "BASE_URL"), _models(env, prefix)
            )
    _apply_demo()


def _setting(env: Env, prefix: str, name: str) -> str | None:
    value = getattr(env, f"{prefix}_{name}", None)
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _models(env: Env, prefix: str) -> tuple[str, ...]:
    found: tuple[str, ...] = getattr(env, f"{prefix}_MODELS", ())
    return found


def _apply_provider(slug: str, api_key: str | None, base_url: str | None, models: tuple[str, ...]) -> None:
    defined = bool(api_key or models)
    if api_key and not models:
        log.warning("provider_without_models", provider=slug, hint=f"{slug.upper()}_MODELS names the models it serves")
    existing = Provider.objects.filter(slug=slug).first()
    if existing is not None and existing.managed_by != MANAGED_BY:
        if defined:
            log.warning("environment_provider_ignored", provider=slug, reason="the console has one of this name")
        return
    if not defined:
        _disable(existing)
        return
    provider = existing or Provider(slug=slug, kind=slug, managed_by=MANAGED_BY)
    before = audit.state(provider)
    provider.base_url, provider.enabled = base_url or "", True
    if vault.open_sealed(provider.credentials).get("api_key") != api_key:
        provider.set_credentials(api_key=api_key)
    provider.clean()
    _save_if_changed(provider, before)
    _apply_deployments(provider, models)


def _apply_deployments(provider: Provider, models: tuple[str, ...]) -> None:
    mine = {d.upstream_model: d for d in provider.deployments.filter(managed_by=MANAGED_BY)}
    for model in dict.fromkeys(models):
        deployment = mine.pop(model, None) or Deployment(
            name=_free_name(provider, model), provider=provider, upstream_model=model, managed_by=MANAGED_BY
        )
        before = audit.state(deployment)
        deployment.enabled = True
        deployment.full_clean(validate_unique=False)
        _save_if_changed(deployment, before)
    for gone in mine.values():
        _disable(gone)


def _free_name(provider: Provider, model: str) -> str:
    """The model's own name, or with the provider's before it where another deployment has that."""
    return f"{provider.slug}/{model}" if Deployment.objects.filter(name=model).exists() else model


def _apply_demo() -> None:
    """With nothing configured a newcomer still gets an answer; beside real models an echo would only confuse."""
    others = Deployment.objects.filter(enabled=True, provider__enabled=True).exclude(provider__slug="demo").exists()
    provider = Provider.objects.filter(slug="demo").first()
    if provider is not None and provider.managed_by != MANAGED_BY:
        return
    if others:
        _disable(provider)
        return
    provider = provider or Provider(slug="demo", kind="demo", managed_by=MANAGED_BY)
    before = audit.state(provider)
    provider.enabled = True
    _save_if_changed(provider, before)
    _apply_deployments(provider, (DEMO_MODEL,))


def _disable(row: Provider | Deployment | None) -> None:
    if row is not None and row.enabled:
        before = audit.state(row)
        row.enabled = False
        _save_if_changed(row, before)


def _save_if_changed(row: Provider | Deployment, before: dict[str, Any]) -> None:
    """An unchanged start writes nothing, so that it raises no version and fills no log."""
    new = row.pk is None
    was, now = audit.difference(before, audit.state(row))
    if not new and isinstance(row, Provider) and row.credentials != _stored_credentials(row):
        was["credentials"], now["credentials"] = "(set)", "(changed)"
    if not new and not now:
        return
    row.save()
    audit.record(
        actor=ENVIRONMENT,
        action="create" if new else "update",
        target=row,
        before=None if new else was,
        after=audit.state(row) if new else now,
    )


def _stored_credentials(provider: Provider) -> str:
    return Provider.objects.values_list("credentials", flat=True).get(pk=provider.pk)
