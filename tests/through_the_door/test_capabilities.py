"""What a request needs, deployments that have not are left out of, before any strategy looks at them."""

import httpx2
import pytest

from billing.models import LedgerEntry
from gateway import tokens
from gateway.capabilities import CAPABILITIES
from gateway.circuits import FAILURES
from gateway.models import Deployment
from gateway.routing import strategies
from tests.support.answers import assert_error
from tests.support.dialect_registry import serve
from tests.support.dialects import Say, Tokens
from tests.support.upstream import refuses
from tests.support.world import make_deployment, make_group, make_key, make_price

USER = {"role": "user", "content": "Hi there"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "nothing"}
SCHEMA = {"type": "object", "properties": {}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
SPEECH = {"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "wav"}}
FILE = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}}


def holding(part):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look"}, part]}]}


# By name: the capability, what of the request needs it, and the parameter that a refusal names.
NEEDS = {
    "tools": ("tools", {"tools": [TOOL]}, "tools"),
    "functions": ("tools", {"functions": [TOOL["function"]]}, "tools"),
    "a tool's call and result": ("tools", {"messages": [USER, CALLED, RESULT]}, "tools"),
    "an image": ("vision", holding(PICTURE), "messages"),
    "a second message's image": (
        "vision",
        {"messages": [USER, {"role": "assistant", "content": "Yes?"}, *holding(PICTURE)["messages"]]},
        "messages",
    ),
    "audio in": ("audio", holding(SPEECH), "messages"),
    "audio out": ("audio", {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}}, "messages"),
    "a document": ("documents", holding(FILE), "messages"),
    "a JSON schema": (
        "json_schema",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        "response_format",
    ),
    "a stream": ("streaming", {"stream": True}, "stream"),
    "a chat": ("chat", {}, "model"),
}

# At the Messages door: the capability and what of the request needs it.
NEEDS_OF_MESSAGES = {
    "tools": ("tools", {"tools": [{"name": "look", "input_schema": SCHEMA}]}),
    "a tool's call and result": (
        "tools",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "nothing"}]},
            ]
        },
    ),
    "an image": (
        "vision",
        holding({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}),
    ),
    "an image in a tool's result": (
        "vision",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "toolu_1",
                            "content": [
                                {
                                    "type": "image",
                                    "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="},
                                }
                            ],
                        }
                    ],
                },
            ]
        },
    ),
    "a document": (
        "documents",
        holding(
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
        ),
    ),
    "output_format": ("json_schema", {"output_format": {"type": "json_schema", "schema": SCHEMA}}),
    "output_config": ("json_schema", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
    "a stream": ("streaming", {"stream": True}),
    "a chat": ("chat", {}),
}


@pytest.fixture(params=NEEDS.values(), ids=NEEDS)
def need(request):
    return request.param


@pytest.fixture
def pair(gateway, provider, alice):
    """`pair(**of_the_first)`: a group whose first deployment lacks something and whose second is known for nothing."""

    def made(*, strategy="failover", **of_the_first):
        for name in ("a", "b"):
            make_price(name)
        first, second = make_deployment(provider, "a", **of_the_first), make_deployment(provider, "b")
        return make_group("pair", first, second, strategy=strategy)

    return made


