"""The gateway that is fuzzed: `manage.py serve` in a process of its own, before a scripted upstream of each dialect."""

import json
import re
import time
import zlib
from pathlib import Path
from typing import Any

import psutil

from tests.fuzz.judge import judge, path_of
from tests.fuzz.wire import Answer, Wire, request
from tests.support.dialect_registry import DOORS, PROVIDERS
from tests.support.dialects import CASES, Ask
from tests.support.serving import ADMIN_KEY, Serving, open_requests
from tests.support.upstream import Call, Upstream
from tests.support.waiting import eventually
from tests.support.world import CREDENTIAL

Json = dict[str, Any]

COUNT = "/v1/messages/count_tokens"
MODELS = tuple(provider.model for provider in PROVIDERS.values())
MOST_GROWTH = 60 * 2**20  # bytes: the longest body is 20 MiB, and a run is thousands of them
_PARALLEL = 8
"""Few enough that a request which is never counted out again is soon missed."""
_SAYS = tuple(case.say for name, case in CASES.items() if not name.startswith("error"))
_TROUBLE = re.compile(r"Traceback|request_failed|Exception in|never awaited|never retrieved|was destroyed|unclosed")


class Target:
    """One gateway, its upstream and who may call it."""

    def __init__(self, folder: Path) -> None:
        self.upstream = Upstream()
        for provider in PROVIDERS.values():
            self.upstream.always(self._answers(provider), model=provider.model)
        self.misread: list[str] = []
        """What the upstream was sent and no provider should be."""
        address = f"http://127.0.0.1:{self.upstream.port}"
        self.serving = Serving(
            folder, OPENAI_API_KEY=CREDENTIAL, OPENAI_BASE_URL=f"{address}/v1", ANTHROPIC_API_KEY=CREDENTIAL,
            ANTHROPIC_BASE_URL=address, OLLAMA_BASE_URL=address, OPENAI_MODELS=PROVIDERS["openai"].model,
            ANTHROPIC_MODELS=PROVIDERS["anthropic"].model, OLLAMA_MODELS=PROVIDERS["ollama"].model,
        )  # fmt: skip
        self._read = 0
        self._people = 0
        self.asked = 0
        """Cases, by all the fuzzers."""

    def start(self) -> "Target":
        self.serving.start()
        assert self.serving.process is not None
        self._process = psutil.Process(self.serving.process.pid)
        self.organisation = self._budget()
        self.renew()
        self.warm()
        self.began_with = self.memory()
        return self

    def stop(self) -> None:
        self.serving.end()
        self.upstream.close()

    @property
    def port(self) -> int:
        return self.serving.port

    def renew(self) -> None:
        """A person with a key of their own: the fuzzers take people's rights and keys away."""
        self._people += 1
        self.user = f"zz-member-{self._people}"
        made = self.api(
            "POST", "/api/keys", name="member", user_id=self.user, team="zz-team", max_parallel=_PARALLEL
        ).body  # fmt: skip
        self.member, self.member_id = made["key"], made["key_data"]["id"]
        self.other = self.api("POST", "/api/keys", name="other").body["key"]

    def _budget(self) -> int:
        """Everybody's, so that each request reserves something."""
        made: int = self.api("POST", "/api/billing/budget", organisation=True, limit_tokens=10**15).body["id"]
        return made

    def restore(self) -> None:
        """After budgets were played with."""
        if self.organisation not in [budget["id"] for budget in self.budgets()]:
            self.organisation = self._budget()
        self.api("PATCH", f"/api/billing/budgets/{self.organisation}", limit_tokens=10**15, limit_dollars=None)

    def budgets(self) -> list[Json]:
        found: list[Json] = self.api("GET", "/api/billing/budget?limit=1000").body["budgets"]
        return found

    def things(self) -> dict[str, Any]:
        """Something that is there, by the names that paths have for it; nobody needs it any more."""
        key = self.api("POST", "/api/keys", name="victim", user_id=f"{self.user}-victim").body["key_data"]["id"]
        team, name = f"{self.user}-team", f"{self.user}-victim"
        if self.ask_api("GET", f"/api/teams/{team}").status == 404:
            self.api("POST", "/api/teams", name=team)
        budget = self.api("POST", "/api/billing/budget", team=team, limit_dollars=1).body["id"]
        webhook = self.api("POST", "/api/webhooks", url="https://hooks.example.com/ailb").body["id"]
        limit = self.api("PUT", "/api/limits", scope="model", model=MODELS[0], rate_limit_rpm=10**6).body["id"]
        return {
            "key_id": key, "user_id": name, "name": team, "budget_id": budget, "model": MODELS[0], "version": "v1",
            "webhook_id": webhook, "limit_id": limit, "alert_id": 1,
        }  # fmt: skip

    def warm(self) -> None:
        """What is loaded at its first use is no growth."""
        body = json.dumps({"model": "nobody", "messages": [{"role": "user", "content": "x" * (19 * 2**20)}]}).encode()
        for _ in range(3):
            self.ask(request("/v1/chat/completions", headers=self.bearer(), body=body))
            self.chat_with_all()
        for model in MODELS:  # each family's tokenizer
            counted = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
            self.ask(request(COUNT, headers=self.bearer(), body=json.dumps(counted).encode()))

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def bearer(self, secret: str | None = None) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", f"Bearer {secret or self.member}".encode())]

    def ask(self, data: bytes) -> Answer:
        with Wire(self.port) as wire:
            return wire.ask(data)

    def ask_api(self, method: str, path: str, /, **fields: Any) -> Answer:
        """As admin."""
        headers = [*self.bearer(ADMIN_KEY), (b"content-type", b"application/json")]
        body = json.dumps(fields).encode() if fields else None
        return self.ask(request(path, method=method, headers=headers, body=body))

    def api(self, method: str, path: str, /, **fields: Any) -> Answer:
        """As admin; it must succeed."""
        answer = self.ask_api(method, path, **fields)
        assert answer.status < 300, (method, path, answer)
        return answer

    def chat_with_all(self) -> None:
        """A plain answer and a stream from each provider, through each door."""
        for door in DOORS.values():
            for model in MODELS:
                for stream in (False, True):
                    body = json.dumps(door.write(Ask(model=model, stream=stream))).encode()
                    answer = self.ask(request(door.path, headers=self.bearer(), body=body))
                    assert answer.status == 200, (door.path, model, answer)

    def assert_alive(self) -> None:
        """Another client is answered, and soon."""
        began = time.monotonic()
        answer = self.ask(request("/livez", method="GET"))
        took = time.monotonic() - began
        assert answer.status == 200, answer
        assert took < 5, f"a probe took {took:.1f} s"

    def assert_answered(self) -> None:
        """Another client's chat is."""
        body = json.dumps({"model": MODELS[0], "messages": [{"role": "user", "content": "Hi"}]}).encode()
        answer = self.ask(request("/v1/chat/completions", headers=self.bearer(self.other), body=body))
        assert answer.status == 200, answer

    def judge(self, answer: Answer, target: bytes | str, *, head: bool = False, sent: bytes = b"") -> None:
        judge(answer, path_of(target), head=head, sent=sent)
        assert self.member.encode() not in answer.raw, "a key is shown once, and not here"
        assert CREDENTIAL.encode() not in answer.raw

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def memory(self) -> int:
        """Bytes in memory."""
        return int(self._process.memory_info().rss)

    def metric(self, series: str) -> float:
        lines = self.ask(request("/metrics", method="GET")).raw.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)

    def left_open(self) -> dict[str, list[str]]:
        """The requests that the ledger does not close."""
        return open_requests(self.serving.kinds())

    def assert_well(self) -> None:
        """The process lives and answers, has not grown, holds nothing open and has logged no defect."""
        assert self.serving.process is not None
        assert self.serving.process.poll() is None, f"it ended: {self.serving.told()[-3000:]}"
        self.assert_alive()
        self.chat_with_all()
        eventually(lambda: self.metric("ailb_active_requests") == 0, 10, told=lambda: "requests are still active")
        eventually(lambda: not self.left_open(), 10, told=self.left_open)
        current = self.api("GET", f"/api/billing/budgets/{self.organisation}").body["current"]
        assert (current["reserved"], current["reserved_tokens"]) == (0, 0), current
        assert not self.misread, self.misread[:3]
        self.assert_no_trouble_logged()
        self.upstream.requests.clear()
        grown = self.memory() - self.began_with
        assert grown < MOST_GROWTH, f"{grown / 2**20:.0f} MiB more than at the beginning"

    def assert_no_trouble_logged(self) -> None:
        """Each line a JSON object, none of a defect, none with a secret."""
        for line in self.new_lines():
            told = json.loads(line)
            assert not _TROUBLE.search(line), line
            assert told["level"] not in ("error", "critical"), line
            assert self.member not in line
            assert CREDENTIAL not in line

    def new_lines(self) -> list[str]:
        """What was logged since the last look."""
        time.sleep(0.2)  # lines are written twenty times a second
        with open(self.serving.log, "rb") as log:
            log.seek(self._read)
            new = log.read()
        # What is being written at this moment is for the next look.
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        return new.decode().splitlines()

    # ── the upstream ────────────────────────────────────────────────────────────────────────────────────────────────

    def _answers(self, provider: Any) -> Any:
        """One of the usual answers, the same for the same request."""
        scripts = [provider.says(say) for say in _SAYS]

        async def script(call: Call) -> None:
            raw, path = call.received.raw, call.received.path
            try:
                headers = str(call.received.headers)
                assert self.member not in headers
                assert provider.kind == "ollama" or CREDENTIAL in headers
                body = json.loads(raw.decode())
                assert isinstance(body, dict)
                assert body["model"] == provider.model
                assert not set(body) & {"session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags"}
                assert self.member.encode() not in raw
            except Exception as error:  # noqa: BLE001  # it is told where the run ends, not on the upstream's loop
                self.misread.append(f"{error!r} at {path}: {raw[:2000]!r}")
            if path.endswith("/count_tokens"):
                await call.json(200, {"input_tokens": 42})
                return
            await scripts[zlib.crc32(raw) % len(scripts)](call)

        return script
