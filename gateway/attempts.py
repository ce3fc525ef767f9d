"""Trying a request's candidates in turn until one answers.

Failover goes on until the first content; from then on a failure is the client's to see. Each attempt is kept for the
ledger.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from time import perf_counter

from gateway import metrics
from gateway.errors import InvalidRequest, UpstreamError
from gateway.plane import Plane
from gateway.providers.base import Completion, Provider, StreamEvent
from gateway.types import Attempt, ChatRequest, Deployment


class Attempts:
    """The attempts of one request. `arrived` is its `perf_counter`."""

    def __init__(self, plane: Plane, arrived: float) -> None:
        self._plane = plane
        self._arrived = arrived
        self.made: list[Attempt] = []
        self.sent_at: float | None = None
        """When the first upstream call began."""
        self.deployment: Deployment | None = None
        """The one that is being, or was last, tried."""

    @property
    def number(self) -> int:
        """Attempts so far, the current one included."""
        return len(self.made) + (1 if self._current is not None else 0)

    _current: tuple[Deployment, float] | None = None
    _client: Provider

    async def complete(self, request: ChatRequest, candidates: Sequence[Deployment]) -> Completion:
        """The first plain answer. Raises the last candidate's `UpstreamError`, or `InvalidRequest` at once."""
        failure: UpstreamError | None = None
        for deployment in candidates:
            self._begin(deployment)
            try:
                answer = await self._client.complete(request, deployment)
            except InvalidRequest:
                self._end("invalid_request", 400)
                raise
            except UpstreamError as error:
                self._failed(error)
                failure = error
            else:
                self._plane.signals.answered(deployment.name, self._end("ok", 200))
                return answer
            finally:
                self.end_open("cancelled", None)
        assert failure is not None
        raise failure

    async def open_stream(
        self,
        request: ChatRequest,
        candidates: Sequence[Deployment],
        on_first_event: Callable[[], Awaitable[None]],
    ) -> "LiveStream":
        """The first stream that has content, or an orderly end without any.

        `on_first_event` is awaited when an upstream sent its first event. Raises as `complete` does.
        """
        failure: UpstreamError | None = None
        for deployment in candidates:
            self._begin(deployment)
            source = self._client.stream(request, deployment)
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
                failure = error
            else:
                opened = True
                self._plane.signals.answered(deployment.name, perf_counter() - self._started)
                return LiveStream(self, begun, source)
            finally:
                if not opened:
                    await source.aclose()
                    self.end_open("cancelled", None)
        assert failure is not None
        raise failure

    @property
    def _started(self) -> float:
        assert self._current is not None
        return self._current[1]

    def _begin(self, deployment: Deployment) -> None:
        now = perf_counter()
        self.sent_at = self.sent_at or now
        self.deployment = deployment
        self._current = (deployment, now)
        self._plane.signals.started(deployment.name)
        self._client = self._plane.provider(deployment.provider)
        self._client.in_use += 1

    def _failed(self, error: UpstreamError) -> None:
        self._end(error.code or "upstream_error", error.upstream_status, error.message)

    def _end(self, outcome: str, status: int | None, error: str | None = None) -> float:
        """Write the current attempt down; returns its seconds."""
        assert self._current is not None
        (deployment, started), self._current = self._current, None
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

    def end_open(self, outcome: str, status: int | None, error: str | None = None) -> None:
        """Write the current attempt down, where one is open."""
        if self._current is not None:
            self._end(outcome, status, error)


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
            self._attempts.end_open(error.code or "upstream_error", error.upstream_status, error.message)
            raise
        else:
            self._attempts.end_open("ok", 200)
        finally:
            # Closing the generator drops the upstream's connection, now and not when garbage is collected.
            await self._source.aclose()
            self._attempts.end_open("cancelled", 200)
