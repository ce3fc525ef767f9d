"""Writing keys, people and limits. Every change asks the policy, is audited in the same transaction, and reaches the
data plane by the model's own version.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field), `policy.Conflict` (409) and,
where somebody else deleted it meanwhile, `Http404`.
"""

from keys.services.keys import (
    MAX_GRACE,
    QUOTA_FIELDS,
    create_key,
    replace_secret,
    revoke_key,
    rotate_key,
    update_key,
)
from keys.services.limits import delete_limit, set_limit, update_limit
from keys.services.people import (
    act_as,
    create_team,
    create_user,
    ensure_team,
    ensure_user,
    set_password,
    set_role,
    update_team,
    update_user,
)

__all__ = [
    "MAX_GRACE",
    "QUOTA_FIELDS",
    "act_as",
    "create_key",
    "create_team",
    "create_user",
    "delete_limit",
    "ensure_team",
    "ensure_user",
    "replace_secret",
    "revoke_key",
    "rotate_key",
    "set_limit",
    "set_password",
    "set_role",
    "update_key",
    "update_limit",
    "update_team",
    "update_user",
]
