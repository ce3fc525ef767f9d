"""Servers on loopback: one a folder, started once, gone with whoever started it."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import urllib.request

import psutil
import pytest

from ailb_project import loopback
from ailb_project.loopback import LoopbackServer, LoopbackServerError
from tests.support.serving import ROOT
from tests.support.waiting import eventually

# A server that answers with its pid.
PROGRAM = """
import http.server, os, sys
from ailb_project.loopback import end_with_parent

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

end_with_parent()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
COMMAND = [sys.executable, "-c", PROGRAM, "{port}"]

# A gateway process that uses it: says where it is, and stays until its standard input closes.
USER = """
import asyncio, sys
from pathlib import Path
from ailb_project.loopback import LoopbackServer
from tests.ailb_project.test_loopback import COMMAND
server = LoopbackServer(Path(sys.argv[1]), "test", COMMAND, title="It")
print(asyncio.run(server.url()), file=sys.stderr, flush=True)  # logs go to standard output
sys.stdin.read()
"""


@pytest.fixture
def make(tmp_path):
    made = []

    def make(command=COMMAND, **options):
        server = LoopbackServer(tmp_path, "test", command, title="The test server", **{"within": 20, **options})
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def start_user(tmp_path):
    """Another process that wants the server."""
    made = []

    def start():
        user = subprocess.Popen(
            [sys.executable, "-c", USER, str(tmp_path)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        made.append(user)
        return user

    yield start
    for user in made:
        user.kill()
        user.communicate()


def pid_at(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return int(response.read())


async def test_nothing_is_started_before_it_is_asked_for(make, tmp_path):
    make()
    assert list(tmp_path.iterdir()) == []


async def test_it_is_on_loopback_and_answers(make):
    url = await make().url()
    assert url.startswith("http://127.0.0.1:")
    assert pid_at(url) > 0


async def test_many_first_requests_start_one(make):
    server = make()
    assert len(set(await asyncio.gather(*(server.url() for _ in range(20))))) == 1


async def test_several_of_a_folder_are_one(make):
    assert len(set(await asyncio.gather(*(make().url() for _ in range(4))))) == 1


async def test_one_that_did_not_start_it_does_not_stop_it(make):
    owner, other = make(), make()
    url = await owner.url()
    assert await other.url() == url
    other.stop()
    assert pid_at(url)


async def test_stop_ends_it(make):
    server = make()
    pid = pid_at(await server.url())
    await asyncio.to_thread(server.stop)
    assert not psutil.pid_exists(pid)
    with pytest.raises(LoopbackServerError, match=r"^The test server has been stopped\.$"):
        await server.url()


async def test_another_may_start_it_after_a_stop(make):
    first = make()
    pid = pid_at(await first.url())
    await asyncio.to_thread(first.stop)
    assert pid_at(await make().url()) != pid


async def test_one_that_ignores_sigterm_is_killed(make, monkeypatch):
    monkeypatch.setattr(loopback, "_STOP_SECONDS", 0.2)
    stubborn = PROGRAM.replace("end_with_parent()", "end_with_parent(); import signal; signal.signal(15, lambda *_: 0)")
    server = make([sys.executable, "-c", stubborn, "{port}"])
    pid = pid_at(await server.url())
    await asyncio.to_thread(server.stop)
    assert not psutil.pid_exists(pid)


async def test_one_that_fell_is_started_again_by_the_next_who_asks(make):
    owner, other = make(), make()
    pid = pid_at(await owner.url())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: other._found() is None)
    fresh = pid_at(await other.url())
    assert fresh != pid
    assert pid_at(await owner.url()) == fresh


async def test_one_that_falls_again_and_again_is_given_a_pause(make):
    server = make([sys.executable, "-c", "raise SystemExit(3)"])
    for _ in range(2):
        with pytest.raises(LoopbackServerError, match="could not be started: it ended with status 3"):
            await server.url()
    with pytest.raises(LoopbackServerError, match="fell repeatedly; it is started again in 2 s"):
        await server.url()
    server._starts = [start - 3 for start in server._starts]
    with pytest.raises(LoopbackServerError, match="status 3"):
        await server.url()


async def test_one_that_does_not_come_up_in_time_is_ended(make):
    server = make([sys.executable, "-c", "import time; time.sleep(60)"], within=0.3)
    with pytest.raises(LoopbackServerError, match="did not start within 0 s"):
        await server.url()
    assert server._child.returncode == -signal.SIGTERM


async def test_who_waits_for_anothers_start_does_not_wait_for_ever(make):
    slow = make([sys.executable, "-c", "import time; time.sleep(60)"], within=3)
    starting = asyncio.create_task(slow.url())
    await asyncio.to_thread(eventually, lambda: slow._child is not None)
    with pytest.raises(LoopbackServerError, match="started by another process"):
        await make(within=0.2).url()
    await asyncio.to_thread(slow.stop)
    with pytest.raises(LoopbackServerError):
        await starting


async def test_it_knows_no_credential_of_ours(make, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-gateway")
    told = PROGRAM.replace("end_with_parent()", "end_with_parent(); print(dict(os.environ), flush=True)")
    await make([sys.executable, "-c", told, "{port}"], environment={"GIVEN": "yes"}).url()
    log = tmp_path / "run" / "test.log"
    assert "GIVEN" in log.read_text()
    assert "sk-of-the-gateway" not in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == stat.S_IMODE((tmp_path / "run" / "test.lock").stat().st_mode) == 0o600


class TestSeveralProcesses:
    async def test_they_use_one(self, make, start_user):
        users = [start_user() for _ in range(3)]
        urls = {user.stderr.readline().strip() for user in users}
        assert urls == {await make().url()}

    async def test_it_dies_with_its_owner_and_the_next_who_asks_starts_another(self, make, start_user):
        owner = start_user()
        url = owner.stderr.readline().strip()
        pid = pid_at(url)
        other = make()
        assert await other.url() == url
        owner.kill()  # -9
        eventually(lambda: other._found() is None)
        assert pid_at(await other.url()) != pid
