"""Memory, documents and the screen at the Messages door, over an upstream of either dialect."""

import httpx2
import pytest

from memory.models import Turn
from rag.models import Collection, Document
from security.models import Policy
from tests.support.dialect_registry import serve
from tests.support.dialects import Called, Say, Thought
from tests.support.waiting import eventually

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Found it."}]}
PLAIN = {"type": "text", "media_type": "text/plain", "data": SECRET}
QUESTION = "How long is the warranty?"

each_kind = pytest.mark.parametrize("kind", ["openai", "anthropic"])


@pytest.fixture
def send(gateway, alice):
    def sent(messages, **body):
        full = {"model": "the-model", "max_tokens": 50, "messages": messages, **body}
        return httpx2.post(f"{gateway.url}/v1/messages", headers=alice.bearer, json=full, timeout=30, trust_env=False)

    return sent


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def said(*content):
    return {"role": "assistant", "content": list(content)}


def text(value):
    return {"type": "text", "text": value}


@each_kind
class TestMemory:
    def test_a_turn_is_remembered_and_recalled(self, send, upstream, kind, stream):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="Hello Bo.")), provider.says(Say(text="You are Bo.")))
        assert send([user("I am Bo.")], session_id="s", stream=stream, system="Be brief.").status_code == 200
        eventually(lambda: Turn.objects.count() == 2)
        assert send([user("Who am I?")], session_id="s", stream=stream, system="Be brief.").status_code == 200
        messages = [message for message in upstream.last.body["messages"] if message["role"] != "system"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert "I am Bo." in str(messages[0])
        assert "Who am I?" in str(messages[2])
        eventually(lambda: Turn.objects.count() == 4)

    def test_the_question_of_a_turn_with_tools_is_the_one_before_them(self, send, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="It is there.")))
        send([user("Where is it?"), said(CALL), user(RESULT, RESULT)], session_id="s")
        eventually(lambda: Turn.objects.count() == 2)
        assert Turn.objects.order_by("id").first().content == "Where is it?"


@each_kind
class TestDocuments:
    @pytest.fixture(autouse=True)
    def manual(self, committed):
        collection = Collection.objects.create(name="manual")
        Document.objects.create(collection=collection, title="Terms", text="The warranty lasts two years.")

    def test_passages_stand_before_the_question_and_are_cited(self, send, upstream, kind, stream):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="Two years.")))
        answer = send([user(QUESTION)], rag_collection="manual", stream=stream)
        assert answer.status_code == 200
        sent = upstream.only.body["messages"]
        assert [message["role"] for message in sent] == ["user"]
        passages, question = sent[0]["content"]
        assert "two years" in passages["text"]
        assert question["text"] == QUESTION
        assert '"citations":[{"collection":"manual"' in answer.text
        if stream:
            assert answer.text.index('"citations"') > answer.text.index("message_delta")

    def test_results_of_tools_stay_first(self, send, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="Two years.")))
        send(
            [user("Look."), said(CALL), user(RESULT, text(QUESTION))],
            rag_collection="manual",
        )
        last = upstream.only.body["messages"][-1]
        texts = [part["text"] for part in last["content"] if part["type"] == "text"]
        assert "two years" in texts[0]
        assert texts[1] == QUESTION
        if kind == "anthropic":
            assert last["content"][0]["type"] == "tool_result"
        else:
            assert upstream.only.body["messages"][-2]["role"] == "tool"


