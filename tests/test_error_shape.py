"""One shape of error a surface, on every route: whatever goes wrong, and whoever (DRF, Django, we) says so."""

import json
import re
from io import BytesIO
from typing import Any
from unittest import mock

import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import OperationalError
from django.test import Client, override_settings
from django.urls import URLPattern
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ailb_project.urls import urlpatterns
from gateway import errors, problems, render
from keys.api.views import KeysView
from tests.api.doors import Answer, Cast, Door, make_cast

SAMPLES = {
    "key_id": "key_0", "user_id": "alice", "name": "red", "budget_id": "1", "model": "openai/gpt:1", "version": "v1",
    "limit_id": "1", "alert_id": "1", "webhook_id": "1",
}  # fmt: skip
NOT_YET = [
    "/v1/completions", "/v1/responses", "/v1/responses/resp_1", "/v1/embeddings",
    "/v1/messages/batches", "/v1/images/generations", "/v1/audio/speech", "/v1/files", "/v1/batches",
    "/v1/moderations", "/v1/assistants", "/v1/threads/t/messages", "/v1/fine_tuning/jobs",
]  # fmt: skip


def _path(route: str) -> str:
    return "/" + re.sub(r"<\w+:(\w+)>", lambda match: SAMPLES[match.group(1)], route)


ROUTES: dict[str, Any] = {
    _path(str(pattern.pattern)): getattr(pattern.callback, "cls", None)
    for pattern in urlpatterns
    if isinstance(pattern, URLPattern) and str(pattern.pattern).startswith(("api/", "v1/"))
}
OPEN = {"/api/schema", "/api/docs"}
TAKES_UNKNOWN = {"/api/routing/explain"}
"""A body of the inference API, whose unknown fields are the provider's to judge."""
CLOSED = sorted(set(ROUTES) - OPEN) + NOT_YET


