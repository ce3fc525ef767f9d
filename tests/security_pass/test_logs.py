"""A whole run with a debug log: nothing that is secret is in what the gateway wrote about itself.

`tests/system/test_logs.py` has every way in which an upstream can fail; here are both doors, the console and `/api`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from keys import secrets
from tests.support.serving import ADMIN_KEY, Serving
from tests.support.upstream import delta, refuses, says, sends
from tests.system.conftest import MODEL, openai_settings

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
PROMPT, ANSWER = "the-prompt-that-nobody-may-read", "the-answer-that-nobody-may-read"
BLOCKED = "zanzibar-seventeen"
IN_PROMPT = "AKIAQ3EGRWXYZ2LMN7OP"
WRONG_PASSWORD, TYPED_AS_NAME, PASSWORD = "wrong-password-4711", "password-typed-as-a-name", "a-password-of-mine-0815"
CREDENTIAL, HEADER = "sk-console-credential-abcdef0123456789", "header-secret-of-a-project-42"

# Files that are there to hold secrets; each is 0600 (test_at_rest.py).
HOLD_SECRETS = {"secret_key", "key_pepper", "encryption_keys", "first-run.txt"}


class Browser:
    """Somebody at the console: cookies, forms with their tokens. Remembers what only they and the gateway may know."""

    def __init__(self, url: str) -> None:
        self.client = httpx2.Client(base_url=url, timeout=30, trust_env=False, headers={"origin": url})
        self.secrets: set[str] = set()
        self.sessions: set[str] = set()

    def submit(self, path: str, **fields: str) -> httpx2.Response:
        page = self.client.get(path)
        (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text))
        answer = self.client.post(path, data={"csrfmiddlewaretoken": token, **fields})
        self.secrets |= {token, self.client.cookies["csrftoken"]}
        self.sessions |= {self.client.cookies[name] for name in ("sessionid",) if name in self.client.cookies}
        return answer


class Run:
    """What was asked of the gateway, and every secret that was around."""

    def __init__(self, serving: Serving, upstream: Any) -> None:
        self.serving, self.upstream = serving, upstream
        self.secrets = {
            ADMIN_KEY, f"{ADMIN_KEY[:-1]}x", CREDENTIAL, HEADER, WRONG_PASSWORD, TYPED_AS_NAME, PASSWORD, IN_PROMPT,
            serving.settings["OPENAI_API_KEY"],
        }  # fmt: skip
        self.sessions: set[str] = set()
        self.texts = {PROMPT, ANSWER, BLOCKED}
        self.client = httpx2.Client(base_url=serving.url, timeout=30, trust_env=False)

    def api(self, method: str, path: str, key: str = ADMIN_KEY, **body: Any) -> Any:
        answer = self.client.request(method, path, json=body or None, headers={"authorization": f"Bearer {key}"})
        return answer.json() if answer.content else None

    def make_key(self, **fields: Any) -> tuple[str, str]:
        made = self.api("POST", "/api/keys", **fields)
        self.secrets.add(made["key"])
        return made["key_data"]["id"], made["key"]

    def ask(self, key: str, text: str = PROMPT, *, path: str = CHAT, **body: Any) -> httpx2.Response:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **body}
        return self.client.post(path, json=asked, headers={"x-api-key": key})


@pytest.fixture
def run(make_gateway, upstream) -> Iterator[Run]:
    serving = make_gateway(empty=True, AILB_LOG_LEVEL="debug", **openai_settings(upstream)).start(jobs=True)
    run = Run(serving, upstream)
    yield run
    run.client.close()


def inference(run: Run) -> None:
    """Both doors, plain and streamed: answers, refusals, upstreams that say what they were given."""
    _, key = run.make_key(name="hers", user_id="alice", team="red")
    leaky = f"Bad key {run.serving.settings['OPENAI_API_KEY']} for {PROMPT}"
    run.upstream.always(says(ANSWER))
    for path in (CHAT, MESSAGES):
        for stream in (False, True):
            assert run.ask(key, path=path, stream=stream, session_id="s-1").status_code == 200
            assert run.ask(key, f"What is {BLOCKED}?", path=path, stream=stream).status_code == 400
            assert run.ask(key, f"My AWS key is {IN_PROMPT}", path=path, stream=stream).status_code == 200
            for script in (refuses(400, leaky), sends(delta(ANSWER), 0.02, {"error": {"message": leaky}})):
                run.upstream.will(script)
                assert run.serving.settings["OPENAI_API_KEY"] not in run.ask(key, path=path, stream=stream).text
        run.client.post(path, content=PROMPT, headers={"x-api-key": key})
        run.ask(key, path=path, model=PROMPT)
        run.ask(f"{ADMIN_KEY[:-1]}x", path=path)
        run.ask(key, path=f"{path}/{key}")
    run.upstream.will(refuses(401, leaky))
    assert run.ask(key).status_code == 502
    run.ask(key, path=f"{MESSAGES}/count_tokens")
    run.client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    run.client.get(f"/v1/models/{key}", headers={"authorization": f"Bearer {key}"})
    run.client.get(f"/v1/models?api_key={key}")


def management(run: Run) -> None:
    """Keys made, rotated, revoked, wrong, malformed, in the wrong place."""
    key_id, first = run.make_key(name="rotated", user_id="bob")
    second = run.api("POST", f"/api/keys/{key_id}/rotate", grace_seconds=60, rotation_id="r1")["key"]
    run.secrets.add(second)
    for secret in (first, second):
        assert run.ask(secret).status_code == 200
    run.api("DELETE", f"/api/keys/{key_id}")
    assert run.ask(second).json()["error"]["code"] == "key_revoked"
    unknown = secrets.new_secret()
    run.secrets |= {unknown, unknown[:-1]}
    for wrong in (unknown, unknown[:-1], f"{ADMIN_KEY[:-1]}x", second):
        run.ask(wrong)
        run.api("GET", "/api/keys", key=wrong)
        run.client.get("/healthz", headers={"authorization": f"Bearer {wrong}"})
        run.client.get("/metrics", headers={"authorization": f"Bearer {wrong}", "x-forwarded-for": "10.0.0.1"})
    run.api("GET", f"/api/keys/{first}")
    run.api("GET", f"/api/keys?status={first}")
    run.api("POST", "/api/keys", name="n", key=first, password=PASSWORD)
    run.client.get("/api/keys", headers={"authorization": f"Bearer {ADMIN_KEY}", "x-user-id": "alice"})
    run.client.get("/api/keys", headers={"host": f"{first}.example"})


def console(run: Run) -> None:
    """The first sign-in with its wrong turns, a provider with credentials, a key's whole life."""
    given = re.search(r"Login: +admin / (\S+)", (run.serving.folder / "first-run.txt").read_text())
    first_key = re.search(r"Virtual key: (\S+)", (run.serving.folder / "first-run.txt").read_text())
    assert given is not None
    assert first_key is not None
    run.secrets |= {given[1], first_key[1]}
    browser = Browser(run.serving.url)
    browser.submit("/admin/login/", username="admin", password=WRONG_PASSWORD)
    browser.submit("/admin/login/", username=TYPED_AS_NAME, password=WRONG_PASSWORD)
    for _ in range(11):  # as far as the lock-out of another account
        browser.submit("/admin/login/", username=TYPED_AS_NAME, password=PASSWORD)
    browser.client.post("/admin/login/", data={"username": "admin", "password": given[1]})  # without the token: 403
    assert browser.submit("/admin/login/", username="admin", password=given[1]).status_code == 302
    new = {"old_password": given[1], "new_password1": PASSWORD, "new_password2": PASSWORD}
    assert browser.submit("/admin/password_change/", **{**new, "new_password2": WRONG_PASSWORD}).status_code == 200
    assert browser.submit("/admin/password_change/", **new).status_code == 302

    policy = {"name": "no islands", "scope": "organisation", "blocked_terms": BLOCKED, "enabled": "on"}
    assert browser.submit("/admin/security/policy/add/", **policy).status_code == 302

    timeouts = {"connect_timeout": "5", "first_byte_timeout": "60", "idle_timeout": "60"}
    address = {"slug": "second", "kind": "openai", "base_url": run.upstream.url, **timeouts}
    credentials = {"api_key": CREDENTIAL, "headers": f"x-project: {HEADER}"}
    page = "/admin/gateway/provider/add/"
    assert browser.submit(page, **{**address, **credentials, "slug": "No Slug"}).status_code == 200
    assert browser.submit(page, **address, **credentials, enabled="on").status_code == 302
    ((pk,),) = run.serving.rows("SELECT id FROM gateway_provider WHERE slug = 'second'")
    deployment = {"name": "theirs", "provider": str(pk), "upstream_model": "m", "weight": "1", "priority": "0"}
    assert browser.submit("/admin/gateway/deployment/add/", **deployment, enabled="on").status_code == 302
    echo = f"{CREDENTIAL} and {HEADER} are not allowed"
    run.upstream.will(refuses(400, echo), refuses(403, echo), model="m")
    for _ in range(2):
        told = run.ask(ADMIN_KEY, model="theirs").text
        assert CREDENTIAL not in told
        assert HEADER not in told, "the extra headers are as secret as the key"

    fields = {"name": "made there", "role": "member", "metadata": "{}", "queue_weight": "1"}
    assert browser.submit("/admin/keys/virtualkey/add/", **fields).status_code == 302
    ((key_id,),) = run.serving.rows("SELECT id FROM keys_virtualkey WHERE name = 'made there'")
    shown = browser.client.get(f"/admin/keys/virtualkey/{key_id.replace('_', '_5F')}/secret/").text
    run.secrets |= set(re.findall(r"sk-ailb_\w+", shown))
    assert len(set(re.findall(r"sk-ailb_\w+", shown))) == 1
    assert browser.client.get("/admin/logout/").status_code == 405, "a link signs nobody out"
    browser.submit("/admin/password_change/", old_password=WRONG_PASSWORD, new_password1="x", new_password2="x")
    run.secrets |= browser.secrets
    run.sessions |= browser.sessions
    assert len(run.sessions) >= 2, "a new one with each password"
    browser.client.close()


