"""`llmock` in a process of its own: an upstream of two dialects that misbehaves as it was told over HTTP.

https://github.com/JulienRabault/LLMock. What it cannot do the scripted upstream can: a 429 that says nothing of when to
come back (llmock writes `Retry-After` on every one), a connection closed without a byte, an answer that is no HTTP.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.support.serving import clean_environment, free_port
from tests.support.waiting import eventually

Json = dict[str, Any]

WORDS = "one two three four five six seven eight"
"""What it says to everybody. Of its OpenAI streams chunk 0 is the role, 1 to 8 the words, 9 the end, 10 the usage, 11
[DONE]; of Anthropic's 0 to 2 have no content, 3 to 10 the words, 11 to 13 the end.
"""

_POSITIONS = (0, 1, 5, 9, 11)  # before all content in both dialects, in the middle of it, at its end, behind it
_LONG = 4.0  # seconds: longer than any deadline of a test, and short enough that llmock ends with it


def _fails(status: int, **fields: Any) -> Json:
    return {"type": "fail", "status": status, **fields}


FAULTS: dict[str, Json] = {
    **{f"{status}": _fails(status) for status in (401, 403, 404, 408, 500, 502, 503, 504, 529)},
    "429-now": _fails(429, retry_after=0),
    "429-wait": _fails(429, retry_after=1),
    "429-long": _fails(429, retry_after=30),
    "503-wait": _fails(503, retry_after=20),
    "silence": {"type": "delay", "seconds": _LONG},
    "slow-first-token": {"type": "slow_first_token", "seconds": _LONG},
    **{f"{kind}-{at}": {"type": "stream_fault", "kind": kind, "after_chunks": at, "stall_seconds": _LONG}
       for at in _POSITIONS for kind in ("disconnect", "truncate", "malformed", "stall")},
}  # fmt: skip
"""By the name of the model that has it, all that llmock can do to an answer of text; the latest stand last."""


class LLMock:
    """The server, between `start` and `end`. A model that has a fault's name has that fault for good."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> "LLMock":
        program = "from llmock.cli import app; app()"
        command = [sys.executable, "-c", program, "serve", "--port", str(self.port), "--log-level", "warning"]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command, env=clean_environment(), stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        return self

    def wait_until_ready(self) -> None:
        eventually(self._answers, 30, every=0.05, told=self._log.read_text)
        self.script({"type": "reply", "text": WORDS}, *({**told, "match": _of(name)} for name, told in FAULTS.items()))

    def base_url(self, kind: str) -> str:
        """As a provider of that kind has it."""
        return f"{self.url}/{'v1' if kind == 'openai' else kind}"

    def script(self, *behaviors: Json) -> None:
        """What it does from now on, to every request that matches."""
        wanted = {"behaviors": [{**behavior, "times": None} for behavior in behaviors]}
        httpx2.post(f"{self.url}/_llmock/scenario", json=wanted, trust_env=False).raise_for_status()

    def models_asked(self) -> set[str]:
        """The models that were asked for so far."""
        told = httpx2.get(f"{self.url}/_llmock/requests", timeout=30, trust_env=False).json()
        return {request["model"] for request in told["requests"]}

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return httpx2.get(f"{self.url}/health", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False


def _of(model: str) -> Json:
    streams_alone = FAULTS[model]["type"] in ("stream_fault", "slow_first_token")
    return {"model": model, "stream": True} if streams_alone else {"model": model}
