"""Writing providers, deployments, model groups and traffic weights. Every change asks the policy, is audited in the
same transaction, and reaches the data plane by the model's own version: in this process before the caller goes on.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field), `policy.Conflict` (409), and
`Http404` where there is no such row, or somebody else deleted it meanwhile.
"""

from gateway.services.deployments import create_deployment, delete_deployment, update_deployment
from gateway.services.groups import MAX_MEMBERS, create_group, delete_group, group_state, update_group
from gateway.services.providers import (
    MAX_SECRET,
    checked_headers,
    create_provider,
    credentials_set,
    delete_provider,
    discover_models,
    models_are_named,
    origin,
    update_provider,
)
from gateway.services.weights import remove_traffic_weight, set_traffic_weight

__all__ = [
    "MAX_MEMBERS",
    "MAX_SECRET",
    "checked_headers",
    "create_deployment",
    "create_group",
    "create_provider",
    "credentials_set",
    "delete_deployment",
    "delete_group",
    "delete_provider",
    "discover_models",
    "group_state",
    "models_are_named",
    "origin",
    "remove_traffic_weight",
    "set_traffic_weight",
    "update_deployment",
    "update_group",
    "update_provider",
]
