"""The way of one inference request, from the door to the ledger, read top to bottom.

The same for streams and plain answers and for every door. Each step is one call of one app's service: it returns a
typed value or raises one error of `gateway.errors`. A guard that breaks refuses; memory and documents that break are
left out and counted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from time import perf_counter
from typing import TypeVar

import msgspec

from billing.holds import Facts, Hold, Outcome, clean, counted
from gateway import background, metrics, planning, registry, tokens
from gateway.attempts import Attempts, count_prompt
from gateway.doors.base import DoorStream
from gateway.errors import Draining, GatewayError, GuardUnavailable, InternalError, Unavailable
from gateway.exchange import Exchange, Headers
from gateway.keep_alive import COMMENT, KeepAlive
from gateway.plane import Plane
from gateway.snapshot import Snapshot
from gateway.steps import augment, recall, remember
from gateway.translate import STOP_REASONS
from gateway.types import Caller, ChatRequest, Citation, Deployment, Frame, Limit, Usage
from keys.authentication import authenticate
from keys.limits import headers as rate_headers
from keys.limits.base import Admission
from keys.waiting import ADMISSION, TOKENS
from security import engine, events
from security.detectors.base import ScreenPolicy

T = TypeVar("T")

CLIENT_LEFT = 499
_LONGEST_NAME = 64  # characters of a parameter, and how many of them a header tells
_MOST_NAMES = 40


async def answer(exchange: Exchange, read_body: Callable[[], Awaitable[bytes]], plane: Plane) -> None:
    """Serve one inference request. Raises `GatewayError`; cancelled where a stream's client has left."""
    snapshot, caller = _authenticated(exchange, plane)
    asked = exchange.door.parse(await read_body(), exchange.headers)
    exchange.stream, exchange.model = asked.stream, asked.model
    route = registry.resolve(snapshot.catalog, asked.model, caller.allowed_models)
    caller = _limited(caller, snapshot.limits.of(caller, route.limited_as))
    admission = await _in_turn(
        exchange, caller, plane, ADMISSION, lambda: plane.limits.admit(exchange.id, caller.limits)
    )
    try:
        await plane.holds.refuse_used_up(caller, exchange.arrived)
        policy = snapshot.policies.for_caller(caller)
        screened = _screened(exchange, asked, caller, policy, plane)
        engine.enforce(screened)
        window = planning.smallest_window(route.candidates)
        recalled = await recall(screened.request, caller, window, policy, plane.env)
        request, citations = await augment(recalled, caller, policy, plane.env)
        plan = await planning.plan(
            route, request, caller.owner,
            signals=plane.signals, book=snapshot.prices, default=plane.env.ROUTING_STRATEGY,
        )  # fmt: skip
        facts = Facts(
            request_id=exchange.id,
            arrived=exchange.arrived,
            at=datetime.fromtimestamp(exchange.arrived, UTC),
            caller=caller,
            client_request_id=clean(_text(exchange.headers.get(b"x-request-id")), 200),
            requested_model=asked.model,
            security_action=screened.action if screened.findings else None,
        )
        hold = await _in_turn(
            exchange, caller, plane, TOKENS,
            lambda: plane.holds.place(facts, request, plan.candidates, snapshot.prices, plan.first),
        )  # fmt: skip
        call = _Call(exchange, plane, hold, plan, citations, admission)
        try:
            text = await (call.streamed() if request.stream else call.plain())
        finally:
            call.leave_nothing_open()
    finally:
        plane.limits.leave(admission)
        plane.queues.freed(admission.limits)
    await remember(screened.request, caller, text, plane.env)


async def count_tokens(exchange: Exchange, read_body: Callable[[], Awaitable[bytes]], plane: Plane) -> None:
    """How many tokens a prompt is, at the Messages door. Raises `GatewayError`.

    Counting costs nothing at any provider, so that it takes no hold and leaves no ledger row; the key's limits, budgets
    and the screen apply all the same, since the prompt may reach an upstream.
    """
    snapshot, caller = _authenticated(exchange, plane)
    asked = exchange.door.parse_count(await read_body(), exchange.headers)
    exchange.model = asked.model
    route = registry.resolve(snapshot.catalog, asked.model, caller.allowed_models)
    caller = _limited(caller, snapshot.limits.of(caller, route.limited_as))
    admission = await _in_turn(
        exchange, caller, plane, ADMISSION, lambda: plane.limits.admit(exchange.id, caller.limits)
    )
    try:
        await plane.holds.refuse_used_up(caller, exchange.arrived)
        screened = _screened(exchange, asked, caller, snapshot.policies.for_caller(caller), plane)
        request = engine.enforce(screened)
        number = await count_prompt(plane, request, route.candidates[0])
    finally:
        plane.limits.leave(admission)
        plane.queues.freed(admission.limits)
    body = msgspec.json.encode({"input_tokens": number})
    await exchange.reply.whole(200, [(b"content-type", b"application/json")], body)


