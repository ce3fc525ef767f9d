"""A request that is served: what the client gets, what the upstream received."""

from decimal import Decimal

import pytest

from tests.support.upstream import CREATED, DONE, USAGE, answers, data, delta, frame, says, sends
from tests.support.world import CREDENTIAL, make_deployment, make_key, make_provider

USAGE_ASKED = {"include_usage": True}


class TestTheAnswer:
    def test_it_is_the_upstreams(self, gateway, model, alice, upstream, stream):
        answer = gateway.chat(alice, stream=stream)
        assert answer.status == 200
        assert answer.text == "Hello there."
        assert answer.streamed is stream

    def test_a_plain_one_comes_byte_for_byte(self, gateway, model, alice, upstream):
        body = (
            b'{"id": "x", "object":"chat.completion",  "created": 1, "model": "gpt-test-2026",'
            b'"extra": {"kept": 1.10},'
            b'"choices": [{"index": 0, "message": {"role": "assistant", "content": "\\u00e9"}, '
            b'"finish_reason": "stop"}],'
            b'"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
        )
        upstream.will(answers(body))
        answer = gateway.chat(alice)
        assert answer.raw == body
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(body))

    def test_a_streams_events_come_byte_for_byte(self, gateway, model, alice, upstream):
        first = b'{"id":"x","choices":[{"index":0,"delta":{"content":"\\u00e9\\n"}}],"z":1.10}'
        upstream.will(sends(b"data: " + first + b"\n\n", delta(finish="stop"), DONE))
        answer = gateway.chat(alice, stream=True)
        assert answer.raw.startswith(b"data: " + first + b"\n\n")
        assert answer.raw.endswith(DONE)

    def test_a_stream_says_that_it_is_one(self, gateway, model, alice):
        headers = gateway.chat(alice, stream=True).headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"

    def test_every_choice_of_several_comes(self, gateway, model, alice, upstream):
        upstream.will(
            sends(
                delta("a", index=0),
                delta("b", index=1),
                delta("A", index=0),
                delta(finish="stop", index=1),
                delta(finish="length", index=0),
                DONE,
            )
        )
        answer = gateway.chat(alice, stream=True, n=2)
        said = {0: "", 1: ""}
        for chunk in answer.chunks:
            for choice in chunk["choices"]:
                said[choice["index"]] += choice["delta"].get("content") or ""
        assert said == {0: "aA", 1: "b"}
        assert answer.done

    def test_tool_calls_come_in_their_fragments(self, gateway, model, alice, upstream):
        fragments = [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"city": '}},
            {"index": 0, "function": {"arguments": '"Ede"}'}},
        ]
        chunks = [delta(tool_calls=[fragment]) for fragment in fragments]
        upstream.will(sends(*chunks, delta(finish="tool_calls"), DONE))
        answer = gateway.chat(alice, stream=True, tools=[{"type": "function", "function": {"name": "weather"}}])
        got = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in answer.chunks]
        assert got == [*([fragment] for fragment in fragments), None]
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_the_gateway_tells_who_served_it_and_how(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream)
        assert answer.headers["x-ailb-provider"] == "upstream"
        assert answer.headers["x-ailb-model"] == "gpt-test"
        assert answer.headers["x-ailb-attempts"] == "1"

    def test_a_plain_answer_tells_its_cost(self, gateway, model, alice):
        # 11 tokens at 2.50 and 4 at 10 dollars a million.
        assert Decimal(gateway.chat(alice).headers["x-ailb-cost-usd"]) == Decimal("0.0000675")

    def test_a_streams_headers_go_out_before_its_cost_is_known(self, gateway, model, alice):
        assert "x-ailb-cost-usd" not in gateway.chat(alice, stream=True).headers

    def test_an_unpriced_answer_tells_no_cost(self, gateway, provider, alice):
        make_deployment(provider)
        assert "x-ailb-cost-usd" not in gateway.chat(alice).headers


