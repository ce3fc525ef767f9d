"""`/api/limits`, and how long keys and teams wait: what is written is read back, is on the audit log, and holds at the
door. Who may: `tests/api/test_matrix.py`.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.models import ConfigVersion
from keys import policy
from keys.models import RateLimit
from security.models import AuditEntry
from tests.api.doors import Answer, Cast, Door
from tests.support.answers import assert_error
from tests.support.upstream import says, waits_for
from tests.support.waiting import eventually
from tests.support.world import make_deployment, make_group, make_key, make_provider

PATH = "/api/limits"
NOTHING: dict[str, Any] = dict.fromkeys(sorted(policy.RATE_FIELDS))


@pytest.fixture
def ada(cast: Cast) -> Door:
    make_group("fast", make_deployment(make_provider("http://127.0.0.1:9/v1"), "library/llama3:8b"))
    return cast["ada"]


def put(door: Door, **said: Any) -> Answer:
    return door.send("PUT", PATH, said)


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(object_type="keys.ratelimit").order_by("id"))


# ── the resource ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_is_made_then_changed(ada: Door):
    answer = put(ada, scope="organisation", rate_limit_rpm=600, max_parallel=20)
    assert answer.status == 201, answer.body
    shown = dict(answer.body)
    assert shown.pop("created_at")
    limit_id = shown.pop("id")
    told = {"scope": "organisation", "owner": None, "model": None, "managed_by": ""}
    assert shown == {**told, **NOTHING, "rate_limit_rpm": 600, "max_parallel": 20}
    assert ada.get(f"{PATH}/{limit_id}").body == answer.body

    answer = put(ada, scope="organisation", owner=None, model=None, rate_limit_tpm=2**40)
    assert (answer.status, answer.body["id"]) == (200, limit_id)
    assert {name: answer.body[name] for name in NOTHING} == {**NOTHING, "rate_limit_tpm": 2**40}, "what is omitted went"

    answer = ada.patch(f"{PATH}/{limit_id}", max_parallel=3)
    assert {name: answer.body[name] for name in NOTHING} == {
        "rate_limit_tpm": 2**40,
        "rate_limit_rpm": None,
        "max_parallel": 3,
    }

    assert ada.delete(f"{PATH}/{limit_id}").status == 204
    assert ada.get(f"{PATH}/{limit_id}").status == ada.delete(f"{PATH}/{limit_id}").status == 404
    assert [entry.action for entry in entries()] == ["create", "update", "update", "delete"]
    made, replaced, changed, lifted = entries()
    assert (made.actor, made.after["rate_limit_rpm"], made.after["scope"]) == ("user:ada", 600, "organisation")
    assert replaced.before == {"rate_limit_rpm": 600, "rate_limit_tpm": None, "max_parallel": 20}
    assert (changed.before, changed.after) == ({"max_parallel": None}, {"max_parallel": 3})
    assert lifted.before["rate_limit_tpm"] == 2**40


def test_the_same_again_is_not_written(ada: Door):
    said = {"scope": "model", "model": "fast", "rate_limit_rpm": 5}
    put(ada, **said)
    number = ConfigVersion.objects.get(section="limits").number
    assert put(ada, **said).status == 200
    assert ada.post(PATH, **said, owner=None, max_parallel=None).status == 200
    assert ConfigVersion.objects.get(section="limits").number == number
    assert len(entries()) == 1


def test_each_scope_has_its_own_and_is_listed(ada: Door, cast: Cast):
    key = cast.key.pk
    for said in (
        {"scope": "provider", "owner": "upstream"},
        {"scope": "model", "model": "library/llama3:8b"},
        {"scope": "model", "model": "fast"},
        {"scope": "key_model", "owner": key, "model": "fast"},
        {"scope": "organisation"},
    ):
        assert ada.post(PATH, **said, rate_limit_rpm=5).status == 201
    body = ada.get(PATH).body
    assert [(row["scope"], row["owner"], row["model"]) for row in body.pop("limits")] == [
        ("key_model", key, "fast"), ("model", None, "fast"), ("model", None, "library/llama3:8b"),
        ("organisation", None, None), ("provider", "upstream", None),
    ]  # fmt: skip
    assert body == {"total": 5, "limit": 50, "offset": 0}
    body = ada.get(f"{PATH}?scope=model&limit=1&offset=1").body
    assert ([row["model"] for row in body["limits"]], body["total"]) == (["library/llama3:8b"], 2)


@pytest.mark.parametrize(
    ("said", "wrong", "told"),
    [
        ({"scope": "key", "owner": "key_1"}, "scope", "/api/keys"),
        ({"scope": "user", "owner": "alice"}, "scope", "/api/users"),
        ({"scope": "team", "owner": "red"}, "scope", "/api/teams"),
        ({"scope": "deployment", "owner": "gpt"}, "scope", "/api/deployments"),
        ({"scope": "planet"}, "scope", "not a valid choice"),
        ({"scope": None}, "scope", "null"),
        ({"scope": 1}, "scope", "not a valid choice"),
        ({"scope": []}, "scope", "not a valid choice"),
        ({"owner": "upstream"}, "owner", "This scope has none."),
        ({"model": "fast"}, "model", "This scope has none."),
        ({"scope": "provider"}, "owner", "This scope needs one."),
        ({"scope": "provider", "owner": "nope"}, "owner", "no provider of this slug"),
        ({"scope": "model"}, "model", "This scope needs one."),
        ({"scope": "model", "model": "gpt-5"}, "model", "no deployment or model group"),
        ({"scope": "model", "model": "upstream/library/llama3:8b"}, "model", "no deployment or model group"),
        ({"scope": "key_model", "owner": "key_1", "model": "fast"}, "owner", "no key of this id"),
        ({"owner": ""}, "owner", "blank"),
        ({"rate_limit_rpm": None}, "rate_limit_rpm", "to lift it, delete it"),
        ({"rate_limit_rpm": 0}, "rate_limit_rpm", "greater"),
        ({"rate_limit_rpm": "5"}, "rate_limit_rpm", "integer"),
        ({"rate_limit_tpm": 2**63}, "rate_limit_tpm", "less"),
        ({"max_parallel": 2**31}, "max_parallel", "less"),
        ({"managed_by": ""}, "managed_by", "Unknown"),
        ({"rpm": 5}, "rpm", "Unknown"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused(ada: Door, said: dict[str, Any], wrong: str, told: str):
    for method in ("PUT", "POST"):
        answer = ada.send(method, PATH, {"scope": "organisation", "rate_limit_rpm": 5, **said})
        assert (answer.status, set(answer.body["errors"])) == (400, {wrong})
        assert told in answer.body["errors"][wrong][0]
    assert not RateLimit.objects.exists()
    assert not entries()


def test_a_patch_changes_the_numbers_and_leaves_one(ada: Door):
    limit = put(ada, scope="organisation", rate_limit_rpm=5).body
    path = f"{PATH}/{limit['id']}"
    for said in ({"scope": "model"}, {"owner": "x"}, {"model": "fast"}, {"rate_limit_rpm": None}):
        assert ada.patch(path, **said).status == 400
    assert ada.get(path).body == limit
    assert len(entries()) == 1
    assert ada.get(f"{PATH}?scop=model").status == ada.get(f"{PATH}?scope=key").status == 400
    for number in ("0", "9" * 30):
        assert ada.get(f"{PATH}/{number}").status == ada.patch(f"{PATH}/{number}", rate_limit_rpm=5).status == 404


def test_what_a_file_defines_is_only_read(ada: Door):
    row = RateLimit.objects.create(scope="organisation", rate_limit_rpm=5, managed_by="file")
    path = f"{PATH}/{row.pk}"
    assert ada.get(path).body["managed_by"] == "file"
    for answer in (
        put(ada, scope="organisation", rate_limit_rpm=6), ada.patch(path, rate_limit_rpm=6), ada.delete(path),
    ):  # fmt: skip
        assert (answer.status, answer.body["detail"]) == (409, "It is defined by the file: change it there.")
    assert RateLimit.objects.get().rate_limit_rpm == 5


def test_a_limit_outlives_what_it_names(ada: Door):
    said = {"scope": "provider", "owner": "upstream", "rate_limit_rpm": 5}
    limit = put(ada, **said).body
    ada.delete("/api/providers/upstream")
    assert ada.get(f"{PATH}/{limit['id']}").body == limit
    assert put(ada, **said).status == 200, "known, and it may come back"


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_and_teams_say_how_long_they_wait(cast: Cast):
    ada = cast["ada"]
    made = ada.post("/api/keys", name="n", max_wait_ms=5000, queue_weight=3).body["key_data"]
    assert (made["max_wait_ms"], made["queue_weight"]) == (5000, 3)
    bare = ada.post("/api/keys", name="n").body["key_data"]
    assert (bare["max_wait_ms"], bare["queue_weight"]) == (None, 1)
    changed = ada.patch(f"/api/keys/{made['id']}", max_wait_ms=None, queue_weight=100).body
    assert (changed["max_wait_ms"], changed["queue_weight"]) == (None, 100)
    entry = AuditEntry.objects.filter(object_id=made["id"], action="update").get()
    assert (entry.before, entry.after) == (
        {"max_wait_ms": 5000, "queue_weight": 3}, {"max_wait_ms": None, "queue_weight": 100},
    )  # fmt: skip

    team = ada.post("/api/teams", name="green", max_wait_ms=600_000, queue_weight=2).body
    assert (team["max_wait_ms"], team["queue_weight"]) == (600_000, 2)
    team = ada.patch("/api/teams/green", max_wait_ms=1).body
    assert (team["max_wait_ms"], team["queue_weight"]) == (1, 2)


@pytest.mark.parametrize(
    "said",
    [{"max_wait_ms": 0}, {"max_wait_ms": 600_001}, {"max_wait_ms": 0.5}, {"max_wait_ms": "5"}, {"queue_weight": 0},
     {"queue_weight": 101}, {"queue_weight": None}, {"queue_weight": True}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_waited(cast: Cast, said: dict[str, Any]):
    calls = (
        ("POST", "/api/keys"),
        ("PATCH", f"/api/keys/{cast.key.pk}"),
        ("POST", "/api/teams"),
        ("PATCH", "/api/teams/red"),
    )
    for method, path in calls:
        answer = cast["ada"].send(method, path, {**({"name": "n"} if method == "POST" else {}), **said})
        assert (answer.status, set(answer.body["errors"])) == (400, set(said)), path


def test_a_lead_gives_waits_and_no_share_of_the_queue(cast: Cast):
    lea = cast["lea"]
    assert lea.post("/api/keys", name="n", max_wait_ms=5, queue_weight=1).status == 201, "1 is what it is anyway"
    assert lea.post("/api/keys", name="n", queue_weight=2).status == 403
    assert lea.patch(f"/api/keys/{cast.key.pk}", queue_weight=2).status == 403
    assert lea.patch(f"/api/keys/{cast.key.pk}", max_wait_ms=5).status == 200


def test_a_members_new_key_waits_as_theirs_do(cast: Cast):
    cast["ada"].patch(f"/api/keys/{cast.key.pk}", max_wait_ms=70, queue_weight=4)
    made = cast["alice"].post("/api/keys", name="n").body["key_data"]
    assert (made["max_wait_ms"], made["queue_weight"]) == (70, 4)
    assert cast["alice"].post("/api/keys", name="n", max_wait_ms=80).status == 403
    made = cast["charlie"].post("/api/keys", name="n").body["key_data"]
    assert (made["max_wait_ms"], made["queue_weight"]) == (None, 1)


# ── through the API, to the door: what is accepted holds (lessons 17 and 26) ────────────────────────────────────────


class TestAtTheDoor:
    @pytest.fixture
    def admin(self, committed: None) -> Any:
        return make_key("ada", role="admin")

    @pytest.fixture
    def api(self, gateway: Any, admin: Any) -> Any:
        def call(method: str, path: str, status: int, **said: Any) -> Any:
            answer = gateway.send(method, path, key=admin, json=said or None)
            assert answer.status == status, answer.body
            return answer.body

        return call

    @pytest.fixture
    def key(self, committed: None) -> Any:
        return make_key("carol")

    @pytest.mark.parametrize("scope", ["organisation", "provider", "model", "group", "key_model", "key_group"])
    def test_a_limit_refuses_and_says_so_until_it_is_lifted(self, api, gateway, model, key, scope, stream):
        make_group("fast", model)
        asked = "fast" if scope.endswith("group") else "gpt-test"
        owner = {"provider": "upstream", "key_model": key.id, "key_group": key.id}.get(scope)
        named = asked if scope in ("model", "group", "key_model", "key_group") else None
        real = {"group": "model", "key_group": "key_model"}.get(scope, scope)
        limit = api("PUT", PATH, 201, scope=real, owner=owner, model=named, rate_limit_rpm=2)
        answers = [gateway.chat(key, model=asked, stream=stream) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert_error(answers[2], 429, "rate_limit_error", "rate_limit_exceeded", says="2 requests a minute")
        assert int(answers[2].headers["retry-after"]) > 0
        api("DELETE", f"{PATH}/{limit['id']}", 204)
        assert gateway.chat(key, model=asked, stream=stream).status == 200

    def test_a_groups_limit_holds_for_a_key_that_may_use_one_of_it(self, api, gateway, provider, model):
        make_group("fast", model, make_deployment(provider, "gpt-other"))
        narrow = make_key("carol", allowed_models=["gpt-test"])
        api("PUT", PATH, 201, scope="model", model="fast", rate_limit_rpm=1)
        calls = ["fast", "fast", "gpt-test"]
        assert [gateway.chat(narrow, model=name).status for name in calls] == [200, 429, 200]

    def test_a_patch_holds_too(self, api, gateway, model, key):
        limit = api("PUT", PATH, 201, scope="organisation", rate_limit_rpm=1000)
        assert gateway.chat(key).headers["x-ratelimit-limit-requests"] == "1000"
        api("PATCH", f"{PATH}/{limit['id']}", 200, rate_limit_tpm=6000, rate_limit_rpm=None)
        assert_error(gateway.chat(key, max_tokens=2000), 429, "rate_limit_error", "request_too_large_for_limit")
        assert gateway.chat(key, max_tokens=10).headers["x-ratelimit-limit-tokens"] == "6000"

    @pytest.mark.parametrize("of", ["key", "team"])
    def test_who_is_given_time_waits_instead_of_a_429(self, api, gateway, model, upstream, of):
        made = api("POST", "/api/keys", 201, name="patient", team="red", max_parallel=1)
        where = {"key": f"/api/keys/{made['key_data']['id']}", "team": "/api/teams/red"}[of]
        bearer = {"authorization": f"Bearer {made['key']}"}
        go = threading.Event()
        upstream.will(waits_for(go, says()), says(), says())
        with ThreadPoolExecutor(2) as clients:
            first = clients.submit(gateway.chat, None, headers=bearer)
            upstream.wait_for_requests(1)
            assert gateway.chat(None, headers=bearer).status == 429
            api("PATCH", where, 200, max_wait_ms=10_000)
            second = clients.submit(gateway.chat, None, headers=bearer)
            eventually(lambda: gateway.plane.queues._lines)
            go.set()
            assert [first.result().status, second.result().status] == [200, 200]
        assert second.result().headers["x-ailb-queue-position"] == "1"

    def test_a_share_of_the_queue_is_a_keys_times_its_teams(self, api, gateway, model, upstream, key):
        """Three times as many of the heavy ones are served, though there are as many of the light."""
        api("POST", "/api/teams", 201, name="red", max_wait_ms=30_000, queue_weight=3)
        heavy = api("POST", "/api/keys", 201, name="heavy", team="red", queue_weight=2)["key"]
        light = api("POST", "/api/keys", 201, name="light", max_wait_ms=30_000, queue_weight=2)["key"]
        api("PUT", PATH, 201, scope="organisation", max_parallel=1)
        go = threading.Event()
        upstream.will(waits_for(go, says()), *[says()] * 16)
        with ThreadPoolExecutor(17) as clients:
            first = clients.submit(gateway.chat, key)
            upstream.wait_for_requests(1)
            waiting = []
            for number, secret in ((8, heavy), (16, light)):
                waiting += [
                    clients.submit(gateway.chat, None, headers={"authorization": f"Bearer {secret}"}, user=secret[-4:])
                    for _ in range(8)
                ]
                eventually(lambda number=number: sum(map(len, gateway.plane.queues._lines.values())) == number)
            go.set()
            assert [call.result().status for call in (first, *waiting)] == [200] * 17
        served = [request.body["user"] for request in upstream.requests[1:9]]
        assert served.count(heavy[-4:]) == 6, served
