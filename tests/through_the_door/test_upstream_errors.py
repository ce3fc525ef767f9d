"""Upstreams that refuse, fail or cannot be reached; and the next deployment that is tried instead."""

import socket

import pytest

from gateway.providers.openai import Vendor
from tests.support.answers import assert_error, assert_stream_error
from tests.support.upstream import (
    answers,
    bytes_of,
    contents,
    delta,
    drops,
    hangs,
    refuses,
    says,
    sends,
)
from tests.support.world import CREDENTIAL, make_budget, make_deployment, make_group, make_price, make_provider


class TestTheClientsMistake:
    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_it_is_passed_on_as_400(self, gateway, model, alice, upstream, stream, status):
        upstream.will(refuses(status, "Invalid value: 'x'.", param="messages[0].role", code="invalid_value"))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 400, "invalid_request_error", None, param="messages[0].role", says="Invalid value: 'x'.")
        closing = gateway.closing(answer.id)
        assert (closing.kind, closing.status) == ("release", 400)

    @pytest.mark.parametrize("code", ["context_length_exceeded", "unsupported_parameter"])
    def test_codes_of_our_own_contract_come_through(self, gateway, model, alice, upstream, stream, code):
        upstream.will(refuses(400, "Too long.", code=code, param="messages"))
        assert_error(gateway.chat(alice, stream=stream), 400, "invalid_request_error", code, param="messages")

    def test_another_deployment_is_not_asked_the_same(self, gateway, provider, alice, upstream, stream):
        make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
        upstream.will(refuses(400), model="a")
        assert gateway.chat(alice, model="pair", stream=stream).status == 400
        assert len(upstream.requests) == 1

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"nginx",
            b"null",
            b'"No."',
            b'{"error": "No."}',
            b'{"error": null}',
            b'{"error": {"message": 5}}',
            b'{"detail": "x"}',
        ],
    )
    def test_whatever_shape_it_has(self, gateway, model, alice, upstream, body):
        upstream.will(answers(body, 400))
        assert_error(gateway.chat(alice), 400, "invalid_request_error", None)


class TestWhatAnUpstreamSays:
    """Its words reach the client cleaned and bounded."""

    @pytest.mark.parametrize("status", [400, 429, 500])
    @pytest.mark.parametrize(
        "secret",
        [
            CREDENTIAL,
            "sk-proj-abcDEF123456",
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x",
            "0123456789abcdef0123456789abcdef",
            "key=supersecret1",
        ],
    )
    def test_no_credential(self, gateway, model, alice, upstream, stream, status, secret):
        upstream.will(refuses(status, f"Wrong: {secret} is not right"))
        answer = gateway.chat(alice, stream=stream)
        assert secret not in answer.raw.decode()
        assert secret.split("=")[-1].split()[-1] not in answer.raw.decode()
        assert "is not right" in answer.error["message"]
        assert secret not in str(gateway.closing(answer.id).attempts)

    def test_a_providers_own_headers_are_credentials_too(self, gateway, alice, upstream):
        make_deployment(make_provider(upstream.url, headers={"X-Team": "blue-team-7"}))
        upstream.will(refuses(400, "team blue-team-7 has no quota"))
        assert "blue-team-7" not in gateway.chat(alice).raw.decode()

    def test_an_empty_header_of_a_provider_spoils_nothing(self, gateway, alice, upstream):
        make_deployment(make_provider(upstream.url, headers={"OpenAI-Organization": ""}))
        upstream.will(refuses(400, "Just wrong."))
        assert gateway.chat(alice).error["message"] == "Just wrong."

    def test_a_bounded_part(self, gateway, model, alice, upstream, stream):
        upstream.will(refuses(500, "lorem " * 10_000))
        assert len(gateway.chat(alice, stream=stream).raw) < 1_000

    def test_on_one_line_and_printable(self, gateway, model, alice, upstream):
        upstream.will(refuses(400, "one\n\ttwo\x00\x1b[31m three\u202e"))
        message = gateway.chat(alice).error["message"]
        assert message.isprintable()
        assert message.startswith("one two")

    def test_nothing_of_a_long_error_page(self, gateway, model, alice, upstream):
        upstream.will(answers(b"x" * 10_000_000, 500))
        assert_error(gateway.chat(alice), 502, "upstream_error", "upstream_error")


class TestOurCredentials:
    @pytest.mark.parametrize("status", [401, 402, 403])
    def test_a_refusal_of_ours_is_not_the_callers(self, gateway, model, alice, upstream, stream, status):
        upstream.will(refuses(status, f"Incorrect API key provided: {CREDENTIAL}."))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_credentials_rejected", says=str(status))
        assert CREDENTIAL not in answer.raw.decode()
        (attempt,) = gateway.closing(answer.id).attempts
        assert (attempt["outcome"], attempt["status"]) == ("upstream_credentials_rejected", status)

    def test_another_provider_is_tried(self, gateway, provider, alice, upstream, stream):
        make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
        upstream.will(refuses(401), model="a")
        assert gateway.chat(alice, model="pair", stream=stream).headers["x-ailb-model"] == "b"


