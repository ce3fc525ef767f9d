"""Who gets what from each endpoint, written by hand from http-api.md section 4.

A row is a call, a column who makes it, a cell the status. The table of `keys.policy` is not consulted: where the two
disagree, one of them is wrong.
"""

import re
from typing import Any

import pytest
from django.db import transaction
from django.urls import URLPattern
from django.utils import timezone

from ailb_project.urls import urlpatterns
from billing.models import Alert, Webhook
from gateway.models import TrafficWeight
from gateway.types import Role
from keys import policy
from keys.api.base import ApiView
from keys.models import RateLimit, User, VirtualKey
from tests.api.doors import EVERYONE, Cast
from tests.support.world import make_deployment, make_group, make_provider

COLUMNS = (
    "ada",
    "fin",
    "lea",
    "lex",
    "alice",
    "bob",
    "charlie",
    "vic",
    "admin key",
    "alice's key",
    "lone key",
    "nobody",
)
# Placeholders: {key} is Alice's key, {user} Alice, {team} red, {kb} {ub} {tb} {ob} the budgets of her key, of her, of
# red and of the organisation; {p} {d} {g} {w} {l} {al} {wh} are the organisation's.
MATRIX = """
call                                                                   ada fin lea lex ali bob cha vic adm key lon nob
GET    /api/keys                                                       200 200 200 200 200 200 200 200 200 200 200 401
POST   /api/keys {"name":"n"}                                          201 403 201 201 201 201 201 403 201 201 403 401
POST   /api/keys {"name":"n","rate_limit_rpm":5}                       201 403 201 201 403 403 403 403 201 403 403 401
POST   /api/keys {"name":"n","role":"admin"}                           201 403 403 403 403 403 403 403 201 403 403 401
POST   /api/keys {"name":"n","user_id":"alice"}                        201 403 201 403 201 403 403 403 201 201 403 401
POST   /api/keys {"name":"n","team":"red"}                             201 403 201 403 201 201 403 403 201 201 403 401
POST   /api/keys {"name":"n","user_id":"new"}                          201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/keys/{key}                                                 200 200 200 404 200 404 404 200 200 200 404 401
PATCH  /api/keys/{key} {"name":"n"}                                    200 403 200 404 200 404 404 403 200 200 404 401
PATCH  /api/keys/{key} {"rate_limit_rpm":5}                            200 403 200 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"max_wait_ms":5}                               200 403 200 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"queue_weight":5}                              200 403 403 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"allowed_models":["m"]}                        200 403 200 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"monthly_quota_dollars":90}                    200 403 200 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"monthly_quota_dollars":101}                   200 403 403 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"role":"admin"}                                200 403 403 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"user_id":"bob"}                               200 403 403 404 403 404 404 403 200 403 404 401
PATCH  /api/keys/{key} {"team":"blue"}                                 200 403 403 404 403 404 404 403 200 403 404 401
POST   /api/keys/{key}/rotate {}                                       200 403 200 404 200 404 404 403 200 200 404 401
DELETE /api/keys/{key}                                                 204 403 204 404 204 404 404 403 204 204 404 401
POST   /api/keys/{admin}/rotate {}                                     200 403 404 404 404 404 404 403 200 404 404 401
GET    /api/billing/usage                                              200 200 200 200 200 200 200 200 200 200 200 401
GET    /api/billing/budget                                             200 200 200 200 200 200 200 200 200 200 200 401
GET    /api/billing/budget/{key}                                       200 200 200 404 200 404 404 200 200 200 404 401
GET    /api/billing/budgets/{kb}                                       200 200 200 404 200 404 404 200 200 200 404 401
GET    /api/billing/budgets/{ub}                                       200 200 200 404 200 404 404 200 200 200 404 401
GET    /api/billing/budgets/{tb}                                       200 200 200 404 404 404 404 200 200 404 404 401
GET    /api/billing/budgets/{ob}                                       200 200 404 404 404 404 404 200 200 404 404 401
POST   /api/billing/budget {"key_id":"{key}","limit_dollars":90}       201 201 201 404 403 403 403 403 201 403 403 401
POST   /api/billing/budget {"key_id":"{key}","limit_dollars":101}      201 201 403 404 403 403 403 403 201 403 403 401
POST   /api/billing/budget {"user_id":"alice","limit_dollars":90}      201 201 201 404 403 403 403 403 201 403 403 401
POST   /api/billing/budget {"team":"red","limit_dollars":90}           201 201 201 404 403 403 403 403 201 403 403 401
POST   /api/billing/budget {"team":"red","limit_dollars":101}          201 201 403 404 403 403 403 403 201 403 403 401
POST   /api/billing/budget {"organisation":true,"limit_dollars":5}     201 201 403 403 403 403 403 403 201 403 403 401
PATCH  /api/billing/budgets/{kb} {"limit_dollars":90}                  200 200 200 404 403 403 403 403 200 403 403 401
PATCH  /api/billing/budgets/{tb} {"limit_dollars":90}                  200 200 200 404 403 403 403 403 200 403 403 401
PATCH  /api/billing/budgets/{tb} {"limit_dollars":101}                 200 200 403 404 403 403 403 403 200 403 403 401
PATCH  /api/billing/budgets/{tb} {"tz":"Asia/Tokyo"}                   200 200 403 404 403 403 403 403 200 403 403 401
PATCH  /api/billing/budgets/{ob} {"limit_dollars":5}                   200 200 404 404 403 403 403 403 200 403 403 401
DELETE /api/billing/budgets/{kb}                                       204 204 204 404 403 403 403 403 204 403 403 401
DELETE /api/billing/budgets/{tb}                                       204 204 403 404 403 403 403 403 204 403 403 401
POST /api/billing/budget {"team":"red","limit_dollars":9,"mode":"grace"} 201 201 403 404 403 403 403 403 201 403 403 401
PATCH  /api/billing/budgets/{kb} {"alert_thresholds":[90]}             200 200 403 404 403 403 403 403 200 403 403 401
GET    /api/alerts                                                     200 200 403 403 403 403 403 200 200 403 403 401
POST   /api/alerts/{al}/acknowledge {}                                 200 200 403 403 403 403 403 403 200 403 403 401
GET    /api/webhooks                                                   200 403 403 403 403 403 403 403 200 403 403 401
POST   /api/webhooks {"url":"https://example.com/"}                    201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/webhooks/{wh}                                              200 403 403 403 403 403 403 403 200 403 403 401
PATCH  /api/webhooks/{wh} {"enabled":false}                            200 403 403 403 403 403 403 403 200 403 403 401
DELETE /api/webhooks/{wh}                                              204 403 403 403 403 403 403 403 204 403 403 401
GET    /api/webhooks/{wh}/deliveries                                   200 403 403 403 403 403 403 403 200 403 403 401
GET    /api/users                                                      200 200 200 200 403 403 403 200 200 403 403 401
POST   /api/users {"user_id":"new"}                                    201 403 201 201 403 403 403 403 201 403 403 401
POST   /api/users {"user_id":"new","role":"admin"}                     201 403 403 403 403 403 403 403 201 403 403 401
POST   /api/users {"user_id":"new","team":"red"}                       201 403 201 403 403 403 403 403 201 403 403 401
GET    /api/users/{user}                                               200 200 200 404 403 403 403 200 200 403 403 401
PATCH  /api/users/{user} {"display_name":"A"}                          200 403 200 404 403 403 403 403 200 403 403 401
PATCH  /api/users/{user} {"role":"admin"}                              200 403 403 404 403 403 403 403 200 403 403 401
PATCH  /api/users/{user} {"team":"blue"}                               200 403 403 404 403 403 403 403 200 403 403 401
PATCH  /api/users/{user} {"is_active":false}                           200 403 403 404 403 403 403 403 200 403 403 401
GET    /api/teams                                                      200 200 200 200 403 403 403 200 200 403 403 401
POST   /api/teams {"name":"new"}                                       201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/teams/{team}                                               200 200 200 404 403 403 403 200 200 403 403 401
PATCH  /api/teams/{team} {"rate_limit_rpm":5}                          200 403 403 404 403 403 403 403 200 403 403 401
PATCH  /api/teams/{team} {"max_wait_ms":5,"queue_weight":5}            200 403 403 404 403 403 403 403 200 403 403 401
GET    /api/limits                                                     200 200 403 403 403 403 403 200 200 403 403 401
PUT    /api/limits {"scope":"organisation","rate_limit_rpm":5}         201 403 403 403 403 403 403 403 201 403 403 401
POST   /api/limits {"scope":"model","model":"{d}","max_parallel":5}    201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/limits/{l}                                                 200 200 403 403 403 403 403 200 200 403 403 401
PATCH  /api/limits/{l} {"rate_limit_rpm":6}                            200 403 403 403 403 403 403 403 200 403 403 401
DELETE /api/limits/{l}                                                 204 403 403 403 403 403 403 403 204 403 403 401
GET    /api/providers                                                  200 200 403 403 403 403 403 200 200 403 403 401
POST   /api/providers {"slug":"n","kind":"openai"}                     201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/providers/{p}                                              200 200 403 403 403 403 403 200 200 403 403 401
PATCH  /api/providers/{p} {"enabled":false}                            200 403 403 403 403 403 403 403 200 403 403 401
DELETE /api/providers/{p}                                              204 403 403 403 403 403 403 403 204 403 403 401
POST   /api/providers/{p}/discover {}                                  400 403 403 403 403 403 403 403 400 403 403 401
GET    /api/deployments                                                200 200 403 403 403 403 403 200 200 403 403 401
POST /api/deployments {"name":"n","provider":"{p}","upstream_model":"m"} 201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/deployments/{d}                                            200 200 403 403 403 403 403 200 200 403 403 401
PATCH  /api/deployments/{d} {"weight":2}                               200 403 403 403 403 403 403 403 200 403 403 401
DELETE /api/deployments/{d}                                            204 403 403 403 403 403 403 403 204 403 403 401
GET    /api/models                                                     200 200 403 403 403 403 403 200 200 403 403 401
POST   /api/models {"name":"n","deployments":["{d}"]}                  201 403 403 403 403 403 403 403 201 403 403 401
GET    /api/models/{g}                                                 200 200 403 403 403 403 403 200 200 403 403 401
PATCH  /api/models/{g} {"strategy":"random"}                           200 403 403 403 403 403 403 403 200 403 403 401
DELETE /api/models/{g}                                                 204 403 403 403 403 403 403 403 204 403 403 401
GET    /api/routing/stats                                              200 200 200 200 200 200 200 200 200 200 200 401
POST   /api/routing/explain {"model":"{d}","messages":[]}              400 403 403 403 403 403 403 400 400 403 403 401
GET    /api/routing/weights                                            200 200 403 403 403 403 403 200 200 403 403 401
PUT    /api/routing/weights {"version":"v","weight":5}                 201 403 403 403 403 403 403 403 201 403 403 401
POST   /api/routing/weights {"version":"v","weight":5,"group":"{g}"}   201 403 403 403 403 403 403 403 201 403 403 401
DELETE /api/routing/weights/{w}                                        204 403 403 403 403 403 403 403 204 403 403 401
GET    /api/audit                                                      200 403 403 403 403 403 403 403 200 403 403 401
"""
ROWS = MATRIX.strip().splitlines()[1:]


