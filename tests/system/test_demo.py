"""The demo as somebody new meets it: an empty folder, no account, and a real model that answers."""

import contextlib
import json

import httpx2
import psutil
import pytest

from gateway import demo_server
from gateway.providers import demo
from tests.support.real_model import NO_WHEELS
from tests.support.waiting import eventually
from tests.system.conftest import chat

QUESTION = {
    "model": "ailb-demo",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    "temperature": 0,
    "max_tokens": 40,
}


@pytest.fixture
def client(make_gateway, admin):
    """A gateway on an empty folder, with the model as its demo."""
    if not demo_server.is_available():
        pytest.skip(NO_WHEELS)
    gateway = make_gateway(empty=True, AILB_DEMO="auto").start()
    with httpx2.Client(base_url=gateway.url, headers=admin, timeout=90, trust_env=False) as client:
        client.gateway = gateway
        yield client


def children(gateway):
    return [child for child in psutil.Process(gateway.process.pid).children(recursive=True) if _is_model(child)]


def _is_model(process):
    return "gateway.demo_server" in process.cmdline()


def is_gone(process):
    """Ended; who inherited an orphan may be slow to take note of it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_the_first_question_is_answered_by_a_model_that_ends_with_the_gateway(client):
    assert children(client.gateway) == [], "starting costs nothing"
    plain = client.post("/v1/chat/completions", json=chat(**QUESTION))
    assert plain.status_code == 200, plain.text
    assert plain.headers["x-ailb-provider"] == "demo"
    body = plain.json()
    assert body["model"] == "ailb-demo"
    assert "Paris" in body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens"] > 1

    with client.stream("POST", "/v1/chat/completions", json=chat(**QUESTION, stream=True)) as stream:
        *lines, end = [line for line in stream.iter_lines() if line]
    assert end == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert "Paris" in said

    (model,) = children(client.gateway)
    assert client.gateway.stop() == 0
    assert is_gone(model)


def test_the_model_does_not_outlive_a_gateway_that_is_killed(client):
    client.post("/v1/chat/completions", json=chat(**QUESTION))
    (model,) = children(client.gateway)
    client.gateway.kill()
    eventually(lambda: is_gone(model))


def test_a_model_that_fell_is_back_with_the_next_question(client):
    assert client.post("/v1/chat/completions", json=chat(**QUESTION)).status_code == 200
    (model,) = children(client.gateway)
    model.kill()
    eventually(lambda: demo.model_server(client.gateway.folder)._found() is None)
    assert client.post("/v1/chat/completions", json=chat(**QUESTION)).status_code == 200
