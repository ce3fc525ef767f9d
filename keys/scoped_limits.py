"""Limits of everybody: the organisation's, a provider's, a model's, and a key's for a model. The data plane's side."""

from collections.abc import Mapping

import msgspec

from gateway.types import Caller, Limit


class ScopedLimits(msgspec.Struct, frozen=True):
    """All of them, for the snapshot."""

    organisation: Limit | None = None
    providers: Mapping[str, Limit] = {}
    """By slug: they are met when an attempt is made."""
    models: Mapping[str, Limit] = {}
    key_models: Mapping[tuple[str, str], Limit] = {}
    """By key id and model."""

    def of(self, caller: Caller, model: str) -> tuple[Limit, ...]:
        """Every limit that a request of `caller` for `model` has to pass before it is routed."""
        if self.organisation is None and not self.models and not self.key_models:
            return caller.limits
        found = (self.organisation, self.models.get(model), self.key_models.get((caller.key_id, model)))
        return caller.limits + tuple(limit for limit in found if limit is not None)


def load() -> ScopedLimits:
    """Read them: for the snapshot."""
    from keys.models import LimitScope, RateLimit

    by_scope: dict[str, dict[tuple[str, str], Limit]] = {scope: {} for scope in LimitScope.values}
    for row in RateLimit.objects.all():
        owner = f"{row.owner}:{row.model}" if row.scope == LimitScope.KEY_MODEL else row.owner or row.model
        limit = Limit(row.scope, owner, row.rate_limit_rpm, row.rate_limit_tpm, row.max_parallel)
        by_scope[row.scope][row.owner, row.model] = limit
    return ScopedLimits(
        organisation=by_scope[LimitScope.ORGANISATION].get(("", "")),
        providers={owner: limit for (owner, _), limit in by_scope[LimitScope.PROVIDER].items()},
        models={model: limit for (_, model), limit in by_scope[LimitScope.MODEL].items()},
        key_models=by_scope[LimitScope.KEY_MODEL],
    )