def _split(row: str) -> tuple[str, str, bytes, list[int]]:
    call, *cells = row.rsplit(maxsplit=len(COLUMNS))
    method, path, *body = call.split()
    return method, path, "".join(body).encode(), [int(cell) for cell in cells]


def _fill(text: str, cast: Cast) -> str:
    names = {
        "{key}": cast.key.pk,
        "{admin}": cast.keys["admin key"].pk,
        "{user}": "alice",
        "{team}": "red",
        "{kb}": str(cast.budgets["alice's key"].pk),
        "{ub}": str(cast.budgets["alice"].pk),
        "{tb}": str(cast.budgets["red"].pk),
        "{ob}": str(cast.budgets["organisation"].pk),
        "{p}": "upstream",
        "{d}": "gpt-test",
        "{g}": "fast",
        "{w}": "old",
        "{l}": str(RateLimit.objects.values_list("pk", flat=True).first()),
        "{al}": str(Alert.objects.values_list("pk", flat=True).first()),
        "{wh}": str(Webhook.objects.values_list("pk", flat=True).first()),
    }
    for name, value in names.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.split()[:3]))
def test_each_caller_gets_what_the_contract_says(cast: Cast, row: str):
    method, path, body, cells = _split(row)
    make_group("fast", make_deployment(make_provider("http://127.0.0.1:9/v1")))
    TrafficWeight.objects.create(version="old", weight=1)
    RateLimit.objects.create(scope="provider", owner="upstream", rate_limit_rpm=5)
    Alert.objects.create(kind="overrun", subject="gpt-test", period_start=timezone.now())
    Webhook.objects.create(url="https://hooks.example.com/")
    got = {}
    for who in COLUMNS:
        with transaction.atomic():
            answer = cast[who].send(method, _fill(path, cast), _fill(body.decode(), cast).encode() or None)
            got[who] = answer.status
            transaction.set_rollback(True)
    assert got == dict(zip(COLUMNS, cells, strict=True))


