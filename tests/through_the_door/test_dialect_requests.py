"""What a request asks for, in the words of the provider that is asked."""

from dataclasses import replace
from itertools import product

import pytest

from billing.models import LedgerEntry
from gateway.models import Deployment
from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import (
    CASES,
    CLOCK,
    KOELN,
    WEATHER,
    Ask,
    Called,
    Result,
    Said,
    Say,
    System,
)  # fmt: skip
from tests.support.world import make_budget, make_group

OPENAI, ANTHROPIC = DOORS["openai"], DOORS["anthropic"]
TEXT = CASES["text"].say
each_pair = pytest.mark.parametrize(("door", "kind"), list(product(DOORS, PROVIDERS)))
each_kind = pytest.mark.parametrize("kind", PROVIDERS)
each_door = pytest.mark.parametrize("door", DOORS)
foreign = pytest.mark.parametrize("kind", ["anthropic", "ollama"])


@pytest.fixture
def refusing(gateway, monkeypatch):
    """AILB_UNSUPPORTED_PARAMETERS=refuse"""
    env = gateway.plane.env.model_copy(update={"AILB_UNSUPPORTED_PARAMETERS": "refuse"})
    monkeypatch.setattr(gateway.plane, "env", env)


def refused(gateway, door, heard, upstream, param):
    door.assert_error(heard, 400, "invalid_request_error", "unsupported_parameter", param=param)
    assert param in heard.error["error"]["message"], "Anthropic's shape has no other place for the name"
    assert not upstream.requests
    gateway.wait_until_quiet()
    assert not LedgerEntry.objects.filter(kind="settlement").exists()


# What only changes an answer's odds. OpenAI's door: by provider, those that its dialect has no word for.
ODDS = {
    "seed": 7,
    "logit_bias": {"50256": -100},
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "verbosity": "low",
    "prediction": {"type": "content", "content": "Hello"},
}
UNSAID = {"anthropic": set(ODDS), "ollama": {"logit_bias", "verbosity", "prediction"}}


class TestParametersWithoutAWord:
    @foreign
    def test_they_are_named_and_the_answer_comes(self, gateway, alice, upstream, stream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(stream=stream), **ODDS)
        assert heard.status == 200
        assert heard.dropped == UNSAID[kind]
        assert not set(ODDS) & set(upstream.only.body)

    def test_ollama_is_told_those_that_it_knows(self, gateway, alice, upstream):
        serve(upstream, "ollama")
        upstream.will(PROVIDERS["ollama"].says(TEXT))
        OPENAI.ask(gateway, alice, Ask(), **ODDS, temperature=0.3, top_p=0.9, stop=["END"])
        options = upstream.only.body["options"]
        expected = {"seed": 7, "presence_penalty": 0.5, "frequency_penalty": 0.5, "temperature": 0.3, "top_p": 0.9}
        assert {name: options.get(name) for name in expected} == expected
        assert options["stop"] == ["END"]

    def test_openai_gets_all_of_them_as_they_are(self, gateway, alice, upstream):
        serve(upstream, "openai")
        upstream.will(PROVIDERS["openai"].says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(), **ODDS, something_new={"a": [1]})
        assert heard.dropped == set()
        body = upstream.only.body
        assert {name: body[name] for name in ODDS} == ODDS
        assert body["something_new"] == {"a": [1]}

    @pytest.mark.parametrize(("kind", "knows"), [("openai", False), ("ollama", True), ("anthropic", True)])
    def test_top_k_at_the_messages_door(self, gateway, alice, upstream, stream, kind, knows):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = ANTHROPIC.ask(gateway, alice, Ask(stream=stream), top_k=37)
        assert heard.dropped == (set() if knows else {"top_k"})
        assert ("37" in upstream.only.raw.decode()) is knows

    def test_they_are_called_by_the_clients_own_names(self, gateway, alice, upstream):
        serve(upstream, "openai")
        upstream.will(PROVIDERS["openai"].says(TEXT))
        heard = ANTHROPIC.ask(gateway, alice, Ask(), stop_sequences=["a", "b", "c", "d", "e"])
        assert heard.dropped == {"stop_sequences"}

    @pytest.mark.parametrize("name", ODDS)
    def test_refused_where_the_installation_wants_that(self, gateway, alice, upstream, stream, refusing, name):
        serve(upstream, "anthropic")
        heard = OPENAI.ask(gateway, alice, Ask(stream=stream), **{name: ODDS[name]})
        refused(gateway, OPENAI, heard, upstream, name)

    def test_refused_at_the_messages_door(self, gateway, alice, upstream, stream, refusing):
        serve(upstream, "openai")
        refused(gateway, ANTHROPIC, ANTHROPIC.ask(gateway, alice, Ask(stream=stream), top_k=40), upstream, "top_k")
        heard = ANTHROPIC.ask(gateway, alice, Ask(stream=stream), stop_sequences=["a", "b", "c", "d", "e"])
        refused(gateway, ANTHROPIC, heard, upstream, "stop_sequences")

    def test_nothing_is_refused_that_says_nothing(self, gateway, alice, upstream, refusing):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        silent = {"seed": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False}
        assert OPENAI.send(gateway, alice, {**OPENAI.write(Ask()), **silent, "n": 1}).status == 200


