"""Requests, callers and policies for tests of the screen, memory and RAG."""

from typing import Any

from gateway.types import Caller, ChatRequest, Role
from security.detectors import terms
from security.detectors.base import BALANCED, Action, Category, ScreenPolicy


def chat(messages: list[dict[str, Any]], **fields: Any) -> ChatRequest:
    """A parsed chat request; `body` holds further fields of the client's JSON."""
    body = {"model": "gpt-4o", "messages": messages, **fields.pop("body", {})}
    defaults: dict[str, Any] = {
        "model": "gpt-4o",
        "stream": False,
        "include_usage": False,
        "n": 1,
        "max_output": None,
        "session_id": None,
        "rag_collection": None,
        "rag_top_k": 3,
        "routing_strategy": None,
        "tags": (),
        "end_user": None,
    }
    return ChatRequest(body=body, **{**defaults, **fields})


def caller(user_id: str | None = "alice", *, key_id: str = "key_1", team: str | None = None) -> Caller:
    return Caller(
        key_id=key_id,
        key_name="test",
        user_id=user_id,
        team=team,
        role=Role.MEMBER,
        allowed_models=None,
        limits=(),
        budgets=(),
        tags=(),
    )


def policy(*blocked_terms: str, **actions: str) -> ScreenPolicy:
    """The balanced policy with `blocked_terms`, and other `actions` for some categories."""
    changed = {Category(category): Action(action) for category, action in actions.items()}
    return ScreenPolicy("test", {**BALANCED, **changed}, tuple(map(terms.fold, blocked_terms)))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}