def test_a_refused_change_changes_nothing(cast: Cast):
    before = list(VirtualKey.objects.order_by("pk").values()), list(User.objects.order_by("pk").values())
    path = f"/api/keys/{cast.key.pk}"
    for who in ("fin", "lex", "bob", "charlie", "vic", "lone key", "nobody"):
        cast[who].patch(path, name="taken over", rate_limit_rpm=1)
        cast[who].post(f"{path}/rotate")
        cast[who].delete(path)
        cast[who].patch("/api/users/alice", role="admin")
    cast["alice"].patch(path, name="half", role="admin")  # one field is hers to write, the other is not
    after = list(VirtualKey.objects.order_by("pk").values()), list(User.objects.order_by("pk").values())
    assert [_quiet(rows) for rows in after] == [_quiet(rows) for rows in before]


def _quiet(rows: Any) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in ("last_used", "last_login")} for row in rows]


# ── generated from the policy's table ───────────────────────────────────────────────────────────────────────────────

SAMPLES = {
    "name": "n",
    "user_id": "bob",
    "team": "blue",
    "role": "admin",
    "expires_at": "2999-01-01T00:00:00Z",
    "metadata": {"a": 1},
    "tags": ["t"],
    "monthly_quota_dollars": 5,
    "monthly_quota_tokens": 5,
    "rate_limit_rpm": 5,
    "rate_limit_tpm": 5,
    "max_parallel": 5,
    "max_wait_ms": 5,
    "queue_weight": 5,
    "allowed_models": ["m"],
}


