"""Values that cross app borders on the data plane: frozen, typed, without behaviour of their own.

A leaf: imports nothing of ours. Money is `Decimal` US dollars; times are seconds since the epoch (wall
clock) or milliseconds where the name says `_ms`; token counts are integers.
"""

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

Json = dict[str, Any]


class Role(StrEnum):
    """What a person or key may do; the matrix is `keys.policy`."""

    ADMIN = "admin"
    FINANCE = "finance"
    TEAM_LEAD = "team_lead"
    MEMBER = "member"
    VIEWER = "viewer"


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one answer, as OpenAI counts them.

    `prompt_tokens` is the whole input; cached, cache-write, audio and reasoning counts are parts of the totals
    and are never added to them. `cache_write_tokens` are five-minute writes and those of unstated duration.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    audio_prompt_tokens: int = 0
    audio_completion_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Limit(msgspec.Struct, frozen=True):
    """One owner's throttle. Rates are per minute; None is unlimited."""

    scope: str
    """key, user or team"""
    owner: str
    rpm: int | None
    tpm: int | None
    max_parallel: int | None


class BudgetTerms(msgspec.Struct, frozen=True):
    """What one budget allows. Money in US dollars; None is no limit of that kind."""

    id: int
    scope: str
    """key, user, team or organisation"""
    owner: str
    period: str
    """daily, weekly, monthly or total"""
    tz: str
    limit_usd: Decimal | None
    limit_tokens: int | None


class Caller(msgspec.Struct, frozen=True):
    """Who asks: a virtual key and the people behind it, as the snapshot knows them."""

    key_id: str
    key_name: str
    user_id: str | None
    team: str | None
    role: Role
    allowed_models: frozenset[str] | None
    limits: tuple[Limit, ...]
    budgets: tuple[BudgetTerms, ...]
    tags: tuple[str, ...]

    @property
    def owner(self) -> str:
        """Whose memory and documents a request sees: the user's, whichever key; else the key's own."""
        return f"user:{self.user_id}" if self.user_id is not None else f"key:{self.key_id}"


class ProviderConfig(msgspec.Struct, frozen=True):
    """One upstream: where it is, how it is spoken to. Timeouts are in seconds."""

    id: int
    slug: str
    kind: str
    base_url: str
    headers: Mapping[str, str]
    """Credentials included: never logged, never shown."""
    price_book: str
    connect_timeout: float
    first_byte_timeout: float
    idle_timeout: float
    trusted_network: bool
    """An admin set this address: loopback and private networks are allowed, link-local ones never."""


class Deployment(msgspec.Struct, frozen=True):
    """A model at a provider, under the public name that clients use."""

    name: str
    provider: ProviderConfig
    upstream_model: str
    weight: int
    priority: int
    max_output: int | None
    context_window: int | None
    strategy: str | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat call after parsing: the client's JSON without AILB's own fields, and what the gateway reads of it."""

    body: Json
    model: str
    stream: bool
    include_usage: bool
    """The client asked for the stream's usage chunk."""
    n: int
    max_output: int | None
    """The client's own cap on output tokens, an answer."""
    session_id: str | None
    rag_collection: str | None
    rag_top_k: int
    routing_strategy: str | None
    tags: tuple[str, ...]
    end_user: str | None


class Citation(msgspec.Struct, frozen=True):
    """A passage that an answer was given to draw on."""

    collection: str
    document_id: str
    title: str
    chunk: int
    score: float
    quote: str


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call of one deployment, as the ledger keeps it."""

    provider: str
    deployment: str
    outcome: str
    """ok, or the error's code"""
    status: int | None
    """The upstream's HTTP status; None where it never answered."""
    started_ms: float
    """After the request's arrival."""
    latency_ms: float
    error: str | None = None
