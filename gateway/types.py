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
    """key, user, team, organisation, provider, deployment, model or key_model"""
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
    """daily, weekly, monthly, total, or an interval as `billing.periods.custom` makes it"""
    tz: str
    limit_usd: Decimal | None
    """What requests may use: the limit, and the grace above it where there is one."""
    limit_tokens: int | None
    stated_usd: Decimal | None = None
    """The limit without its grace; None where there is no grace."""
    stated_tokens: int | None = None


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
    max_wait_ms: int | None = None
    """How long a request waits its turn where a limit would refuse it; None: not at all."""
    queue_weight: int = 1

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
    version: str | None = None
    """Traffic weights split what comes between the versions."""
    limit: Limit | None = None
    """Of scope deployment."""
    lacks: frozenset[str] = frozenset()
    """The capabilities that it is known not to have; an unknown one counts as there."""


class Dialect(StrEnum):
    """Whose wire format a body is in: of a door, and of a provider."""

    OPENAI = "openai"
    """Chat completions"""
    ANTHROPIC = "anthropic"
    """Messages"""
    OLLAMA = "ollama"
    """`/api/chat`; of providers only"""


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat call after parsing: the client's JSON without AILB's own fields, and what the gateway reads of it.

    The body stays in the client's dialect: an upstream of the same dialect gets it as it is, with nothing lost to a
    translation. For any other it is read into a `Prompt`, and that is written in the upstream's dialect.
    """

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
    dialect: Dialect = Dialect.OPENAI
    betas: str | None = None
    """The client's `anthropic-beta` header, for upstreams of that dialect."""


# ── the neutral form: what is between two dialects ──────────────────────────────────────────────────────────────────


class Text(msgspec.Struct, frozen=True):
    text: str
    cached: bool = False
    """A prompt-cache border after it (Anthropic's `cache_control`)."""


class Image(msgspec.Struct, frozen=True):
    """Either base64 `data` of a `media_type`, or a `url`."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None
    detail: str | None = None
    cached: bool = False


class Document(msgspec.Struct, frozen=True):
    """A file: base64 `data` of a `media_type`, or plain `text`, or a `url`, or a `file_id` at the upstream."""

    media_type: str | None = None
    data: str | None = None
    text: str | None = None
    url: str | None = None
    file_id: str | None = None
    title: str | None = None
    cached: bool = False


class Audio(msgspec.Struct, frozen=True):
    format: str
    data: str


class Refusal(msgspec.Struct, frozen=True):
    """What a model said instead of an answer."""

    text: str


class Thinking(msgspec.Struct, frozen=True):
    """Reasoning that is shown. Only with its `signature` may it be given back to the model that signed it."""

    text: str
    signature: str | None = None


class RedactedThinking(msgspec.Struct, frozen=True):
    data: str


class ToolCall(msgspec.Struct, frozen=True):
    """A model's call of a tool. `arguments` is JSON as the model wrote it: perhaps empty, perhaps not valid."""

    id: str
    name: str
    arguments: str


class ToolResult(msgspec.Struct, frozen=True):
    """What a tool answered. A user's message has its results first."""

    call_id: str
    content: "tuple[Text | Image | Document, ...]"
    is_error: bool = False
    cached: bool = False


class Foreign(msgspec.Struct, frozen=True):
    """A block that only its own dialect knows, such as a server tool's: no other can express it."""

    type: str


Block = Text | Image | Document | Audio | Refusal | Thinking | RedactedThinking | ToolCall | ToolResult | Foreign


class Message(msgspec.Struct, frozen=True):
    role: str
    """system (developer's too), user or assistant; tool results are blocks of a user's message"""
    content: tuple[Block, ...]
    name: str | None = None