def assert_refusal(answer: Answer, status: int, path: str, code: str | None = None) -> None:
    """The one helper: status, shape, types, request id, and what each status owes the client."""
    assert answer.status == status, answer.body
    assert re.fullmatch(r"req_[0-9a-f]{30}", answer.headers["x-request-id"])
    assert answer.headers["content-type"].startswith("application/json")
    if render.is_under(path, "/v1/messages"):
        assert set(answer.body) == {"type", "error", "request_id"}
        assert answer.body["type"] == "error"
        assert answer.body["request_id"] == answer.headers["x-request-id"]
        assert set(answer.body["error"]) == {"type", "message"}
        told = answer.body["error"]
    elif render.is_under(path, "/v1"):
        assert set(answer.body) == {"error"}
        told = answer.body["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert told["param"] is None or isinstance(told["param"], str)
        assert told["code"] is None or re.fullmatch(r"[a-z_]+", told["code"])
        if code is not None:
            assert told["code"] == code
    else:
        told = {**answer.body, "message": answer.body["detail"]}
        assert set(answer.body) - {"errors"} == {"detail", "type", "status_code"}
        assert answer.body["status_code"] == status
        if "errors" in answer.body:
            assert status == 400
            assert answer.body["errors"]
            assert all(isinstance(text, str) for texts in answer.body["errors"].values() for text in texts)
    assert re.fullmatch(r"[a-z_]+", told["type"])
    assert isinstance(told["message"], str)
    assert told["message"]
    assert not re.search(r"Traceback|Error:|<html|Exception|sqlite|psycopg", told["message"])
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if status == 405:
        assert answer.headers["allow"]


@pytest.fixture
def cast(db) -> Cast:
    return make_cast()


@pytest.mark.parametrize("path", CLOSED)
def test_no_credentials(cast: Cast, path: str):
    assert_refusal(cast["nobody"].get(path), 401, path, "invalid_api_key")
    assert_refusal(cast["nobody"].post(path), 401, path, "invalid_api_key")


@pytest.mark.parametrize("path", CLOSED)
def test_bad_credentials(cast: Cast, path: str):
    for secret in ("sk-ailb_wrong", "x" * 5000, "ключ".encode().decode("latin-1")):
        assert_refusal(Door(secret=secret).get(path), 401, path, "invalid_api_key")


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_wrong_method(cast: Cast, path: str):
    puts = ("PUT",) if not hasattr(ROUTES[path], "put") else ()
    for method in (*puts, "TRACE", "OPTIONS"):
        assert_refusal(cast["admin key"].send(method, path), 405, path, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/api", "/api/", "/api/keyz", "/api/keys/", "/api/billing/budgets/x", "/v1", "/v1/", "/v1/x"]
)
def test_unknown_path(cast: Cast, path: str):
    for who in ("nobody", "admin key", "alice"):
        for method in ("GET", "POST"):
            assert_refusal(cast[who].send(method, path), 404, path, "not_found")


@pytest.mark.parametrize("path", NOT_YET)
def test_not_there_yet(cast: Cast, path: str, caplog):
    for method in ("GET", "POST", "DELETE", "PATCH"):
        assert_refusal(cast["alice's key"].send(method, path), 501, path, "not_implemented")
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "whoever runs it has done no wrong"


def test_a_path_outside_is_a_page_of_the_console(cast: Cast):
    answer = cast["nobody"].get("/nothing")
    assert answer.status == 404
    assert answer.headers["content-type"].startswith("text/html")


WRITING = [
    (path, method) for path, view in ROUTES.items() for method in ("POST", "PATCH") if hasattr(view, method.lower())
]


def _existing(cast: Cast, path: str) -> str:
    budget = cast.budgets["red"].pk
    return path.replace("key_0", cast.key.pk).replace("/budgets/1", f"/budgets/{budget}")


@pytest.mark.parametrize(("path", "method"), WRITING)
@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nul", b"\xff\xfe", b'{"a":NaN}', b'{"a":1e999}', b'{"a":"\\ud800"}', b"[" * 100_000, b"1" * 5000,
        b"[]", b"3", b'"x"', b"null", b'{"surprise":1}', b'{"a":1,"a":2}', b'{"\\u0000":1}',
    ],
    ids=lambda body: body[:16].decode("latin-1"),
)  # fmt: skip
def test_malformed_bodies_and_unknown_fields(cast: Cast, path: str, method: str, body: bytes):
    answer = cast["admin key"].send(method, _existing(cast, path), body)
    assert_refusal(answer, 400, path)
    if body == b'{"surprise":1}' and path not in TAKES_UNKNOWN:
        assert answer.body["errors"]["surprise"] == ["Unknown field."]


@pytest.mark.parametrize(("path", "method"), WRITING)
def test_a_form_is_no_json(cast: Cast, path: str, method: str):
    response = Client().generic(
        method, _existing(cast, path), b"name=x", content_type="application/x-www-form-urlencoded",
        headers={"Authorization": f"Bearer {cast.secrets['admin key']}"},
    )  # fmt: skip
    assert_refusal(_answer(response), 415, path)


@pytest.mark.parametrize(("path", "method"), WRITING)
def test_too_large(cast: Cast, path: str, method: str):
    body = b'{"name":"' + b"x" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE + b'"}'
    assert_refusal(cast["admin key"].send(method, _existing(cast, path), body), 413, path)


def test_too_large_without_a_stated_length(cast: Cast):
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
        answer = _chunked(cast, b'{"name":"' + b"x" * 100 + b'"}')
    assert_refusal(answer, 413, "/api/keys")


def test_a_chunked_body_is_read(cast: Cast):
    assert _chunked(cast, b'{"name":"chunked"}').body["key_data"]["name"] == "chunked"


def _chunked(cast: Cast, body: bytes) -> Answer:
    """As an ASGI server hands a chunked body over: no length, and the whole of it to read."""
    headers = [(b"transfer-encoding", b"chunked"), (b"content-type", b"application/json")]
    headers.append((b"authorization", f"Bearer {cast.secrets['admin key']}".encode()))
    scope = {"type": "http", "method": "POST", "path": "/api/keys", "headers": headers, "query_string": b""}
    response = KeysView.as_view()(ASGIRequest(scope, BytesIO(body)))
    response.render()
    return _answer(response)


