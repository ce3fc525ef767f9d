"""Trying a request's candidates in turn until one answers.

Failover goes on until the first content; from then on a failure is the client's to see. A candidate whose circuit is
open by now is passed over. Where the others are exhausted the last one may be asked again, after a pause. With hedging,
one that is later than 19 in 20 of its answers gets a rival, and whoever answers first is heard.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, TypeVar

from billing.holds import Hold, counted
from gateway import metrics, retries, tokens
from gateway.errors import (
    BudgetExceeded,
    GatewayError,
    RateLimited,
    UnsupportedParameter,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
)  # fmt: skip
from gateway.exchange import Exchange
from gateway.plane import Plane
from gateway.planning import Plan, unhealthy
from gateway.providers.base import Prepared, Provider
from gateway.tries import LiveStream, Try
from gateway.types import Attempt, ChatRequest, Completion, Deployment, Dialect, Usage

T = TypeVar("T", Completion, LiveStream)
Ask = Callable[[Try], Coroutine[Any, Any, T]]


class Attempts:
    """The attempts of one request."""

    def __init__(self, plane: Plane, exchange: Exchange, hold: Hold, plan: Plan) -> None:
        self._plane = plane
        self._exchange = exchange
        self._hold = hold
        self._plan = plan
        self._candidates: Iterator[Deployment] = iter(plan)
        self._task = asyncio.current_task()
        self._late = False
        self._again = 0
        """How often the last candidate was asked once more."""
        self.number = 0
        """Attempts so far, those that are running included."""
        self.made: list[Attempt] = []
        self.last: Try | None = None
        """The one that answered, or was last begun."""
        self._heard: Try | None = None
        """The one whose first event opened a stream."""
        self.sent_at: float | None = None
        """When the first upstream call began."""
        self._failure: GatewayError | None = None
        """What the client is told where none answers: the last upstream's failure, else why none was asked."""
        plane.failovers.earn()
        plane.retries.earn()

    @property
    def deployment(self) -> Deployment:
        """The one that answered, or was last tried; before that the first candidate."""
        return self.last.deployment if self.last is not None else self._plan.first

    @property
    def told(self) -> tuple[Deployment, tuple[str, ...]]:
        """What headers name: the deployment that opened the stream, or answered, and the parameters, by OpenAI's names,
        that it was not told.
        """
        attempt = self._heard or self.last
        return (self._plan.first, ()) if attempt is None else (attempt.deployment, attempt.call.dropped)

    @property
    def dialect(self) -> Dialect:
        """Of its upstream."""
        assert self.last is not None
        return self.last.client.dialect

    async def complete(self) -> Completion:
        """The first plain answer. Raises the last candidate's `UpstreamError`, or `InvalidRequest` at once;
        `UnsupportedParameter` where no candidate can be asked for this at all, `NoHealthyDeployment` where none may be
        asked now, `RateLimited` where their own limits leave nothing.
        """

        async def completed(attempt: Try) -> Completion:
            return await attempt.complete(self._failed, self._cancelled)

        return await self._in_time(completed)

    async def open_stream(self, on_first_event: Callable[[], Awaitable[None]]) -> LiveStream:
        """The first stream that has content, or an orderly end without any.

        `on_first_event` is awaited when an upstream sent its first event. Raises as `complete` does.
        """

        async def heard(attempt: Try) -> None:
            self._heard = self._heard or attempt
            await on_first_event()

        async def opened(attempt: Try) -> LiveStream:
            return await attempt.open_stream(heard, self._failed, self._cancelled)

        return await self._in_time(opened)

    def measured(self, usage: Usage) -> None:
        """An answer came whole: how fast is what routing goes by."""
        assert self.last is not None
        signals, name, tokens_out = self._plane.signals, self.last.deployment.name, usage.completion_tokens
        signals.measured(name, first=self.last.first, whole=self.last.seconds, tokens=tokens_out)
        signals.answered(self._plan.route.name, tokens_out)
        if self._plan.key is not None:
            signals.holders.served(self._plan.key, name)

    def used(self, usage: Usage) -> None:
        """What the answer, whole or cut, took of its upstream's limits."""
        if self.last is not None:
            self.last.used(usage.total_tokens)

    def expire(self) -> None:
        """The request's time is over."""
        self._late = True
        if self._task is not None:
            self._task.cancel()

    # ── one after the other ─────────────────────────────────────────────────────────────────────────────────────────

    async def _in_time(self, ask: Ask[T]) -> T:
        deadlines, hedging = self._plane.deadlines, self._plan.route.hedging
        deadlines.begin(self)
        try:
            while (attempt := await self._next()) is not None:
                try:
                    return await (self._hedged(attempt, ask) if hedging else ask(attempt))
                except UpstreamError as error:
                    self._failure = error
        except asyncio.CancelledError:
            if not self._late or self._task is None or self._task.uncancel():
                raise
            raise UpstreamTimeout("No provider answered in the time that a request has.") from None
        finally:
            deadlines.end(self)
        assert self._failure is not None
        raise self._failure

    async def _next(self) -> Try | None:
        """Begin the next attempt: at a candidate that can be asked for this and may be asked now, else at the last one
        again. None where there is nothing left to try, or no budget for it.
        """
        if self.made and not await self._goes_on():
            return None
        for deployment in self._candidates:
            if (attempt := await self._begun(deployment)) is not None:
                return attempt
        return await self._once_more()

    async def _once_more(self) -> Try | None:
        """The last one again, after a pause, where it failed in a way that passes."""
        plane, last = self._plane, self.last
        if last is None or self._again >= plane.env.AILB_RETRIES or not _passes(self._failure):
            return None
        if not plane.retries.spend():
            return None
        self._again += 1
        await asyncio.sleep(retries.pause(self._again, plane.signals.rng))
        return await self._begun(last.deployment)

    async def _goes_on(self) -> bool:
        """Whether there is somebody to answer, and room in the budgets for one more attempt beside what the earlier
        ones have cost.
        """
        if self._exchange.client_gone or not self._plane.failovers.spend():
            return False
        try:
            await self._hold.renew()
        except BudgetExceeded:
            return False
        return True

    async def _begun(self, deployment: Deployment) -> Try | None:
        """An attempt at `deployment`; None where it cannot be asked for this, or is not to be asked now."""
        plane = self._plane
        client = plane.provider(deployment.provider)
        try:
            call = self._prepared(client, deployment)
        except UnsupportedParameter as error:
            self._failure = self._failure or error
            return None
        way = plane.circuits.enter(deployment)
        if way is None:
            self._failure = self._failure or unhealthy(self._plan.route.name, self._plan.candidates, plane.circuits)
            return None
        attempt = Try(plane, self._exchange, self._hold, self.made, client, call, way)
        try:
            await attempt.admit(f"{self._hold.request_id}:{self.number}")
        except RateLimited as full:
            self._failure = self._failure if isinstance(self._failure, UpstreamError) else _sooner(self._failure, full)
            return None
        self.sent_at = self.sent_at or attempt.started
        self.last = attempt
        self.number += 1
        attempt.begin()
        return attempt

    def _prepared(self, client: Provider, deployment: Deployment) -> Prepared:
        """The request in the deployment's dialect. Raises `UnsupportedParameter` where that cannot express it."""
        call = client.prepare(self._hold.request, deployment)
        if call.dropped and self._plane.env.AILB_UNSUPPORTED_PARAMETERS == "refuse":
            name = self._exchange.door.parameter(call.dropped[0])[:100]
            raise UnsupportedParameter(f"'{name}' is not supported by this model's provider.", param=name)
        return call

    def _failed(self, attempt: Try, error: UpstreamError) -> None:
        circuits = self._plane.circuits
        another = any(d is not attempt.deployment and circuits.offers(d) for d in self._plan.candidates)
        attempt.fail(error, another=another)

    def _cancelled(self, attempt: Try) -> None:
        """Where the client left, what was cut is settled as the answer: nothing is wasted."""
        if not attempt.open:
            return
        wasted = attempt.usage if self._late else None
        if attempt is not self.last:
            wasted = attempt.usage or attempt.guess()  # the slower of two: it was at work
        attempt.give_up("cancelled", None, wasted=wasted)

    # ── two at once ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hedged(self, attempt: Try, ask: Ask[T]) -> T:
        """What `attempt` says, or its rival, whoever is first; the other is cancelled."""
        late_after = self._plane.signals.late_after(attempt.deployment.name, stream=attempt.call.request.stream)
        if late_after is None:
            return await ask(attempt)
        racing = {asyncio.create_task(ask(attempt)): attempt}
        winner: asyncio.Task[T] | None = None
        try:
            done, _ = await asyncio.wait(racing, timeout=late_after)
            if not done and (rival := await self._rival()) is not None:
                racing[asyncio.create_task(ask(rival))] = rival
            winner = await self._winner(racing)
            return winner.result()
        finally:
            for task in racing:
                task.cancel()
            try:
                await asyncio.gather(*racing, return_exceptions=True)
            except asyncio.CancelledError:
                winner = None  # the client left while the other was cancelled: nobody hears this one either
                raise
            finally:
                for task, other in racing.items():
                    if task is not winner:
                        await self._discard(task, other)

    async def _winner(self, racing: "dict[asyncio.Task[T], Try]") -> "asyncio.Task[T]":
        """The first that answers; where none does, the last that fails."""
        waiting = set(racing)
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            answered = [task for task in done if task.exception() is None]
            if answered or not waiting:
                # Of two in the same moment the one that the headers name.
                winner = max(answered or done, key=lambda task: racing[task] is self._heard)
                self.last = racing[winner]
                return winner

    async def _discard(self, task: "asyncio.Task[T]", attempt: Try) -> None:
        """What lost came to nothing: it was cancelled, even before it began, or answered a moment too late."""
        if task.cancelled() or task.exception() is not None:
            self._cancelled(attempt)
            return
        answer = task.result()
        if isinstance(answer, LiveStream):
            await answer.close()
            usage = attempt.usage
        else:
            usage = answer.usage
        if self._late or attempt is not self.last:  # else the client left: it is settled as the answer
            attempt.answered_in_vain(usage or attempt.guess())

    async def _rival(self) -> Try | None:
        """A second attempt beside the first, where there is another deployment and budget for both. Whatever stands in
        its way is no reason to end the first.
        """
        other = next(self._candidates, None)
        if other is None:
            return None
        self._candidates = chain((other,), self._candidates)
        if not self._plane.retries.spend():
            return None
        with suppress(GatewayError):
            await self._hold.renew(rival=True)
            for deployment in self._candidates:
                if (attempt := await self._begun(deployment)) is not None:
                    metrics.HEDGES.inc()
                    return attempt
        return None


def _passes(failure: GatewayError | None) -> bool:
    """Whether the same deployment may well answer in a moment: it broke, and neither refused us nor let us wait."""
    if not isinstance(failure, UpstreamError) or isinstance(failure, UpstreamCredentialsRejected | UpstreamTimeout):
        return False
    return failure.upstream_status is None or failure.upstream_status == 200 or failure.upstream_status >= 500


def _sooner(one: GatewayError | None, other: RateLimited) -> GatewayError:
    """Of two refusals for want of room, the one that is over sooner."""
    if not isinstance(one, RateLimited):
        return other
    return min(one, other, key=lambda refusal: math.inf if refusal.retry_after is None else refusal.retry_after)


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