def served(gateway, answer, by):
    """That `by` answered at the first attempt; its row."""
    assert answer.status == 200, answer.raw
    assert (answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == (by, "1")
    row = gateway.settlement(answer.id)
    assert (row.deployment, row.status) == (by, 200)
    assert [(attempt["deployment"], attempt["outcome"]) for attempt in row.attempts] == [(by, "ok")]
    return row


def models(upstream):
    return [received.body["model"] for received in upstream.requests]


class TestOneThatLacksIt:
    def test_is_left_out(self, gateway, pair, alice, upstream, need, stream):
        capability, body, _ = need
        pair(capabilities={capability: False})
        body = {"stream": stream, **body}
        answer = gateway.chat(alice, model="pair", **body)
        served(gateway, answer, by="b")
        assert upstream.only.body["model"] == "b"
        assert upstream.only.body["messages"] == body.get("messages", [USER])

    def test_is_tried_by_those_who_do_not_need_it(self, gateway, pair, alice, upstream, stream):
        others = ("tools", "vision", "audio", "documents", "json_schema")
        pair(capabilities={**dict.fromkeys(others, False), "chat": True, "streaming": True})
        served(gateway, gateway.chat(alice, model="pair", stream=stream), by="a")

    @pytest.mark.parametrize("strategy", strategies())
    def test_whatever_the_strategy(self, gateway, pair, alice, upstream, strategy):
        pair(capabilities={"vision": False}, strategy=strategy)
        for _ in range(6):
            served(gateway, gateway.chat(alice, model="pair", **holding(PICTURE)), by="b")
        assert models(upstream) == ["b"] * 6

    def test_not_on_failover_either(self, gateway, pair, alice, upstream, stream):
        pair(capabilities={"vision": False})
        upstream.will(refuses(500), model="b")
        answer = gateway.chat(alice, model="pair", stream=stream, **holding(PICTURE))
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert models(upstream) == ["b"]

    @pytest.mark.parametrize("capabilities", [{}, {"vision": True}, {"tools": False}])
    def test_an_unknown_capability_counts_as_there(self, gateway, pair, alice, capabilities, stream):
        pair(capabilities=capabilities)
        served(gateway, gateway.chat(alice, model="pair", stream=stream, **holding(PICTURE)), by="a")

    def test_a_change_is_in_force_with_the_next_request(self, gateway, pair, alice):
        group = pair(capabilities={"vision": False})
        served(gateway, gateway.chat(alice, model="pair", **holding(PICTURE)), by="b")
        first = group.deployments.get(name="a")
        first.capabilities = {}
        first.save()
        served(gateway, gateway.chat(alice, model="pair", **holding(PICTURE)), by="a")


class TestTheMessagesDoor:
    @pytest.fixture(params=NEEDS_OF_MESSAGES.values(), ids=NEEDS_OF_MESSAGES)
    def need(self, request):
        return request.param

    def ask(self, gateway, key, model, body):
        body = {"model": model, "max_tokens": 50, "messages": [USER], **body}
        return gateway.send("POST", "/v1/messages", key=key, json=body)

    def test_leaves_it_out_too(self, gateway, committed, alice, upstream, need):
        capability, body = need
        for name in ("a", "b"):
            dialect = serve(upstream, "anthropic", name, capabilities={capability: name == "b"})
        make_group("pair", *Deployment.objects.order_by("name"))
        upstream.always(dialect.says(Say(text="Yes.", tokens=Tokens(11, 4))))
        with httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
            body = {"model": "pair", "max_tokens": 50, "messages": [USER], **body}
            response = client.post("/v1/messages", headers=alice.bearer, json=body)
        assert response.status_code == 200, response.content
        assert response.headers["x-ailb-model"] == "b"
        assert gateway.settlement(response.headers["x-request-id"]).deployment == "b"

    def test_refuses_in_its_own_shape(self, gateway, committed, alice, upstream, need):
        capability, body = need
        serve(upstream, "anthropic", "a", capabilities={capability: False})
        answer = self.ask(gateway, alice, "a", body)
        assert answer.status == 400, answer.raw
        assert set(answer.body) == {"type", "error", "request_id"}
        assert answer.body["error"]["type"] == "invalid_request_error"
        assert "a: not capable of" in answer.body["error"]["message"]
        assert not upstream.requests


class TestNobodyCan:
    def test_is_told_which_need_failed_at_which_deployment(self, gateway, provider, alice, upstream, need):
        capability, body, param = need
        members = [make_deployment(provider, name, capabilities={capability: False}) for name in ("a", "b")]
        make_group("pair", *members)
        answer = gateway.chat(alice, model="pair", **body)
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param=param, says="'pair'")
        for name in ("a", "b"):
            assert f"{name}: not capable of {CAPABILITIES[capability]}" in error["message"]
        assert not upstream.requests
        nothing_is_left(gateway)

    def test_each_its_own(self, gateway, provider, alice, upstream, stream):
        make_group(
            "pair",
            make_deployment(provider, "a", capabilities={"vision": False}),
            make_deployment(provider, "b", capabilities={"tools": False}),
        )
        answer = gateway.chat(alice, model="pair", stream=stream, tools=[TOOL], **holding(PICTURE))
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param=_either(answer))
        assert "a: not capable of images" in error["message"]
        assert "b: not capable of tools" in error["message"]
        assert not upstream.requests
        nothing_is_left(gateway)

    def test_addressed_directly(self, gateway, provider, alice, upstream, need):
        capability, body, param = need
        make_deployment(provider, "a", capabilities={capability: False})
        for model in ("a", "upstream/a", "auto"):
            answer = gateway.chat(alice, model=model, **body)
            assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param=param, says="a: not ca")
        assert not upstream.requests
        nothing_is_left(gateway)

    def test_many_are_not_all_named(self, gateway, provider, alice):
        names = [f"model-{n:02}" for n in range(30)]
        make_group("many", *[make_deployment(provider, name, capabilities={"vision": False}) for name in names])
        answer = gateway.chat(alice, model="many", **holding(PICTURE))
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param="messages")
        assert sum(name in error["message"] for name in names) == 10

    def test_only_deployments_that_the_key_may_use_are_named(self, gateway, provider, upstream):
        make_group(
            "pair", *[make_deployment(provider, name, capabilities={"vision": False}) for name in ("mine", "secret")]
        )
        answer = gateway.chat(make_key(allowed_models=["mine"]), model="pair", **holding(PICTURE))
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param="messages")
        assert "mine" in error["message"]
        assert "secret" not in error["message"]

    def test_a_broken_one_that_could_is_not_taken_for_one_that_cannot(self, gateway, pair, alice, upstream):
        pair(capabilities={"vision": False})
        upstream.will(*[refuses(500)] * FAILURES, model="b")
        for _ in range(FAILURES):
            assert gateway.chat(alice, model="pair", **holding(PICTURE)).status == 502
        answer = gateway.chat(alice, model="pair", **holding(PICTURE))
        assert_error(answer, 503, "overloaded_error", "no_healthy_deployment")


