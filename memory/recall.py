"""Memory: the turns of a session that join a prompt, and those that a finished request leaves behind.

Both cost nothing without a `session_id`. Memory that breaks raises `MemoryUnavailable` and nothing else: the pipeline
skips it and counts. What the screen refuses to look at is its own error (`GuardUnavailable`), and refuses the request.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from django.db import Error as DatabaseProblem
from django.db import transaction
from django.db.models.functions import Left
from django.utils import timezone

from gateway import tokens
from gateway.background import in_thread
from gateway.types import Caller, ChatRequest, Json
from memory.models import Session, Turn, TurnRole
from security.detectors.base import Action, ScreenPolicy
from security.engine import screen_text

_WINDOW: Final = 8_192
"""Tokens, where no candidate's context window is known: what the smallest models in use have."""
_ANSWER: Final = 4_096
"""Tokens kept free for the answer where the request sets no cap; never more than half the window."""
_MOST_RECALLED: Final = 16_384
"""Tokens: what is recalled is paid for again with every request of the session."""
_MOST_TURNS: Final = 100
"""Read from the database, newest first."""
_BYTES_PER_TOKEN: Final = 3
"""UTF-8: English text has four to a token, Chinese three; on the safe side for both."""
_FRAMING: Final = 4 * _BYTES_PER_TOKEN
"""Around each message: OpenAI's three or four tokens."""

_Message = tuple[str, str]  # role and text


class MemoryUnavailable(Exception):
    """The memory's database failed: the request goes on without."""


async def recall(request: ChatRequest, caller: Caller, window: int | None, policy: ScreenPolicy) -> ChatRequest:
    """The request with the newest turns of its session, oldest first, after its leading system messages.

    `window` is the smallest context window among the candidates, in tokens; None where none is known. What the client
    sent itself is not given twice; what the policy sanitises is taken out, and turns that it blocks are left out.
    Raises `MemoryUnavailable`, `GuardUnavailable`.
    """
    if request.session_id is None:
        return request
    room = _room(request, window)
    if room <= 0:
        return request
    try:
        recalled = await in_thread(_recalled, request, caller.owner, room, policy)
    except DatabaseProblem as error:
        raise MemoryUnavailable from error
    return _with_turns(request, recalled) if recalled else request


async def remember(request: ChatRequest, caller: Caller, answer_text: str) -> None:
    """Keep the last user message's text and the answer as the session's next turns, both or neither.

    `request` is the one before recall and RAG, sanitised if the policy says so: what was taken out is not kept either.
    Without text in both (an answer of tool calls only) nothing is kept. Raises `MemoryUnavailable`.
    """
    if request.session_id is None or not answer_text.strip():
        return
    question, continued = _question(request.body)
    if not question.strip():
        return
    try:
        await in_thread(
            _store, caller.owner, _storable(request.session_id), question, _storable(answer_text), continued
        )
    except DatabaseProblem as error:
        raise MemoryUnavailable from error


def _room(request: ChatRequest, window: int | None) -> int:
    """UTF-8 bytes of turns that fit between the prompt and the answer."""
    total = window or _WINDOW
    answer = min(request.max_output or _ANSWER, total // 2)
    left = (total - answer) * _BYTES_PER_TOKEN - tokens.bound_prompt(request.body, request.model)
    return min(left, _MOST_RECALLED * _BYTES_PER_TOKEN)


def _recalled(request: ChatRequest, owner: str, room: int, policy: ScreenPolicy) -> list[_Message]:
    """Read and choose turns; oldest first. On a thread: it uses the ORM."""
    newest = (
        Turn.objects.filter(session__owner=owner, session__session_id=_storable(request.session_id or ""))
        .order_by("-id")
        # A character more than fits is enough to know that a turn does not.
        .values_list("role", Left("content", room + 1))[:_MOST_TURNS]
    )
    return _chosen(newest, _sent(request.body), room, policy)


def _chosen(newest: Iterable[_Message], sent: Counter[_Message], room: int, policy: ScreenPolicy) -> list[_Message]:
    """The end of the conversation that fits, without what was `sent`: no hole but those, and a question first."""
    chosen: list[_Message] = []
    for role, content in newest:
        if sent[role, content]:
            sent[role, content] -= 1
            continue
        room -= len(content.encode()) + _FRAMING
        if room < 0:
            break
        screened = screen_text(content, policy, "memory")
        if screened.action != Action.BLOCK:
            chosen.append((role, screened.text))
    while chosen and chosen[-1][0] == TurnRole.ASSISTANT:
        chosen.pop()  # an answer whose question is not there; some upstreams refuse to begin with one
    return chosen[::-1]


def _sent(body: Json) -> Counter[_Message]:
    """What the client sent of earlier turns. Its last message is new, even in the words of an old one ("yes")."""
    return Counter((message["role"], _storable(_text(message))) for message in body["messages"][:-1])


def _with_turns(request: ChatRequest, turns: list[_Message]) -> ChatRequest:
    messages = request.body["messages"]
    lead = next(
        (i for i, message in enumerate(messages) if message["role"] not in {"system", "developer"}), len(messages)
    )
    recalled = [{"role": role, "content": content} for role, content in turns]
    body = {**request.body, "messages": [*messages[:lead], *recalled, *messages[lead:]]}
    return msgspec.structs.replace(request, body=body)


def _question(body: Json) -> tuple[str, bool]:
    """The last user message's text, and whether messages follow it: then it was sent before, to get tool calls."""
    messages = body["messages"]
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    # Anthropic's may hold tool results and nothing else: then the question is an earlier one.
    at = next((i for i in reversed(users) if _text(messages[i]).strip()), None)
    return ("", False) if at is None else (_storable(_text(messages[at])), at < len(messages) - 1)


def _store(owner: str, session_id: str, question: str, answer: str, continued: bool) -> None:
    with transaction.atomic():
        # Locked: turns of two requests at once follow each other, question by answer.
        session, _ = Session.objects.select_for_update().get_or_create(owner=owner, session_id=session_id)
        turns = [Turn(session=session, role=TurnRole.ASSISTANT, content=answer)]
        if not (continued and _last_question(session) == question):
            turns.insert(0, Turn(session=session, role=TurnRole.USER, content=question))
        Turn.objects.bulk_create(turns)
        session.last_turn_at = timezone.now()
        session.save(update_fields=["last_turn_at"])


def _last_question(session: Session) -> str | None:
    newest = Turn.objects.filter(session=session, role=TurnRole.USER).order_by("-id")
    return newest.values_list("content", flat=True).first()


def _text(message: dict[str, Any]) -> str:
    """A message's text: its content, or that content's text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


def _storable(text: str) -> str:
    """`text` without what no database keeps: lone surrogates and NUL, which JSON can write."""
    return text.encode(errors="replace").decode().replace("\0", "")
