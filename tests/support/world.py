"""What tests put into the database: providers, deployments, prices, keys, budgets, by the services that users reach."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from billing import pricebook, services
from billing.models import Budget, Price
from billing.pricing import Rates
from gateway.models import Deployment, GroupFallback, GroupMember, ModelGroup, Provider, TrafficWeight
from keys.actors import SYSTEM
from keys.models import VirtualKey
from keys.services import create_key

CREDENTIAL = "sk-test-upstream-credential-0123456789"
"""What the upstream of tests is called with: must never reach a client, a log or a row."""

INPUT, OUTPUT = Decimal("2.5"), Decimal("10")  # dollars per million tokens: gpt-4o's, so that sums look familiar


@dataclass(frozen=True)
class Key:
    """A virtual key in somebody's hands."""

    id: str
    secret: str
    user: str | None = None
    team: str | None = None

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}


def make_key(user: str | None = None, team: str | None = None, **fields: Any) -> Key:
    key, secret = create_key(
        actor=SYSTEM, **{"name": f"{user or 'a program'}'s key", "user_id": user, "team": team, **fields}
    )
    return Key(key.pk, secret, user, team)


def row_of(key: Key) -> VirtualKey:
    return VirtualKey.objects.get(pk=key.id)


def make_provider(base_url: str, slug: str = "upstream", **fields: Any) -> Provider:
    """An OpenAI-compatible provider; `api_key` and `headers` are its credentials."""
    api_key, headers = fields.pop("api_key", CREDENTIAL), fields.pop("headers", None)
    provider = Provider(**{"slug": slug, "kind": "openai", "base_url": base_url, **fields})
    provider.set_credentials(api_key=api_key, headers=headers)
    provider.full_clean()
    provider.save()
    return provider


def make_deployment(
    provider: Provider, name: str = "gpt-test", upstream_model: str | None = None, **fields: Any
) -> Deployment:
    deployment = Deployment(provider=provider, name=name, upstream_model=upstream_model or name, **fields)
    deployment.full_clean()
    deployment.save()
    return deployment


def make_group(
    name: str,
    *members: Deployment,
    strategy: str = "failover",
    fallbacks: Iterable[ModelGroup] = (),
    hedging: bool = False,
) -> ModelGroup:
    """Under `failover` members are tried in the order given (they have the same priority), then the fallbacks'."""
    group = ModelGroup.objects.create(name=name, strategy=strategy, hedging=hedging)
    for position, deployment in enumerate(members):
        GroupMember.objects.create(group=group, deployment=deployment, position=position)
    fall_back(group, *fallbacks)
    return group


def fall_back(group: ModelGroup, *fallbacks: ModelGroup) -> None:
    """Have these groups answer where nothing in `group` does, in this order."""
    for position, fallback in enumerate(fallbacks):
        GroupFallback.objects.create(group=group, fallback=fallback, position=position)


def make_weight(version: str, weight: int, group: ModelGroup | None = None) -> TrafficWeight:
    """A version's share of a group's traffic, or of all."""
    row = TrafficWeight(group=group, version=version, weight=weight)
    row.full_clean()
    row.save()
    return row


def make_price(
    model: str = "gpt-test",
    *,
    input: Decimal = INPUT,
    output: Decimal = OUTPUT,
    provider: str = "upstream",
    effective_from: datetime | None = None,
    **rates: Any,
) -> Price:
    return pricebook.set_price(
        provider=provider,
        model=model,
        rates=Rates(input=input, output=output, **rates),
        effective_from=effective_from,
        confirmed=True,
    )


def make_budget(
    scope: str = "organisation",
    owner: str = "",
    *,
    dollars: Decimal | str | None = None,
    tokens: int | None = None,
    period: str = "monthly",
    tz: str = "UTC",
    **fields: Any,
) -> Budget:
    return services.set_budget(
        actor=SYSTEM,
        scope=scope,
        owner=owner,
        period=period,
        tz=tz,
        limit_dollars=Decimal(dollars) if dollars is not None else None,
        limit_tokens=tokens,
        **fields,
    )