def _answer(response: Any) -> Answer:
    told = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, json.loads(response.content), told)


@pytest.mark.parametrize(
    "path", [path for path in sorted(ROUTES) if any(sample in path for sample in ("key_0", "alice", "red"))]
)
def test_names_that_nothing_has(cast: Cast, path: str):
    for odd in ("%00", "a%00b", "%ff%fe", "x" * 5000, "%F0%9F%92%A9", "..%2f", "'"):
        asked = path.replace("key_0", odd).replace("/alice", f"/{odd}").replace("/red", f"/{odd}")
        for method in ("GET", "POST", "PATCH", "DELETE"):
            answer = cast["admin key"].send(method, asked, {} if method in ("POST", "PATCH") else None)
            assert answer.status in (404, 405), (method, asked, answer.body)
            assert_refusal(answer, answer.status, path)


@pytest.mark.parametrize("number", ["0", "99999999999999999999", "9" * 400])
def test_budgets_that_no_database_could_hold(cast: Cast, number: str):
    assert_refusal(cast["admin key"].get(f"/api/billing/budgets/{number}"), 404, "/api")


@pytest.mark.parametrize(
    "path",
    [
        "/api/keys?limit=0", "/api/keys?limit=1001", "/api/keys?limit=x", "/api/keys?offset=-1",
        "/api/keys?status=gone",
        "/api/keys?limit=99999999999999999999", "/api/keys?offset=99999999999999999999", "/api/keys?stauts=active",
        "/api/billing/usage?limit=0", "/api/billing/usage?limit=1001", "/api/billing/usage?cursor=x",
        "/api/billing/usage?cursor=////////////////", "/api/billing/usage?start_date=yesterday",
        "/api/billing/usage?start_date=0001-01-01&tz=Asia/Tokyo",
        "/api/billing/usage?end_date=9999-12-31T23:00:00-12:00",
        "/api/billing/usage?start_date=2026-02-30", "/api/billing/usage?tz=Mars/Olympus",
        "/api/billing/usage?tz=../../etc",
        "/api/billing/usage?start_date=2026-02-02&end_date=2026-02-01", "/api/billing/usage?usr_id=alice",
        "/api/billing/usage?key_id=%00", "/api/billing/usage?model=", "/api/audit?limit=0", "/api/audit?cursor=-",
        "/api/audit?object_id=%00", "/api/users?limit=0", "/api/teams?offset=x", "/api/billing/budget?limit=0",
    ],
)  # fmt: skip
def test_bad_queries(cast: Cast, path: str):
    answer = cast["admin key"].get(path)
    assert_refusal(answer, 400, path)
    assert len(answer.body["errors"]) == 1


def test_a_defect_tells_its_id_and_nothing_else(cast: Cast, monkeypatch):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("keys.selectors.keys", broken)
    monkeypatch.setattr("gateway.api.visible", broken)
    for path in ("/api/keys", "/v1/models"):
        answer = cast["admin key"].get(path)
        assert_refusal(answer, 500, path, "internal_error")
        assert "secret detail" not in json.dumps(answer.body)
        assert (answer.headers["x-request-id"] in json.dumps(answer.body)) == (path == "/v1/models")


def test_a_database_out_of_reach_is_503(cast: Cast):
    with mock.patch("keys.selectors.keys", side_effect=OperationalError("host db.internal refused")):
        answer = cast["admin key"].get("/api/keys")
    assert_refusal(answer, 503, "/api/keys")
    assert answer.headers["retry-after"] == "5"
    assert "db.internal" not in answer.body["detail"]


def test_a_host_name_that_is_not_ours(cast: Cast):
    for path in ("/api/keys", "/v1/models"):
        # CommonMiddleware asks for the host; the console's own test client would state ours.
        response = Client(raise_request_exception=False).get(path, headers={"Host": "evil.example"})
        assert_refusal(_answer(response), 400, path)


