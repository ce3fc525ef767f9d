"""What browsers are told, which host names are answered, and that nothing forwarded is believed."""

import re

import httpx2
import pytest
from django.http import HttpResponse
from django.test import Client

from ailb_project import browser_security
from security.models import AuditEntry
from tests.api.doors import Cast
from tests.console.pages import World, registered, submit, url
from tests.support.serving import ADMIN_KEY, manage

PLAIN = ("/admin/login/", "/api/keys", "/api/docs", "/api/nothing", "/v1/models", "/nothing", "/", "/api/schema")


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", PLAIN)
def test_every_answer_of_django_has_them(cast: Cast, path: str):
    answer = Client(raise_request_exception=False).get(path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    if path != "/api/docs":  # Swagger opens windows that it talks to
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in answer.headers, "not over plain HTTP"


def test_refusals_before_any_view_have_them_too(cast: Cast):
    refused = Client(raise_request_exception=False).get("/admin/", headers={"host": "evil.example"})
    assert refused.status_code == 400
    assert refused.headers["Content-Security-Policy"] == browser_security.PAGES


def test_scripts_come_from_files_of_ours_alone():
    policy = dict(part.strip().split(" ", 1) for part in browser_security.PAGES.split(";"))
    assert policy["default-src"] == "'self'"
    assert "unsafe-inline" not in policy["script-src"]
    assert "http" not in browser_security.PAGES
    assert (policy["object-src"], policy["base-uri"], policy["form-action"]) == ("'none'", "'none'", "'self'")


def test_data_is_shown_by_no_browser(cast: Cast):
    answer = cast["ada"].client().get("/api/keys")
    assert answer.headers["Content-Security-Policy"] == browser_security.DATA
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_views_own_policy_stays(rf):
    own = browser_security.middleware(lambda request: HttpResponse(headers={"Content-Security-Policy": "sandbox"}))
    assert own(rf.get("/")).headers["Content-Security-Policy"] == "sandbox"


def test_no_page_of_the_console_has_a_script_of_its_own(world: World, ada: Client):
    """The policy would refuse it; whoever adds one learns it here and not from a button that does nothing."""
    pages = ["/admin/", "/admin/password_change/", url("set_password", world["keys.user"])]
    for model in registered():
        label = model._meta.label_lower
        pages += [url("changelist", label), url("add", label), url("change", world[label]), url("delete", world[label])]
    for page in (*(url(f"{name}", world["keys.virtualkey"]) for name in ("rotate", "revoke")), *pages):
        body = ada.get(page).content.decode()
        scripts = re.findall(r"<script(?![^>]*\bsrc=)(?![^>]*application/json)[^>]*>", body)
        assert not scripts, page
        assert not re.findall(r"<[a-z][^>]*\son[a-z]+\s*=", body), page
        assert "javascript:" not in body, page


# ── TLS ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def behind_tls(settings) -> None:
    settings.BEHIND_TLS = True
    settings.SECURE_PROXY_SSL_HEADER = ("AILB_SCHEME", "https")
    settings.SECURE_HSTS_SECONDS = 86400
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = True
    settings.CSRF_TRUSTED_ORIGINS = ["https://testserver"]


def test_behind_tls_browsers_are_told_to_stay_there(cast: Cast, behind_tls):
    answer = Client().get("/admin/login/")
    assert answer.headers["Strict-Transport-Security"] == "max-age=86400"
    assert answer.cookies["csrftoken"]["secure"]


def test_behind_tls_the_curl_that_is_shown_sends_its_key_by_tls(world: World, ada: Client, behind_tls):
    made = submit(ada, url("add", "keys.virtualkey"), name="n")
    page = ada.get(made.headers["Location"], headers={"host": "testserver"}).content.decode()
    assert re.findall(r"curl -sS (\S+)", page) == ["https://testserver/v1/chat/completions"]


@pytest.mark.parametrize(
    ("origins", "behind"),
    [
        ("https://ailb.example", True),
        ("https://ailb.example,https://other.example:8443", True),
        ("http://ailb.example", False),
        ("https://ailb.example,http://10.0.0.5:8080", False),
        ("", False),
    ],
)
def test_the_origins_say_whether_it_is(tmp_path, origins: str, behind: bool):
    told = (
        "from django.conf import settings as s; print(s.BEHIND_TLS, s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE, "
        "bool(s.SECURE_HSTS_SECONDS), s.SECURE_PROXY_SSL_HEADER is not None)"
    )
    done = manage("shell", "--no-imports", "-c", told, settings={
        "AILB_DATA_DIR": str(tmp_path / "data"), "AILB_CSRF_ORIGINS": origins, "AILB_ALLOWED_HOSTS": "ailb.example",
    })  # fmt: skip
    assert done.stdout.split() == [str(behind)] * 5, done.stderr


@pytest.mark.parametrize("origins", ["", "https://ailb.example"])
def test_djangos_own_checks_have_nothing_to_say(tmp_path, origins: str):
    done = manage("check", "--deploy", "--fail-level", "WARNING", settings={
        "AILB_DATA_DIR": str(tmp_path / "data"), "AILB_CSRF_ORIGINS": origins, "AILB_ALLOWED_HOSTS": "ailb.example",
    })  # fmt: skip
    assert done.returncode == 0, done.stderr


# ── hosts and what proxies say ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost@evil.example"]
)
def test_django_answers_to_its_own_names_alone(cast: Cast, host: str, settings):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
    client = Client(raise_request_exception=False)
    for path in ("/admin/login/", "/api/keys", "/v1/models", "/api/schema"):
        assert client.get(path, headers={"host": host}).status_code == 400, path
    assert client.get("/admin/login/", headers={"host": "localhost:8080"}).status_code == 200


