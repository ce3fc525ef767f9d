"""One good deployment among five that misbehave: nobody sees a failure before the first content, nobody takes a stream
that was cut for a whole one, and the ledger knows of every request.
"""

import asyncio
import itertools
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx2
import pytest

from tests.support.llmock import FAULTS, WORDS, LLMock
from tests.support.serving import open_requests
from tests.support.upstream import bytes_of, drops, refuses
from tests.support.waiting import eventually

CLIENTS = 20  # that ask at once
BAD = 5  # of a group, beside the good one
STRATEGIES = ("load_balanced", "failover", "round_robin", "random", "latency_optimized", "cost_optimized")

# What llmock has no word for, at the scripted upstream.
RUDE = {"429-bare": refuses(429), "hangs-up": drops(), "no-http": bytes_of(b"220 mail.example.com ESMTP\r\n")}

# Of the bad ones' providers, seconds: a stall is over soon, and no test waits for it.
SHORT = {"connect": 0.5, "first_byte": 0.5, "idle": 0.5}

DOORS = {
    "chat": ("/v1/chat/completions", {}),
    "messages": ("/v1/messages", {"max_tokens": 64}),
}
KINDS_OF_REQUEST = (
    ("chat", True), ("chat", False), ("messages", True), ("chat", True), ("messages", False),
)  # fmt: skip
"""Door and stream, in turn."""

PRICES = """
from decimal import Decimal
from billing import pricebook
from billing.pricing import Rates
for model in {models!r}:
    rates = Rates(input=Decimal(1), output=Decimal(2))
    pricebook.set_price(provider="chaos", model=model, rates=rates, confirmed=True)
"""


# ── the world ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def llmock(tmp_path):
    server = LLMock(tmp_path / "llmock.log").start()
    yield server
    server.end()