@each_kind
class TestTheScreen:
    @pytest.mark.parametrize(
        "messages",
        [
            [user(SECRET)],
            [user(text(SECRET), text("Hi"))],
            [user("Hi"), said({**CALL, "input": {"key": SECRET}}), user(RESULT, text("x"))],
            [user("Hi"), said(CALL), user({**RESULT, "content": SECRET}, text("x"))],
            [user("Hi"), said(CALL), user({**RESULT, "content": [text(SECRET)]}, text("x"))],
            [user({"type": "document", "source": PLAIN}, text("x"))],
        ],
        ids=["text", "block", "input", "result", "blocks of a result", "document"],
    )  # fmt: skip
    def test_no_secret_reaches_the_upstream(self, send, upstream, kind, stream, messages):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="Well.")))
        assert send(messages, stream=stream).status_code == 200
        assert SECRET not in upstream.only.raw.decode()

    def test_nor_does_one_of_the_system_prompt(self, send, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="Well.")))
        assert send([user("Hi")], system=[text(f"The key is {SECRET}.")]).status_code == 200
        assert SECRET not in upstream.only.raw.decode()

    def test_a_blocked_prompt_is_told_in_anthropics_shape(self, send, upstream, kind, committed):
        Policy.objects.create(name="titan", blocked_terms=["project titan"])
        serve(upstream, kind)
        answer = send([user("All about Project Titan")])
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "titan" not in answer.json()["error"]["message"].lower()
        assert not upstream.requests


def test_a_signature_is_left_as_it_is(send, upstream):
    """Changed, the model would refuse the whole conversation."""
    provider = serve(upstream, "anthropic")
    upstream.will(provider.says(Say(text="Well.")))
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": SECRET}
    redacted = {"type": "redacted_thinking", "data": SECRET}
    assert send([user("Hi"), said(thinking, redacted, text("Ho")), user("?")]).status_code == 200
    assert upstream.only.body["messages"][1]["content"][:2] == [thinking, redacted]


def test_pictures_are_no_text(send, upstream):
    """Base64 can look like anything."""
    provider = serve(upstream, "anthropic")
    upstream.will(provider.says(Say(text="Well.")))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": SECRET}}
    assert send([user(image, text("What is it?"))]).status_code == 200
    assert upstream.only.body["messages"][0]["content"][0] == image


def test_an_openai_clients_passages_reach_anthropic_too(gateway, alice, upstream, committed, stream):
    collection = Collection.objects.create(name="manual")
    Document.objects.create(collection=collection, title="Terms", text="The warranty lasts two years.")
    provider = serve(upstream, "anthropic")
    upstream.will(provider.says(Say(text="Two years.")))
    answer = gateway.chat(
        alice,
        model="the-model",
        stream=stream,
        rag_collection="manual",
        messages=[{"role": "user", "content": QUESTION}],
    )
    assert "two years" in str(upstream.only.body["system"])
    assert '"citations":[{"collection":"manual"' in answer.raw.decode()


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize("door", ["chat", "messages"])
class TestWhatIsRemembered:
    """What was said to the user: neither thoughts nor calls of tools."""

    def ask(self, gateway, alice, door, stream):
        asked = {"model": "the-model", "messages": [user("Where?")], "session_id": "s", "stream": stream}
        if door == "chat":
            return gateway.chat(alice, **asked).status
        url = f"{gateway.url}/v1/messages"
        return httpx2.post(
            url, headers=alice.bearer, json={**asked, "max_tokens": 50}, timeout=30, trust_env=False
        ).status_code

    def test_no_thoughts(self, gateway, alice, upstream, kind, door, stream):
        provider = serve(upstream, kind)
        upstream.will(
            provider.says(
                Say(thought=Thought("Hm, let me think.", "c2ln" if kind == "anthropic" else ""), text="In Ede.")
            )
        )
        assert self.ask(gateway, alice, door, stream) == 200
        eventually(lambda: Turn.objects.count() == 2)
        assert Turn.objects.order_by("-id").first().content == "In Ede."

    def test_no_calls(self, gateway, alice, upstream, kind, door, stream):
        provider = serve(upstream, kind)
        call = Called("call_1", "get_weather", {"city": "Ede"})
        upstream.will(provider.says(Say(calls=(call,))), provider.says(Say(text="In Ede.")))
        assert self.ask(gateway, alice, door, stream) == 200
        assert self.ask(gateway, alice, door, stream) == 200
        eventually(lambda: Turn.objects.count() == 2)
        assert Turn.objects.order_by("-id").first().content == "In Ede."