def written(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in HOLD_SECRETS:
            yield str(path.relative_to(folder)), path.read_bytes()


def lines_with(secret: str, told: bytes) -> list[bytes]:
    return [line[:2000] for line in told.splitlines() if secret.encode() in line]


def test_a_whole_run_leaks_nothing(run: Run):
    console(run)
    management(run)
    inference(run)
    metrics = run.client.get("/metrics").content
    assert run.serving.stop() == 0

    own = {(run.serving.folder / name).read_text().strip() for name in HOLD_SECRETS - {"first-run.txt"}}
    run.secrets |= own
    assert len(run.secrets) > 20
    assert all(len(secret) > 12 for secret in run.secrets)
    told = (run.serving.told() + run.serving.out.read_text()).encode()
    for secret in run.secrets | run.texts | run.sessions:
        assert not lines_with(secret, told), f"the log has {secret}"
        assert secret.encode() not in metrics, f"/metrics has {secret}"
    # What lasts: the database has sessions by their keys, and conversations; nothing that opens anything else.
    for name, content in written(run.serving.folder):
        is_database = name.startswith("ailb.sqlite3")
        for secret in run.secrets if is_database else run.secrets | run.sessions:
            assert secret.encode() not in content, f"{name} has {secret}"
        if not is_database:
            assert not [text for text in run.texts if text.encode() in content], name
    assert b"Traceback" not in told
    assert run.serving.lines(), "each a JSON object"
    assert run.serving.told().count('"event":"request"') > 30
    assert '"level":"debug"' in run.serving.told()
