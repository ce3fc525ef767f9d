"""The Messages door beside the chat door: keys, ids, counting, leaving, budgets, and the names of errors."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import anthropic
import httpx2
import pytest

from billing.models import LedgerEntry
from gateway.models import Provider
from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import CASES, CLOCK, PNG, WEATHER, Ask, Picture, Said, Say, Tokens
from tests.support.upstream import answers, drops, hangs, waits_for
from tests.support.world import CREDENTIAL, make_budget, make_key

OPENAI, ANTHROPIC = DOORS["openai"], DOORS["anthropic"]
TEXT = CASES["text"].say
COUNT = "/v1/messages/count_tokens"
PAIRS = list(product(DOORS, PROVIDERS))
each_pair = pytest.mark.parametrize(("door", "kind"), PAIRS)
each_kind = pytest.mark.parametrize("kind", PROVIDERS)
each_door = pytest.mark.parametrize("door", DOORS)


class TestKeys:
    @pytest.mark.parametrize("header", ["x-api-key", "api-key", "authorization"])
    @each_door
    def test_any_header_that_carries_one_will_do(self, gateway, alice, upstream, stream, door, header):
        door, provider = DOORS[door], serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        value = f"Bearer {alice.secret}" if header == "authorization" else alice.secret
        heard = door.ask(gateway, None, Ask(stream=stream), headers={header: value})
        assert heard.status == 200
        assert heard.headers["request-id"] == heard.headers["x-request-id"]
        assert alice.secret not in f"{upstream.only.headers}"

    @pytest.mark.parametrize("headers", [{}, {"x-api-key": "sk-ant-wrong"}, {"authorization": "Bearer sk-ailb_wrong"}])
    @each_door
    def test_none_or_a_wrong_one(self, gateway, upstream, stream, door, headers):
        door = DOORS[door]
        serve(upstream, "openai")
        heard = door.ask(gateway, None, Ask(stream=stream), headers=headers)
        door.assert_error(heard, 401, "authentication_error", "invalid_api_key")

    def test_headers_of_the_anthropic_sdk_change_nothing(self, gateway, alice, upstream):
        provider = serve(upstream, "openai")
        upstream.will(provider.says(TEXT))
        headers = {"x-api-key": alice.secret, "anthropic-version": "2023-06-01", "anthropic-beta": "a-2025,b-2026"}
        assert ANTHROPIC.ask(gateway, None, Ask(), headers=headers).status == 200
        assert not [name for name in upstream.only.headers if name.startswith("anthropic")]

    def test_betas_reach_anthropic(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        ANTHROPIC.ask(gateway, alice, Ask(), headers={"anthropic-beta": "a-2025,b-2026"})
        assert upstream.only.headers["anthropic-beta"] == "a-2025,b-2026"


class TestCountingTokens:
    def count(self, gateway, key, ask=None, **changes):
        body = ANTHROPIC.body(ask or Ask(), max_tokens=None, stream=None, **changes)
        headers = {**(key.bearer if key is not None else {})}
        return gateway.send("POST", COUNT, headers=headers, json=body)

    @each_kind
    def test_every_provider_has_a_number(self, gateway, alice, upstream, kind):
        serve(upstream, kind)
        upstream.always(answers({"input_tokens": 4321}))
        answer = self.count(gateway, alice)
        assert answer.status == 200
        assert set(answer.body) == {"input_tokens"}
        if kind == "anthropic":
            assert answer.body == {"input_tokens": 4321}
            received = upstream.only
            assert (received.method, received.path) == ("POST", "/v1/messages/count_tokens")
            assert received.headers["x-api-key"] == CREDENTIAL
            assert received.body["model"] == PROVIDERS[kind].model
            assert not {"max_tokens", "stream"} & set(received.body)
        else:
            assert 3 <= answer.body["input_tokens"] <= 40
            assert not upstream.requests
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        gateway.wait_until_quiet()
        assert not LedgerEntry.objects.exists(), "counting costs nothing and is in no ledger"

    @pytest.mark.parametrize(
        "script",
        [
            answers({"type": "error"}, 500), answers({}, 404), answers({}, 401), answers({"input_tokens": "x"}),
            answers(b"<html>"), drops(),
        ],
    )  # fmt: skip
    def test_ours_where_anthropics_fails(self, gateway, alice, upstream, script):
        serve(upstream, "anthropic")
        upstream.always(script)
        answer = self.count(gateway, alice)
        assert answer.status == 200
        assert 3 <= answer.body["input_tokens"] <= 40

    @each_kind
    def test_all_of_the_prompt_counts(self, gateway, alice, upstream, kind):
        serve(upstream, kind)
        upstream.always(answers({}, 500))
        few = self.count(gateway, alice).body["input_tokens"]
        for ask in (
            Ask(items=(Said("word " * 500),)),
            Ask(tools=(WEATHER, CLOCK)),
            Ask(items=(Said("Hi"), Picture("image/png", PNG))),
        ):
            assert self.count(gateway, alice, ask).body["input_tokens"] > few, ask
        assert self.count(gateway, alice, system="word " * 500).body["input_tokens"] > 400

    def test_not_without_a_key(self, gateway, upstream):
        serve(upstream, "openai")
        answer = self.count(gateway, None)
        assert answer.status == 401
        assert answer.body["error"]["type"] == "authentication_error"

    def test_not_of_an_unknown_model(self, gateway, alice, upstream):
        serve(upstream, "openai")
        answer = self.count(gateway, alice, Ask(model="nobody"))
        assert answer.status == 404
        assert answer.body["error"]["type"] == "not_found_error"
        assert answer.body["request_id"] == answer.headers["x-request-id"]

    def test_not_of_a_model_that_is_not_the_keys(self, gateway, upstream):
        serve(upstream, "openai")
        answer = self.count(gateway, make_key(allowed_models=["another"]))
        assert answer.status in (403, 404)

    @pytest.mark.parametrize("change", [{"messages": []}, {"messages": 5}, {"model": None}])
    def test_nothing_is_nothing_to_count(self, gateway, alice, upstream, change):
        serve(upstream, "openai")
        answer = self.count(gateway, alice, **change)
        assert answer.status == 400
        assert answer.body["error"]["type"] == "invalid_request_error"


class TestClientsThatLeave:
    @each_pair
    def test_the_upstream_is_dropped_and_what_was_delivered_is_paid(self, gateway, alice, upstream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        pieces = provider.pieces(Say(text="one two three four five six seven eight nine ten"))
        begun = pieces[: provider.begun(pieces)]
        upstream.will(provider.plays({}, *begun, end="stall"))
        with door.asking(gateway, alice, Ask(stream=True)) as response:
            received, raw = b"", response.iter_raw()
            while b"six" not in received:
                received += next(raw)
        left = time.monotonic()
        assert upstream.only.was_dropped()
        assert upstream.only.dropped_at - left < 1
        row = gateway.only_closing()
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, True)
        assert row.completion_tokens >= 6
        assert row.prompt_tokens > 0
        assert row.cost_usd > 0

    @each_pair
    def test_a_plain_call_is_drained_and_billed(self, gateway, alice, upstream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        gone = threading.Event()
        upstream.will(waits_for(gone, provider.says(TEXT)))

        def ask():
            with pytest.raises(Exception, match=r"(?i)timed? ?out"):
                _impatient(door, gateway, alice)

        thread = threading.Thread(target=ask)
        thread.start()
        upstream.wait_for_requests(1)
        thread.join()
        time.sleep(0.2)
        gone.set()
        row = gateway.only_closing()
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, False)
        assert (row.prompt_tokens, row.completion_tokens) == (100, 40)


def _impatient(door, gateway, key):
    with httpx2.Client(base_url=gateway.url, timeout=0.4, trust_env=False) as client:
        client.post(door.path, headers=key.bearer, json=door.write(Ask()))


class TestBudgets:
    @each_kind
    def test_too_little_left_is_402_in_anthropics_words(self, gateway, alice, upstream, stream, kind):
        serve(upstream, kind)
        make_budget("user", "alice", dollars="0.000001")
        heard = ANTHROPIC.ask(gateway, alice, Ask(stream=stream))
        ANTHROPIC.assert_error(heard, 402, "insufficient_quota", "budget_exceeded")
        assert heard.error["error"]["type"] == "billing_error"
        assert heard.headers["x-should-retry"] == "false"
        assert not upstream.requests

    @each_kind
    def test_whatever_comes_at_once_nobody_overshoots(self, gateway, alice, upstream, stream, kind):
        provider = serve(upstream, kind)
        # Each holds its prompt (8 by count; the bound, by bytes, is a few more) and 40 of output, and uses just that.
        budget = make_budget("user", "alice", tokens=600)
        gate = threading.Event()
        upstream.always(waits_for(gate, provider.says(Say(text="Well", tokens=Tokens(8, 40)))))
        ask = Ask(items=(Said("Hi"),), max_output=40, stream=stream)
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(ANTHROPIC.ask, gateway, alice, ask) for _ in range(24)]
            time.sleep(1)
            gate.set()
            heard = [each.result() for each in asked]
        served = [each for each in heard if each.status == 200]
        refused = [each for each in heard if each.status == 402]
        assert len(served) + len(refused) == 24
        assert 5 <= len(served) <= 600 // 48
        for each in refused:
            assert each.error["error"]["type"] == "billing_error"
        gateway.wait_until_quiet()
        assert gateway.used(budget)[1] == len(served) * 48 <= 600
        assert len(upstream.requests) == len(served)

    @each_kind
    def test_an_upstream_is_told_a_cap_that_the_budget_holds(self, gateway, alice, upstream, stream, kind):
        provider = serve(upstream, kind)
        make_budget("user", "alice", dollars="0.01")
        upstream.will(provider.says(TEXT))
        heard = ANTHROPIC.ask(gateway, alice, Ask(max_output=100_000, stream=stream))
        if heard.status == 200:
            assert provider.read(upstream.only).max_output <= 1000, "a cent is a thousand tokens"
        else:
            ANTHROPIC.assert_error(heard, 402, "insufficient_quota", "budget_exceeded")


class TestNamesOfErrors:
    """wire.md's last table, at both doors."""

    @each_door
    def test_401(self, gateway, upstream, door):
        serve(upstream, "openai")
        heard = DOORS[door].ask(gateway, None, Ask())
        DOORS[door].assert_error(heard, 401, "authentication_error", "invalid_api_key")
        assert heard.headers["www-authenticate"] == "Bearer"

    @each_door
    def test_402(self, gateway, alice, upstream, door):
        serve(upstream, "openai")
        make_budget("user", "alice", dollars="0")
        heard = DOORS[door].ask(gateway, alice, Ask())
        DOORS[door].assert_error(heard, 402, "insufficient_quota", "budget_exceeded")

    @each_door
    def test_403(self, gateway, upstream, door):
        serve(upstream, "openai")
        heard = DOORS[door].ask(gateway, make_key(allowed_models=["another"]), Ask())
        DOORS[door].assert_error(heard, 403, "permission_error", "model_not_allowed")

    @each_door
    def test_404(self, gateway, alice, upstream, door):
        heard = DOORS[door].ask(gateway, alice, Ask())
        DOORS[door].assert_error(heard, 404, "invalid_request_error", "model_not_found")

    @each_door
    def test_405(self, gateway, alice, upstream, door):
        with httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
            heard = DOORS[door].hear(client.get(DOORS[door].path, headers=alice.bearer))
        DOORS[door].assert_error(heard, 405, "invalid_request_error", "method_not_allowed")

    @each_door
    def test_413(self, gateway, alice, upstream, door):
        serve(upstream, "openai")
        heard = DOORS[door].send(gateway, alice, b" " * (20 * 2**20 + 1))
        DOORS[door].assert_error(heard, 413, "invalid_request_error", "request_too_large")

    @each_door
    def test_429(self, gateway, upstream, door):
        provider = serve(upstream, "openai")
        upstream.will(provider.says(TEXT))
        key = make_key(rate_limit_rpm=1)
        DOORS[door].ask(gateway, key, Ask())
        heard = DOORS[door].ask(gateway, key, Ask())
        DOORS[door].assert_error(heard, 429, "rate_limit_error", "rate_limit_exceeded")
        assert int(heard.headers["retry-after"]) >= 1

    @each_door
    def test_503(self, gateway, alice, upstream, door):
        serve(upstream, "openai")
        gateway.plane.draining = True
        heard = DOORS[door].ask(gateway, alice, Ask())
        DOORS[door].assert_error(heard, 503, "overloaded_error", "draining")

    @each_pair
    def test_504(self, gateway, alice, upstream, stream, door, kind):
        door, _ = DOORS[door], serve(upstream, kind)
        provider = Provider.objects.get(slug="upstream")
        provider.first_byte_timeout = 0.3
        provider.save()
        upstream.always(hangs())
        heard = door.ask(gateway, alice, Ask(stream=stream))
        door.assert_error(heard, 504, "timeout_error", "timeout")

    @each_pair
    def test_502(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        for status in (429, 500, 503, 529):
            upstream.will(provider.refuses(status, "Slow down.", "overloaded_error"))
            gateway.forget_failures()
            heard = door.ask(gateway, alice, Ask(stream=stream))
            door.assert_error(heard, 502, "upstream_error", "upstream_error", says=f"{status}: Slow down.")

    @each_pair
    def test_our_own_credentials_are_not_the_callers_fault(self, gateway, alice, upstream, stream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        for status in (401, 402, 403):
            upstream.will(provider.refuses(status, f"invalid x-api-key {CREDENTIAL}", "authentication_error"))
            gateway.forget_failures()
            heard = door.ask(gateway, alice, Ask(stream=stream))
            door.assert_error(heard, 502, "upstream_error", "upstream_credentials_rejected", says=str(status))
            assert CREDENTIAL not in heard.raw.decode()
            closing = gateway.closing(heard.id)
            assert (closing.kind, closing.status) == ("release", 502)

    @pytest.mark.parametrize("path", ["/v1/messages/nothing", "/v1/messages/batches"])
    def test_other_paths_below_speak_the_same_shape(self, gateway, alice, path):
        answer = gateway.send("POST", path, key=alice, json={})
        assert answer.status in (404, 501)
        assert set(answer.body) == {"type", "error", "request_id"}
        assert answer.body["request_id"] == answer.headers["x-request-id"]


class TestAnthropicsOwnClient:
    """Whatever serves the model."""

    @pytest.fixture
    def client(self, gateway, alice):
        with anthropic.Anthropic(api_key=alice.secret, base_url=gateway.url, max_retries=0, timeout=20) as client:
            yield client

    ASK = {"model": "the-model", "max_tokens": 500, "messages": [{"role": "user", "content": "Hi"}]}

    @each_kind
    def test_a_plain_answer(self, client, gateway, upstream, kind):
        provider, say = serve(upstream, kind), CASES["parallel tools"].say
        upstream.will(provider.says(say))
        message = client.messages.create(**self.ASK)
        assert [block.input for block in message.content] == [call.arguments for call in say.calls]
        assert message.stop_reason == "tool_use"
        assert gateway.settlement(message._request_id).status == 200

    @pytest.mark.parametrize("case", ["text", "parallel tools", "thinking", "length stop"])
    @each_kind
    def test_a_stream(self, client, upstream, kind, case):
        provider, say = serve(upstream, kind), CASES[case].say
        upstream.will(provider.says(say))
        with client.messages.stream(**self.ASK) as stream:
            words = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert words == say.text
        assert [block.type for block in message.content] == [
            *(["thinking"] if say.thought else []), *(["text"] if say.text else []), *["tool_use" for _ in say.calls],
        ]  # fmt: skip
        inputs = [block.input for block in message.content if block.type == "tool_use"]
        assert inputs == [call.arguments for call in say.calls]
        assert message.usage.output_tokens == 40
        assert message.usage.input_tokens == 100 - message.usage.cache_read_input_tokens - (
            message.usage.cache_creation_input_tokens
        )

    @each_kind
    def test_counting(self, client, upstream, kind):
        serve(upstream, kind)
        upstream.will(answers({"input_tokens": 8}))
        asked = {name: value for name, value in self.ASK.items() if name != "max_tokens"}
        assert client.messages.count_tokens(**asked).input_tokens > 0

    @each_kind
    def test_a_stream_that_breaks_off_is_an_exception(self, client, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.breaks_off(TEXT))
        with (
            pytest.raises(anthropic.APIStatusError, match="caught fire") as caught,
            client.messages.stream(**self.ASK) as stream,
        ):
            stream.until_done()
        assert caught.value.body["error"]["type"] == "api_error"

    def test_errors_have_their_classes(self, client, gateway, upstream):
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**self.ASK)
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(**{**self.ASK, "messages": []})
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="sk-ant-wrong").messages.create(**self.ASK)
