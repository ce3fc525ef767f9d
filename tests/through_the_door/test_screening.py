"""The screen at the door: what is taken out, what is blocked, what happens when it breaks."""

import msgspec
import pytest

from billing.models import LedgerEntry
from security import detectors
from security.models import Policy, SecurityEvent
from tests.support.answers import assert_error
from tests.support.upstream import says
from tests.support.waiting import eventually
from tests.support.world import make_key

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3
ASK = [{"role": "user", "content": f"My key is {SECRET}, is it safe?"}]


def user(content):
    return [{"role": "user", "content": content}]


@pytest.fixture
def titan(committed):
    return Policy.objects.create(name="titan", blocked_terms=["project titan"])


class TestSecrets:
    def test_the_upstream_never_sees_one(self, gateway, model, alice, upstream, stream):
        answer = gateway.chat(alice, stream=stream, messages=ASK)
        assert answer.status == 200
        assert SECRET not in upstream.only.raw.decode()
        assert upstream.only.texts == ["My key is [secret removed], is it safe?"]

    @pytest.mark.parametrize(
        "body",
        [
            {"messages": [{"role": "system", "content": SECRET}, {"role": "user", "content": "Hi"}]},
            {"messages": user([{"type": "text", "text": SECRET}])},
            {"messages": [*user("Hi"), {"role": "tool", "tool_call_id": "c", "content": SECRET}]},
            {"messages": user("Hi"), "tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}]},
            {"messages": user("Hi"), "metadata": {"note": SECRET}},
            {"messages": user("Hi"), "vllm_prompt": SECRET},
        ],
        ids=["system", "part", "tool result", "tool", "metadata", "unknown field"],
    )
    def test_wherever_it_stands(self, gateway, model, alice, upstream, stream, body):
        assert gateway.chat(alice, stream=stream, **body).status == 200
        assert SECRET not in upstream.only.raw.decode()

    def test_it_is_written_down_without_its_text(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream, messages=ASK)
        (event,) = eventually(lambda: list(SecurityEvent.objects.filter(request_id=answer.id)))
        assert (event.category, event.action, event.part) == ("secret", "sanitize", "messages[0].content")
        assert (event.key_id, event.user_id, event.team) == (alice.id, "alice", "red")
        assert (event.start, event.end) == (10, 10 + len(SECRET))
        assert SECRET not in str(event.__dict__)
        assert gateway.settlement(answer.id).security_action == "sanitize"

    def test_a_clean_prompt_has_no_action(self, gateway, model, alice, stream):
        answer = gateway.chat(alice, stream=stream)
        assert gateway.settlement(answer.id).security_action is None
        assert not SecurityEvent.objects.exists()

    def test_our_own_keys_are_secrets_too(self, gateway, model, alice, upstream):
        gateway.chat(alice, messages=user(f"curl -H 'Authorization: Bearer {alice.secret}'"))
        assert alice.secret not in upstream.only.raw.decode()


class TestBlockedTerms:
    def test_the_prompt_is_refused_by_its_category(self, gateway, model, alice, upstream, titan, stream):
        answer = gateway.chat(alice, stream=stream, messages=user("Tell me of PROJECT  titan, or Project Titan."))
        error = assert_error(answer, 400, "invalid_request_error", "prompt_blocked", says="custom")
        assert "titan" not in error["message"].lower()
        assert not upstream.requests

    def test_it_is_written_down(self, gateway, model, alice, titan, stream):
        answer = gateway.chat(alice, stream=stream, messages=user("Project Titan"))
        (event,) = eventually(lambda: list(SecurityEvent.objects.filter(request_id=answer.id)))
        assert (event.category, event.action) == ("custom", "block")

    def test_nothing_is_held_for_it(self, gateway, model, alice, titan):
        gateway.chat(alice, messages=user("Project Titan"))
        gateway.wait_until_quiet()
        assert not LedgerEntry.objects.exists()

    def test_a_policy_is_in_force_with_the_next_request(self, gateway, model, alice):
        ask = user("Project Titan")
        assert gateway.chat(alice, messages=ask).status == 200
        policy = Policy.objects.create(name="titan", blocked_terms=["project titan"])
        assert gateway.chat(alice, messages=ask).status == 400
        policy.enabled = False
        policy.save()
        assert gateway.chat(alice, messages=ask).status == 200

    def test_a_teams_policy_binds_the_team(self, gateway, model, alice, charlie, stream):
        Policy.objects.create(name="red", scope="team", owner="red", blocked_terms=["project titan"])
        ask = user("Project Titan")
        assert gateway.chat(alice, stream=stream, messages=ask).status == 400
        assert gateway.chat(charlie, stream=stream, messages=ask).status == 200

    def test_flagged_it_goes_through_and_is_told(self, gateway, model, alice, upstream, stream):
        Policy.objects.create(name="watch", actions={"custom": "flag"}, blocked_terms=["project titan"])
        answer = gateway.chat(alice, stream=stream, messages=user("Project Titan"))
        assert answer.status == 200
        assert upstream.only.texts == ["Project Titan"]
        assert gateway.settlement(answer.id).security_action == "flag"


class TestABrokenDetector:
    @pytest.fixture
    def broken(self, monkeypatch):
        def find(text, policy):
            raise RuntimeError(f"cannot read {text}")

        broken = msgspec.structs.replace(detectors.detectors()[0], name="broken", find=find)
        monkeypatch.setattr("security.engine.detectors", lambda: (broken,))

    def test_it_refuses_and_does_not_wave_through(self, gateway, model, alice, upstream, broken, stream):
        answer = gateway.chat(alice, stream=stream, messages=user("my diary"))
        assert_error(answer, 503, "overloaded_error", "guard_unavailable")
        assert "diary" not in answer.raw.decode()
        assert not upstream.requests

    def test_it_frees_what_was_taken(self, gateway, model, broken):
        key = make_key(max_parallel=1)
        assert [gateway.chat(key).status for _ in range(3)] == [503] * 3


@pytest.mark.parametrize(
    "text", ["PRIVATE KEY", "sk-", "AKIA", "-----BEGIN RSA PRIVATE KEY-----", "xox", "\u0000", "ghp_" * 100]
)
def test_half_of_a_secret_breaks_nothing(gateway, model, alice, upstream, text, stream):
    upstream.will(says("fine"))
    assert gateway.chat(alice, stream=stream, messages=user(text)).status == 200
