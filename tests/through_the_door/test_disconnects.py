"""Clients that leave: what was begun is paid for, what is not wanted any more is not made."""

import asyncio
import socket
import struct
import threading
import time
from decimal import Decimal

import pytest

from billing.models import LedgerEntry
from gateway import pipeline, tokens
from tests.support.gateway import asking
from tests.support.upstream import delta, hangs, refuses, says, sends, waits_for
from tests.support.waiting import eventually
from tests.support.world import make_budget, make_deployment, make_group


def read_until(response, words):
    received = b""
    pieces = response.iter_raw()
    while words not in received:
        received += next(pieces)
    return received


class TestAStream:
    def test_its_upstream_is_dropped_within_a_second(self, gateway, model, alice, upstream):
        upstream.will(sends(delta("Hello"), delta(" there"), end="stall"))
        with gateway.chatting(alice, stream=True) as response:
            read_until(response, b" there")
        left = time.monotonic()
        assert upstream.only.was_dropped()
        assert upstream.only.dropped_at - left < 1

    def test_one_row_with_what_was_delivered(self, gateway, model, alice, upstream):
        words = [f" word{n}" for n in range(50)]
        upstream.will(sends(*map(delta, words), end="stall"))
        with gateway.chatting(alice, stream=True) as response:
            read_until(response, b"word49")
        row = gateway.only_closing()
        delivered = tokens.count("".join(words), "gpt-test")
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, True)
        assert row.completion_tokens >= delivered
        assert row.prompt_tokens == 9
        assert row.cost_usd == (9 * Decimal("2.5") + row.completion_tokens * 10) / 10**6

    def test_the_budget_is_charged_and_nothing_stays_reserved(self, gateway, model, alice, upstream):
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(sends(delta("Hello"), end="stall"))
        with gateway.chatting(alice, stream=True) as response:
            read_until(response, b"Hello")
        row = gateway.only_closing()
        assert gateway.used(budget)[0] == row.cost_usd > 0

    def test_usage_that_had_come_is_taken(self, gateway, model, alice, upstream):
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        upstream.will(sends({**delta("Hello"), "usage": usage}, end="stall"))
        with gateway.chatting(alice, stream=True) as response:
            read_until(response, b"Hello")
        row = gateway.only_closing()
        assert (row.prompt_tokens, row.completion_tokens, row.status) == (100, 50, 499)

    @pytest.mark.parametrize("begun", [[], [delta(role="assistant", content="")]], ids=["nothing", "a role"])
    def test_before_its_first_content(self, gateway, model, alice, upstream, begun):
        # The provider has the prompt and may bill it: it is paid for.
        upstream.will(sends(*begun, end="stall") if begun else hangs())
        with asking(gateway, alice, stream=True):
            upstream.wait_for_requests(1)
            time.sleep(0.1)  # so that what it has begun to say is read
        assert upstream.only.was_dropped(within=1)
        row = gateway.only_closing()
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, True)
        assert (row.prompt_tokens, row.completion_tokens) == (9, 0)

    def test_the_next_deployment_is_not_tried_for_nobody(self, gateway, provider, alice, upstream):
        make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
        upstream.will(hangs(), model="a")
        with asking(gateway, alice, stream=True, model="pair"):
            upstream.wait_for_requests(1)
        gateway.only_closing()
        assert len(upstream.requests) == 1
        (attempt,) = gateway.only_closing().attempts
        assert (attempt["deployment"], attempt["outcome"]) == ("a", "cancelled")

    def test_after_its_end_nothing_is_left_to_leave(self, gateway, model, alice):
        answer = gateway.chat(alice, stream=True)
        assert gateway.settlement(answer.id).status == 200

    def test_while_the_gateway_counts_at_its_end(self, gateway, model, alice, upstream, monkeypatch):
        """Everything is delivered, usage never came and the count takes its time: the client leaves meanwhile."""
        counting, count = [], pipeline.counted

        async def slowly(*args, **options):
            counting.append(True)
            await asyncio.sleep(0.3)
            return await count(*args, **options)

        monkeypatch.setattr(pipeline, "counted", slowly)
        upstream.will(says("Hello", usage=None))
        with gateway.chatting(alice, stream=True) as response:
            read_until(response, b"Hello")
            eventually(lambda: counting)
        row = gateway.only_closing()
        assert row.kind == "settlement"
        assert row.completion_tokens >= 1


class TestAPlainCall:
    @pytest.mark.parametrize("reset", [False, True])
    def test_it_is_drained_and_billed_as_reported(self, gateway, model, alice, upstream, reset):
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(says(delay=0.3))
        with asking(gateway, alice) as connection:
            upstream.wait_for_requests(1)
            if reset:
                _reset(connection)
        row = gateway.only_closing()
        assert not upstream.only.was_dropped(within=0)
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, False)
        assert (row.prompt_tokens, row.completion_tokens, row.cost_usd) == (11, 4, Decimal("0.0000675"))
        assert gateway.used(budget)[0] == Decimal("0.0000675")

    def test_up_to_its_timeout(self, gateway, model, provider, alice, upstream):
        provider.first_byte_timeout = 0.4
        provider.save()
        upstream.will(hangs())
        with asking(gateway, alice):
            upstream.wait_for_requests(1)
        row = gateway.only_closing()
        assert upstream.only.was_dropped(within=1)
        assert (row.kind, row.status) == ("release", 499)

    def test_one_that_fails_for_nobody_costs_nothing(self, gateway, model, alice, upstream):
        gone = threading.Event()
        upstream.will(waits_for(gone, refuses(500)))
        with asking(gateway, alice):
            upstream.wait_for_requests(1)
        time.sleep(0.1)
        gone.set()
        row = gateway.only_closing()
        assert (row.kind, row.status, row.cost_usd) == ("release", 499, 0)

    def test_many_that_leave_are_all_billed(self, gateway, model, alice, upstream):
        upstream.always(says(delay=0.2))
        for _ in range(10):
            with asking(gateway, alice):
                pass
        eventually(lambda: LedgerEntry.objects.filter(kind="settlement").count() == 10)
        assert set(LedgerEntry.objects.filter(kind="settlement").values_list("status", flat=True)) == {499}


def _reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class TestAChangeOfTheProviderMeanwhile:
    def test_a_stream_that_runs_is_not_cut_by_it(self, gateway, model, provider, alice, upstream):
        """A new credential gets a new pool of connections; the old one ends when nobody needs it any more."""
        provider.first_byte_timeout = 0.5
        provider.save()
        upstream.will(says(*["word"] * 20, delay=0.1))
        with gateway.chatting(alice, stream=True) as response:
            provider.set_credentials(api_key="sk-newer")
            provider.save()
            assert gateway.chat(alice).status == 200  # takes the new pool
            received = response.read()
        assert received.endswith(b"data: [DONE]\n\n")
        assert received.count(b"word") == 20
