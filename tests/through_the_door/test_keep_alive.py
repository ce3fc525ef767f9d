"""Silent streams are kept alive, and what that means for errors (lesson 33)."""

import threading

import anthropic
import openai
import pytest

from gateway import keep_alive
from tests.support.dialect_registry import serve
from tests.support.dialects import Say
from tests.support.upstream import DONE, delta, refuses, says, sends, waits_for
from tests.support.world import make_deployment, make_group

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(keep_alive, "SILENCE", 0.2)


def lines(answer):
    return [line for line in answer.raw.decode().split("\n\n") if line]


def test_before_the_first_event(gateway, model, alice, upstream):
    upstream.will(sends(0.7, delta("Hi"), delta(finish="stop"), DONE))
    answer = gateway.chat(alice, stream=True)
    pings = [line for line in lines(answer) if line == ": ping"]
    assert 2 <= len(pings) <= 3
    assert lines(answer)[0] == ": ping"
    assert answer.text == "Hi"
    assert lines(answer)[-1] == "data: [DONE]"


def test_between_two_events(gateway, model, alice, upstream):
    upstream.will(sends(delta("Hi"), 0.7, delta(" Bo"), delta(finish="stop"), DONE))
    answer = gateway.chat(alice, stream=True)
    assert ": ping" in lines(answer)[1:-2]
    assert answer.text == "Hi Bo"


def test_a_stream_that_talks_has_none(gateway, model, alice, upstream):
    upstream.will(sends(*(piece for word in "abcdefgh" for piece in (0.05, delta(word))), delta(finish="stop"), DONE))
    assert ": ping" not in lines(gateway.chat(alice, stream=True))


def test_a_plain_answer_has_none(gateway, model, alice, upstream):
    upstream.will(says("Hi", delay=0.7))
    answer = gateway.chat(alice)
    assert answer.status == 200
    assert b"ping" not in answer.raw


def test_failover_goes_on_until_the_first_content(gateway, model, provider, alice, upstream):
    make_group("both", make_deployment(provider, "slow", "gpt-slow"), model)
    upstream.will(waits_for_a_while(refuses(500)), model="gpt-slow")
    upstream.will(says("Hi"), model=model.upstream_model)
    answer = gateway.chat(alice, stream=True, model="both")
    assert (answer.status, answer.text) == (200, "Hi")
    assert lines(answer)[0] == ": ping"
    assert [attempt["outcome"] for attempt in gateway.settlement(answer.id).attempts] == ["upstream_error", "ok"]


def test_a_failure_after_it_is_an_event(gateway, model, alice, upstream):
    upstream.will(waits_for_a_while(refuses(500)))
    answer = gateway.chat(alice, stream=True)
    assert answer.status == 200
    assert lines(answer)[0] == ": ping"
    assert '"upstream_error"' in lines(answer)[-1]
    assert "[DONE]" not in answer.raw.decode()
    assert gateway.closing(answer.id).status == 502


def test_the_sdks_read_on(gateway, alice, upstream):
    provider = serve(upstream, "openai")
    script = provider.says(Say(text="Hi there"))
    upstream.will(waits_for_a_while(script), waits_for_a_while(script))
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=alice.secret)
    asked = {"model": "the-model", "messages": [{"role": "user", "content": "Hi"}]}
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.content == "Hi there"
    other = anthropic.Anthropic(base_url=gateway.url, api_key=alice.secret)
    with other.messages.stream(max_tokens=50, **asked) as stream:
        assert stream.get_final_text() == "Hi there"


def waits_for_a_while(script):
    """The script, after half a second of silence."""
    event = threading.Event()

    async def waiting(call):
        threading.Timer(0.5, event.set).start()
        await waits_for(event, script)(call)

    return waiting
