"""One attempt: a call of one deployment, what it takes of the upstream's limits, and how it went.

However it ends, its end is told once: to the deployment's circuit, to the limits, to the statistics, and to the list
of attempts that the ledger keeps.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from time import perf_counter

from billing.holds import Hold
from gateway import metrics, statistics, tokens
from gateway.circuits import Pass
from gateway.errors import InvalidRequest, RateLimited, UpstreamCredentialsRejected, UpstreamError
from gateway.exchange import Exchange
from gateway.plane import Plane
from gateway.providers.base import Prepared, Provider
from gateway.types import Attempt, Completion, Deployment, Limit, StreamEvent, Usage
from keys.limits.base import Admission

_BYTES_PER_TOKEN = 4  # text's usual measure, for what a provider will bill of an attempt that told us nothing
_PARALLEL = "parallel"


class Try:
    """Not begun until `begin`; `made` is where its end is written down."""

    __slots__ = (
        "_admission", "_exchange", "_hold", "_made", "_plane", "_tokens_held", "_way", "call", "client", "deployment",
        "entry", "first", "open", "seconds", "started", "usage",
    )  # fmt: skip

    def __init__(
        self,
        plane: Plane,
        exchange: Exchange,
        hold: Hold,
        made: list[Attempt],
        client: Provider,
        call: Prepared,
        way: Pass,
    ) -> None:
        self._plane = plane
        self._exchange = exchange
        self._hold = hold
        self._made = made
        self._way = way
        self.deployment: Deployment = call.deployment
        self.client = client
        self.call = call
        self.open = False
        self.started = perf_counter()
        self.first: float | None = None
        """Seconds to the first content of a stream: from then on this is the answer."""
        self.seconds = 0.0
        """To its end."""
        self.usage: Usage | None = None
        """What it said of its tokens before its first content."""
        self.entry = 0
        """Where among the attempts it is written down, once it has ended."""
        self._admission: Admission | None = None
        self._tokens_held = 0

    def begin(self) -> None:
        self.open = True
        self._plane.signals.started(self.deployment.name)
        self.client.in_use += 1

    # ── the upstream's limits ───────────────────────────────────────────────────────────────────────────────────────

    async def admit(self, name: str) -> None:
        """Pass the limits of the deployment and of its provider, under this name. Raises `RateLimited`, with nothing
        taken.
        """
        limits = self._limits()
        if not limits:
            return
        taken = False
        try:
            # Tokens first: they can be given back, a request that was counted cannot.
            await self._plane.limits.take_tokens(name, limits, self._hold.tokens)
            self._tokens_held = self._hold.tokens
            self._admission = await self._plane.limits.admit(name, limits)
            taken = True
        except RateLimited as full:
            if full.limited_by is not None and full.limited_by[1] != _PARALLEL:
                self._plane.signals.used_up(self.deployment.name, full.retry_after or 0.0)
            raise
        finally:
            if not taken:
                self._plane.circuits.gave_back(self._way)
                self._plane.limits.give_back_tokens(limits, self._tokens_held)

    def _limits(self) -> tuple[Limit, ...]:
        own, providers = self.deployment.limit, self._plane.snapshot().limits.providers
        if own is None and not providers:
            return ()
        found = (own, providers.get(self.deployment.provider.slug))
        return tuple(limit for limit in found if limit is not None)

    def used(self, token_count: int) -> None:
        """Return to the limits what was held above what was used."""
        if self._tokens_held and self._admission is not None:
            self._plane.limits.give_back_tokens(self._admission.limits, self._tokens_held - token_count)
            self._tokens_held = 0

    # ── the call ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def complete(self, failed: "Failed", cancelled: "Cancelled") -> Completion:
        """A plain answer. Raises `UpstreamError` or `InvalidRequest`; `failed` and `cancelled` say what that means."""
        try:
            answer = await self.client.complete(self.call)
        except InvalidRequest:
            self.give_up("invalid_request", 400)
            raise
        except UpstreamError as error:
            failed(self, error)
            raise
        else:
            self.succeed()
            return answer
        finally:
            cancelled(self)

    async def open_stream(
        self, heard: Callable[["Try"], Awaitable[None]], failed: "Failed", cancelled: "Cancelled"
    ) -> "LiveStream":
        """A stream up to its first content, or its end without any. `heard` is awaited at its first event."""
        source = self.client.stream(self.call)
        begun: list[StreamEvent] = []
        opened = False
        try:
            async for events in source:
                if not begun:
                    await heard(self)
                begun += events
                if any(event.content for event in events):
                    break
                for event in events:
                    self.usage = event.usage or self.usage
        except InvalidRequest:
            self.give_up("invalid_request", 400)
            raise
        except UpstreamError as error:
            failed(self, error)
            raise
        else:
            opened = True
            self.first = perf_counter() - self.started
            self._plane.circuits.answered(self._way)
            return LiveStream(self, begun, source, failed)
        finally:
            if not opened:
                await source.aclose()
                cancelled(self)

    # ── how it went ─────────────────────────────────────────────────────────────────────────────────────────────────

    def succeed(self) -> None:
        """It answered to the end."""
        if self.open:
            self._plane.circuits.succeeded(self._way)
            self._end("ok", 200)

    def fail(self, error: UpstreamError, *, another: bool) -> None:
        """It failed by a fault of the deployment's. `another`: another deployment can answer in its stead."""
        if not self.open:
            return
        circuits, status, code = self._plane.circuits, error.upstream_status, error.code or "upstream_error"
        if isinstance(error, UpstreamCredentialsRejected):
            circuits.rejected(self._way, wait=error.retry_after)
        elif status == 429:
            circuits.throttled(self._way, wait=error.retry_after)
        else:
            circuits.failed(self._way, wait=error.retry_after, another=another)
        statistics.requests.attempt_failed(self.deployment.provider.slug, self.deployment.name, code, status)
        self._end(code, status, error=error.message, wasted=self.usage if self.first is None else None)

    def give_up(self, outcome: str, status: int | None, *, wasted: Usage | None = None) -> None:
        """It ended, if it had not, in a way that says nothing of the deployment. `wasted`: see `_end`."""
        if self.open:
            self._plane.circuits.gave_back(self._way)
            self._end(outcome, status, wasted=wasted)

    def answered_in_vain(self, usage: Usage) -> None:
        """It answered, and something else is the answer: it is paid for all the same."""
        self._made[self.entry] = self._hold.wasted(self._made[self.entry], self.deployment, usage)
        self.used(usage.total_tokens)

    def guess(self) -> Usage:
        """What a call costs that was taken and told us nothing: its prompt at least."""
        return Usage(tokens.bound_prompt(self._hold.request.body) // _BYTES_PER_TOKEN, 0, estimated=True)

    def _end(self, outcome: str, status: int | None, *, error: str | None = None, wasted: Usage | None = None) -> None:
        """`wasted`: what its provider will bill, as far as anybody can say, although something else is the answer."""
        self.open = False
        self.seconds = perf_counter() - self.started
        provider, name = self.deployment.provider.slug, self.deployment.name
        self._plane.signals.ended(name)
        self.client.in_use -= 1
        if self._admission is not None:
            self._plane.limits.leave(self._admission)
        if outcome != "ok" and self.first is None:
            self.used(wasted.total_tokens if wasted is not None else 0)
        metrics.attempts[provider, outcome] += 1
        made = Attempt(
            provider=provider,
            deployment=name,
            outcome=outcome,
            status=status,
            started_ms=round((self.started - self._exchange.started) * 1000, 3),
            latency_ms=round(self.seconds * 1000, 3),
            error=error,
        )
        if wasted is not None:
            made = self._hold.wasted(made, self.deployment, wasted)
        self.entry = len(self._made)
        self._made.append(made)


Failed = Callable[[Try, UpstreamError], None]
Cancelled = Callable[[Try], None]
"""Is told of an attempt that may have been left open: by a cancellation, and by nothing else."""


class LiveStream:
    """A stream past its first content."""

    def __init__(
        self, attempt: Try, begun: list[StreamEvent], source: AsyncGenerator[list[StreamEvent], None], failed: Failed
    ) -> None:
        self._attempt = attempt
        self._begun = begun
        self._source = source
        self._failed = failed

    async def events(self) -> AsyncGenerator[list[StreamEvent], None]:
        """All events from the first on. Raises `UpstreamError` where the upstream fails."""
        try:
            yield self._begun
            async for events in self._source:
                yield events
        except UpstreamError as error:
            self._failed(self._attempt, error)
            raise
        else:
            self._attempt.succeed()
        finally:
            await self.close()

    async def close(self) -> None:
        """Drop the upstream's connection, now and not when garbage is collected."""
        await self._source.aclose()
        self._attempt.give_up("cancelled", 200)
