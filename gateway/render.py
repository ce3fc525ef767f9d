"""What a client reads when something is refused: one `Problem`, three shapes.

The shapes are `gateway.problems`. Everything that DRF or Django would say in its own words is said here: exceptions
inside views by `api_exception_handler`, the rest (unknown paths, defects) by the four views at the end that the URLs
name. No text of a lower error gets through.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from django.core.exceptions import NON_FIELD_ERRORS, PermissionDenied, RequestDataTooBig
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import set_rollback

from gateway import errors
from gateway.errors import GatewayError
from gateway.identifiers import new_request_id
from gateway.problems import Errors, Problem, body, is_under, problem_of_gateway
from keys.policy import Conflict

log = structlog.get_logger()

NO_FIELD = "non_field_errors"  # DRF's name for what is wrong with the whole
_TOO_LARGE = "The request body is larger than 20 MiB."
_NO_KEY = "No API key was given. Send it as 'Authorization: Bearer sk-ailb_…'."
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 409: "conflict_error"}


# ── from exceptions ─────────────────────────────────────────────────────────────────────────────────────────────────


def problem_of(exc: Exception) -> Problem | None:
    """What a view raised, most specific first; None for a defect, which is Django's to log."""
    match exc:
        case GatewayError():
            return problem_of_gateway(exc)
        case exceptions.ValidationError():
            return _invalid(_by_field(exc.detail))
        case ModelValidationError():
            return _invalid(_by_column(exc))
        case Http404() | exceptions.NotFound():
            return problem_of_gateway(errors.PathNotFound("Not found."))
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return problem_of_gateway(errors.AuthenticationFailed(_NO_KEY))
        case PermissionDenied() | exceptions.PermissionDenied():
            return problem_of_gateway(errors.PermissionDenied(_said(exc, "Not allowed.")))
        case Conflict():
            return _problem(409, _said(exc, "Conflict."), "conflict")
        case RequestDataTooBig():
            return problem_of_gateway(errors.RequestTooLarge(_TOO_LARGE))
        case exceptions.MethodNotAllowed():
            return problem_of_gateway(errors.MethodNotAllowed("This method is not allowed here."))
        case exceptions.APIException():
            return _problem(exc.status_code, str(exc.default_detail), None)
        case OperationalError() | InterfaceError():
            log.error("database_unreachable", error=type(exc).__name__)
            return problem_of_gateway(errors.Unavailable("The database is out of reach.", retry_after=5))
    return None


def _problem(status: int, message: str, code: str | None) -> Problem:
    return Problem(status, _TYPES.get(status, "invalid_request_error"), message, code=code)


def _said(exc: Exception, otherwise: str) -> str:
    """The text of a refusal that we (or DRF's CSRF check) wrote for the caller."""
    text = exc.detail if isinstance(exc, exceptions.PermissionDenied) else next(iter(exc.args), otherwise)
    return str(text)


def _invalid(by_field: Errors) -> Problem:
    field, messages = next(iter(by_field.items()))
    message = messages[0] if field == NO_FIELD else f"{field}: {messages[0]}"
    return Problem(400, "invalid_request_error", message, None if field == NO_FIELD else field, errors=by_field)


def _by_field(detail: Any) -> Errors:
    """DRF's tree of messages, one list a field; what is wrong inside a field says where."""
    if not isinstance(detail, Mapping):
        return {NO_FIELD: list(_flat(detail))}
    return {str(field): list(_flat(messages)) for field, messages in detail.items()}


def _flat(messages: Any, where: str = "") -> Iterable[str]:
    if isinstance(messages, Mapping):
        for place, inner in messages.items():
            yield from _flat(inner, f"{where}{place}: ")
    elif isinstance(messages, list | tuple):
        for inner in messages:
            yield from _flat(inner, where)
    else:
        yield f"{where}{messages}"


def _by_column(exc: ModelValidationError) -> Errors:
    if not hasattr(exc, "error_dict"):
        return {NO_FIELD: list(exc.messages)}
    return {NO_FIELD if field == NON_FIELD_ERRORS else field: list(told) for field, told in exc.message_dict.items()}


# ── doors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def request_id(request: Request | HttpRequest) -> str:
    """The id of this request, minted where it is first asked for. A client's own is never taken for ours."""
    plain = request._request if isinstance(request, Request) else request
    found: str | None = getattr(plain, "ailb_request_id", None)
    if found is None:
        found = plain.ailb_request_id = new_request_id()  # type: ignore[attr-defined]  # ours, on Django's object
    return found


def api_exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's setting EXCEPTION_HANDLER."""
    problem = problem_of(exc)
    if problem is None:
        return None
    set_rollback()
    request = context["request"]
    return Response(body(problem, request.path, request_id(request)), problem.status, headers=dict(problem.headers))


def _response(request: HttpRequest, error: GatewayError) -> HttpResponse | None:
    """An error outside of any view of ours, or None for pages of the console."""
    if not (is_under(request.path, "/v1") or is_under(request.path, "/api")):
        return None
    minted = request_id(request)
    problem = problem_of_gateway(error)
    headers = {**dict(problem.headers), "x-request-id": minted}
    return JsonResponse(body(problem, request.path, minted), status=problem.status, headers=headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler400: a host name that is not ours, a body that is too large."""
    too_large = isinstance(exception, RequestDataTooBig)
    error = errors.RequestTooLarge(_TOO_LARGE) if too_large else errors.InvalidRequest("Bad request.")
    return _response(request, error) or defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler403"""
    return _response(request, errors.PermissionDenied("Not allowed.")) or defaults.permission_denied(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """handler404"""
    return _response(request, errors.PathNotFound("Not found.")) or defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """handler500: Django has logged the traceback; this line ties it to what the client was told."""
    log.error("request_failed", request_id=request_id(request), method=request.method, path=request.path)
    return _response(request, errors.InternalError("defect")) or defaults.server_error(request)
