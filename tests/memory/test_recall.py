"""Memory as the pipeline calls it: what a session's next prompt is given, and what a request leaves behind."""

import asyncio
import time

import pytest
from asgiref.sync import async_to_sync
from django.db import DatabaseError, InterfaceError
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GuardUnavailable
from memory import recall as memory
from memory.models import Session, Turn
from security.detectors.secrets import REPLACEMENT
from tests.security.builders import assistant, caller, chat, policy, system, user

# The ORM works on other threads here, which see what is committed.
pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3


def remember(messages, answer, *, session="s", of=None):
    async_to_sync(memory.remember)(chat(messages, session_id=session), of or caller(), answer)


def recalled(messages, *, session="s", of=None, window=None, p=None, **fields):
    """The messages that the upstream would see."""
    request = chat(messages, session_id=session, **fields)
    return async_to_sync(memory.recall)(request, of or caller(), window, p or policy()).body["messages"]


def turns():
    return list(Turn.objects.order_by("id").values_list("role", "content"))


class TestRecall:
    def test_the_turns_of_the_session_come_first_oldest_first(self):
        remember([user("My name is Bo.")], "Hello Bo.")
        remember([user("I live in Ede.")], "Nice.")
        assert recalled([user("Who am I?")]) == [
            user("My name is Bo."),
            assistant("Hello Bo."),
            user("I live in Ede."),
            assistant("Nice."),
            user("Who am I?"),
        ]

    def test_system_and_developer_messages_stay_in_front(self):
        remember([user("one")], "two")
        lead = [system("Be brief."), {"role": "developer", "content": "Be kind."}]
        assert recalled([*lead, user("three")]) == [*lead, user("one"), assistant("two"), user("three")]

    def test_a_system_message_later_on_stays_where_it_is(self):
        remember([user("one")], "two")
        sent = [user("three"), system("Now be brief."), user("four")]
        assert recalled(sent) == [user("one"), assistant("two"), *sent]

    def test_the_clients_own_request_is_not_changed(self):
        remember([user("one")], "two")
        request = chat([user("three")], session_id="s")
        async_to_sync(memory.recall)(request, caller(), None, policy())
        assert request.body["messages"] == [user("three")]

    def test_without_a_session_the_request_is_given_back_and_the_database_left_alone(self, monkeypatch):
        async def fail(*args):
            raise AssertionError("memory went to the database")

        monkeypatch.setattr(memory, "in_thread", fail)
        request = chat([user("hi")])
        assert asyncio.run(memory.recall(request, caller(), None, policy())) is request
        asyncio.run(memory.remember(request, caller(), "an answer"))

    def test_a_new_session_recalls_nothing(self):
        request = chat([user("hi")], session_id="new")
        assert async_to_sync(memory.recall)(request, caller(), None, policy()) is request


class TestOwners:
    def test_two_owners_of_one_session_name_never_meet(self):
        alice, bob, program = caller("alice"), caller("bob"), caller(None, key_id="alice")
        remember([user("I am Alice.")], "Hi Alice.", of=alice)
        remember([user("I am Bob.")], "Hi Bob.", of=bob)
        ask = [user("Who am I?")]
        assert recalled(ask, of=alice) == [user("I am Alice."), assistant("Hi Alice."), *ask]
        assert recalled(ask, of=bob) == [user("I am Bob."), assistant("Hi Bob."), *ask]
        assert recalled(ask, of=program) == ask

    def test_a_users_keys_share_the_users_sessions(self):
        remember([user("one")], "two", of=caller("alice", key_id="key_1"))
        ask = [user("three")]
        assert len(recalled(ask, of=caller("alice", key_id="key_2"))) == 3

    def test_sessions_of_one_owner_are_apart(self):
        remember([user("one")], "two", session="a")
        assert recalled([user("three")], session="b") == [user("three")]