def _authenticated(exchange: Exchange, plane: Plane) -> tuple[Snapshot, Caller]:
    if plane.draining:
        raise Draining("The gateway is shutting down.", retry_after=1)
    snapshot = plane.snapshot()
    cut_off = plane.cut_off_for()
    if cut_off > plane.env.AILB_DATABASE_GRACE_SECONDS:
        raise Unavailable("The gateway cannot check keys at the moment.", code="guard_unavailable", retry_after=5)
    caller = authenticate(
        snapshot.credentials, exchange.secret, pepper=plane.pepper, now=exchange.arrived, cut_off=cut_off > 0
    )
    exchange.key_id = caller.key_id
    return snapshot, caller


def _limited(caller: Caller, limits: tuple[Limit, ...]) -> Caller:
    """The caller, and the limits that this request has to pass."""
    return caller if limits is caller.limits else msgspec.structs.replace(caller, limits=limits)


async def _in_turn(
    exchange: Exchange, caller: Caller, plane: Plane, kinds: tuple[str, ...], ask: Callable[[], Awaitable[T]]
) -> T:
    """What `ask` says; where a rate limit refuses it, and the key or team waits for such, in its turn."""
    if caller.max_wait_ms is None or exchange.client_gone:
        return await ask()
    exchange.waiting = True
    try:
        return await plane.queues.admitted(
            ask,
            caller.limits,
            kinds,
            key=caller.key_id,
            weight=caller.queue_weight,
            seconds=(caller.max_wait_ms - exchange.elapsed_ms()) / 1000,
            told=exchange.queued,
        )
    finally:
        exchange.waiting = False


def _screened(
    exchange: Exchange, asked: ChatRequest, caller: Caller, policy: ScreenPolicy, plane: Plane
) -> engine.Verdict:
    screened = engine.screen(asked, policy)
    if screened.findings:
        for finding in screened.findings:
            metrics.SECURITY_EVENTS.labels(finding.category, finding.action).inc()
        plane.spawn(background.in_thread(events.record, exchange.id, caller, screened))
    return screened