class TestAlone:
    """A model with one deployment: the failure is the client's to see."""

    @pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 502, 503, 529])
    def test_a_status(self, gateway, model, alice, upstream, stream, status):
        upstream.will(refuses(status, "Slow down."))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error", says=f"{status}: Slow down.")
        closing = gateway.closing(answer.id)
        assert (closing.kind, closing.status, closing.cost_usd) == ("release", 502, 0)
        (attempt,) = closing.attempts
        assert (attempt["provider"], attempt["deployment"], attempt["status"]) == ("upstream", "gpt-test", status)

    @pytest.mark.parametrize("status", [201, 204, 206])
    def test_another_success_is_none(self, gateway, model, alice, upstream, stream, status):
        upstream.will(answers(b"" if status == 204 else b"{}", status))
        assert_error(gateway.chat(alice, stream=stream), 502, "upstream_error", "upstream_error")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, gateway, model, alice, upstream, stream, status):
        upstream.will(answers({}, status, location=f"{upstream.url}/elsewhere"))
        assert_error(gateway.chat(alice, stream=stream), 502, "upstream_error", "upstream_error")
        assert [received.path for received in upstream.requests] == ["/v1/chat/completions"]

    def test_a_connection_that_is_closed_without_a_word(self, gateway, model, alice, upstream, stream):
        upstream.will(drops(), drops())
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        # A request may have been billed although its answer was lost: it is not sent again behind the client's back.
        assert len(upstream.requests) == 1

    def test_a_plain_answer_that_breaks_off(self, gateway, model, alice, upstream):
        upstream.will(bytes_of(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", b'{"id":'))
        assert_error(gateway.chat(alice), 502, "upstream_error", "upstream_error")

    def test_a_plain_answer_longer_than_any(self, gateway, model, alice, upstream):
        upstream.will(answers(b" " * (65 * 2**20)))
        assert_error(gateway.chat(alice), 502, "upstream_error", "upstream_error")

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"[]", b'{"choices": null}', b'{"choices": [{"index": 0}]}', b'{"choices": [', b"\xff"]
    )
    def test_an_answer_that_is_none(self, gateway, model, alice, upstream, body):
        upstream.will(answers(body))
        assert_error(gateway.chat(alice), 502, "upstream_error", "upstream_error")

    @pytest.mark.parametrize("number", [10**30, -5, 10**15, 2**63])
    def test_usage_beyond_belief_breaks_nothing(self, gateway, model, alice, upstream, stream, number):
        upstream.will(says(usage={"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number}))
        answer = gateway.chat(alice, stream=stream)
        closing = gateway.closing(answer.id)
        assert answer.status in (200, 502)
        assert closing.status == answer.status
        assert (closing.prompt_tokens or 0) >= 0

    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:1/v1", "http://localhost.invalid/v1"], ids=["closed", "unknown host"]
    )
    def test_one_that_cannot_be_reached(self, gateway, alice, stream, url):
        make_deployment(make_provider(url))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error", says="could not be reached")
        assert "127.0.0.1" not in answer.raw.decode()
        assert "invalid" not in answer.raw.decode().replace("invalid_request", "")

    def test_one_that_does_not_accept(self, gateway, alice, stream):
        # A listener whose queue is full: the handshake of the next connection is never answered.
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            fillers = []
            try:
                for _ in range(8):
                    filler = socket.socket()
                    filler.setblocking(False)
                    filler.connect_ex(listener.getsockname())
                    fillers.append(filler)
                make_deployment(make_provider(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", connect_timeout=0.3))
                answer = gateway.chat(alice, stream=stream)
            finally:
                for filler in fillers:
                    filler.close()
        assert answer.status in (502, 504)
        assert_error(answer, answer.status, answer.error["type"], answer.error["code"], says="in time")

    def test_an_address_that_is_never_called_is_not_called_past_the_form_either(self, gateway, alice, upstream):
        # As a restored backup would bring it. 0.0.0.0 stands for all of `gateway.outbound`: here it is this host.
        provider = make_provider(upstream.url)
        make_deployment(provider)
        type(provider).objects.filter(pk=provider.pk).update(base_url=f"http://0.0.0.0:{upstream.port}/v1")
        answer = gateway.chat(alice)
        assert answer.status in (404, 502)
        assert not upstream.requests


class TestFailover:
    @pytest.fixture
    def pair(self, gateway, provider, alice):
        for name in ("a", "b"):
            make_price(name)
        return make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))

    @pytest.mark.parametrize(
        "script",
        [
            refuses(429),
            refuses(500),
            refuses(503),
            refuses(404),
            drops(),
            answers(b"<html>"),
            bytes_of(b"nonsense\r\n\r\n"),
        ],
        ids=["429", "500", "503", "404", "dropped", "HTML", "no HTTP"],
    )
    def test_the_next_answers(self, gateway, pair, alice, upstream, stream, script):
        upstream.will(script, model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert answer.headers["x-ailb-model"] == "b"
        assert answer.headers["x-ailb-attempts"] == "2"
        row = gateway.settlement(answer.id)
        assert (row.requested_model, row.deployment, row.routed_model, row.served_model) == ("pair", "b", "b", "b")
        assert [attempt["deployment"] for attempt in row.attempts] == ["a", "b"]
        assert row.attempts[0]["outcome"] != "ok"
        assert row.attempts[1]["outcome"] == "ok"

    def test_one_that_hangs_is_given_up_for_the_next(self, gateway, pair, provider, alice, upstream, stream):
        provider.first_byte_timeout = 0.3
        provider.save()
        upstream.will(hangs(), model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert answer.headers["x-ailb-model"] == "b"
        assert upstream.requests[0].was_dropped(within=1)
        assert [attempt["outcome"] for attempt in gateway.settlement(answer.id).attempts] == ["timeout", "ok"]

    def test_where_all_fail_the_last_failure_is_told(self, gateway, pair, alice, upstream, stream):
        upstream.will(refuses(500, "First."), model="a")
        upstream.will(refuses(503, "Second."), model="b")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error", says="503: Second.")
        closing = gateway.closing(answer.id)
        assert (closing.kind, closing.status) == ("release", 502)
        assert [attempt["status"] for attempt in closing.attempts] == [500, 503]

    @pytest.mark.parametrize(
        "begun", [[], [delta(role="assistant", content="")], [b": ping\n\n"]], ids=["nothing", "a role", "a comment"]
    )
    @pytest.mark.parametrize("end", ["cut", "orderly", "stall"])
    def test_a_stream_before_its_first_content(self, gateway, pair, provider, alice, upstream, begun, end):
        provider.idle_timeout = 0.3
        provider.save()
        upstream.will(sends(*begun, end=end), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert (answer.text, answer.done) == ("Hello there.", True)
        roles = [chunk for chunk in answer.chunks if chunk["choices"][0]["delta"].get("role")]
        assert len(roles) == 1, "the first deployment's beginning is not shown"
        assert gateway.settlement(answer.id).deployment == "b"

    def test_a_stream_after_its_first_content(self, gateway, pair, alice, upstream):
        upstream.will(sends(delta("Half"), 0.05, end="cut"), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert contents(answer.chunks) == "Half"
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert len(upstream.requests) == 1
        assert gateway.settlement(answer.id).deployment == "a"

    def test_the_second_is_asked_the_same(self, gateway, pair, alice, upstream, stream):
        upstream.will(refuses(500), model="a")
        gateway.chat(alice, model="pair", stream=stream, temperature=0.5, session_id="s", tags=["x"])
        first, second = (received.body for received in upstream.requests)
        assert {**first, "model": "b"} == second

    def test_a_third_is_not_needed(self, gateway, pair, provider, alice, upstream, stream):
        gateway.chat(alice, model="pair", stream=stream)
        assert len(upstream.requests) == 1

    def test_the_cost_is_that_of_the_one_that_served(self, gateway, provider, alice, upstream, stream):
        make_price("cheap", input=1, output=1)
        make_price("dear", input=100, output=100)
        make_group("pair", make_deployment(provider, "cheap"), make_deployment(provider, "dear"))
        upstream.will(refuses(500), model="cheap")
        row = gateway.settlement(gateway.chat(alice, model="pair", stream=stream).id)
        assert row.cost_usd * 10**6 == 1500


class TestOurOwnDefects:
    """What nobody foresaw is a 500 with an id, and gives back all that was held."""

    @pytest.fixture
    def defect(self, monkeypatch):
        def broken(self, request, deployment):
            raise ZeroDivisionError("a secret prompt in a message")

        monkeypatch.setattr(Vendor, "own", broken)

    def test_the_client_learns_the_id_and_nothing_else(self, gateway, model, alice, defect, stream):
        answer = gateway.chat(alice, stream=stream)
        error = assert_error(answer, 500, "server_error", "internal_error", says=answer.id)
        assert "secret" not in error["message"]
        assert "ZeroDivision" not in answer.raw.decode()

    def test_nothing_stays_held(self, gateway, model, alice, defect, stream):
        # The fixture's end checks that every hold is closed and nothing is reserved.
        make_budget("user", "alice", dollars="1")
        answer = gateway.chat(alice, stream=stream)
        closing = gateway.closing(answer.id)
        assert closing.status == 500
        # What it cost is not known, and may be everything.
        assert closing.kind == "release" or closing.estimated