class TestWhatCannotBeLeftOut:
    """Without it the answer would not be what was asked for: never one answer in silence."""

    @pytest.mark.parametrize(
        ("asked", "param"),
        [
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
            ({"logprobs": True, "top_logprobs": 3}, "logprobs"),
            ({"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}, "modalities"),
            ({"web_search_options": {"user_location": None}}, "web_search_options"),
        ],
    )
    @foreign
    def test_it_is_refused_by_name(self, gateway, alice, upstream, stream, kind, asked, param):
        serve(upstream, kind)
        heard = OPENAI.ask(gateway, alice, Ask(stream=stream), **asked)
        named = heard.error["error"]["param"]
        refused(gateway, OPENAI, heard, upstream, named)
        assert named == param or named in asked

    @foreign
    def test_another_provider_of_the_model_that_can_is_asked_instead(self, gateway, alice, upstream, stream, kind):
        serve(upstream, kind, "first")
        provider = serve(upstream, "openai", "second", slug="other")
        make_group("the-model", *(Deployment.objects.get(name=name) for name in ("first", "second")))
        upstream.will(provider.says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(stream=stream), logprobs=True)
        assert heard.headers["x-ailb-model"] == "second"
        assert upstream.only.body["logprobs"] is True

    @pytest.mark.parametrize("kind", ["openai", "ollama"])
    def test_a_server_tool_is_anthropics_alone(self, gateway, alice, upstream, stream, kind):
        serve(upstream, kind)
        tools = [{"type": "web_search_20250305", "name": "web_search"}]
        heard = ANTHROPIC.ask(gateway, alice, Ask(stream=stream), tools=tools)
        ANTHROPIC.assert_error(heard, 400, "invalid_request_error", "unsupported_parameter")
        assert not upstream.requests


class TestInstructions:
    @each_kind
    def test_developers_are_systems_in_order(self, gateway, alice, upstream, stream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        roles = ("system", "developer", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, "abc", strict=True)]
        assert OPENAI.ask(gateway, alice, Ask(stream=stream), messages=messages).status == 200
        items = provider.read(upstream.only).items
        assert "".join(item.text for item in items if isinstance(item, System)).replace("\n", "") == "ab"
        assert items[-1] == Said("c")
        if kind == "ollama":
            assert {message["role"] for message in upstream.only.body["messages"]} == {"system", "user"}

    @each_kind
    def test_system_blocks_of_a_message(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        marked = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
        system = [{"type": "text", "text": "a"}, marked]
        assert ANTHROPIC.ask(gateway, alice, Ask(), system=system).status == 200
        told = [item.text for item in provider.read(upstream.only).items if isinstance(item, System)]
        assert "".join(told).replace("\n", "") == "ab"
        assert ("cache_control" in upstream.only.raw.decode()) is (kind == "anthropic")

    def test_cache_borders_at_the_chat_door_reach_anthropic(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        marked = {"type": "text", "text": "Long.", "cache_control": {"type": "ephemeral"}}
        messages = [{"role": "system", "content": [marked]}, {"role": "user", "content": "Hi"}]
        OPENAI.ask(gateway, alice, Ask(), messages=messages)
        assert upstream.only.body["system"] == [marked]

    def test_anthropic_gets_no_empty_text_and_no_two_turns_of_one_role(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        said = [("user", "a"), ("user", ""), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")]
        OPENAI.ask(gateway, alice, Ask(), messages=[{"role": role, "content": text} for role, text in said])
        # Its reader says no to both.
        assert [item.text for item in provider.read(upstream.only).items] == list("abcde")


class TestPassingBy:
    """A provider of the client's own dialect gets the body as it is."""

    def test_of_openai(self, gateway, alice, upstream, stream):
        provider = serve(upstream, "openai")
        upstream.will(provider.says(TEXT))
        body = OPENAI.write(replace(CASES["tools"].ask, stream=stream)) | {"store": True, "metadata": {"a": "b"}}
        OPENAI.send(gateway, alice, body)
        assert upstream.only.body == {**body, "model": provider.model}

    def test_of_anthropic(self, gateway, alice, upstream, stream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        more = {
            "tools": [{"type": "web_search_20250305", "name": "web_search"}],
            "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
            "metadata": {"user_id": "u"},
            "stop_sequences": ["a", "b", "c", "d", "e"],
            "top_k": 5,
        }
        body = ANTHROPIC.write(Ask(stream=stream, thinks=True)) | more
        heard = ANTHROPIC.send(gateway, alice, body)
        assert heard.dropped == set()
        assert upstream.only.body == {**body, "model": provider.model}


class TestSampling:
    def test_a_temperature_that_anthropic_does_not_have(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(), temperature=1.7)
        assert heard.dropped == {"temperature"}, "clamped or left out, and said so"
        assert upstream.only.body.get("temperature", 1) == 1

    def test_or_refused_by_policy(self, gateway, alice, upstream, refusing):
        serve(upstream, "anthropic")
        refused(gateway, OPENAI, OPENAI.ask(gateway, alice, Ask(), temperature=1.7), upstream, "temperature")

    @pytest.mark.parametrize("stop", ["END", ["END", "STOP"]])
    def test_stop_words_reach_anthropic(self, gateway, alice, upstream, stop):
        serve(upstream, "anthropic")
        upstream.will(PROVIDERS["anthropic"].says(TEXT))
        OPENAI.ask(gateway, alice, Ask(), stop=stop, temperature=0.5)
        assert upstream.only.body["stop_sequences"] == ([stop] if isinstance(stop, str) else stop)
        assert upstream.only.body["temperature"] == 0.5

    def test_stop_sequences_reach_openai(self, gateway, alice, upstream):
        serve(upstream, "openai", model="gpt-4.1")
        upstream.will(PROVIDERS["openai"].says(TEXT))
        ANTHROPIC.ask(gateway, alice, Ask(), stop_sequences=["a", "b"], temperature=0.5, top_p=0.9)
        body = upstream.only.body
        assert (body["stop"], body["temperature"], body["top_p"]) == (["a", "b"], 0.5, 0.9)

    def test_the_end_user_has_a_name_everywhere(self, gateway, alice, upstream):
        serve(upstream, "anthropic")
        serve(upstream, "openai", "other-model", slug="other")
        upstream.will(PROVIDERS["anthropic"].says(TEXT), PROVIDERS["openai"].says(TEXT))
        OPENAI.ask(gateway, alice, Ask(), user="u-1")
        assert upstream.last.body["metadata"] == {"user_id": "u-1"}
        ANTHROPIC.ask(gateway, alice, Ask(model="other-model"), metadata={"user_id": "u-2"})
        body = upstream.last.body
        assert "u-2" in (body.get("user"), body.get("safety_identifier"))

    def test_anthropic_is_always_told_a_cap_and_never_beyond_the_hold(self, gateway, alice, upstream, stream):
        provider = serve(upstream, "anthropic")
        make_budget("user", "alice", dollars="100")
        upstream.will(provider.says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(max_output=None, stream=stream))
        hold, _ = gateway.entries(heard.id)
        assert 1 <= upstream.only.body["max_tokens"] <= hold.held_output_tokens

    @each_pair
    def test_fields_of_ours_stay_here(self, gateway, alice, upstream, door, kind):
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = door.ask(gateway, alice, Ask(), tags=["blue"], routing_strategy="failover")
        provider.read(upstream.only)  # which asserts it
        assert gateway.settlement(heard.id).tags == ["blue"]
        assert heard.dropped == set()


class TestTools:
    @each_door
    @pytest.mark.parametrize("choice", ["auto", "required", "none", "clock"])
    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    def test_each_choice_has_its_word(self, gateway, alice, upstream, door, kind, choice):
        door, provider = DOORS[door], serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        door.ask(gateway, alice, Ask(tools=(WEATHER, CLOCK), choice=choice))
        assert provider.read(upstream.only).choice == choice

    @each_door
    @pytest.mark.parametrize(
        ("choice", "offered"), [("none", []), ("clock", ["clock"]), ("auto", ["get_weather", "clock"])]
    )
    def test_ollama_is_offered_what_may_be_called(self, gateway, alice, upstream, door, choice, offered):
        door, provider = DOORS[door], serve(upstream, "ollama")
        upstream.will(provider.says(TEXT))
        heard = door.ask(gateway, alice, Ask(tools=(WEATHER, CLOCK), choice=choice))
        tools = provider.read(upstream.only).tools
        assert [tool.name for tool in tools] == offered or "tool_choice" in heard.dropped

    def test_one_at_a_time(self, gateway, alice, upstream):
        serve(upstream, "anthropic")
        serve(upstream, "openai", "other-model", slug="other")
        upstream.will(PROVIDERS["anthropic"].says(TEXT), PROVIDERS["openai"].says(TEXT))
        ask = Ask(tools=(WEATHER,), choice="required")
        OPENAI.ask(gateway, alice, ask, parallel_tool_calls=False)
        assert upstream.last.body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
        choice = {"type": "any", "disable_parallel_tool_use": True}
        ANTHROPIC.ask(gateway, alice, replace(ask, model="other-model"), tool_choice=choice)
        assert upstream.last.body["parallel_tool_calls"] is False
        assert upstream.last.body["tool_choice"] == "required"

    def test_one_at_a_time_where_no_choice_was_named(self, gateway, alice, upstream):
        serve(upstream, "anthropic")
        upstream.will(PROVIDERS["anthropic"].says(TEXT))
        OPENAI.ask(gateway, alice, Ask(tools=(WEATHER,)), parallel_tool_calls=False)
        assert upstream.only.body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}

    @foreign
    def test_one_without_parameters(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        tools = [{"type": "function", "function": {"name": "clock"}}]
        assert OPENAI.ask(gateway, alice, Ask(), tools=tools).status == 200
        (tool,) = provider.read(upstream.only).tools
        assert tool.schema == {"type": "object", "properties": {}}

    @pytest.mark.parametrize("arguments", ['{"city": ', "[1]", "5", "no JSON"])
    @foreign
    def test_arguments_in_the_history_that_are_no_object(self, gateway, alice, upstream, kind, arguments):
        provider = serve(upstream, kind)
        upstream.always(provider.says(TEXT))
        call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": arguments}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
        ]
        heard = OPENAI.ask(gateway, alice, Ask(tools=(CLOCK,)), messages=messages)
        OPENAI.assert_error(heard, 400, "invalid_request_error", None)
        assert not upstream.requests

    @foreign
    def test_empty_arguments_in_the_history_are_none(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": ""}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "x"},
        ]
        assert OPENAI.ask(gateway, alice, Ask(tools=(CLOCK,)), messages=messages).status == 200
        assert provider.read(upstream.only).items[1:] == (Called("a", "clock", {}), Result("a", "x"))

    def test_arguments_of_an_answer_that_are_no_json_break_nothing(self, gateway, alice, upstream, stream):
        provider = serve(upstream, "openai")
        broken = {"index": 0, "id": "a", "type": "function", "function": {"name": "clock", "arguments": '{"a": '}}
        plain = provider.plain(Say(calls=(KOELN,), stop="tools"))
        plain["choices"][0]["message"]["tool_calls"] = [{**broken, "index": None}]
        chunks = [provider.chunk({"tool_calls": [broken]}), provider.chunk({}, finish="tool_calls")]
        upstream.will(provider.plays(plain, *chunks, *provider.pieces(TEXT)[-2:]))
        with ANTHROPIC.asking(gateway, alice, Ask(tools=(CLOCK,), stream=stream)) as response:
            raw = response.read()
        assert response.status_code == 200
        assert b'"tool_use"' in raw
        assert raw.endswith(b'{"type":"message_stop"}\n\n') is stream
        assert gateway.only_closing().status == 200
