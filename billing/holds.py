"""Hold first, settle after: the two ends of every answer's money.

A hold reserves the most that a request can cost in every budget and token limit that applies, and writes it on the
ledger; settling gives it back, counts what it really cost and writes that. Between the two the request may fail, be cut
or lose its client: each is a settlement or a release, exactly one.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from time import time
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from billing import alerts, pricing
from billing.counters.base import Amount, BudgetCounters, Owners
from billing.ledger import LedgerWriter
from billing.pricebook import Book
from billing.rows import LedgerRow
from gateway import metrics, tokens
from gateway.errors import BudgetExceeded, GuardUnavailable, RateLimited, UnpricedModel
from gateway.types import Attempt, Caller, ChatRequest, Deployment, Json, Usage
from keys.limits.base import Gauge, Limits

log = structlog.get_logger()

T = TypeVar("T")

UNKNOWN_OUTPUT = 4096  # a deployment's maximum where nobody stated it (http-api.md section 2)
_TPM_OUTPUT = 4096  # what a token limit holds of a longer cap (architecture.md)
_COUNTED_INLINE = 8192  # bytes
_NOTHING = Amount(Decimal(0), 0)
_MOST_TOKENS = 10**10  # what an upstream may report; more is a defect of theirs and would not fit the ledger


class Facts(msgspec.Struct, frozen=True):
    """What is known of a request when it is held, and written with each of its entries."""

    request_id: str
    arrived: float
    at: datetime
    """The same moment as `arrived`."""
    caller: Caller
    client_request_id: str | None
    requested_model: str
    security_action: str | None


class Outcome(msgspec.Struct, frozen=True):
    """How a request ended. `usage` None: nothing was served."""

    status: int
    deployment: Deployment
    usage: Usage | None
    attempts: tuple[Attempt, ...]
    served_model: str | None = None
    service_tier: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    overhead_ms: float | None = None
    detail: dict[str, Any] = {}


class Holds:
    """Places holds; one a process."""

    def __init__(
        self,
        *,
        counters: BudgetCounters,
        limits: Limits,
        writer: LedgerWriter,
        process_id: str,
        unpriced: Literal["block", "allow"],
    ) -> None:
        self.counters = counters
        self.limits = limits
        self.writer = writer
        self.process_id = process_id
        self._unpriced = unpriced

    async def refuse_used_up(self, caller: Caller, arrived: float) -> None:
        """Raises `BudgetExceeded` where a budget has nothing left at all."""
        if caller.budgets:
            await self.counters.refuse_used_up(caller.budgets, datetime.fromtimestamp(arrived, UTC))

    async def place(
        self, facts: Facts, request: ChatRequest, candidates: Sequence[Deployment], book: Book, first: Deployment
    ) -> "Hold":
        """Reserve the most that `request` can cost at the dearest of `candidates`; `first` is tried first.

        The hold's request is the one to send: where the client set no output cap and a budget applies, it carries one.
        Raises `BudgetExceeded`, `UnpricedModel`, `RateLimited`, `RequestTooLargeForLimit`.
        """
        estimate = _Estimate(request, candidates, book, facts.at)
        if not estimate.priced and self._unpriced == "block" and _counts_dollars(facts.caller):
            raise UnpricedModel(
                f"The model '{request.model[:200]}' has no price, and a dollar budget applies to this request.",
                param="model",
            )
        placed = False
        try:
            size = await self._reserve(facts, estimate)
            gauge = await self._take_tokens(facts, estimate, size)
            held_tokens = size.for_limits if any(limit.tpm for limit in facts.caller.limits) else 0
            sent = estimate.capped(size.output) if facts.caller.budgets else request
            hold = Hold(self, facts, sent, first, book, size, held_tokens, gauge)
            placed = True
        finally:
            if not placed:
                # Refused, or the client left in between: nothing stays reserved.
                self.counters.settle(facts.request_id, _owners(facts.caller), _NOTHING, estimate.at)
        return hold

    async def _reserve(self, facts: Facts, estimate: "_Estimate") -> "_Size":
        size = estimate.size(estimate.bound, estimate.output)
        if not facts.caller.budgets or await self._held(facts, size):
            return size
        if not estimate.capped_by_client:
            size = await self._fitted(facts, estimate, estimate.bound)
            if await self._held(facts, size):
                return size
        # The bound came near the limit: the exact count may still fit.
        size = await self._fitted(facts, estimate, await estimate.exact())
        await self.counters.hold(facts.request_id, facts.caller.budgets, size.amount, facts.at)
        return size

    async def _held(self, facts: Facts, size: "_Size") -> bool:
        """Whether the budgets have room for it, and hold it now."""
        try:
            await self.counters.hold(facts.request_id, facts.caller.budgets, size.amount, facts.at)
        except BudgetExceeded:
            return False
        return True

    async def _fitted(self, facts: Facts, estimate: "_Estimate", prompt: int) -> "_Size":
        """The request with the longest answer that the budgets still buy, where the client left that open."""
        if estimate.capped_by_client:
            return estimate.size(prompt, estimate.output)
        headroom = await self.counters.headroom(facts.caller.budgets, estimate.at)
        output = estimate.affordable(prompt, headroom.usd, headroom.tokens)
        return estimate.size(prompt, max(output, 1))

    async def _take_tokens(self, facts: Facts, estimate: "_Estimate", size: "_Size") -> Gauge | None:
        limits = facts.caller.limits
        if not any(limit.tpm for limit in limits):
            return None
        try:
            return await self.limits.take_tokens(facts.request_id, limits, size.for_limits)
        except RateLimited:
            exact = estimate.size(await estimate.exact(), size.output)
            gauge = await self.limits.take_tokens(facts.request_id, limits, exact.for_limits)
            size.for_limits = exact.for_limits
            return gauge


class _Size:
    """What is held of one request."""

    __slots__ = ("amount", "for_limits", "output", "prompt", "usd")

    def __init__(self, prompt: int, output: int, n: int, usd: Decimal | None) -> None:
        self.prompt = prompt
        self.output = output
        self.usd = usd
        self.amount = Amount(usd, prompt + output * n)
        self.for_limits = prompt + min(output, _TPM_OUTPUT) * n


class _Estimate:
    """The most that a request can cost, cheaply first and exactly where that matters."""

    def __init__(self, request: ChatRequest, candidates: Sequence[Deployment], book: Book, at: datetime) -> None:
        self.request = request
        self.at = at
        self._models = _counting_apart(candidates)
        self.bound = max(tokens.bound_prompt(request.body, model) for model in self._models)
        self.capped_by_client = request.max_output is not None
        most = max(d.max_output or UNKNOWN_OUTPUT for d in candidates)
        self.output = request.max_output if request.max_output is not None else most
        self.tier: str | None = request.body.get("service_tier") or None
        self.audio = _may_carry_audio(request.body)
        found = [book.find(d.provider.price_book, d.upstream_model, d.name, at) for d in candidates]
        self.priced = None not in found
        # Most candidates of a model cost the same: each price is reckoned once.
        self.prices = list({id(price): price for price in found if price is not None}.values())

    def size(self, prompt: int, output: int) -> _Size:
        n = self.request.n
        usd = (
            max(pricing.ceiling(price, prompt, output * n, self.tier, audio=self.audio) for price in self.prices)
            if self.prices
            else None
        )
        return _Size(prompt, output, n, usd)

    async def exact(self) -> int:
        """The prompt's tokens, counted where they are the most; off the loop where that takes long."""
        body = self.request.body
        found = [await counted(tokens.count_prompt, body, model, size=self.bound) for model in self._models]
        return min(max(found), self.bound)

    def affordable(self, prompt: int, usd: Decimal | None, token_count: int | None) -> int:
        """The longest answer, in tokens, that this much buys; 0 or less where not even the prompt fits."""
        output = self.output
        if token_count is not None:
            output = min(output, (token_count - prompt) // self.request.n)
        if usd is not None and self.prices:
            output = self._affordable_usd(prompt, usd, output)
        return output

    def _affordable_usd(self, prompt: int, usd: Decimal, most: int) -> int:
        """By bisection: a price may have tiers and fees, so that cost is only known to rise with length."""
        low, high = 0, max(most, 0)
        if (self.size(prompt, high).usd or Decimal(0)) <= usd:
            return high
        while low < high:
            middle = (low + high + 1) // 2
            if (self.size(prompt, middle).usd or Decimal(0)) <= usd:
                low = middle
            else:
                high = middle - 1
        return low

    def capped(self, output: int) -> ChatRequest:
        """The request with `output` as its cap, where the client left that open: what is held must be enough."""
        return self.request if self.capped_by_client else msgspec.structs.replace(self.request, max_output=output)


class Hold:
    """One request's reservation, open until `settle`. `durable` is done once its ledger row is on disk."""

    def __init__(
        self,
        holds: Holds,
        facts: Facts,
        request: ChatRequest,
        first: Deployment,
        book: Book,
        size: _Size,
        held_tokens: int,
        gauge: Gauge | None,
    ) -> None:
        self._holds = holds
        self._facts = facts
        self._book = book
        self._size = size
        self._held_tokens = held_tokens
        self._wasted = _NOTHING
        """What attempts that did not answer cost."""
        self._renewals = 0
        self._renewed = Decimal(0)
        """US dollars reserved for that."""
        self.request = request
        self.tokens_gauge = gauge
        self.settled = False
        self._row = self._hold_row(first)
        self.durable: asyncio.Future[None] = holds.writer.hold(self._row)

    @property
    def worst(self) -> Usage:
        """All that was held, for an answer of which nothing else is known."""
        return Usage(self._size.prompt, self._size.output * self.request.n, estimated=True)

    @property
    def request_id(self) -> str:
        return self._facts.request_id

    @property
    def tokens(self) -> int:
        """What a tokens-a-minute limit holds of it."""
        return self._size.for_limits

    def wasted(self, attempt: Attempt, deployment: Deployment, usage: Usage) -> Attempt:
        """Add to the request's cost what an attempt cost that did not answer; returns the attempt with that."""
        book = deployment.provider.price_book
        price = self._book.find(book, deployment.upstream_model, deployment.name, self._facts.at)
        cost = pricing.cost(price, usage) if price is not None else None
        before = self._wasted
        usd = before.usd + cost if before.usd is not None and cost is not None else None
        self._wasted = Amount(usd, before.tokens + usage.total_tokens)
        told = f"{cost:f}" if cost is not None else None
        return msgspec.structs.replace(attempt, prompt_tokens=usage.prompt_tokens, cost_usd=told)

    async def renew(self, *, rival: bool = False) -> None:
        """Reserve, beside what is held for an answer, what attempts have cost meanwhile; for a `rival` of the one that
        is running as much again as the request holds. Raises `BudgetExceeded`: there is no room for a further attempt.
        """
        budgets = self._facts.caller.budgets
        wasted = (self._wasted.usd or Decimal(0)) - self._renewed
        more = self._size.amount if rival else Amount(wasted, 0)
        if not budgets or not (more.usd or more.tokens):
            return
        # Counted first: where the client leaves in between, `settle` gives back what may have been reserved.
        self._renewals += 1
        await self._holds.counters.hold(f"{self.request_id}/{self._renewals}", budgets, more, self._facts.at)
        self._renewed += Decimal(0) if rival else wasted

    def settle(self, outcome: Outcome) -> Decimal | None:
        """Give back what was held, count and write what it cost, attempts that did not answer included. Returns US
        dollars, None where no price is known.
        """
        assert not self.settled
        self.settled = True
        usage = _bounded(outcome.usage) if outcome.usage is not None else None
        price = self._price(outcome) if usage is not None else None
        cost: Decimal | None = self._wasted.usd
        if usage is not None:
            answer = pricing.cost(price, usage, outcome.service_tier) if price is not None else None
            cost = None if answer is None else answer + (cost or Decimal(0))
        elif self._wasted.tokens:
            usage = Usage(self._wasted.tokens, 0, estimated=True)
        spent = Amount(cost, usage.total_tokens if usage is not None else 0)
        facts = self._facts
        self._holds.counters.settle(facts.request_id, _owners(facts.caller), spent, facts.at)
        for number in range(self._renewals):
            self._holds.counters.settle(f"{facts.request_id}/{number + 1}", _owners(facts.caller), _NOTHING, facts.at)
        if self._held_tokens:
            self._holds.limits.give_back_tokens(facts.caller.limits, self._held_tokens - spent.tokens)
        self._holds.writer.put(self._closing_row(outcome, usage, price, cost))
        self._count(outcome, usage, cost)
        return cost

    def _price(self, outcome: Outcome) -> pricing.Price | None:
        """Of the model that served, else of the one that was asked upstream."""
        deployment, at = outcome.deployment, self._facts.at
        book = deployment.provider.price_book
        if outcome.served_model is not None and outcome.served_model != deployment.upstream_model:
            served = self._book.find(book, outcome.served_model, deployment.name, at)
            if served is not None:
                return served
        return self._book.find(book, deployment.upstream_model, deployment.name, at)

    def _count(self, outcome: Outcome, usage: Usage | None, cost: Decimal | None) -> None:
        if usage is None:
            return
        provider = outcome.deployment.provider.slug
        tally = metrics.tally(provider, outcome.deployment.name, outcome.status)
        tally.tokens_in += usage.prompt_tokens
        tally.tokens_out += usage.completion_tokens
        if cost is None:
            metrics.UNMETERED.labels("unpriced").inc()
            return
        tally.cost += float(cost)
        answer = cost - (self._wasted.usd or Decimal(0))  # what was wasted is held by `renew`
        if self._size.usd is not None and answer > self._size.usd:
            metrics.OVERRUNS.inc()
            told = {"request_id": self._facts.request_id, "held_usd": f"{self._size.usd:f}", "cost_usd": f"{answer:f}"}
            log.warning("overrun", **told)
            alerts.raise_soon("overrun", outcome.deployment.name, told)

    def _hold_row(self, first: Deployment) -> LedgerRow:
        facts, caller, size = self._facts, self._facts.caller, self._size
        return LedgerRow(
            request_id=facts.request_id,
            kind="hold",
            created_at=facts.arrived,
            written_at=time(),
            process_id=self._holds.process_id,
            client_request_id=facts.client_request_id,
            key_id=caller.key_id,
            user_id=caller.user_id,
            team=caller.team,
            provider=first.provider.slug,
            deployment=first.name,
            requested_model=clean(facts.requested_model, 200) or "",
            routed_model=first.upstream_model,
            served_model=None,
            status=None,
            stream=self.request.stream,
            held_usd=size.usd,
            held_prompt_tokens=size.prompt,
            held_output_tokens=size.output * self.request.n,
            prompt_tokens=None,
            completion_tokens=None,
            cached_tokens=None,
            cache_write_tokens=None,
            reasoning_tokens=None,
            cost_usd=None,
            price_id=None,
            unpriced=size.usd is None,
            estimated=False,
            latency_ms=None,
            ttft_ms=None,
            overhead_ms=None,
            session_id=clean(self.request.session_id, 200),
            tags=tuple(clean(tag, 100) or "" for tag in (*caller.tags, *self.request.tags)),
            attempts=(),
            security_action=facts.security_action,
            detail={"end_user": clean(self.request.end_user, 512)} if self.request.end_user else {},
        )

    def _closing_row(
        self, outcome: Outcome, usage: Usage | None, price: pricing.Price | None, cost: Decimal | None
    ) -> LedgerRow:
        used = usage or Usage(0, 0)
        hold, deployment = self._row, outcome.deployment
        # Written out rather than replaced in a copy of the hold: this is on every request's path.
        return LedgerRow(
            hold.request_id,
            "settlement" if usage is not None else "release",
            hold.created_at,
            time(),
            hold.process_id,
            hold.client_request_id,
            hold.key_id,
            hold.user_id,
            hold.team,
            deployment.provider.slug,
            deployment.name,
            hold.requested_model,
            deployment.upstream_model,
            clean(outcome.served_model, 200),
            outcome.status,
            hold.stream,
            held_usd=None,
            held_prompt_tokens=None,
            held_output_tokens=None,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            cached_tokens=used.cached_tokens,
            cache_write_tokens=used.cache_write_tokens + used.cache_write_1h_tokens,
            reasoning_tokens=used.reasoning_tokens,
            cost_usd=cost,
            price_id=price.id if price is not None else None,
            unpriced=cost is None,
            estimated=used.estimated,
            latency_ms=outcome.latency_ms,
            ttft_ms=outcome.ttft_ms,
            overhead_ms=outcome.overhead_ms,
            session_id=hold.session_id,
            tags=hold.tags,
            attempts=outcome.attempts,
            security_action=hold.security_action,
            detail={**hold.detail, **outcome.detail} if hold.detail else outcome.detail,
        )


async def counted(count: Callable[[T, str], int], what: T, model: str, *, size: int) -> int:
    """`count(what, model)`, on a thread where `size` bytes would hold up the event loop (0.2 ms a kilobyte).

    Raises `GuardUnavailable` where the tokenizer's ranks are missing: what cannot be counted cannot be held.
    """
    try:
        if size <= _COUNTED_INLINE and tokens.ready(model):
            return count(what, model)
        return await asyncio.to_thread(count, what, model)
    except tokens.RanksMissing as error:
        log.error("tokenizer_missing", hint=str(error))
        raise GuardUnavailable("Tokens cannot be counted at the moment.") from None


def _counting_apart(candidates: Sequence[Deployment]) -> list[str]:
    """The candidates' models; of those that count every prompt alike one."""
    models = dict.fromkeys(d.upstream_model for d in candidates)
    return list(models) if len(models) == 1 else list({tokens.measure(model): model for model in models}.values())


def _may_carry_audio(body: Json) -> bool:
    """Whether audio, dearer than text by far, may go in or come out."""
    modalities = body.get("modalities")
    if "audio" in body or (isinstance(modalities, list) and "audio" in modalities):
        return True
    contents = (message.get("content") for message in body["messages"])
    return any(
        part.get("type") == "input_audio" for content in contents if isinstance(content, list) for part in content
    )


def clean(text: str | None, length: int) -> str | None:
    """What a client or upstream sent, fit for a column: no NUL, no lone surrogate, at most `length` characters."""
    if text is None:
        return None
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "")[:length]


def _owners(caller: Caller) -> Owners:
    return Owners(caller.key_id, caller.user_id, caller.team)


def _counts_dollars(caller: Caller) -> bool:
    return any(terms.limit_usd is not None for terms in caller.budgets)


def _bounded(usage: Usage) -> Usage:
    """An upstream's figures inside what the ledger holds; they come from outside."""
    *counts, _ = msgspec.structs.astuple(usage)
    if min(counts) >= 0 and max(counts) <= _MOST_TOKENS:
        return usage
    names = Usage.__struct_fields__
    bounded = {name: min(max(count, 0), _MOST_TOKENS) for name, count in zip(names, counts, strict=False)}
    return msgspec.structs.replace(usage, **bounded)
