"""Starting on an empty folder and on a used one, stopping in order, ports and children."""

import contextlib
import json
import os
import pty
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
import pytest

from tests.support.serving import ADMIN_KEY, ROOT, Serving, clean_environment, open_requests
from tests.support.upstream import says, sends, waits_for
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings


class TestTheFirstStart:
    @pytest.fixture
    def first(self, make_gateway):
        gateway = make_gateway(empty=True)
        del gateway.settings["AILB_ADMIN_KEY"]
        return gateway.start()

    def test_an_empty_folder_is_enough_and_the_printed_curl_works(self, first):
        path = first.folder / "first-run.txt"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        text = path.read_text()
        command = next(line for line in text.splitlines() if line.startswith("curl "))
        done = subprocess.run(shlex.split(command), capture_output=True, check=True, timeout=30)
        assert "echo" in json.loads(done.stdout)["choices"][0]["message"]["content"]
        # What was made for it lasts, and is not shown again.
        secrets = [
            line.split(":", 1)[1].split()[0] for line in text.splitlines() if line.startswith(("Admin", "Virtual"))
        ]
        assert first.stop() == 0
        path.unlink()
        first.start()
        assert not path.exists()
        for secret in secrets:
            answer = httpx2.post(
                f"{first.url}/v1/chat/completions",
                json=chat(model="ailb-demo"),
                headers={"x-api-key": secret},
                trust_env=False,
            )
            assert answer.status_code == 200
        assert first.stop() == 0
        told = first.told() + first.out.read_text()
        for secret in secrets:
            assert secret not in told
        assert "first-run.txt" in told

    def test_generated_secrets_are_for_the_owner_alone(self, first):
        names = ("secret_key", "key_pepper", "encryption_keys")
        assert {name: stat.S_IMODE((first.folder / name).stat().st_mode) for name in names} == dict.fromkeys(
            names, 0o600
        )
        assert stat.S_IMODE(first.folder.stat().st_mode) == 0o700


class TestReadiness:
    def test_every_log_line_is_json(self, serving):
        serving.stop()
        events = [line["event"] for line in serving.lines()]
        assert "listening" in events
        assert "data_plane_open" in events

    def test_python_has_no_warnings_about_it(self, make_gateway, upstream):
        serving = make_gateway(PYTHONWARNINGS="default", **openai_settings(upstream)).start(jobs=True)
        serving.stop()
        assert [line for line in serving.told().splitlines() if "Warning" in line] == []

    def test_a_port_that_is_taken_is_named(self, serving, make_gateway):
        other = make_gateway("other", HTTP_PORT=str(serving.port)).start(ready=False)
        assert other.wait(60) != 0
        (line,) = (line for line in other.told().splitlines() if line.startswith("CommandError:"))
        assert line.startswith(f"CommandError: HTTP_PORT: got {serving.port}; takes")
        assert serving.status("/readyz") == 200


class TestTheEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_idle(self, serving, number):
        started = time.monotonic()
        serving.signal(number)
        assert serving.wait() == 0
        assert time.monotonic() - started < 10
        eventually(lambda: not serving.is_running())
        assert "Traceback" not in serving.told()

    def test_what_is_in_flight_is_finished(self, serving, admin, upstream):
        go_on = threading.Event()
        upstream.always(waits_for(go_on, says("a", "b", delay=0.1)))
        with (
            httpx2.Client(base_url=serving.url, headers=admin, timeout=30, trust_env=False) as client,
            ThreadPoolExecutor(6) as pool,
        ):

            def ask(stream):
                answer = client.post("/v1/chat/completions", json=chat(stream=stream))
                return answer.status_code, answer.headers["x-request-id"], answer.text

            running = [pool.submit(ask, n % 2 == 0) for n in range(6)]
            upstream.wait_for_requests(6)
            serving.signal(signal.SIGTERM)
            eventually(lambda: serving.status("/readyz") in (503, None))
            go_on.set()
            answers = [future.result() for future in running]
        assert serving.wait() == 0
        assert {status for status, _, _ in answers} == {200}
        assert sum(text.endswith("data: [DONE]\n\n") for _, _, text in answers) == 3
        kinds = serving.kinds()
        assert {request_id for _, request_id, _ in answers} <= set(kinds)
        assert open_requests(kinds) == {}

    def test_what_does_not_end_is_ended(self, make_gateway, admin, upstream):
        """AILB_SHUTDOWN_SECONDS is the bound: a stream that hangs does not keep the process."""
        serving = make_gateway(AILB_SHUTDOWN_SECONDS="1", **openai_settings(upstream)).start()
        upstream.always(sends({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, end="stall"))
        with (
            httpx2.Client(base_url=serving.url, headers=admin, timeout=30, trust_env=False) as client,
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response,
        ):
            next(response.iter_raw())
            plain = threading.Thread(target=_ask_in_vain, args=(serving, admin))
            plain.start()
            upstream.wait_for_requests(2)
            started = time.monotonic()
            serving.signal(signal.SIGTERM)
            assert serving.wait() == 0
            assert time.monotonic() - started < 15
        plain.join()
        # Both are on the ledger, closed: what they cost is not known.
        assert open_requests(serving.kinds()) == {}
        assert len(serving.kinds()) == 2

    def test_three_hundred_rows_are_written_out(self, serving, admin, upstream):
        # Lesson 13: queued spend was lost on SIGTERM.
        with (
            httpx2.Client(base_url=serving.url, headers=admin, timeout=30, trust_env=False) as client,
            ThreadPoolExecutor(16) as pool,
        ):
            ids = list(
                pool.map(lambda _: client.post("/v1/chat/completions", json=chat()).headers["x-request-id"], range(300))
            )
            serving.signal(signal.SIGTERM)
        assert serving.wait() == 0
        kinds = serving.kinds()
        assert set(ids) == set(kinds)
        assert open_requests(kinds) == {}

    def test_its_children_end_with_it_however_it_ends(self, make_gateway):
        serving = make_gateway().start(jobs=True)
        children = eventually(lambda: psutil.Process(serving.process.pid).children(recursive=True))
        serving.kill()
        _, alive = psutil.wait_procs(children, timeout=15)
        assert not alive


def _ask_in_vain(serving, headers):
    with contextlib.suppress(httpx2.HTTPError):
        httpx2.post(f"{serving.url}/v1/chat/completions", json=chat(), headers=headers, timeout=30, trust_env=False)


def test_daphne_serves_the_same(make_gateway, admin, upstream):
    serving = make_gateway(**openai_settings(upstream)).start("--server", "daphne")
    with httpx2.Client(base_url=serving.url, headers=admin, timeout=30, trust_env=False) as client:
        plain = client.post("/v1/chat/completions", json=chat())
        stream = client.post("/v1/chat/completions", json=chat(stream=True))
    assert plain.json()["choices"][0]["message"]["content"] == "Hello there."
    assert stream.text.endswith("data: [DONE]\n\n")
    assert serving.stop() == 0
    assert open_requests(serving.kinds()) == {}


def test_an_admin_key_that_is_changed_works_from_the_next_start(make_gateway, upstream):
    serving = make_gateway(**openai_settings(upstream)).start()

    def status(key):
        return httpx2.get(f"{serving.url}/v1/models", headers={"x-api-key": key}, trust_env=False).status_code

    assert status(ADMIN_KEY) == 200
    serving.stop()
    serving.settings["AILB_ADMIN_KEY"] = "another-admin-key-0123456789"
    serving.start()
    assert (status(ADMIN_KEY), status("another-admin-key-0123456789")) == (401, 200)


def test_a_providers_key_that_is_changed_is_used_from_the_next_start(make_gateway, upstream, admin):
    serving = make_gateway(**openai_settings(upstream)).start()
    url = f"{serving.url}/v1/chat/completions"
    httpx2.post(url, json=chat(), headers=admin, trust_env=False)
    serving.stop()
    serving.settings["OPENAI_API_KEY"] = "sk-a-newer-credential"
    serving.start()
    httpx2.post(url, json=chat(), headers=admin, trust_env=False)
    assert upstream.last.headers["authorization"] == "Bearer sk-a-newer-credential"


def test_create_key_prints_the_secret_alone(serving, upstream):
    done = serving.manage("create_key", "--name", "laptop", "--user", "alice", "--rpm", "2", "--monthly-dollars", "5")
    assert done.returncode == 0
    secret = done.stdout.rstrip("\n")
    assert secret.startswith("sk-ailb_")
    assert "\n" not in secret
    # Made by another process, it works within a second.
    headers = {"x-api-key": secret}
    eventually(lambda: httpx2.get(f"{serving.url}/v1/models", headers=headers, trust_env=False).status_code == 200, 1)


def test_a_first_start_on_a_terminal_shows_the_secrets(tmp_path):
    gateway = Serving(tmp_path / "data")
    del gateway.settings["AILB_ADMIN_KEY"]
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "manage.py", "serve", "--no-grpc", "--no-jobs"],
        cwd=ROOT, env=clean_environment(**gateway.settings), stdout=terminal, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    gateway.process = process
    try:
        eventually(lambda: gateway.status("/readyz") == 200, 60)
        shown = os.read(master, 10_000).decode()
    finally:
        gateway.end()
    assert "Virtual key: sk-ailb_" in shown
    assert not (gateway.folder / "first-run.txt").exists()