class TestRequestIds:
    def test_the_id_is_the_ledgers(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream)
        assert gateway.settlement(answer.id).request_id == answer.id

    def test_no_two_are_the_same(self, gateway, model, alice):
        assert len({gateway.chat(alice).id for _ in range(20)}) == 20

    def test_the_clients_own_is_kept_beside_it(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream, headers={"x-request-id": "mine-1"})
        assert answer.id != "mine-1"
        assert gateway.settlement(answer.id).client_request_id == "mine-1"

    def test_a_long_or_odd_one_is_kept_as_far_as_it_goes(self, gateway, model, alice):
        answer = gateway.chat(alice, headers={"x-request-id": ("é" * 300).encode()})
        assert gateway.settlement(answer.id).client_request_id.startswith("é" * 50)

    def test_without_one_there_is_none(self, gateway, model, alice):
        assert gateway.settlement(gateway.chat(alice).id).client_request_id is None


class TestWhatTheUpstreamReceives:
    def test_the_deployments_upstream_model(self, gateway, provider, alice, upstream, stream):
        make_deployment(provider, "smart", "gpt-test-2026-01-01")
        gateway.chat(alice, model="smart", stream=stream)
        assert upstream.only.body["model"] == "gpt-test-2026-01-01"

    def test_the_providers_credential_and_not_the_callers(self, gateway, model, alice, upstream, stream):
        gateway.chat(alice, stream=stream)
        assert upstream.only.headers["authorization"] == f"Bearer {CREDENTIAL}"
        assert alice.secret not in str(upstream.only)

    def test_its_path_and_a_json_body(self, gateway, model, alice, upstream):
        gateway.chat(alice)
        assert (upstream.only.method, upstream.only.path) == ("POST", "/v1/chat/completions")
        assert upstream.only.headers["content-type"] == "application/json"

    def test_a_providers_extra_headers(self, gateway, alice, upstream):
        make_deployment(make_provider(upstream.url, headers={"OpenAI-Organization": "org-1"}))
        gateway.chat(alice)
        assert upstream.only.headers["openai-organization"] == "org-1"

    def test_none_of_the_clients_headers(self, gateway, model, alice, upstream, stream):
        sent = {"cookie": "a=b", "x-forwarded-for": "10.1.1.1", "x-secret": "s", "user-agent": "mine/1"}
        gateway.chat(alice, stream=stream, headers=sent)
        got = upstream.only.headers
        assert not {"cookie", "x-forwarded-for", "x-secret", "x-api-key"} & set(got)
        assert "mine/1" not in got["user-agent"]

    def test_parameters_it_does_not_know_come_through_unchanged(self, gateway, model, alice, upstream, stream):
        sent = {
            "temperature": 0.30000000000000004,
            "seed": 12345678901234567890,
            "stop": ["\n\n", "END"],
            "logit_bias": {"50256": -100},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {}}},
            "reasoning_effort": "low",
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "vllm_only": {"deep": [1, None, True, "ü", 1.0]},
            "empty": None,
        }
        sent_body = {
            **sent,
            "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        }
        gateway.send(
            "POST", "/v1/chat/completions", key=alice, json={"model": "gpt-test", "stream": stream, **sent_body}
        )
        got = upstream.only.body
        assert {name: got.get(name, "gone") for name in sent_body} == sent_body

    def test_images_and_content_parts_come_through(self, gateway, model, alice, upstream):
        parts = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
        ]
        gateway.chat(alice, messages=[{"role": "user", "content": parts}])
        assert upstream.only.texts == [parts]

    def test_not_ailbs_own_fields(self, gateway, model, alice, upstream, stream):
        own = {"session_id": "s", "rag_top_k": 5, "routing_strategy": "random", "tags": ["a"]}
        gateway.chat(alice, stream=stream, **own)
        assert not set(own) & set(upstream.only.body)
        assert set(upstream.only.body) - {"stream_options"} == {"model", "messages", "stream"}

    def test_usage_is_always_asked_of_a_stream(self, gateway, model, alice, upstream):
        gateway.chat(alice, stream=True)
        assert upstream.only.body["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize("asked", [True, False])
    def test_other_stream_options_stay(self, gateway, model, alice, upstream, asked):
        gateway.chat(alice, stream=True, stream_options={"include_usage": asked, "include_obfuscation": False})
        assert upstream.only.body["stream_options"] == {"include_usage": True, "include_obfuscation": False}

    def test_usage_is_not_asked_of_a_plain_answer(self, gateway, model, alice, upstream):
        gateway.chat(alice)
        assert "stream_options" not in upstream.only.body

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_an_output_cap_by_either_name(self, gateway, model, alice, upstream, stream, name):
        gateway.chat(alice, stream=stream, **{name: 7})
        assert upstream.only.body[name] == 7
        assert len({"max_tokens", "max_completion_tokens"} & set(upstream.only.body)) == 1

    def test_of_two_output_caps_the_newer_wins(self, gateway, model, alice, upstream, stream):
        # OpenAI refuses a request with both; a server that honours the older one would answer beyond what was held.
        gateway.chat(alice, stream=stream, max_tokens=5000, max_completion_tokens=7)
        assert upstream.only.body["max_completion_tokens"] == 7
        assert "max_tokens" not in upstream.only.body


class TestUsageInAStream:
    def test_a_client_that_did_not_ask_sees_no_trace_of_it(self, gateway, model, alice):
        answer = gateway.chat(alice, stream=True)
        assert answer.done
        assert [chunk for chunk in answer.chunks if "usage" in chunk or not chunk["choices"]] == []
        assert answer.text == "Hello there."

    def test_a_client_that_asked_gets_it_once_at_the_end(self, gateway, model, alice):
        answer = gateway.chat(alice, stream=True, stream_options=USAGE_ASKED)
        *others, last = answer.chunks
        assert last["choices"] == []
        assert last["usage"] == USAGE
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in others)
        assert answer.done

    def test_it_is_made_where_the_upstream_sent_none(self, gateway, model, alice, upstream):
        upstream.will(says("One two", " three.", usage=None))
        answer = gateway.chat(alice, stream=True, stream_options=USAGE_ASKED)
        *_, last = answer.chunks
        assert last["choices"] == []
        assert {name: last[name] for name in ("id", "object", "created", "model")} == frame()
        assert answer.usage is not None
        # "One two three." is four tokens of o200k; "Hi there" with its framing is nine.
        assert (answer.usage["prompt_tokens"], answer.usage["completion_tokens"]) == (9, 4)
        assert answer.usage["total_tokens"] == 13
        assert gateway.settlement(answer.id).estimated

    def test_what_a_client_did_not_ask_for_is_made_for_nobody(self, gateway, model, alice, upstream):
        upstream.will(says(usage=None))
        answer = gateway.chat(alice, stream=True)
        assert "usage" not in str(answer.chunks)
        assert answer.done

    @pytest.mark.parametrize("asked", [True, False])
    def test_usage_on_the_last_chunk_with_a_choice(self, gateway, model, alice, upstream, asked):
        # As some compatible servers do, against the specification; clients read choices[0] of every other chunk.
        upstream.will(sends(delta("Hi"), {**delta(finish="stop"), "usage": USAGE}, DONE))
        answer = gateway.chat(alice, stream=True, stream_options={"include_usage": asked})
        assert answer.text == "Hi"
        assert (answer.usage is not None) is asked
        if answer.usage is not None:
            assert {name: answer.usage[name] for name in USAGE} == USAGE
            assert answer.chunks[-1]["choices"] == []
        assert (gateway.settlement(answer.id).prompt_tokens, gateway.settlement(answer.id).completion_tokens) == (11, 4)

    def test_usage_on_every_chunk_counts_once_at_its_last_value(self, gateway, model, alice, upstream):
        # vLLM's continuous_usage_stats.
        steps = [{"prompt_tokens": 11, "completion_tokens": n, "total_tokens": 11 + n} for n in (1, 2)]
        chunks = [{**delta(word), "usage": usage} for word, usage in zip(("a", "b"), steps, strict=True)]
        upstream.will(sends(*chunks, delta(finish="stop"), {"choices": [], "usage": USAGE}, DONE))
        answer = gateway.chat(alice, stream=True, stream_options=USAGE_ASKED)
        assert answer.usage == USAGE
        assert gateway.settlement(answer.id).completion_tokens == 4

    def test_null_usage_is_taken_out_and_nothing_else(self, gateway, model, alice, upstream):
        # A text that looks like the field; the field at another place; spaces, as Python's json writes them.
        texts = ['a,"usage":null', "b"]
        upstream.will(
            sends(
                b'data: {"usage":null,"id":"x","choices":[{"index":0,"delta":{"content":"a,\\"usage\\":null"}}]}\n\n',
                b'data: {"id": "x", "choices": [{"index": 0, "delta": {"content": "b"}}], "usage": null}\n\n',
                b'data: {"id":"x","choices":[{"index":0,"delta":{"a":{"b":1,"usage":null}}}],"usage":null}\n\n',
                b'data: {"id":"x","choices":[{"index":0,"delta":{"a":{"b":1,"usage":null}}}]}\n\n',
                {**delta(finish="stop"), "usage": None},
                DONE,
            )
        )
        answer = gateway.chat(alice, stream=True)
        assert [chunk for chunk in answer.chunks if "usage" in chunk] == []
        assert answer.text == "".join(texts)
        nested = [chunk["choices"][0]["delta"]["a"] for chunk in answer.chunks[2:4]]
        assert nested == [{"b": 1, "usage": None}] * 2

    def test_cached_and_reasoning_tokens_reach_the_ledger(self, gateway, model, alice, upstream, stream):
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 5, "audio_tokens": None},
            "completion_tokens_details": {"reasoning_tokens": 30},
        }
        upstream.will(says(usage=usage))
        row = gateway.settlement(gateway.chat(alice, stream=stream).id)
        assert (row.prompt_tokens, row.completion_tokens) == (100, 50)
        assert (row.cached_tokens, row.cache_write_tokens, row.reasoning_tokens) == (60, 5, 30)