class Tool(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: Json | None = None
    """JSON schema; None: it takes no arguments."""
    strict: bool | None = None
    cached: bool = False


class ToolChoice(msgspec.Struct, frozen=True):
    mode: str
    """auto, required, none or named"""
    name: str | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    """The answer is to be JSON: of this `schema`, or any object where that is None."""

    schema: Json | None = None
    name: str | None = None
    strict: bool | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """A request in the neutral form. None: the client did not say."""

    messages: tuple[Message, ...]
    stream: bool = False
    max_output: int | None = None
    temperature: float | None = None
    """0 to 2, as OpenAI has it"""
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tools: bool | None = None
    output: OutputFormat | None = None
    effort: str | None = None
    """none, minimal, low, medium, high, xhigh or max: how much the model is to think"""
    thinking_budget: int | None = None
    """Tokens, where the client named a number instead."""
    end_user: str | None = None
    service_tier: str | None = None
    """auto, default, flex or priority"""
    n: int = 1
    others: tuple[str, ...] = ()
    """Parameters, by the client's names, that only its own dialect has, and that a translation leaves out."""
    vital: tuple[str, ...] = ()
    """Those of them without which the answer would not be what was asked for: they are never left out, but refused."""


class Written(msgspec.Struct, frozen=True):
    """A prompt in an upstream's dialect, and the client's names of what could not be said there."""

    body: Json
    dropped: tuple[str, ...] = ()


class Stop(StrEnum):
    """Why a model stopped."""

    END = "end"
    SEQUENCE = "sequence"
    LENGTH = "length"
    CONTEXT_WINDOW = "context_window"
    TOOL_CALLS = "tool_calls"
    REFUSAL = "refusal"
    PAUSE = "pause"
    """A turn that the model may go on with, of an upstream's own tools"""
    UNKNOWN = "unknown"
    """A word that we do not know: shown as END, and counted"""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A plain answer in the neutral form, of one choice."""

    content: tuple[Block, ...]
    stop: Stop
    stop_sequence: str | None = None
    stop_category: str | None = None
    """Of a refusal, where the upstream says which."""


class TextDelta(msgspec.Struct, frozen=True):
    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True):
    text: str


class SignatureDelta(msgspec.Struct, frozen=True):
    """Signs the thinking before it."""

    signature: str


class RedactedThinkingDelta(msgspec.Struct, frozen=True):
    """One whole block."""

    data: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """`index` counts the answer's tool calls from 0."""

    index: int
    id: str
    name: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The next part of a call's arguments. Calls may be interleaved."""

    index: int
    arguments: str


class BlockEnd(msgspec.Struct, frozen=True):
    """The text, thinking or tool call is complete, where the upstream's dialect says so."""


class Finish(msgspec.Struct, frozen=True):
    stop: Stop
    stop_sequence: str | None = None
    stop_category: str | None = None


Delta = (
    TextDelta
    | RefusalDelta
    | ThinkingDelta
    | SignatureDelta
    | RedactedThinkingDelta
    | ToolCallStart
    | ToolCallDelta
    | BlockEnd
    | Finish
)


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A plain answer: `body` as the upstream sent it where it speaks the client's dialect, else `answer`."""

    body: bytes = b""
    answer: Answer | None = None
    usage: Usage | None
    """None where the upstream reported none."""
    text: str
    """Everything that costs output tokens: content, reasoning, refusal and tool calls."""
    spoken: str | None = None
    """What of `text` was said to the user, where that is not all of it."""
    served_model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    """The upstream's own word."""


class StreamEvent(msgspec.Struct, frozen=True):
    """One event of a stream: `data` where the upstream speaks the client's dialect, else `deltas`."""

    data: bytes = b""
    """JSON on one line; OpenAI's chunks that arrived together may be several, with what is between them on the wire"""
    text: str = ""
    """Content, reasoning, refusal and tool arguments: everything that costs output tokens."""
    content: bool = False
    """Something the client waits for: from here on there is no failover."""
    finish_reason: str | None = None
    """The upstream's own word."""
    usage: Usage | None = None
    """Of the whole answer so far: a later one replaces it."""
    usage_only: bool = False
    """OpenAI's final event, that carries usage and no choice."""
    null_usage: bool = False
    """Carries `"usage": null`, as upstreams do that were asked for usage."""
    served_model: str | None = None
    service_tier: str | None = None
    deltas: tuple[Delta, ...] = ()
    event: str | None = None
    """The event's name, where the dialect has names."""
    spoken: str | None = None
    """What of `text` was said to the user, where that is not all of it."""


class Frame(msgspec.Struct, frozen=True):
    """What a translated answer needs that no upstream says in the client's dialect."""

    id: str
    """The request's id"""
    created: int
    """Seconds since the epoch"""
    model: str
    """The upstream's name of the model, unless the answer says another"""
    input_tokens: int = 1
    """An estimate, for the beginning of a stream; above 0"""


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
    prompt_tokens: int | None = None
    """What the provider bills although it was not this attempt that answered, where that is known."""
    cost_usd: str | None = None
    """Of these, exact; part of the request's cost."""