@pytest.mark.parametrize("field", sorted(SAMPLES))
@pytest.mark.parametrize("who", ["ada", "fin", "lea", "alice", "vic"])
def test_every_field_of_a_key_is_written_by_whom_the_policy_says(cast: Cast, who: str, field: str):
    user = cast[who].user
    assert user is not None
    role = policy.MATRIX[Role(user.role)]
    resource = "key_limits" if field in policy.LIMIT_FIELDS else "keys"
    grant = role.get(resource, {}).get("update", policy.Grant(policy.Reach.NONE, frozenset()))
    may = grant.reach is not policy.Reach.NONE and (grant.fields is None or field in grant.fields)
    answer = cast[who].patch(f"/api/keys/{cast.key.pk}", **{field: SAMPLES[field]})
    assert answer.status == (200 if may else 403)
    if may:
        shown = cast[who].get(f"/api/keys/{cast.key.pk}").body
        assert shown[field] == SAMPLES[field]


def test_the_samples_are_all_the_fields_there_are():
    assert set(SAMPLES) == policy.KEY_FIELDS | policy.LIMIT_FIELDS


# ── no route without a policy ───────────────────────────────────────────────────────────────────────────────────────


def _api_routes() -> list[tuple[str, Any]]:
    patterns = [pattern for pattern in urlpatterns if isinstance(pattern, URLPattern)]
    return [(str(p.pattern), getattr(p.callback, "cls", None)) for p in patterns if str(p.pattern).startswith("api/")]


def test_every_route_of_the_api_asks_the_policy():
    open_to_all = {"api/schema", "api/docs"}
    for route, view in _api_routes():
        if route in open_to_all:
            continue
        assert issubclass(view, ApiView), route
        for method in ("get", "post", "patch", "put", "delete"):
            if hasattr(view, method):
                assert view.actions[method.upper()] in policy.ACTIONS[view.resource], (route, method)


def _pattern(path: str) -> str:
    """A path with its parameters blotted out."""
    return re.sub(r"\{\w+\}|<\w+:\w+>", "*", path).strip("/")


def test_every_route_and_method_of_the_api_is_in_the_table():
    tabled = {(method, _pattern(path)) for method, path, *_ in map(_split, ROWS)}
    routed = {
        (method, _pattern(route))
        for route, view in _api_routes()
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE")
        if issubclass(view, ApiView) and hasattr(view, method.lower())
    }
    assert routed == tabled


def test_everyone_of_the_cast_has_a_column():
    assert set(COLUMNS) == set(EVERYONE) - {"red's key"}
