"""Trying a request's candidates in turn until one answers.

Failover goes on until the first content; from then on a failure is the client's to see. Each attempt is kept for the
ledger, and told to its deployment's circuit: one whose circuit is open by now is passed over.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter

from billing.holds import counted
from gateway import metrics, tokens
from gateway.circuits import Pass
from gateway.errors import (
    GatewayError,
    InvalidRequest,
    UnsupportedParameter,
    UpstreamCredentialsRejected,
    UpstreamError,
)  # fmt: skip
from gateway.plane import Plane
from gateway.planning import unhealthy
from gateway.providers.base import Prepared, Provider
from gateway.types import Attempt, ChatRequest, Completion, Deployment, Dialect, StreamEvent


class Attempts:
    """The attempts of one request. `arrived` is its `perf_counter`; `named` gives the client's name of a parameter."""

    def __init__(self, plane: Plane, arrived: float, named: Callable[[str], str]) -> None:
        self._plane = plane
        self._arrived = arrived
        self._named = named
        self.made: list[Attempt] = []
        self.sent_at: float | None = None
        """When the first upstream call began."""
        self.dropped: tuple[str, ...] = ()
        """Parameters, by OpenAI's names, that the one tried last was not told."""
        self.deployment: Deployment | None = None
        """The one that is being, or was last, tried."""
        self._candidates: Sequence[Deployment] = ()
        self._client: Provider
        self._current: tuple[Deployment, float, Pass] | None = None
        self._failure: GatewayError | None = None
        """What the client is told where none answers: the last upstream's failure, else why none was asked."""

    @property
    def number(self) -> int:
        """Attempts so far, the current one included."""
        return len(self.made) + (1 if self._current is not None else 0)

    async def complete(self, request: ChatRequest, candidates: Sequence[Deployment]) -> Completion:
        """The first plain answer. Raises the last candidate's `UpstreamError`, or `InvalidRequest` at once;
        `UnsupportedParameter` where no candidate can be asked for this at all, `NoHealthyDeployment` where none may be
        asked now.
        """
        for call in self._tries(request, candidates):
            try:
                answer = await self._client.complete(call)
            except InvalidRequest:
                self._end("invalid_request", 400)
                raise
            except UpstreamError as error:
                self._failed(error)
            else:
                self._plane.signals.answered(call.deployment.name, self._end_well())
                return answer
            finally:
                self.end_open("cancelled", None)
        assert self._failure is not None
        raise self._failure

    async def open_stream(
        self,
        request: ChatRequest,
        candidates: Sequence[Deployment],
        on_first_event: Callable[[], Awaitable[None]],
    ) -> "LiveStream":
        """The first stream that has content, or an orderly end without any.

        `on_first_event` is awaited when an upstream sent its first event. Raises as `complete` does.
        """
        for call in self._tries(request, candidates):
            source = self._client.stream(call)
            begun: list[StreamEvent] = []
            opened = False
            try:
                async for events in source:
                    if not begun:
                        await on_first_event()
                    begun += events
                    if any(event.content for event in events):
                        break
            except InvalidRequest:
                self._end("invalid_request", 400)
                raise
            except UpstreamError as error:
                self._failed(error)
            else:
                opened = True
                self._plane.signals.answered(call.deployment.name, perf_counter() - self._started)
                self._plane.circuits.answered(self._way)
                return LiveStream(self, begun, source)
            finally:
                if not opened:
                    await source.aclose()
                    self.end_open("cancelled", None)
        assert self._failure is not None
        raise self._failure

    @property
    def dialect(self) -> Dialect:
        """Of the upstream that was tried last."""
        return self._client.dialect

    @property
    def _started(self) -> float:
        assert self._current is not None
        return self._current[1]

    @property
    def _way(self) -> Pass:
        assert self._current is not None
        return self._current[2]

    def _tries(self, request: ChatRequest, candidates: Sequence[Deployment]) -> Iterator[Prepared]:
        """Begin an attempt at each candidate that can be asked for this and may be asked now."""
        self._candidates = candidates
        for deployment in candidates:
            try:
                call = self._prepared(request, deployment)
            except UnsupportedParameter as error:
                self._failure = self._failure or error
                continue
            if self._begin(deployment):
                yield call
            else:
                self._failure = self._failure or unhealthy(request.model, candidates, self._plane.circuits)

    def _prepared(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        """The request in the deployment's dialect. Raises `UnsupportedParameter` where that cannot express it."""
        self._client = self._plane.provider(deployment.provider)
        call = self._client.prepare(request, deployment)
        if call.dropped and self._plane.env.AILB_UNSUPPORTED_PARAMETERS == "refuse":
            name = self._named(call.dropped[0])[:100]
            raise UnsupportedParameter(f"'{name}' is not supported by this model's provider.", param=name)
        self.dropped = call.dropped
        return call

    def _begin(self, deployment: Deployment) -> bool:
        """False where its circuit is open, or another request is trying whether it is well again."""
        way = self._plane.circuits.enter(deployment)
        if way is None:
            return False
        now = perf_counter()
        self.sent_at = self.sent_at or now
        self.deployment = deployment
        self._current = (deployment, now, way)
        self._plane.signals.started(deployment.name)
        self._client.in_use += 1
        return True

    def _failed(self, error: UpstreamError) -> None:
        self._failure = error
        circuits, way = self._plane.circuits, self._way
        if isinstance(error, UpstreamCredentialsRejected):
            circuits.rejected(way, wait=error.retry_after)
        elif error.upstream_status == 429:
            circuits.throttled(way, wait=error.retry_after)
        else:
            another = any(d is not self.deployment and circuits.offers(d) for d in self._candidates)
            circuits.failed(way, wait=error.retry_after, another=another)
        self._write(error.code or "upstream_error", error.upstream_status, error.message)

    def _end_well(self) -> float:
        self._plane.circuits.succeeded(self._way)
        return self._write("ok", 200)

    def _end(self, outcome: str, status: int | None) -> None:
        """It ended in a way that says nothing of the deployment."""
        self._plane.circuits.gave_back(self._way)
        self._write(outcome, status)

    def _write(self, outcome: str, status: int | None, error: str | None = None) -> float:
        """Write the current attempt down; returns its seconds."""
        assert self._current is not None
        (deployment, started, _), self._current = self._current, None
        self._plane.signals.ended(deployment.name)
        self._client.in_use -= 1
        provider, now = deployment.provider.slug, perf_counter()
        metrics.attempts[provider, outcome] += 1
        self.made.append(
            Attempt(
                provider=provider,
                deployment=deployment.name,
                outcome=outcome,
                status=status,
                started_ms=round((started - self._arrived) * 1000, 3),
                latency_ms=round((now - started) * 1000, 3),
                error=error,
            )
        )
        return now - started

    def end_open(self, outcome: str, status: int | None) -> None:
        """Write the current attempt down, where one is open: given up, for no fault of the deployment's."""
        if self._current is not None:
            self._end(outcome, status)

    def end_well(self) -> None:
        """The current attempt's stream came to its end."""
        if self._current is not None:
            self._end_well()

    def end_failed(self, error: UpstreamError) -> None:
        """The current attempt's stream broke, past its first content."""
        if self._current is not None:
            self._failed(error)


class LiveStream:
    """A stream past its first content."""

    def __init__(
        self, attempts: Attempts, begun: list[StreamEvent], source: AsyncGenerator[list[StreamEvent], None]
    ) -> None:
        self._attempts = attempts
        self._begun = begun
        self._source = source

    async def events(self) -> AsyncGenerator[list[StreamEvent], None]:
        """All events from the first on. Raises `UpstreamError` where the upstream fails."""
        try:
            yield self._begun
            async for events in self._source:
                yield events
        except UpstreamError as error:
            self._attempts.end_failed(error)
            raise
        else:
            self._attempts.end_well()
        finally:
            # Closing the generator drops the upstream's connection, now and not when garbage is collected.
            await self._source.aclose()
            self._attempts.end_open("cancelled", 200)


async def count_prompt(plane: Plane, request: ChatRequest, deployment: Deployment) -> int:
    """A prompt's tokens: the provider's own count, where it has one, is well and answers; else ours.

    Counting is an endpoint of its own: how it goes says nothing of the deployment, and it is no probe.
    """
    number = None
    if plane.circuits.is_closed(deployment):
        with suppress(UpstreamError):
            number = await plane.provider(deployment.provider).count_tokens(request, deployment)
    if number is not None:
        return number
    size = tokens.bound_prompt(request.body, deployment.upstream_model)
    return await counted(tokens.count_prompt, request.body, deployment.upstream_model, size=size)