def _either(answer):
    param = answer.error["param"]
    assert param in ("tools", "messages")
    return param


def nothing_is_left(gateway):
    """No hold, no row: nothing was reserved for what nobody can do."""
    gateway.wait_until_quiet()
    assert not LedgerEntry.objects.exists()


class TestTheContextLength:
    """By its bytes a prompt's length is known at no cost; near the border it is counted."""

    WORDS = "word " * 400  # 2 000 bytes, about 400 tokens

    def prompt(self, model="a"):
        body = {"model": model, "messages": [{"role": "user", "content": self.WORDS}]}
        return body["messages"], tokens.count_prompt(body, model)

    def test_it_is_counted_exactly_near_the_border(self, gateway, pair, alice, stream):
        messages, length = self.prompt()
        assert length < 1_000 < len(self.WORDS)
        pair(context_window=length)
        served(gateway, gateway.chat(alice, model="pair", stream=stream, messages=messages), by="a")

    def test_a_token_less_and_it_is_left_out(self, gateway, pair, alice, stream):
        messages, length = self.prompt()
        pair(context_window=length - 1)
        served(gateway, gateway.chat(alice, model="pair", stream=stream, messages=messages), by="b")

    def test_nobody_has_it(self, gateway, provider, alice, upstream, stream):
        messages, length = self.prompt()
        make_group(
            "pair",
            make_deployment(provider, "a", context_window=length - 1),
            make_deployment(provider, "b", context_window=10),
        )
        answer = gateway.chat(alice, model="pair", stream=stream, messages=messages)
        error = assert_error(answer, 400, "invalid_request_error", "context_length_exceeded", param="messages")
        assert "a: the prompt is longer than its context" in error["message"]
        assert "b: the prompt is longer than its context" in error["message"]
        assert not upstream.requests
        nothing_is_left(gateway)

    def test_addressed_directly(self, gateway, provider, alice, upstream, stream):
        messages, length = self.prompt()
        make_deployment(provider, "a", context_window=length - 1)
        answer = gateway.chat(alice, model="a", stream=stream, messages=messages)
        assert_error(answer, 400, "invalid_request_error", "context_length_exceeded", param="messages", says="a: the")
        assert not upstream.requests

    def test_one_too_short_and_one_blind_is_an_unsupported_parameter(self, gateway, provider, alice, upstream):
        make_group(
            "pair",
            make_deployment(provider, "a", context_window=10),
            make_deployment(provider, "b", capabilities={"vision": False}),
        )
        answer = gateway.chat(alice, model="pair", **holding(PICTURE))
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param="messages")
        assert "a: the prompt is longer than its context" in error["message"]
        assert "b: not capable of images" in error["message"]

    def test_tools_are_part_of_the_prompt(self, gateway, pair, alice):
        pair(context_window=100)
        tool = {"type": "function", "function": {"name": "look", "description": self.WORDS}}
        served(gateway, gateway.chat(alice, model="pair", tools=[tool]), by="b")

    def test_a_long_one_is_counted_off_the_loop(self, gateway, pair, alice):
        text = "word " * 20_000
        length = tokens.count_prompt({"messages": [{"role": "user", "content": text}]}, "a")
        group = pair(context_window=length)
        messages = [{"role": "user", "content": text}]
        served(gateway, gateway.chat(alice, model="pair", messages=messages), by="a")
        group.deployments.filter(name="a").update(context_window=length - 1)
        served(gateway, gateway.chat(alice, model="pair", messages=messages), by="b")