def test_a_forwarded_host_or_scheme_is_not_believed(cast: Cast):
    forwarded = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "forwarded": "host=evil.example"}
    answer = Client().get("/admin/login/", headers=forwarded)
    assert answer.status_code == 200
    assert not answer.wsgi_request.is_secure()
    assert answer.wsgi_request.get_host() == "testserver"
    assert not Client().get("/", headers={"AILB-SCHEME": "https", "AILB_SCHEME": "https"}).wsgi_request.is_secure()


def test_the_audit_log_has_the_peers_address_and_not_what_was_forwarded(cast: Cast):
    cast["admin key"].send("POST", "/api/keys", {"name": "n"}, {"x-forwarded-for": "203.0.113.9"})
    entry = AuditEntry.objects.filter(via="api").latest("id")
    assert entry.ip == "127.0.0.1"


def test_the_data_plane_answers_under_any_name_and_to_keys_alone(gateway, model, alice):
    """A page whose name is made to point here (DNS rebinding) has no key, and cookies are none."""
    host = {"host": "evil.example"}
    asked = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hi"}]}
    path = "/v1/chat/completions"
    assert gateway.send("POST", path, headers=host, json=asked).status == 401
    assert gateway.send("POST", path, headers={**host, "cookie": "sessionid=x"}, json=asked).status == 401
    assert gateway.send("POST", path, headers={**host, **alice.bearer}, json=asked).status == 200


def test_no_answer_of_the_data_plane_lets_another_origin_read_it(gateway, model, alice):
    for method in ("POST", "OPTIONS"):
        answer = gateway.send(method, "/v1/chat/completions", headers={"origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_origins_that_are_named_may_call_without_cookies(make_gateway):
    serving = make_gateway(AILB_CORS_ORIGINS="https://app.example").start()
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with httpx2.Client(base_url=serving.url, trust_env=False) as client:
        for origin, allowed in (("https://app.example", "https://app.example"), ("https://evil.example", None)):
            answer = client.options("/v1/chat/completions", headers={**asked, "origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in answer.headers
            read = client.get("/v1/models", headers={"origin": origin, "authorization": f"Bearer {ADMIN_KEY}"})
            assert read.headers.get("access-control-allow-origin") == allowed


def test_a_page_whose_name_points_here_does_not_read_the_metrics(gateway):
    """DNS rebinding: to a gateway on a developer's machine each page in the browser beside it is on loopback."""
    assert gateway.send("GET", "/metrics", headers={"host": "evil.example"}).status == 401
    assert gateway.send("GET", "/metrics", headers={"host": f"localhost:{gateway.port}"}).status == 200
