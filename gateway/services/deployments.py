"""Writing deployments: models at providers, under the names that clients ask for."""

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError

from gateway.models import Deployment, Provider
from gateway.services.rows import assign, check, found_again, insert, places, record_delete, save
from keys import policy
from keys.actors import Actor
from keys.writing import alone
from security import audit

_TAKEN = "There is a deployment of this name already."


@alone(Deployment)
def create_deployment(
    *,
    actor: Actor,
    name: str,
    provider: str,
    upstream_model: str,
    weight: int = 1,
    priority: int = 0,
    version: str | None = None,
    max_parallel: int | None = None,
    rpm: int | None = None,
    tpm: int | None = None,
    context_window: int | None = None,
    max_output: int | None = None,
    capabilities: Mapping[str, bool] | None = None,
    strategy: str | None = None,
    enabled: bool = True,
    managed_by: str = "",
) -> Deployment:
    """Make a deployment: a model at the provider of this slug, under a public name. `capabilities` say what it has and
    what it has not; of the others nobody knows, and they count as there.
    """
    policy.require(actor, "routing", "create")
    deployment = Deployment(
        name=name,
        provider=_provider(provider),
        upstream_model=upstream_model,
        weight=weight,
        priority=priority,
        version=version or "",
        max_parallel=max_parallel,
        rpm=rpm,
        tpm=tpm,
        context_window=context_window,
        max_output=max_output,
        capabilities=dict(capabilities or {}),
        strategy=strategy or "",
        enabled=enabled,
        managed_by=managed_by,
    )
    check(deployment, besides={"provider"})
    insert(actor, deployment, _TAKEN)
    return deployment


@alone(Deployment)
def update_deployment(*, actor: Actor, deployment: Deployment, changes: Mapping[str, Any]) -> Deployment:
    """Change fields of a deployment, by their names in the API."""
    policy.require(actor, "routing", "update")
    deployment = found_again(Deployment, deployment)
    policy.refuse_managed(actor, deployment.managed_by)
    before = audit.state(deployment)
    values = dict(changes)
    if "provider" in values:
        values["provider"] = _provider(values["provider"])
    assign(deployment, values)
    check(deployment, besides={"provider"})
    save(actor, deployment, before, audit.state(deployment), _TAKEN)
    return deployment


@alone(Deployment)
def delete_deployment(*, actor: Actor, deployment: Deployment) -> None:
    """Delete a deployment, and its places in groups; the ledger keeps its name."""
    policy.require(actor, "routing", "delete")
    deployment = found_again(Deployment, deployment)
    policy.refuse_managed(actor, deployment.managed_by)
    record_delete(actor, deployment, audit.state(deployment), {"gateway.groupmember": places([deployment])})
    deployment.delete()


def _provider(slug: str) -> Provider:
    found = Provider.objects.filter(slug=slug).first()
    if found is None:
        raise ValidationError({"provider": "There is no provider of this slug."})
    return found
