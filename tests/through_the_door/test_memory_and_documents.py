"""Sessions that are remembered and collections that are drawn on, through the door."""

import threading

import pytest

from memory import recall as memory
from memory.models import Session, Turn
from rag import retrieval
from rag.models import Collection, Document
from tests.support.answers import assert_error
from tests.support.upstream import refuses, says, sends
from tests.support.waiting import eventually
from tests.support.world import make_key

ASK = [{"role": "user", "content": "How long is the warranty?"}]
SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3


def turns():
    return list(Turn.objects.order_by("id").values_list("role", "content"))


def user(content):
    return {"role": "user", "content": content}


class TestMemory:
    def test_a_turn_is_remembered_and_recalled(self, gateway, model, alice, upstream, stream):
        upstream.will(says("Hello", " Bo."), says("You are Bo."))
        first = gateway.chat(alice, stream=stream, session_id="s", messages=[user("I am Bo.")])
        assert first.status == 200
        eventually(lambda: len(turns()) == 2)
        second = gateway.chat(alice, stream=stream, session_id="s", messages=[user("Who am I?")])
        assert second.text == "You are Bo."
        assert upstream.last.texts == ["I am Bo.", "Hello Bo.", "Who am I?"]
        eventually(lambda: len(turns()) == 4)

    def test_a_streams_client_that_reads_on_does_not_end_its_remembering(
        self, gateway, model, alice, upstream, monkeypatch
    ):
        """After the last byte the server says `http.disconnect`: that is the end, and not a client that left."""
        begun, store = threading.Event(), memory._store

        def slowly(*args):
            begun.set()
            threading.Event().wait(0.2)
            store(*args)

        monkeypatch.setattr(memory, "_store", slowly)
        left = 'ailb_requests_total{model="gpt-test",provider="upstream",status="499"}'
        before = gateway.metric(left)
        answer = gateway.chat(alice, stream=True, session_id="s")
        assert begun.wait(5)
        eventually(lambda: len(turns()) == 2)
        eventually(lambda: gateway.metric("ailb_active_requests") == 0)
        assert gateway.metric(left) == before
        assert gateway.settlement(answer.id).status == 200

    def test_the_header_names_a_session_too(self, gateway, model, alice):
        gateway.chat(alice, headers={"x-session-id": "from-a-header"})
        eventually(lambda: Session.objects.filter(session_id="from-a-header", owner="user:alice"))

    def test_two_people_never_share_one(self, gateway, model, alice, bob, charlie, upstream):
        gateway.chat(alice, session_id="s", messages=[user("Alice's secret plan")])
        eventually(lambda: len(turns()) == 2)
        for other in (bob, charlie, make_key()):
            gateway.chat(other, session_id="s", messages=[user("What was the plan?")])
            assert upstream.last.texts == ["What was the plan?"]

    def test_a_users_keys_share_it(self, gateway, model, alice, upstream):
        gateway.chat(alice, session_id="s", messages=[user("one")])
        eventually(lambda: len(turns()) == 2)
        gateway.chat(make_key("alice"), session_id="s", messages=[user("two")])
        assert upstream.last.texts == ["one", "Hello there.", "two"]

    def test_a_failed_request_leaves_no_turn(self, gateway, model, alice, upstream, stream):
        upstream.will(refuses(500))
        gateway.chat(alice, stream=stream, session_id="s")
        gateway.wait_until_quiet()
        assert turns() == []

    def test_a_cut_answer_leaves_no_turn(self, gateway, model, alice, upstream):
        upstream.will(sends({"choices": [{"index": 0, "delta": {"content": "Half"}}]}, 0.02, end="cut"))
        gateway.chat(alice, stream=True, session_id="s")
        gateway.wait_until_quiet()
        assert turns() == []

    def test_without_a_session_nothing_is_kept(self, gateway, model, alice, stream):
        gateway.chat(alice, stream=stream)
        assert not Session.objects.exists()

    def test_a_secret_is_not_remembered(self, gateway, model, alice):
        gateway.chat(alice, session_id="s", messages=[user(f"My key is {SECRET}")])
        eventually(lambda: len(turns()) == 2)
        assert SECRET not in str(turns())

    def test_memory_that_breaks_is_left_out(self, gateway, model, alice, upstream, monkeypatch, stream):
        async def broken(*args):
            raise memory.MemoryUnavailable

        monkeypatch.setattr(memory, "recall", broken)
        monkeypatch.setattr(memory, "remember", broken)
        answer = gateway.chat(alice, stream=stream, session_id="s")
        assert (answer.status, answer.text) == (200, "Hello there.")

    def test_switched_off_it_costs_nothing(self, gateway, model, alice, upstream, monkeypatch):
        monkeypatch.setattr(gateway.plane, "env", gateway.plane.env.model_copy(update={"ENABLE_MEMORY": False}))
        gateway.chat(alice, session_id="s")
        gateway.chat(alice, session_id="s")
        assert len(upstream.last.texts) == 1
        assert not Session.objects.exists()

    def test_what_is_recalled_is_held_and_billed(self, gateway, model, alice):
        gateway.chat(alice, session_id="s", messages=[user("word " * 500)])
        eventually(lambda: len(turns()) == 2)
        answer = gateway.chat(alice, session_id="s", messages=[user("next")])
        hold, _ = gateway.entries(answer.id)
        assert hold.held_prompt_tokens > 500