class Chaos:
    """A gateway before an llmock: groups of five bad deployments and, last, a good one."""

    def __init__(self, gateway, llmock, admin):
        self.gateway, self.llmock, self._admin = gateway, llmock, admin
        self.groups = []

    def configure(self, upstream, *, dialects, strategies):
        """All faults in one dialect or in both, five a group; the groups take turns with the strategies."""
        for kind in ("openai", "anthropic"):
            self._provider(f"bad-{kind}", kind, self.llmock.base_url(kind), timeouts=SHORT)
        self._provider("rude", "openai", upstream.url, timeouts=SHORT)
        self._provider("fine", "openai", self.llmock.base_url("openai"))
        self._deployment("good", "fine", "good")
        bad = list(self._bad_ones(dialects))
        number = -(-len(bad) // BAD)
        strategy = itertools.cycle(strategies)
        # In strides: one each of every fifth of the list. What is cut after its first content is the last of all, so
        # that a request under `failover` has met the others by then.
        for n in range(number):
            members = [*bad[n::number], "good"]
            self._post("/api/models", name=f"group-{n}", strategy=next(strategy), deployments=members)
            self.groups.append(f"group-{n}")
        self.key = self._post("/api/keys", name="chaos", monthly_quota_dollars=1e6, monthly_quota_tokens=10**9)

    def _bad_ones(self, dialects):
        """A deployment for each fault, of one dialect or the other in turn, or of both."""
        for fault in RUDE:
            yield self._deployment(fault, "rude", fault)
        for n, fault in enumerate(FAULTS):
            for kind in (("openai", "anthropic") * 2)[n % 2 : n % 2 + dialects]:
                yield self._deployment(f"{kind}-{fault}", f"bad-{kind}", fault)

    def _provider(self, slug, kind, base_url, **fields):
        fields = {"slug": slug, "kind": kind, "base_url": base_url, "price_book": "chaos", **fields}
        self._post("/api/providers", api_key="sk-test-upstream-credential-0123456789", **fields)

    def _deployment(self, name, provider, model):
        # What it may cost at most is held: a cap, so that a thousand of them fit into the quota.
        self._post("/api/deployments", name=name, provider=provider, upstream_model=model, max_output=100)
        return name

    def _post(self, path, **body):
        answer = self._admin.post(path, json=body)
        assert answer.status_code == 201, (path, body, answer.text)
        return answer.json()

    def budget(self):
        return self._admin.get(f"/api/billing/budget/{self.key['key_data']['id']}").json()


@pytest.fixture
def make_chaos(make_gateway, llmock, upstream, admin):
    def make(**configuration):
        gateway = make_gateway(AILB_UNPRICED="block")
        gateway.python(PRICES.format(models=["good", *FAULTS, *RUDE]))
        gateway.start()
        llmock.wait_until_ready()
        for fault, script in RUDE.items():
            upstream.always(script, model=fault)
        client = opened.enter_context(httpx2.Client(base_url=gateway.url, headers=admin, timeout=30, trust_env=False))
        chaos = Chaos(gateway, llmock, client)
        chaos.configure(upstream, **configuration)
        return chaos

    with ExitStack() as opened:
        yield make


# ── the clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Seen:
    """What the client of one request saw."""

    group: str
    door: str
    stream: bool
    id: str = ""
    status: int = 0
    text: str = ""
    stop: str | None = None
    error: str | None = None
    ended: bool = False
    """By what ends a stream; a plain answer by its length."""
    by: str = ""
    trouble: str = ""
    """What no client should have to understand."""
    raw: bytes = field(default=b"", repr=False)

    @property
    def verdict(self):
        """`whole`, `cut`, or what is wrong with it."""
        if self.trouble or self.status != 200:
            return f"{self.status} {self.trouble} {self.error}"
        if self.ended and self.error is None:
            return "whole" if (self.text, bool(self.stop)) == (WORDS, True) else f"a silent cut: {self.text!r}"
        if self.ended or self.error is None:
            return "no end and no error" if self.error is None else "an end behind an error"
        if not self.text:
            return f"an error before the first content: {self.error}"
        return "cut" if WORDS.startswith(self.text) else f"text of two attempts: {self.text!r}"

    def read_plain(self, body):
        self.error = json.dumps(body["error"]) if "error" in body else None
        if self.error is None and self.door == "chat":
            choice = body["choices"][0]
            self.text, self.stop = choice["message"]["content"], choice["finish_reason"]
        elif self.error is None:
            self.text, self.stop = "".join(block["text"] for block in body["content"]), body["stop_reason"]
        self.ended = True

    def read_stream(self, raw):
        *events, rest = raw.split(b"\n\n")
        assert rest == b"", f"a stream ends with a blank line, not with {rest!r}"
        for event in events:
            if event.startswith(b":"):
                continue
            assert not self.ended and self.error is None, f"after its end came {event!r}"  # noqa: PT018
            data = event.rpartition(b"data: ")[2]
            self._read_event({"type": "message_stop"} if data == b"[DONE]" else json.loads(data))

    def _read_event(self, event):
        if "error" in event:
            self.error = json.dumps(event["error"])
        elif event.get("type") == "message_stop":
            self.ended = True
        elif self.door == "messages":
            delta = event.get("delta", {})
            self.text += delta.get("text", "")
            self.stop = self.stop or delta.get("stop_reason")
        else:
            for choice in event["choices"]:
                self.text += choice["delta"].get("content") or ""
                self.stop = self.stop or choice["finish_reason"]


async def ask(client, seen):
    path, limits = DOORS[seen.door]
    body = {"model": seen.group, "messages": [{"role": "user", "content": "Count."}], "stream": seen.stream, **limits}
    try:
        response = await client.post(path, json=body)
        seen.status, seen.raw = response.status_code, response.content
        seen.id, seen.by = response.headers["x-request-id"], response.headers.get("x-ailb-model", "")
        if response.headers["content-type"].startswith("text/event-stream"):
            seen.read_stream(response.content)
        else:
            seen.read_plain(response.json())
    except (httpx2.HTTPError, AssertionError, ValueError) as error:
        seen.trouble = repr(error)
    return seen


async def many(chaos, number):
    """`number` requests, shared out among the groups, twenty at a time; the groups one after the other."""
    headers = {"authorization": f"Bearer {chaos.key['key']}"}
    limits = httpx2.Limits(max_connections=CLIENTS)
    kinds, seen, each = itertools.cycle(KINDS_OF_REQUEST), [], -(-number // len(chaos.groups))
    async with httpx2.AsyncClient(
        base_url=chaos.gateway.url, headers=headers, limits=limits, timeout=60, trust_env=False
    ) as client:
        for group in chaos.groups:
            asks = iter([Seen(group, *next(kinds)) for _ in range(each)])

            async def one_after_the_other(asks=asks):
                return [await ask(client, wanted) for wanted in asks]

            for answers in await asyncio.gather(*(one_after_the_other() for _ in range(CLIENTS))):
                seen += answers
    return seen


# ── the judgement ───────────────────────────────────────────────────────────────────────────────────────────────────


def judge(chaos, upstream, seen):
    verdicts = Counter(one.verdict for one in seen)
    wrong = [one for one in seen if one.verdict not in ("whole", "cut")]
    assert not wrong, f"{len(wrong)} of {len(seen)}: {dict(verdicts)}; the first: {wrong[0]} {wrong[0].raw!r}"
    assert verdicts["cut"], "no stream was cut after its first content: that is not tested"
    assert all(one.stream for one in seen if one.verdict == "cut")
    asked = chaos.llmock.models_asked() | {received.body["model"] for received in upstream.requests}
    assert {"good", *FAULTS, *RUDE} - asked == set(), "faults that no request met"
    judge_the_ledger(chaos, {one.id: one for one in seen})
    assert "Traceback" not in chaos.gateway.told()


def judge_the_ledger(chaos, seen):
    eventually(lambda: open_requests(chaos.gateway.kinds()) == {}, 20, told=chaos.gateway.kinds)
    kinds = chaos.gateway.kinds()
    assert set(kinds) == set(seen)
    assert {tuple(entries) for entries in kinds.values()} == {("hold", "settlement")}
    closings = chaos.gateway.rows(
        "SELECT request_id, status, estimated, deployment FROM billing_ledgerentry WHERE kind = 'settlement'"
    )
    for request_id, status, estimated, deployment in closings:
        one = seen[request_id]
        if one.verdict == "whole":
            assert status == 200, (one, status)
            assert one.stream or deployment == one.by, "billed to the one that answered"
        else:
            assert status >= 500, (one, status)
            assert estimated or one.text == WORDS, one  # cut behind its words, where the usage may be known
    eventually(lambda: chaos.budget()["reserved_tokens"] == 0, told=chaos.budget)
    budget = chaos.budget()
    assert budget["reserved"] == 0
    assert budget["current_tokens"] > 0


# ── the tests ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_sees_it(make_chaos, upstream):
    chaos = make_chaos(dialects=1, strategies=STRATEGIES[:2])
    judge(chaos, upstream, asyncio.run(many(chaos, 320)))


@pytest.mark.long
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nobody_of_a_thousand_sees_it(make_chaos, upstream, strategy):
    chaos = make_chaos(dialects=2, strategies=[strategy])
    judge(chaos, upstream, asyncio.run(many(chaos, 1000)))
