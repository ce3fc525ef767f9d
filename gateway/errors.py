"""Every refusal a client can meet, in one tree.

    GatewayError
    ├── InvalidRequest 400 ── UnsupportedParameter · ContextLengthExceeded · PromptBlocked
    ├── AuthenticationFailed 401 ── KeyRevoked · KeyExpired
    ├── InsufficientQuota 402 ── BudgetExceeded · UnpricedModel
    ├── PermissionDenied 403 ── ModelNotAllowed · EndpointNotAllowed
    ├── ModelNotFound · CollectionNotFound · PathNotFound 404
    ├── MethodNotAllowed 405 · RequestTooLarge 413 · NotImplementedYet 501
    ├── RateLimited 429 ── RequestTooLargeForLimit
    ├── UpstreamError 502 ── UpstreamCredentialsRejected · StreamCut
    ├── Unavailable 503 ── NoHealthyDeployment · Draining · GuardUnavailable · LedgerUnavailable
    ├── UpstreamTimeout 504
    └── InternalError 500

Each class knows its HTTP status, the contract's `type` and `code`, and whether trying again can help. Messages
are written for the client: they never carry `str()` of a lower error. A leaf: imports nothing of ours.
"""

from typing import ClassVar


class GatewayError(Exception):
    """What a door renders. `retry_after` is in seconds."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        limited_by: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers
        self.limited_by = limited_by
        """(scope, limit) of the limit or budget that refused, for the metric."""
        if code is not None:
            self.code = code


class InternalError(GatewayError):
    """A defect of ours. The client learns the request id and nothing else."""

    code = "internal_error"


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class PromptBlocked(InvalidRequest):
    """Names the category, never the pattern."""

    code = "prompt_blocked"


class AuthenticationFailed(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class KeyRevoked(AuthenticationFailed):
    code = "key_revoked"


class KeyExpired(AuthenticationFailed):
    code = "key_expired"


class InsufficientQuota(GatewayError):
    """Too little is left; waiting seconds does not help, so clients are told not to retry."""

    status = 402
    type = "insufficient_quota"


class BudgetExceeded(InsufficientQuota):
    code = "budget_exceeded"


class UnpricedModel(InsufficientQuota):
    code = "unpriced_model"


class PermissionDenied(GatewayError):
    status = 403
    type = "permission_error"


class ModelNotAllowed(PermissionDenied):
    code = "model_not_allowed"


class EndpointNotAllowed(PermissionDenied):
    code = "endpoint_not_allowed"


class NotFound(GatewayError):
    status = 404
    type = "invalid_request_error"


class PathNotFound(NotFound):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class CollectionNotFound(NotFound):
    code = "collection_not_found"


class MethodNotAllowed(GatewayError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class RequestTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class NotImplementedYet(GatewayError):
    status = 501
    type = "invalid_request_error"
    code = "not_implemented"


class RateLimited(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class RequestTooLargeForLimit(RateLimited):
    """No bucket could ever hold it: waiting does not cure this."""

    code = "request_too_large_for_limit"
    retryable = False


class UpstreamError(GatewayError):
    """Every candidate failed. `upstream_status` is the last one's; None where it never answered."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    retryable = True

    def __init__(self, message: str, *, upstream_status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.upstream_status = upstream_status


class UpstreamCredentialsRejected(UpstreamError):
    """The provider refused *our* credential: not the caller's fault, and not a 401 of theirs."""

    code = "upstream_credentials_rejected"


class StreamCut(UpstreamError):
    """The upstream's stream ended without a finish reason or terminator."""


class Unavailable(GatewayError):
    status = 503
    type = "overloaded_error"
    retryable = True


class NoHealthyDeployment(Unavailable):
    code = "no_healthy_deployment"


class Draining(Unavailable):
    code = "draining"


class GuardUnavailable(Unavailable):
    """A guard broke: it refuses, it does not wave through."""

    code = "guard_unavailable"


class LedgerUnavailable(Unavailable):
    """Neither the database nor the journal took the hold: an answer would be off the ledger."""

    code = "guard_unavailable"


class UpstreamTimeout(UpstreamError):
    status = 504
    type = "timeout_error"
    code = "timeout"