class TestWhatTheClientSentItself:
    history = (user("one"), assistant("two"), user("three"), assistant("four"))

    @pytest.fixture(autouse=True)
    def _remembered(self):
        remember([user("one")], "two")
        remember([user("three")], "four")

    @pytest.mark.parametrize("sent", range(5))
    def test_the_end_of_the_history_is_not_given_twice(self, sent):
        own = [*self.history[len(self.history) - sent :], user("five")]
        assert recalled(own) == [*self.history, user("five")]

    def test_content_parts_are_the_same_as_their_text(self):
        own = [user([{"type": "text", "text": "three"}]), assistant("four"), user("five")]
        assert recalled(own) == [user("one"), assistant("two"), *own]

    def test_a_new_message_in_the_words_of_an_old_one_is_new(self):
        assert recalled([user("three")]) == [*self.history, user("three")]

    def test_answers_whose_questions_were_sent_are_not_put_in_front_of_them(self):
        own = [user("one"), user("three"), user("five")]
        assert recalled(own) == own

    def test_words_said_twice_are_remembered_twice(self):
        remember([user("three")], "four")
        own = [user("three"), assistant("four"), user("five")]
        assert recalled(own) == [*self.history, *own]


class TestRoom:
    def test_the_newest_turns_that_fit_the_window_are_taken(self):
        for number in range(8):
            remember([user(f"{number}?" + "x" * 298)], f"{number}!" + "y" * 298)
        got = recalled([user("next")], window=1_000, max_output=300)
        # 700 tokens at three bytes, less prompt and framing: six turns of 312 bytes.
        assert [message["content"][:2] for message in got[:-1]] == ["5?", "5!", "6?", "6!", "7?", "7!"]

    def test_a_larger_window_takes_more_and_a_longer_answer_less(self):
        for number in range(30):
            remember([user(f"{number}" + "x" * 998)], "y" * 1_000)
        ask = [user("next")]
        small, default, large = (len(recalled(ask, window=window)) for window in (2_000, None, 16_000))
        assert 1 < small < default < large
        assert len(recalled(ask, max_output=1_000)) > default
        assert len(recalled(ask, window=8_192)) == default

    def test_a_window_of_any_size_takes_a_bounded_number(self):
        Turn.objects.bulk_create(
            Turn(session=Session.objects.get_or_create(owner="user:alice", session_id="s")[0], role=role, content="x")
            for _ in range(300)
            for role in ("user", "assistant")
        )
        assert len(recalled([user("next")], window=2_000_000)) == 101

    def test_recall_has_a_price_cap_however_large_the_window(self):
        for _ in range(4):
            remember([user("x" * 20_000)], "y" * 1_000)
        assert len(recalled([user("next")], window=2_000_000)) == 5

    def test_a_turn_that_does_not_fit_ends_it_there(self):
        remember([user("one")], "two")
        remember([user("x" * 100_000)], "a summary")
        remember([user("three")], "four")
        assert recalled([user("five")]) == [user("three"), assistant("four"), user("five")]

    def test_a_prompt_that_fills_the_window_leaves_no_room(self):
        remember([user("one")], "two")
        ask = [user("x" * 50_000)]
        assert recalled(ask) == ask

    @given(
        lengths=st.lists(st.integers(1, 3_000), max_size=30),
        window=st.integers(1, 20_000),
        max_output=st.none() | st.integers(1, 20_000),
    )
    def test_what_is_chosen_fits_and_is_the_end_of_the_conversation(self, lengths, window, max_output):
        newest = [("user" if n % 2 else "assistant", "é" * length) for n, length in enumerate(lengths)]
        request = chat([user("next")], max_output=max_output)
        room = max(0, memory._room(request, window))
        chosen = memory._chosen(newest, memory._sent(request.body), room, policy())
        assert sum(len(content.encode()) for _, content in chosen) <= room
        assert chosen == newest[: len(chosen)][::-1]
        assert room <= 3 * max(window - (max_output or 0), window // 2)


class TestScreening:
    def test_secrets_are_taken_out_of_recalled_turns(self):
        remember([user(f"My key is {SECRET}")], "Noted.")
        assert recalled([user("next")])[0] == user(f"My key is {REPLACEMENT}")

    def test_a_blocked_turn_is_left_out_and_blocks_nothing(self):
        remember([user("one")], "two")
        remember([user("About Project Titan")], "I see.")
        remember([user("three")], "four")
        contents = [message["content"] for message in recalled([user("next")], p=policy("titan"))]
        assert contents == ["one", "two", "I see.", "three", "four", "next"]

    def test_a_broken_guard_refuses(self, monkeypatch):
        def broken(*args):
            raise GuardUnavailable("The prompt could not be checked.")

        remember([user("one")], "two")
        monkeypatch.setattr(memory, "screen_text", broken)
        with pytest.raises(GuardUnavailable):
            recalled([user("next")])


class TestRemember:
    def test_the_last_user_message_and_the_answer_are_kept(self):
        remember([system("Be brief."), user("one"), assistant("two"), user("three")], "four")
        assert turns() == [("user", "three"), ("assistant", "four")]
        session = Session.objects.get()
        assert (session.owner, session.session_id) == ("user:alice", "s")

    def test_a_session_goes_on(self):
        remember([user("one")], "two")
        before = Session.objects.get().last_turn_at
        time.sleep(0.001)
        remember([user("three")], "four")
        assert Session.objects.get().last_turn_at > before
        assert Turn.objects.count() == 4

    def test_the_text_of_content_parts_is_kept(self):
        parts = [
            {"type": "text", "text": "What is"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            {"type": "text", "text": "this?"},
        ]
        remember([user(parts)], "A cat.")
        assert turns() == [("user", "What is\nthis?"), ("assistant", "A cat.")]

    @pytest.mark.parametrize("answer", ["", " \n"])
    def test_an_answer_of_tool_calls_only_leaves_nothing(self, answer):
        remember([user("What is the weather?")], answer)
        assert not Session.objects.exists()

    @pytest.mark.parametrize(
        "messages",
        [[system("Say something.")], [user([{"type": "image_url", "image_url": {"url": "https://x/y"}}])], [user("")]],
    )
    def test_without_a_question_in_text_nothing_is_kept(self, messages):
        remember(messages, "Something.")
        assert not Session.objects.exists()

    def test_a_question_that_went_on_through_tools_is_kept_once(self):
        call = assistant("Let me look.", tool_calls=[{"id": "c", "type": "function", "function": {"name": "f"}}])
        result = {"role": "tool", "tool_call_id": "c", "content": "Sunny."}
        remember([user("Weather?")], "Let me look.")
        assert recalled([user("Weather?"), call, result]) == [user("Weather?"), call, result]
        remember([user("Weather?"), call, result], "It is sunny.")
        assert turns() == [("user", "Weather?"), ("assistant", "Let me look."), ("assistant", "It is sunny.")]

    def test_a_question_asked_again_is_kept_again(self):
        remember([user("Again?")], "Yes.")
        remember([user("Again?")], "Yes.")
        assert Turn.objects.count() == 4

    def test_what_no_database_keeps_is_replaced(self):
        remember([user("a\x00b\ud800c")], "d\x00\udfff", session="s\x00\ud800")
        assert turns() == [("user", "ab?c"), ("assistant", "d?")]
        assert len(recalled([user("next")], session="s\x00\ud800")) == 3

    def test_both_turns_are_kept_or_neither(self, monkeypatch):
        save = Session.save

        def fail_late(session, *args, **kwargs):
            if "last_turn_at" in (kwargs.get("update_fields") or ()):  # the last thing that is written
                raise DatabaseError
            save(session, *args, **kwargs)

        monkeypatch.setattr(Session, "save", fail_late)
        with pytest.raises(memory.MemoryUnavailable):
            remember([user("one")], "two")
        assert turns() == []
        assert not Session.objects.exists()


@pytest.mark.parametrize("problem", [DatabaseError, InterfaceError])
class TestTheDatabaseIsAway:
    @pytest.fixture(autouse=True)
    def _away(self, monkeypatch, problem):
        async def fail(*args):
            raise problem

        monkeypatch.setattr(memory, "in_thread", fail)

    def test_recall_says_so(self):
        with pytest.raises(memory.MemoryUnavailable):
            recalled([user("next")])

    def test_remember_says_so(self):
        with pytest.raises(memory.MemoryUnavailable):
            remember([user("one")], "two")
