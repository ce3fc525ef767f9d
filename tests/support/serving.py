"""`manage.py serve` as an operator runs it: a process of its own, with its own folder, ports and environment."""

import base64
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ADMIN_KEY = "an-admin-key-for-tests-0123456789"
START_SECONDS = 60  # an empty folder on a busy machine: interpreter, migrations, price list

# With PostgreSQL nothing is generated: every host must have the same.
SECRETS = {
    "AILB_SECRET_KEY": "a-signing-key-for-tests",
    "AILB_KEY_PEPPER": "a-pepper-for-tests",
    "AILB_ENCRYPTION_KEYS": base64.urlsafe_b64encode(b"0" * 32).decode(),
}
_OURS = ("AILB_", "OPENAI_", "ANTHROPIC_", "OLLAMA_", "ENABLE_", "DATABASE_URL", "REDIS_URL", "CHROMA_URL", "HTTP_PORT",
         "GRPC_PORT", "HOST", "MODULE_ID", "ROUTING_STRATEGY", "DJANGO_SETTINGS_MODULE", "PYTEST",
         "PYTHONWARNINGS")  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without AILB's settings, and with those given; the demo is the echo unless asked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "AILB_DEMO": "echo", **settings}


def manage(
    *arguments: str, settings: Mapping[str, str], within: float = START_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run a management command to its end."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=clean_environment(**settings), timeout=within,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


class Serving:
    """One gateway: its settings, its folder and, between `start` and its end, its process."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "AILB_DATA_DIR": str(folder),
            "HTTP_PORT": str(self.port),
            "AILB_ADMIN_KEY": ADMIN_KEY,
            **settings,
        }
        self.log = folder.parent / f"{folder.name}.log"
        self.out = folder.parent / f"{folder.name}.out"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str, ready: bool = True, jobs: bool = False) -> "Serving":
        """Serve; `jobs`: with the job process beside it, which costs a second of CPU at each start."""
        command = [sys.executable, "manage.py", "serve", "--no-grpc", *([] if jobs else ["--no-jobs"]), *arguments]
        with open(self.log, "ab") as log, open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=clean_environment(**self.settings), stdout=out, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        if ready:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.told()}"
            return self.status("/readyz") == 200

        eventually(is_ready, START_SECONDS, every=0.05, told=self.told)

    def status(self, path: str) -> int | None:
        """The status of a GET; None where nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def told(self) -> str:
        """All that it logged."""
        return self.log.read_text() if self.log.exists() else ""

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines, each of which must be a JSON object."""
        return [json.loads(line) for line in self.told().splitlines()]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within: float = 30) -> int:
        """The exit status."""
        assert self.process is not None
        return self.process.wait(within)

    def stop(self) -> int:
        """One SIGTERM, and the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """kill -9, of the process alone: what it started must end by itself."""
        self.signal(signal.SIGKILL)
        self.wait()

    def end(self) -> None:
        """Whatever is left, at a test's end."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def is_running(self) -> bool:
        """Whether anything of its process group is left."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return manage(*arguments, settings=self.settings)

    def python(self, program: str) -> str:
        """Run a program with Django set up on the same database; its standard output."""
        done = subprocess.run(
            [sys.executable, "-c", f"import django; django.setup()\n{program}"], cwd=ROOT, timeout=START_SECONDS,
            env=clean_environment(**self.settings, DJANGO_SETTINGS_MODULE="ailb_project.settings"),
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def make_key(self, *arguments: str) -> str:
        """A virtual key's secret, by `manage.py create_key`."""
        done = self.manage("create_key", "--name", "test", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What its SQLite database holds, read without it."""
        with sqlite3.connect(f"file:{self.folder / 'ailb.sqlite3'}?mode=ro", uri=True, timeout=20) as database:
            found = database.execute(query, parameters).fetchall()
        database.close()
        return found

    def kinds(self) -> dict[str, list[str]]:
        """The ledger: by request, the kinds of its entries in their order."""
        kinds: dict[str, list[str]] = {}
        for request_id, kind in self.rows("SELECT request_id, kind FROM billing_ledgerentry ORDER BY id"):
            kinds.setdefault(request_id, []).append(kind)
        return kinds


def open_requests(kinds: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """The requests that do not have one hold and one closing entry."""
    found = {request: list(entries) for request, entries in kinds.items()}
    return {
        request: entries
        for request, entries in found.items()
        if entries.count("hold") != 1 or sum(kind in ("settlement", "release") for kind in entries) != 1
    }
