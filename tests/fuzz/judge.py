"""What every answer must be, whatever was asked.

A status that the contract has for that surface, a request id, the surface's shape of an error (by the one helper of
`tests.test_error_shape`), and nothing of our insides.
"""

import re
from urllib.parse import unquote, unquote_to_bytes

from gateway.problems import is_under
from tests.fuzz.wire import Answer
from tests.test_error_shape import assert_refusal

INFERENCE = ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")
PROBES = ("/livez", "/readyz", "/healthz", "/metrics")

# http-api.md's table. 502, 503 and 504 are not in it: the fuzzers' upstream answers, and nothing is shut down.
_V1 = {200, 400, 401, 402, 403, 404, 405, 413, 429, 501}
_API = {200, 201, 202, 204, 400, 401, 403, 404, 405, 406, 409, 413, 415, 429}
_PROBE = {200, 401, 405}
_PAGES = {200, 301, 302, 304, 400, 403, 404, 405, 413}

_INSIDES = re.compile(
    rb"Traceback \(most recent|File \"|site-packages|\.py\b|<class '|object at 0x|"
    rb"\b(?:Key|Type|Value|Attribute|Index|Recursion|Integrity|Operational|UnicodeDecode|UnicodeEncode|Overflow|"
    rb"Assertion|Runtime|Data|Interface|Validation|Decode)Error\b|"
    rb"\bsqlite3?\b|\bpsycopg|\bmsgspec\b|\bdjango\.|\bSELECT .{1,200} FROM\b|\bINSERT INTO\b|"
    rb"billing_ledger|keys_virtual|Traceback|Error:|Exception\b|sqlite"
)
_ID = re.compile(r"req_[0-9a-f]{30}")


def path_of(target: bytes | str) -> str:
    """The path as the application sees it."""
    text = target.decode("latin-1") if isinstance(target, bytes) else target
    return unquote(text.partition("?")[0].partition("#")[0])


def judge(answer: Answer, path: str, *, head: bool = False, sent: bytes = b"") -> None:
    """Assert all that holds of any answer from `path` (`path_of` the target).

    `head`: it was asked for no body. `sent`: the request, whose own words an answer may repeat (hypothesis takes some
    out of our source).
    """
    known = unquote_to_bytes(sent)
    told = f"{answer.status} from {path[:200]!r}: {answer.raw[:1000]!r}"
    assert answer.status != 500, told
    assert not (found := {word for word in _INSIDES.findall(answer.raw) if word not in known}), f"{found} in {told}"
    assert answer.names.count("content-type") <= 1, f"{answer.names} in {told}"
    assert answer.names.count("content-length") <= 1, f"{answer.names} in {told}"
    if path in PROBES:
        assert answer.status in _PROBE, told
        return
    assert _ID.fullmatch(answer.headers.get("x-request-id", "")) or not _is_ours(path), f"no request id: {told}"
    if not _is_ours(path):
        assert answer.status in _PAGES, told
        return
    assert answer.status in (_V1 if is_under(path, "/v1") else _API), told
    if answer.status >= 400 and not head:
        assert answer.content_type == "application/json", told
        if _INSIDES.search(known):
            return
        assert_refusal(answer, answer.status, path)  # type: ignore[arg-type]  # it reads what both have


def _is_ours(path: str) -> bool:
    """Not the console's."""
    return is_under(path, "/v1") or is_under(path, "/api")