class TestDraining:
    def test_new_requests_are_sent_elsewhere(self, gateway, model, alice, upstream, stream):
        gateway.plane.draining = True
        answer = gateway.chat(alice, stream=stream)
        assert answer.status == 503
        assert answer.error["code"] == "draining"
        assert answer.error["type"] == "overloaded_error"
        assert int(answer.headers["retry-after"]) >= 1
        assert not upstream.requests


def test_the_demo_provider_answers_without_an_upstream(gateway, alice, stream):
    make_deployment(make_provider("", slug="demo", kind="demo", api_key=None), "ailb-demo")
    answer = gateway.chat(alice, model="ailb-demo", stream=stream, messages=[{"role": "user", "content": "echo me"}])
    assert "echo me" in answer.text
    assert answer.headers["x-ailb-provider"] == "demo"
    assert gateway.settlement(answer.id).completion_tokens > 5


def test_a_key_of_nobody_is_served(gateway, model, stream):
    answer = gateway.chat(make_key(), stream=stream)
    row = gateway.settlement(answer.id)
    assert (row.user_id, row.team) == (None, None)


def test_two_that_come_together_are_apart(gateway, model, alice, upstream):
    # Events of one read reach the client together, and whole.
    together = b"".join(data({**frame(), **delta(word)}) for word in ("a", "b", "c"))
    upstream.will(sends(together, data({**frame(), **delta(finish="stop")}) + DONE))
    answer = gateway.chat(alice, stream=True)
    assert [chunk["created"] for chunk in answer.chunks] == [CREATED] * 4
    assert answer.text == "abc"