class _Call:
    """The last steps: attempt, settle, reply."""

    def __init__(
        self,
        exchange: Exchange,
        plane: Plane,
        hold: Hold,
        plan: planning.Plan,
        citations: tuple[Citation, ...],
        admission: Admission,
    ) -> None:
        self._exchange = exchange
        self._plane = plane
        self._hold = hold
        self._plan = plan
        self._citations = citations
        self._admission = admission
        self._attempts = Attempts(plane, exchange, hold, plan)
        self._settling = False
        self._ended_at: float | None = None
        self._first_content_at: float | None = None

    async def plain(self) -> str:
        """A whole answer: drained and billed even where the client has left meanwhile."""
        try:
            completion = await self._attempts.complete()
        except GatewayError as error:
            self._release(error.status)
            raise
        except asyncio.CancelledError:
            # Only a shutdown cancels a plain call: what it cost is not known, and may be everything.
            self._settle(Draining.status, self._hold.worst, detail={"error": Draining.code})
            raise
        self._ended_at = perf_counter()
        usage = await self._complete(completion.usage, completion.text)
        self._attempts.measured(usage)
        await self._durable(usage)
        status = CLIENT_LEFT if self._exchange.client_gone else 200
        self._settle(
            status,
            usage,
            served_model=completion.served_model,
            service_tier=completion.service_tier,
            detail={"finish_reason": completion.finish_reason},
        )
        body = self._exchange.door.whole(completion, usage, self._frame, self._citations)
        await self._exchange.reply.whole(200, [*self._headers(), (b"content-type", b"application/json")], body)
        return completion.text if completion.spoken is None else completion.spoken

    async def streamed(self) -> str:
        """An answer as it comes; a client that leaves cancels it, and pays for what was delivered."""
        stream = self._exchange.door.stream(self._hold.request, self._frame, self._citations)
        alive = KeepAlive(self._sign_of_life, self._plane.spawn)
        try:
            await self._relay(stream, alive)
        except asyncio.CancelledError:
            self._ended_at = perf_counter()
            status = CLIENT_LEFT if self._exchange.client_gone else Draining.status
            self._settling = True
            self._plane.spawn(self._settle_cut(stream, status, {}))
            raise
        except GatewayError as error:
            self._ended_at = perf_counter()
            if self._first_content_at is None:
                self._release(error.status)
            else:
                await self._settle_cut(stream, error.status, {"error": error.code})
            raise
        finally:
            alive.stop()
        self._ended_at = perf_counter()
        usage = await self._complete(stream.usage, stream.text)
        self._attempts.measured(usage)
        self._settle(200, usage, **_served(stream), detail={"finish_reason": stream.finish_reason})
        await self._open()  # where the upstream ended without a single event
        await self._exchange.reply.finish(stream.end(usage))
        return stream.spoken

    def leave_nothing_open(self) -> None:
        """After a defect of ours too the hold is closed: at its worst where an upstream was asked, since what that
        cost is not known.
        """
        if not self._hold.settled and not self._settling:
            usage = self._hold.worst if self._attempts.sent_at is not None else None
            self._settle(InternalError.status, usage, detail={"error": InternalError.code})

    async def _relay(self, stream: DoorStream, alive: KeepAlive) -> None:
        reply = self._exchange.reply
        live = await self._attempts.open_stream(self._open)
        self._first_content_at = perf_counter()
        async for events_ in live.events():
            if piece := stream.render(events_):
                alive.sending()
                await reply.send(piece)
                alive.sent()

    async def _open(self) -> None:
        """The upstream's first event: the hold must be on disk, then the headers go out."""
        await self._hold.durable
        if not self._exchange.reply.opened:
            await self._exchange.reply.open(self._headers())

    async def _sign_of_life(self) -> None:
        """In a silence the headers go out, and with them the status: from here on a failure is an event."""
        try:
            await self._open()
        except GatewayError:
            return  # the hold is not written down, which the request itself will say
        if not self._exchange.reply.ended:
            await self._exchange.reply.send(COMMENT)

    async def _durable(self, usage: Usage) -> None:
        """Nothing leaves before its hold is written down."""
        try:
            await self._hold.durable
        except GatewayError:
            # The provider has answered and will bill, though the client gets nothing: count it all the same.
            self._settle(503, usage)
            raise

    async def _settle_cut(self, stream: DoorStream, status: int, detail: dict[str, str | None]) -> None:
        """A stream that ended early costs its prompt and what was delivered of it.

        What the upstream said of usage by then is of its beginning: right for the prompt, and too little for the rest.
        """
        usage = stream.usage
        if usage is None or stream.finish_reason is None:
            counted_here = await self._counted(stream.text, "cut")
            said = max(counted_here.completion_tokens, usage.completion_tokens if usage is not None else 0)
            usage = msgspec.structs.replace(usage or counted_here, completion_tokens=said, estimated=True)
        self._settle(status, usage, **_served(stream), detail=detail)

    async def _complete(self, usage: Usage | None, text: str) -> Usage:
        """What the upstream reported; our own count where it reported nothing, or noughts beside an answer."""
        if usage is not None and (usage.total_tokens or not text):
            return usage
        return await self._counted(text, "no_usage")

    async def _counted(self, text: str, reason: str) -> Usage:
        """What an answer cost by our own count, where the upstream said nothing; all that was held where nobody can."""
        metrics.UNMETERED.labels(reason).inc()
        request, model = self._hold.request, self._served_by.upstream_model
        size = tokens.bound_prompt(request.body, model)
        try:
            prompt = await counted(tokens.count_prompt, request.body, model, size=size)
            return Usage(prompt, await counted(tokens.count, text, model, size=len(text)), estimated=True)
        except GuardUnavailable:
            # The answer is there and will be billed: it is not refused for want of a tokenizer.
            return self._hold.worst

    @property
    def _served_by(self) -> Deployment:
        return self._attempts.deployment

    def _release(self, status: int) -> None:
        """Nothing was served: the hold is given back whole."""
        self._settle(CLIENT_LEFT if self._exchange.client_gone else status, None)

    def _settle(
        self,
        status: int,
        usage: Usage | None,
        *,
        served_model: str | None = None,
        service_tier: str | None = None,
        detail: dict[str, str | None] | None = None,
    ) -> None:
        exchange, attempts = self._exchange, self._attempts
        finish_reason = (detail or {}).get("finish_reason")
        if finish_reason is not None and finish_reason not in STOP_REASONS[attempts.dialect]:
            metrics.UNKNOWN_STOPS.inc()  # no error on a reply that is already billed
        if usage is not None:
            attempts.used(usage)
        cost = self._hold.settle(
            Outcome(
                status=status,
                deployment=self._served_by,
                usage=usage,
                attempts=tuple(attempts.made) or (),
                served_model=served_model,
                service_tier=service_tier,
                latency_ms=exchange.elapsed_ms(),
                ttft_ms=self._since_arrival(self._first_content_at),
                overhead_ms=self._overhead_ms(),
                detail={
                    **self._plan.decision(),
                    **{name: clean(value, 100) for name, value in (detail or {}).items() if value is not None},
                },
            )
        )
        exchange.status = status
        exchange.provider = self._served_by.provider.slug
        exchange.model = self._served_by.name
        exchange.attempts = len(attempts.made)
        exchange.usage = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else None
        exchange.cost = f"{cost:f}" if cost is not None and usage is not None else None
        exchange.first_content = self._first_content_at

    def _frame(self) -> Frame:
        """What a translated answer says that the upstream's does not."""
        request = self._hold.request
        return Frame(
            id=self._exchange.id,
            created=int(self._exchange.arrived),
            model=self._served_by.upstream_model,
            # The bound is bytes: four of them a token is text's usual measure.
            input_tokens=max(tokens.bound_prompt(request.body) // 4, 1),
        )

    def _since_arrival(self, moment: float | None) -> float | None:
        return None if moment is None else round((moment - self._exchange.started) * 1000, 3)

    def _overhead_ms(self) -> float | None:
        """The time before the first upstream call and after the last one's end."""
        sent, ended = self._attempts.sent_at, self._ended_at
        if sent is None or ended is None:
            return None
        overhead = (sent - self._exchange.started) + (perf_counter() - ended)
        metrics.overhead.add(overhead)
        return round(overhead * 1000, 3)

    def _headers(self) -> Headers:
        deployment, dropped = self._attempts.told
        served_by = _served_by_headers(deployment.provider.slug, deployment.name)
        headers: Headers = [*served_by, (b"x-ailb-attempts", b"%d" % self._attempts.number)]
        if dropped:
            headers.append((b"x-ailb-dropped-parameters", _told(map(self._exchange.door.parameter, dropped))))
        if self._exchange.queue_position is not None:
            headers.append((b"x-ailb-queue-position", b"%d" % self._exchange.queue_position))
        if self._exchange.cost is not None:
            headers.append((b"x-ailb-cost-usd", self._exchange.cost.encode()))
        for kind, gauge in (("requests", self._admission.requests), ("tokens", self._hold.tokens_gauge)):
            if gauge is not None:
                headers += [(name.encode(), value.encode()) for name, value in rate_headers.of(kind, gauge)]
        return headers


@lru_cache(maxsize=1024)
def _served_by_headers(provider: str, model: str) -> Headers:
    return [(b"x-ailb-provider", provider.encode()), (b"x-ailb-model", model.encode("ascii", "replace"))]


def _told(parameters: Iterable[str]) -> bytes:
    """Names in a header: some are the client's own, of any characters and length."""
    names = ("".join(c if "!" <= c <= "~" and c != "," else "?" for c in name[:_LONGEST_NAME]) for name in parameters)
    return ", ".join(islice(names, _MOST_NAMES)).encode()


def _served(stream: DoorStream) -> dict[str, str | None]:
    return {"served_model": stream.served_model, "service_tier": stream.service_tier}


def _text(value: bytes | None) -> str | None:
    return value.decode("utf-8", "replace") if value is not None else None