class TestTheLongestAnswer:
    def test_one_that_has_it_is_preferred(self, gateway, pair, alice, upstream, stream):
        pair(max_output=100)
        answer = gateway.chat(alice, model="pair", stream=stream, max_tokens=101)
        served(gateway, answer, by="b")
        assert upstream.only.body["max_tokens"] == 101

    def test_what_fits_goes_to_the_first(self, gateway, pair, alice, stream):
        pair(max_output=100)
        served(gateway, gateway.chat(alice, model="pair", stream=stream, max_tokens=100), by="a")

    def test_without_a_cap_nothing_is_asked_of_it(self, gateway, pair, alice, stream):
        pair(max_output=100)
        served(gateway, gateway.chat(alice, model="pair", stream=stream), by="a")

    def test_where_nobody_has_it_it_is_tried_all_the_same(self, gateway, provider, alice, upstream, stream):
        for name in ("a", "b"):
            make_price(name)
        make_group("pair", *[make_deployment(provider, name, max_output=100) for name in ("a", "b")])
        served(gateway, gateway.chat(alice, model="pair", stream=stream, max_tokens=500), by="a")
        assert upstream.only.body["max_tokens"] == 500

    def test_one_that_has_it_but_cannot_do_the_rest_does_not_count(self, gateway, provider, alice, upstream):
        for name in ("a", "b"):
            make_price(name)
        make_group(
            "pair",
            make_deployment(provider, "a", max_output=100),
            make_deployment(provider, "b", capabilities={"vision": False}),
        )
        served(gateway, gateway.chat(alice, model="pair", max_tokens=500, **holding(PICTURE)), by="a")


class TestFallbacks:
    def test_answer_where_the_first_pool_lacks_the_need(self, gateway, provider, alice, upstream, stream):
        for name in ("blind", "seeing"):
            make_price(name)
        seeing = make_group("seeing-ones", make_deployment(provider, "seeing"))
        blind = make_deployment(provider, "blind", capabilities={"vision": False})
        make_group("models", blind, fallbacks=[seeing])
        row = served(gateway, gateway.chat(alice, model="models", stream=stream, **holding(PICTURE)), by="seeing")
        assert (row.requested_model, row.routed_model) == ("models", "seeing")
        served(gateway, gateway.chat(alice, model="models", stream=stream), by="blind")

    def test_answer_where_the_prompt_is_too_long(self, gateway, provider, alice, stream):
        for name in ("short", "long"):
            make_price(name)
        longer = make_group("longer-ones", make_deployment(provider, "long"))
        make_group("models", make_deployment(provider, "short", context_window=50), fallbacks=[longer])
        messages = [{"role": "user", "content": "word " * 100}]
        served(gateway, gateway.chat(alice, model="models", stream=stream, messages=messages), by="long")

    def test_that_lack_it_too_are_named_with_the_others(self, gateway, provider, alice, upstream):
        last = make_group("last", make_deployment(provider, "c", capabilities={"vision": False}))
        make_group("models", make_deployment(provider, "a", capabilities={"vision": False}), fallbacks=[last])
        answer = gateway.chat(alice, model="models", **holding(PICTURE))
        error = assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param="messages")
        assert "a: not" in error["message"]
        assert "c: not" in error["message"]
        assert not upstream.requests

    def test_answer_where_the_answer_would_be_too_long(self, gateway, provider, alice, upstream, stream):
        for name in ("short", "long"):
            make_price(name)
        longer = make_group("longer-ones", make_deployment(provider, "long"))
        make_group("models", make_deployment(provider, "short", max_output=100), fallbacks=[longer])
        served(gateway, gateway.chat(alice, model="models", stream=stream, max_tokens=500), by="long")
        assert upstream.only.body["max_tokens"] == 500