def test_writes_of_a_session_need_the_csrf_token(cast: Cast):
    client = Client(enforce_csrf_checks=True)
    ada = cast["ada"].user
    assert ada is not None
    client.force_login(ada)
    response = client.post("/api/keys", b'{"name":"n"}', content_type="application/json")
    assert_refusal(_answer(response), 403, "/api/keys")
    assert "CSRF" in json.loads(response.content)["detail"]


def test_every_answer_has_an_id_of_its_own(cast: Cast):
    ids = {cast["ada"].get(path, **{"X-Request-ID": "mine"}).headers["x-request-id"] for path in (*ROUTES, "/api/nope")}
    assert len(ids) == len(ROUTES) + 1
    assert "mine" not in ids


# ── every refusal of the tree, in OpenAI's and Anthropic's words ────────────────────────────────────────────────────


def _leaves(kind: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in _leaves(child))]


@pytest.mark.parametrize("kind", _leaves(errors.GatewayError), ids=lambda kind: kind.__name__)
def test_every_error_has_both_envelopes(kind: type[errors.GatewayError]):
    error = kind("told", retry_after=1.2)
    told = problems.openai_error(error, "req_1")["error"]
    assert (told["type"], told["code"]) == (kind.type, kind.code)
    assert told["message"] == (
        "told" if kind.status != 500 else "Something went wrong on our side. The request's id is req_1."
    )
    assert problems.anthropic_error(error, "req_1")["error"]["type"] == {
        401: "authentication_error", 402: "billing_error", 403: "permission_error", 404: "not_found_error",
        429: "rate_limit_error", 500: "api_error", 501: "api_error", 502: "api_error", 503: "overloaded_error",
        504: "timeout_error",
    }.get(kind.status, "invalid_request_error")  # fmt: skip
    headers = dict(problems.error_headers(error))
    assert headers["Retry-After"] == "2"
    assert ("x-should-retry" in headers) == (kind.status == 402 or kind is errors.RequestTooLargeForLimit)


# ── fuzz ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=300) | st.sampled_from(["\0", "a\nb", "alice", "red", "admin", "2026-01-01", "-1", "1e5", " "])
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    "name", "user_id", "team", "role", "monthly_quota_dollars", "monthly_quota_tokens", "rate_limit_rpm",
    "max_parallel",
    "allowed_models", "expires_at", "metadata", "tags", "grace_seconds", "rotation_id", "key_id", "organisation",
    "period", "tz", "limit_dollars", "limit_tokens", "display_name", "email", "is_active", "cost_centre",
    "rate_limit_tpm", "max_wait_ms", "queue_weight", "scope", "owner", "model",
]  # fmt: skip


@pytest.mark.parametrize(("path", "method"), WRITING)
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(_FIELDS), _VALUES, max_size=4))
def test_no_body_is_a_defect(cast: Cast, path: str, method: str, body: dict):
    allowed = {name: value for name, value in body.items() if name in _known(path)}
    answer = cast["admin key"].send(
        method, _existing(cast, path), {"name": "n", **allowed} if path == "/api/keys" else allowed
    )
    assert answer.status in (200, 201, 400, 404, 409), answer.body
    if answer.status >= 400:
        assert_refusal(answer, answer.status, path)


def _known(path: str) -> set[str]:
    """Mostly known fields, so that values are what is tried."""
    if "rotate" in path:
        return {"grace_seconds", "rotation_id"}
    if "limits" in path:
        return {"scope", "owner", "model", "rate_limit_rpm", "rate_limit_tpm", "max_parallel"}
    if "budget" in path:
        return {"key_id", "user_id", "team", "organisation", "period", "tz", "limit_dollars", "limit_tokens"}
    if "users" in path or "teams" in path:
        return {
            "user_id", "name", "team", "role", "display_name", "email", "is_active", "cost_centre", "max_parallel",
            "max_wait_ms", "queue_weight",
        }  # fmt: skip
    return {*_FIELDS[:12], "max_wait_ms", "queue_weight"}
