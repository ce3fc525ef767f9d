"""What a client reads when something is refused: one `Problem`, three shapes. Pure.

`/v1` speaks OpenAI's envelope, `/v1/messages` Anthropic's, `/api` `{"detail", "type", "status_code"}` with `errors` per
field on 400.
"""

import math

import msgspec

from gateway.errors import GatewayError
from gateway.types import Json

Errors = dict[str, list[str]]

# Anthropic's names (anthropic-sdk-python, types/shared/error_type.py), by status; others are api_error from 500 on.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_NOT_RETRIED = (402, 429)  # SDKs retry a 429 by themselves; these say when that is in vain


class Problem(msgspec.Struct, frozen=True):
    """A refusal before it has a shape."""

    status: int
    type: str
    message: str
    param: str | None = None
    code: str | None = None
    errors: Errors | None = None
    headers: tuple[tuple[str, str], ...] = ()


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def openai_error(error: GatewayError, request_id: str | None = None) -> Json:
    """OpenAI's envelope. Of a defect of ours the client learns `request_id` and nothing else."""
    return _openai(problem_of_gateway(error), request_id)


def anthropic_error(error: GatewayError, request_id: str | None = None) -> Json:
    """Anthropic's envelope."""
    return _anthropic(problem_of_gateway(error), request_id)


def error_headers(error: GatewayError) -> tuple[tuple[str, str], ...]:
    """What goes beside the body: how to authenticate, when to come back, whether trying again is in vain."""
    headers = list(error.headers)
    if error.status == 401:
        headers.append(("WWW-Authenticate", "Bearer"))
    if error.retry_after is not None:
        # Whole seconds, and never early: one second less than needed would be refused again.
        headers.append(("Retry-After", str(math.ceil(error.retry_after))))
    if error.status in _NOT_RETRIED and not error.retryable:
        headers.append(("x-should-retry", "false"))
    return tuple(headers)


def body(problem: Problem, path: str, request_id: str) -> Json:
    """The problem as `path`'s clients expect it."""
    if is_under(path, "/v1/messages"):
        return _anthropic(problem, request_id)
    return _openai(problem, request_id) if is_under(path, "/v1") else _api(problem)


def is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _openai(problem: Problem, request_id: str | None) -> Json:
    told = {"message": _message(problem, request_id), "type": problem.type, "param": problem.param}
    return {"error": {**told, "code": problem.code}}


def _anthropic(problem: Problem, request_id: str | None) -> Json:
    type_ = _ANTHROPIC_TYPES.get(problem.status) or ("api_error" if problem.status >= 500 else "invalid_request_error")
    told = {"type": type_, "message": _message(problem, request_id)}
    return {"type": "error", "error": told, "request_id": request_id}


def _api(problem: Problem) -> Json:
    told: Json = {"detail": problem.message, "type": problem.type, "status_code": problem.status}
    return told if problem.errors is None else {**told, "errors": problem.errors}


def _message(problem: Problem, request_id: str | None) -> str:
    if problem.status != 500 or request_id is None:
        return problem.message
    return f"{problem.message} The request's id is {request_id}."


def problem_of_gateway(error: GatewayError) -> Problem:
    """A refusal of our own tree."""
    message = "Something went wrong on our side." if error.status == 500 else error.message
    return Problem(error.status, error.type, message, error.param, error.code, headers=error_headers(error))
