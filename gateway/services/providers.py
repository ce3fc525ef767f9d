"""Writing providers. Their credentials go in sealed, and go to no host but the one they were given for."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ValidationError

from gateway import discovery, environment, providers, vault
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.models import Provider
from gateway.services.rows import found_again, insert, places, record_delete, save
from keys import policy
from keys.actors import FILE, Actor
from keys.policy import Conflict
from keys.writing import alone
from security import audit

CREDENTIALS = ("api_key", "headers")
TIMEOUTS = ("connect_timeout", "first_byte_timeout", "idle_timeout")

MAX_HEADERS = 50
MAX_SECRET = 4096
"""Characters of a header's value, and of a key: servers refuse more than 8 kB of header, which holds both."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}\Z")  # RFC 9110, 5.6.2: a token
_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say where a request goes and where it ends: set by whoever writes the request, or it is two."""

_PORTS = {"http": 80, "https": 443}


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
    managed_by: str = "",
) -> Provider:
    """Make a provider. An empty `base_url` is the vendor's own; timeouts are in seconds, None is the default."""
    policy.require(actor, "providers", "create")
    provider = Provider(slug=slug, kind=kind, base_url=base_url, price_book=price_book, enabled=enabled)
    provider.managed_by = managed_by
    _assign(provider, dict(zip(TIMEOUTS, (connect_timeout, first_byte_timeout, idle_timeout), strict=True)))
    _check_provider(provider)
    _seal(provider, {"api_key": api_key, "headers": headers})
    insert(actor, provider, "There is a provider of this slug already.")
    return provider


@alone(Provider)
def update_provider(*, actor: Actor, provider: Provider, changes: Mapping[str, Any]) -> Provider:
    """Change a provider's columns and credentials; the slug is for good, since ledger and prices know it by that.
    A timeout of None is the default.

    A credential that is given replaces the stored one, None forgets it. Where scheme, host or port of the base URL
    change, each that is stored must be given again or forgotten: it goes to the host that it was given for.
    """
    policy.require(actor, "providers", "update")
    provider = found_again(Provider, provider)
    policy.refuse_managed(actor, provider.managed_by)
    before, was = audit.state(provider), origin(provider)
    _assign(provider, {name: value for name, value in changes.items() if name not in CREDENTIALS})
    _check_provider(provider)
    given = {name: changes[name] for name in CREDENTIALS if name in changes}
    if origin(provider) != was:
        _require_credentials_again(provider, given)
    sealed = provider.credentials
    _seal(provider, given)
    after = audit.state(provider)
    if before["credentials"] and after["credentials"] and provider.credentials != sealed:
        after["credentials"] = "(replaced)"  # secrets look alike in the log
    save(actor, provider, before, after)
    return provider


@alone(Provider)
def delete_provider(*, actor: Actor, provider: Provider) -> None:
    """Delete a provider, and its deployments with it; the ledger keeps their names."""
    policy.require(actor, "providers", "delete")
    provider = found_again(Provider, provider)
    policy.refuse_managed(actor, provider.managed_by)
    deployments = list(provider.deployments.all())
    for deployment in deployments:
        policy.refuse_managed(actor, deployment.managed_by)
    along = {"gateway.deployment": len(deployments), "gateway.groupmember": places(deployments)}
    record_delete(actor, provider, audit.state(provider), along)
    for deployment in deployments:
        record_delete(actor, deployment, audit.state(deployment), {"gateway.groupmember": places([deployment])})
    provider.delete()


def discover_models(*, actor: Actor, provider: Provider) -> list[str]:
    """Ask the provider's server for its models, and bring its deployments in line.

    Raises `UpstreamError` where the server does not answer; nothing is changed then.
    """
    policy.require(actor, "providers", "update")
    if not discovery.can_discover(provider.kind):
        raise ValidationError({"kind": f"A provider of kind {provider.kind} cannot be asked for its models."})
    if models_are_named(provider):
        raise Conflict(f"The {provider.managed_by} names its models: change them there.")
    try:
        return discovery.discover(provider, actor)
    except discovery.NotDiscoverable:
        raise Conflict("Its credentials cannot be opened: give them again.") from None
    except UpstreamTimeout as late:
        raise UpstreamError(late.message) from None


def models_are_named(provider: Provider) -> bool:
    """Whether what defines the provider says which models it has, so that nobody else may."""
    return provider.managed_by == FILE.via or environment.names_models_of(settings.ENV, provider)


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


def _assign(provider: Provider, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(provider, name, getattr(Provider(), name) if value is None and name in TIMEOUTS else value)


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
