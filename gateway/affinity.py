"""Which deployments served the same conversation last: their providers' prompt caches may hold its beginning.

OpenAI and Anthropic cache prompts from 1 024 tokens on, by their beginnings, for some minutes ("Prompt caching" in the
guides of platform.openai.com and platform.claude.com): a cached token costs a tenth to a half. Requests belong together
by their session, else by a long common beginning. Each process remembers its own; where it remembers nothing, the same
conversation falls on the same point of a draw in all of them (`Occasion.point`).
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from time import monotonic
from typing import Any, Final

from gateway.types import ChatRequest

LONG: Final = 4096  # bytes of a beginning that is long enough to be cached: about 1 024 tokens
KEPT: Final = 300.0  # seconds that a cache holds what nobody asks for: Anthropic's five minutes
_MOST = 20_000  # conversations, of about 400 bytes each

Key = bytes


def key_of(request: ChatRequest, owner: str) -> Key | None:
    """What the request shares with others that belong with it; None where it is short and of no session.

    `owner` is whose session it is: another's of the same name is another.
    """
    if request.session_id is not None:
        return blake2b(f"{owner}\0{request.session_id}".encode(errors="replace"), digest_size=16).digest()
    beginning = _beginning(request)
    return blake2b(beginning, digest_size=16).digest() if len(beginning) >= LONG else None


def point_of(key: Key, purpose: bytes) -> float:
    """In [0, 1), the same for the same key everywhere; another `purpose` has another point."""
    # 48 bits: a double holds them, so that the largest is below 1.
    return int.from_bytes(blake2b(key, key=purpose, digest_size=6).digest()) / 2**48


class Holders:
    """A process's memory of who served what."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._served: OrderedDict[Key, dict[str, float]] = OrderedDict()

    def of(self, key: Key) -> Collection[str]:
        """The deployments that served it lately."""
        served = self._served.get(key)
        if served is None:
            return ()
        since = self._clock() - KEPT
        return {name for name, at in served.items() if at > since}

    def served(self, key: Key, deployment: str) -> None:
        self._served.setdefault(key, {})[deployment] = self._clock()
        self._served.move_to_end(key)
        if len(self._served) > _MOST:
            self._served.popitem(last=False)


def _beginning(request: ChatRequest) -> bytes:
    """Up to `LONG` bytes of the prompt's text, from its start: system, then the messages."""
    found, size = [], 0
    for text in _texts(request.body):
        found.append(text[:LONG])
        size += len(text)
        if size >= LONG:
            break
    return "\0".join(found).encode(errors="replace")[:LONG]


def _texts(body: dict[str, Any]) -> Iterable[str]:
    yield from _of_content(body.get("system"))
    for message in body["messages"]:
        yield from _of_content(message.get("content"))


def _of_content(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
