"""What a gateway writes about itself never holds a key, a credential or a prompt."""

import httpx2

from tests.support.serving import ADMIN_KEY
from tests.support.upstream import answers, bytes_of, delta, drops, refuses, says, sends
from tests.system.conftest import chat, openai_settings

PROMPT = "the-prompt-that-nobody-may-read"
ANSWER = "the-answer-that-nobody-may-read"
SESSION = "a-private-session"


def test_a_full_run_leaks_nothing(make_gateway, upstream):
    settings = openai_settings(upstream)
    serving = make_gateway(AILB_LOG_LEVEL="debug", **settings).start()
    secret = serving.make_key("--user", "alice", "--rpm", "1000")
    credential = settings["OPENAI_API_KEY"]
    leaky = f"Bad key {credential}: {PROMPT}"
    upstream.always(says(ANSWER))
    asked = {"messages": [{"role": "user", "content": PROMPT}], "session_id": SESSION}
    scripts = [
        None, refuses(400, leaky), refuses(401, leaky), refuses(429, leaky), refuses(500, leaky), drops(),
        answers(leaky.encode()), bytes_of(leaky.encode()), sends(delta(ANSWER), 0.02, end="cut"),
        sends(delta(ANSWER), 0.02, leaky.encode() + b"\n\n"), sends(delta(ANSWER), 0.02, {"error": {"message": leaky}}),
    ]  # fmt: skip
    with httpx2.Client(base_url=serving.url, timeout=30, trust_env=False) as client:
        path = "/v1/chat/completions"
        for script in scripts:
            for stream in (False, True):
                if script is not None:
                    upstream.will(script)
                answer = client.post(path, json=chat(stream=stream, **asked), headers={"x-api-key": secret})
                assert credential not in answer.text
        client.post(path, content=PROMPT, headers={"x-api-key": secret})
        client.post(path, json=chat(**asked, n="x"), headers={"x-api-key": secret})
        client.post(path, json=chat(**asked, model=PROMPT), headers={"x-api-key": secret})
        client.post(path, json=chat(**asked), headers={"x-api-key": f"{secret[:-1]}x"})
        client.post(path, json=chat(**asked), headers={"authorization": f"Bearer {ADMIN_KEY}"})
        client.post(
            path,
            json=chat(messages=[{"role": "user", "content": f"my key is {secret}"}]),
            headers={"x-api-key": secret},
        )
        client.get(f"/v1/models/{PROMPT}", headers={"x-api-key": secret})
        client.get("/api/keys", headers={"authorization": f"Bearer {ADMIN_KEY}"})
        client.post("/api/keys", json={"name": "made"}, headers={"authorization": f"Bearer {ADMIN_KEY}"})
        metrics = client.get("/metrics").text
    assert serving.stop() == 0
    told = serving.told() + serving.out.read_text()
    for private in (secret, secret[:-1], ADMIN_KEY, credential, PROMPT, ANSWER, SESSION):
        assert private not in told, f"{private} is in the log"
        assert private not in metrics
    assert len([line for line in serving.lines() if line.get("event") == "request"]) >= 2 * len(scripts)
    assert "Traceback" not in told


def test_a_requests_line_says_what_an_operator_needs(make_gateway, upstream):
    serving = make_gateway(**openai_settings(upstream)).start()
    answer = httpx2.post(
        f"{serving.url}/v1/chat/completions", json=chat(), headers={"x-api-key": ADMIN_KEY}, trust_env=False
    )
    serving.stop()
    (line,) = (line for line in serving.lines() if line.get("event") == "request")
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["status"], line["provider"], line["model"], line["stream"]) == (200, "openai", "gpt-4o-mini", False)
    assert line["tokens"] == [11, 4]
    assert line["key_id"] == "key_admin"
    assert line["latency_ms"] > 0


def test_a_defect_is_logged_with_its_id_and_the_prompt_is_not(make_gateway, upstream):
    """The traceback of what nobody foresaw is an operator's to read, but it must not quote the request."""
    serving = make_gateway(**openai_settings(upstream)).start()
    # A body that the gateway passes on and JSON's encoder cannot write: whatever happens, no prompt in the log.
    body = f'{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "{PROMPT}"}}], "x": 1e400}}'
    httpx2.post(f"{serving.url}/v1/chat/completions", content=body, headers={"x-api-key": ADMIN_KEY}, trust_env=False)
    serving.stop()
    assert PROMPT not in serving.told()