class TestDocuments:
    @pytest.fixture
    def manual(self, committed):
        collection = Collection.objects.create(name="manual")
        for title, text in (
            ("Terms", "The warranty lasts two years from the day of purchase."),
            ("Colours", "The machine comes in red and blue."),
            ("Service", "Under warranty, repairs are free."),
        ):
            Document.objects.create(collection=collection, title=title, text=text)
        return collection

    def test_the_best_passages_join_the_prompt_and_are_cited(self, gateway, model, alice, upstream, manual, stream):
        answer = gateway.chat(alice, stream=stream, rag_collection="manual", messages=ASK)
        fenced, question = upstream.only.body["messages"]
        assert question == ASK[0]
        assert fenced["role"] == "system"
        assert "two years" in fenced["content"]
        assert "red and blue" not in fenced["content"]
        assert "rag_collection" not in upstream.only.body
        citations = citations_of(answer)
        assert {citation["title"] for citation in citations} == {"Service", "Terms"}
        assert citations[0]["score"] >= citations[1]["score"]
        for citation in citations:
            document = Document.objects.get(public_id=citation["document_id"])
            assert citation["collection"] == "manual"
            assert citation["quote"] == document.text
            assert citation["score"] > 0
            assert citation["chunk"] == 0

    def test_in_a_stream_they_come_once_with_the_finish(self, gateway, model, alice, manual):
        answer = gateway.chat(
            alice, stream=True, rag_collection="manual", messages=ASK, stream_options={"include_usage": True}
        )
        with_citations = [chunk for chunk in answer.chunks if "ailb" in chunk]
        (final,) = with_citations
        assert final["choices"][0]["finish_reason"] == "stop"
        assert answer.usage is not None
        assert answer.done

    def test_no_more_than_asked_for(self, gateway, model, alice, manual, stream):
        answer = gateway.chat(alice, stream=stream, rag_collection="manual", rag_top_k=1, messages=ASK)
        assert len(citations_of(answer)) == 1

    def test_a_question_that_nothing_answers_goes_as_it_is(self, gateway, model, alice, upstream, manual, stream):
        answer = gateway.chat(alice, stream=stream, rag_collection="manual", messages=[user("Zebras?")])
        assert upstream.only.body["messages"] == [user("Zebras?")]
        assert b"ailb" not in answer.raw

    @pytest.mark.parametrize("name", ["nobody's", "charlies", "\x00", "x" * 200])
    def test_an_unknown_collection_and_anothers_are_not_found(
        self, gateway, model, alice, charlie, upstream, stream, name
    ):
        Collection.objects.create(name="charlies", owner="user:charlie")
        answer = gateway.chat(alice, stream=stream, rag_collection=name, messages=ASK)
        assert_error(answer, 404, "invalid_request_error", "collection_not_found", param="rag_collection")
        assert not upstream.requests

    def test_ones_own_is_found(self, gateway, model, alice, upstream, stream):
        collection = Collection.objects.create(name="alices", owner="user:alice")
        Document.objects.create(collection=collection, title="Note", text="The warranty is void.")
        answer = gateway.chat(alice, stream=stream, rag_collection="alices", messages=ASK)
        assert citations_of(answer)[0]["quote"] == "The warranty is void."

    def test_switched_off_it_is_refused_and_not_ignored(self, gateway, model, alice, manual, monkeypatch, stream):
        monkeypatch.setattr(gateway.plane, "env", gateway.plane.env.model_copy(update={"ENABLE_RAG": False}))
        answer = gateway.chat(alice, stream=stream, rag_collection="manual", messages=ASK)
        assert_error(answer, 400, "invalid_request_error", "unsupported_parameter", param="rag_collection")

    def test_knowledge_that_breaks_is_left_out(self, gateway, model, alice, upstream, manual, monkeypatch, stream):
        async def broken(*args):
            raise retrieval.KnowledgeUnavailable

        monkeypatch.setattr(retrieval, "augment", broken)
        answer = gateway.chat(alice, stream=stream, rag_collection="manual", messages=ASK)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert upstream.only.body["messages"] == ASK

    def test_a_secret_in_a_passage_reaches_neither_upstream_nor_client(self, gateway, model, alice, upstream, stream):
        collection = Collection.objects.create(name="leaky")
        Document.objects.create(collection=collection, title="Ops", text=f"The warranty server's key is {SECRET}.")
        answer = gateway.chat(alice, stream=stream, rag_collection="leaky", messages=ASK)
        assert "warranty server" in str(upstream.only.texts)
        assert SECRET not in upstream.only.raw.decode()
        assert SECRET not in answer.raw.decode()

    def test_together_with_a_session_the_passages_are_not_remembered(self, gateway, model, alice, upstream, manual):
        gateway.chat(alice, session_id="s", rag_collection="manual", messages=ASK)
        eventually(lambda: len(turns()) == 2)
        assert "two years" not in str(turns())


def citations_of(answer):
    if not answer.streamed:
        return answer.body["ailb"]["citations"]
    (chunk,) = (chunk for chunk in answer.chunks if "ailb" in chunk)
    return chunk["ailb"]["citations"]
