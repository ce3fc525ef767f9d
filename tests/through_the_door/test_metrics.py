"""What `/metrics` shows of requests: right numbers, and nothing of keys, users and prompts."""

import pytest

from tests.support.gateway import asking
from tests.support.upstream import hangs, refuses, says
from tests.support.waiting import eventually
from tests.support.world import make_budget, make_deployment, make_group, make_key

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3


@pytest.fixture
def grows(gateway):
    """`with grows("series") as by: …; by()` is how much a series grew."""

    def since(series):
        before = gateway.metric(series)
        return lambda: gateway.metric(series) - before

    return since


def test_requests_by_outcome(gateway, model, alice, upstream, grows, stream):
    served = grows('ailb_requests_total{model="gpt-test",provider="upstream",status="200"}')
    failed = grows('ailb_requests_total{model="gpt-test",provider="upstream",status="502"}')
    upstream.will(says(), says(), refuses(500))
    for _ in range(3):
        gateway.chat(alice, stream=stream)
    eventually(lambda: (served(), failed()) == (2, 1))


def test_what_was_refused_at_the_door_names_no_model(gateway, model, alice, grows):
    unknown = grows('ailb_requests_total{model="none",provider="none",status="404"}')
    for n in range(50):
        gateway.chat(alice, model=f"typo-{n}")
    eventually(lambda: unknown() == 50)
    assert "typo-" not in gateway.send("GET", "/metrics").raw.decode()


def test_tokens_and_cost(gateway, model, alice, grows, stream):
    into = grows('ailb_tokens_total{direction="input",model="gpt-test",provider="upstream"}')
    out = grows('ailb_tokens_total{direction="output",model="gpt-test",provider="upstream"}')
    cost = grows("ailb_cost_usd_total")
    gateway.chat(alice, stream=stream)
    eventually(lambda: (into(), out(), round(cost(), 9)) == (11, 4, 0.0000675))


def test_attempts(gateway, provider, alice, upstream, grows, stream):
    make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
    ok = grows('ailb_upstream_attempts_total{outcome="ok",provider="upstream"}')
    failed = grows('ailb_upstream_attempts_total{outcome="upstream_error",provider="upstream"}')
    upstream.will(refuses(500), model="a")
    gateway.chat(alice, model="pair", stream=stream)
    assert (ok(), failed()) == (1, 1)


def test_durations(gateway, model, alice, grows, stream):
    count = grows('ailb_request_duration_seconds_count{model="gpt-test",provider="upstream"}')
    overhead = grows("ailb_gateway_overhead_seconds_count")
    gateway.chat(alice, stream=stream)
    eventually(lambda: (count(), overhead()) == (1, 1))


def test_the_time_to_the_first_token_of_a_stream(gateway, model, alice, upstream, grows):
    series = 'ailb_time_to_first_token_seconds_{}{{model="gpt-test",provider="upstream"}}'
    count, total = grows(series.format("count")), grows(series.format("sum"))
    upstream.will(says(delay=0.05))
    gateway.chat(alice, stream=True)
    eventually(lambda: count() == 1)
    assert 0.05 <= total() < 5


def test_what_runs_now(gateway, model, alice, upstream):
    upstream.will(hangs())
    with asking(gateway, alice, stream=True):
        upstream.wait_for_requests(1)
        assert gateway.metric("ailb_active_requests") == 1
    eventually(lambda: gateway.metric("ailb_active_requests") == 0)


def test_what_could_not_be_metered(gateway, provider, alice, upstream, grows, stream):
    make_deployment(provider)
    unpriced, uncounted = (
        grows(f'ailb_unmetered_requests_total{{reason="{why}"}}') for why in ("unpriced", "no_usage")
    )
    upstream.will(says(usage=None))
    gateway.chat(alice, stream=stream)
    assert (unpriced(), uncounted()) == (1, 1)


class TestRefusals:
    """`ailb_rate_limited_total{scope,limit}`"""

    def refused(self, gateway, scope, limit):
        lines = gateway.send("GET", "/metrics").raw.decode().splitlines()
        found = [line for line in lines if line.startswith("ailb_rate_limited_total{")]
        return sum(
            float(line.rpartition(" ")[2]) for line in found if f'"{scope}"' in line and f'limit="{limit}"' in line
        )

    def test_of_rates(self, gateway, model):
        key = make_key(rate_limit_rpm=1)
        before = sum(self.refused(gateway, "key", name) for name in ("rpm", "requests"))
        gateway.chat(key)
        assert gateway.chat(key).status == 429
        assert sum(self.refused(gateway, "key", name) for name in ("rpm", "requests")) == before + 1


def test_findings_of_the_screen(gateway, model, alice, grows):
    found = grows('ailb_security_events_total{action="sanitize",category="secret"}')
    gateway.chat(alice, messages=[{"role": "user", "content": SECRET}])
    eventually(lambda: found() == 1)


def test_no_key_user_or_prompt_is_in_it(gateway, model, alice, upstream):
    make_budget("user", "alice", dollars="1")
    gateway.chat(alice, messages=[{"role": "user", "content": "a very private question"}], session_id="my-session")
    gateway.chat(alice, model="my-typo")
    text = gateway.send("GET", "/metrics").raw.decode()
    for private in (alice.secret, alice.id, "alice", "red", "private", "my-session", "my-typo"):
        assert f'"{private}"' not in text
        assert alice.secret not in text


class TestWhoMaySee:
    def test_loopback_may(self, gateway):
        answer = gateway.send("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain")

    @pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
    def test_who_comes_through_a_proxy_needs_the_token(self, gateway, header):
        assert gateway.send("GET", "/metrics", headers={header: "10.0.0.1"}).status == 401


class TestProbes:
    @pytest.mark.parametrize(
        ("path", "body"),
        [("/livez", {"status": "alive"}), ("/readyz", {"status": "ready"}), ("/healthz", {"status": "healthy"})],
    )
    def test_they_answer(self, gateway, path, body):
        answer = gateway.send("GET", path)
        assert (answer.status, answer.body) == (200, body)

    def test_while_draining_only_livez_is_content(self, gateway):
        gateway.plane.draining = True
        statuses = [gateway.send("GET", path).status for path in ("/livez", "/readyz", "/healthz")]
        assert statuses == [200, 503, 503]

    def test_an_admin_is_told_more(self, gateway, model, alice):
        assert set(gateway.send("GET", "/healthz", key=alice).body) == {"status"}
        told = gateway.send("GET", "/healthz", key=make_key(role="admin")).body
        assert told["process_id"] == gateway.plane.process_id
        assert told["deployments"] == 1

    def test_they_take_get_only(self, gateway):
        assert gateway.send("POST", "/readyz").status == 405
