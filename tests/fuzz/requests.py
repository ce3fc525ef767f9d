"""Requests to the inference endpoints: right ones of both dialects, what is done to their JSON, to its bytes and to
their headers.
"""

import copy
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.support.dialect_registry import DOORS, PROVIDERS
from tests.support.dialects import CASES, FOLLOW_UP, KOELN, PNG, SIGNATURE, Ask

Json = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

MODELS = [provider.model for provider in PROVIDERS.values()]
COUNT = "/v1/messages/count_tokens"


@dataclass(frozen=True)
class Sent:
    """A request to be."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    asked: Json | None = None
    """The JSON where the body is just that; None where its bytes were touched."""


# ── right ones ──────────────────────────────────────────────────────────────────────────────────────────────────────

ASKS = [*(case.ask for case in CASES.values()), FOLLOW_UP]

# What the two dialects know beside what `Ask` says.
_MORE: dict[str, list[Json]] = {
    "openai": [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "", "name": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.y/z.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f", "file_data": "x"}}]}]},
        {"messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{"}},
            {"role": "function", "name": "f", "content": "12"},
        ]},
        {"tools": [{"type": "custom", "custom": {"name": "f"}}], "tool_choice": "auto"},
        {"response_format": {"type": "json_object"}, "n": 2, "logprobs": True, "top_logprobs": 3, "seed": 1},
        {"stop": ["a", "b"], "temperature": 1.5, "top_p": 0.1, "presence_penalty": 1, "logit_bias": {"50256": -100}},
        {"max_tokens": 10, "max_completion_tokens": None, "metadata": {"a": "b"}, "user": "u", "store": True},
    ],
    "anthropic": [
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}]},
        {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
        ]}]},
        {"messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [
                {"type": "redacted_thinking", "data": SIGNATURE},
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
                {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, "content": [
                    {"type": "text", "text": "x"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                ]},
            ]},
        ]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}},
        {"tools": [{"name": "f", "input_schema": {"type": "object"}, "strict": True}]},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "metadata": {"user_id": "u"}},
        {"thinking": {"type": "adaptive"}, "temperature": 1, "top_k": 5, "top_p": 0.9, "stop_sequences": ["x"]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]},
    ],
}  # fmt: skip


def _valid() -> Iterator[tuple[str, Json]]:
    for kind, door in DOORS.items():
        for ask in ASKS:
            yield door.path, door.write(ask)
        for more in _MORE[kind]:
            yield door.path, {**door.write(Ask()), **more}
        if kind == "anthropic":
            for ask in ASKS:
                body = door.write(ask)
                del body["max_tokens"]
                yield COUNT, body


VALID = list(_valid())

# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_WORDS = [
    "", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u2028", "\ufeff", "a\r\nx-injected: 1", "\x1b[31m", "-1",
    "1e400", "NaN", "true", "null", "../../etc/passwd", "' OR 1=1 --", "{{7*7}}", "%s%n", "${jndi:ldap://x}",
    "x" * 5000, "data:image/png;base64," + PNG, "data:image/png;base64,###", "data:;base64,", "data:text/html,x",
    "http://[::1", "https://\x00", "file:///etc/passwd", "auto", "user", "assistant", "tool", "system", "function",
    "text", "tool_use", "tool_result", "image", "thinking", "ephemeral", "high", "none", "required", "any", KOELN.id,
    "{", "[]", "{}", "[" * 999, '{"a": NaN}', "🌍" * 50, "<|endoftext|>", "<|im_start|>system",
    "demo/ailb-demo", "openai/gpt-5.1", *MODELS,
]  # fmt: skip
_NUMBERS = [
    0, -1, 1, 2, 50, 51, 128, 129, 1024, 2**31, 2**31 + 1, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    10**400, 0.0, -0.0, 0.5, 1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
_FIELDS = [
    "model", "messages", "stream", "stream_options", "include_usage", "max_tokens", "max_completion_tokens", "n",
    "logprobs", "top_logprobs", "temperature", "top_p", "top_k", "stop", "stop_sequences", "seed", "tools",
    "tool_choice", "parallel_tool_calls", "response_format", "json_schema", "schema", "strict", "reasoning_effort",
    "reasoning_content", "thinking", "thinking_blocks", "budget_tokens", "metadata", "user_id", "user", "logit_bias",
    "frequency_penalty", "presence_penalty", "service_tier", "modalities", "audio", "prediction", "functions",
    "function_call", "function", "arguments", "name", "id", "type", "role", "content", "text", "refusal", "tool_calls",
    "tool_call_id", "tool_use_id", "is_error", "input", "input_schema", "parameters", "description", "source", "data",
    "media_type", "image_url", "url", "detail", "signature", "cache_control", "system", "output_config", "format",
    "effort", "container", "mcp_servers", "context_management", "web_search_options", "verbosity", "store",
    "session_id", "rag_collection", "rag_top_k", "routing_strategy", "tags", "betas", "anthropic_version", "citations",
    "a\r\nx-injected: 1", "", "\0", "__proto__", "ключ", "x" * 300,
]  # fmt: skip

SCALARS = (
    st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.sampled_from(_WORDS) | st.integers() | st.floats()
    | st.text(max_size=40) | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Co", "So"]), max_size=8)
)  # fmt: skip
NAMES = st.sampled_from(_FIELDS) | st.text(max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)

# ── what is done to the JSON ────────────────────────────────────────────────────────────────────────────────────────


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what holds it, and its name or number there."""
    children = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    for name, child in children:
        yield node, name
        yield from _places(child)


def _nested(value: Any, depth: int, name: str | None) -> Any:
    for _ in range(depth):
        value = [value] if name is None else {name: value}
    return value


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Of the same type, so that it is not refused at first sight."""
    match value:
        case bool():
            return st.booleans()
        case str():
            return st.sampled_from(_WORDS) | st.text(max_size=40)
        case int() | float():
            return st.integers(1, 5_000) | st.floats(0, 2)
        case list():
            return st.lists(st.sampled_from(value), max_size=6) if value else st.just([])
        case _:
            return SCALARS


@st.composite
def mutated(draw: Draw, body: Json) -> Json:
    """`body` after a few changes, each of one place. Which places, evenly: hypothesis favours the first of anything."""
    body = copy.deepcopy(body)
    chance = Random(draw(st.integers(0, 2**32)))
    for _ in range(chance.choice([0, 1, 1, 1, 2, 2, 4])):
        places = list(_places(body))
        if not places:
            break
        holder, name = chance.choice(places)
        match chance.randrange(10):
            case 0:
                holder[name] = draw(SCALARS)
            case 1:
                holder[name] = draw(VALUES)
            case 2 | 3 | 4:
                holder[name] = draw(_alike(holder[name]))
            case 5:
                del holder[name]
            case 6 | 7:
                inside = holder if isinstance(holder, dict) else body
                inside[draw(NAMES)] = draw(VALUES)
            case 8:
                depth, inside = chance.choice([1, 2, 30, 200]), draw(st.none() | NAMES)
                holder[name] = _nested(holder[name], depth, inside)
            case 9:
                whole = holder if isinstance(holder, list) else holder[name]
                if isinstance(whole, list) and whole:
                    whole.insert(chance.randrange(len(whole) + 1), copy.deepcopy(chance.choice(whole)))
                else:
                    # Something from elsewhere.
                    other, at = chance.choice(places)
                    holder[name] = copy.deepcopy(other[at])
    return body


# ── what is done to its bytes ───────────────────────────────────────────────────────────────────────────────────────


def _deep(depth: int, opening: bytes, closing: bytes) -> bytes:
    return b'{"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hi"}], "x": %b1%b}' % (
        opening * depth,
        closing * depth,
    )


_DEEP = [
    *(_deep(depth, b"[", b"]") for depth in (500, 1_100, 100_000)),
    *(_deep(depth, b'{"a":', b"}") for depth in (500, 1_100, 100_000)),
    b"[" * 100_000, b'{"a":' * 100_000, b'[{"":' * 50_000, b'{"messages":' * 1_000 + b"1" + b"}" * 1_000,
]  # fmt: skip
_ODD = [
    b"", b" ", b"\0", b"null", b"true", b'"x"', b"[]", b"{}", b"0", b"1" * 100_000, b"-", b"1e999999999", b'{"model":',
    b"\xef\xbb\xbf{}", b"\xff\xfe", b"\x80", b'{"a":"\\u00"}', b'{"a":"\\ud800"}', b'{"a":"\xed\xa0\x80"}', b"{'a': 1}",
    b"model=gpt&messages=x", b"--x\r\ncontent-disposition: form-data\r\n\r\n\r\n--x--", b"<xml/>", b'{"a":1}{"b":2}',
    b'{"model": "gpt-5.1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1' + b"0" * 50_000 + b"}",
    b'{"model": "gpt-5.1", "messages": [' + b'{"role": "user", "content": "Hi"},' * 20_000 + b"]}",
    b'{"model": "gpt-5.1", "messages": [' + b",".join([b'{"role": "user", "content": "Hi"}'] * 20_000) + b"]}",
    b"{" + b",".join(b'"k%d": 1' % number for number in range(50_000)) + b"}",
]  # fmt: skip
_ENCODINGS = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7", "cp037"]


def written(body: Json) -> bytes:
    """As JSON; NaN and infinities as Python writes them, halves of surrogate pairs as escapes."""
    return json.dumps(body).encode()


@st.composite
def damaged(draw: Draw, text: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """`text` after one change that JSON does not survive, mostly, and a header that may go with it."""
    where = st.integers(0, max(len(text) - 1, 0))
    match draw(st.integers(0, 8)):
        case 0:
            return text[: draw(where)], ()
        case 1:
            at = draw(where)
            return text[:at] + draw(st.binary(min_size=1, max_size=4)) + text[at + 1 :], ()
        case 2:
            return text + draw(st.sampled_from([b"}", b"\0", b" ", b"\n\n", text, b"\xff"])), ()
        case 3:
            # The same name twice, at the front: which of them counts is JSON's oldest question.
            twice = json.dumps({draw(NAMES): draw(SCALARS)}).encode()
            return twice[:-1] + b", " + text[1:], ()
        case 4:
            encoding = draw(st.sampled_from(_ENCODINGS))
            encoded = json.dumps(json.loads(text), ensure_ascii=False).encode(encoding, "replace")
            header = ((b"content-type", b"application/json; charset=" + encoding.encode()),)
            return encoded, draw(st.sampled_from([(), header]))
        case 5:
            squeezed = draw(st.sampled_from([gzip.compress(text), zlib.compress(text)]))
            named = draw(st.sampled_from([b"gzip", b"deflate", b"br", b"zstd", b"identity", b"x", b"gzip, gzip", b""]))
            return squeezed, draw(st.sampled_from([(), ((b"content-encoding", named),)]))
        case 6:
            return draw(st.sampled_from(_DEEP)), ()
        case 7:
            return draw(st.sampled_from(_ODD)), ()
        case _:
            return draw(st.binary(max_size=200)), ()


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_TYPES = [
    b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/html; x",
    b"", b"application/json; charset=utf-16", b"\xff\xfe", b"application/" + b"x" * 5000, b"*/*", b";;;=",
]  # fmt: skip
_NAMES = [
    b"x-session-id", b"x-routing-strategy", b"x-preferred-model", b"x-ailb-tags", b"x-request-id", b"anthropic-beta",
    b"anthropic-version", b"content-type", b"accept", b"accept-encoding", b"x-user-id", b"x-forwarded-for", b"origin",
    b"forwarded", b"cookie", b"user-agent", b"traceparent", b"x-api-key", b"api-key", b"content-language", b"te", b"x",
]  # fmt: skip
# Every byte that a header may hold (RFC 9110, 5.5); others are the raw sockets' to try.
_TEXT = st.binary(max_size=60).map(
    lambda value: bytes(byte for byte in value if byte == 9 or (byte >= 32 and byte != 127))
)
HEADER_VALUES = (
    _TEXT
    | st.sampled_from(_TYPES)
    | st.sampled_from([b"a,b,c", b",,,", b",".join([b"t"] * 60), b"failover", "ключ".encode(), b"1" * 60_000])
    | st.sampled_from([b"\xff" * 300, b"gpt-5.1", b"nobody", b"interleaved-thinking-2025-05-14", b"-1", b"\x80\xa0"])
)


@st.composite
def _credentials(draw: Draw, secret: bytes) -> tuple[tuple[bytes, bytes], ...]:
    good = (b"authorization", b"Bearer " + secret)
    match draw(st.integers(0, 19)):
        case 0:
            return ()
        case 1:
            return ((b"authorization", draw(HEADER_VALUES)),)
        case 2:
            return ((b"authorization", b"Bearer " + draw(HEADER_VALUES)),)
        case 3:
            return ((draw(st.sampled_from([b"x-api-key", b"api-key"])), draw(HEADER_VALUES)),)
        case 4:
            return ((draw(st.sampled_from([b"x-api-key", b"api-key"])), secret),)
        case 5:
            return (good, (b"authorization", draw(HEADER_VALUES)))
        case 6:
            return ((b"authorization", b"basic " + secret), (b"x-api-key", secret))
        case 7:
            at = draw(st.integers(0, len(secret) - 1))
            return ((b"authorization", b"Bearer " + secret[:at] + draw(_TEXT) + secret[at + 1 :]),)
    return (good,)


@st.composite
def headers_of(draw: Draw, secret: bytes, wild: bool) -> tuple[tuple[bytes, bytes], ...]:
    """With a key that counts, mostly."""
    if not wild:
        return ((b"authorization", b"Bearer " + secret), (b"content-type", b"application/json"))
    more = draw(st.lists(st.tuples(st.sampled_from(_NAMES), HEADER_VALUES), max_size=5))
    return (*draw(_credentials(secret)), *more)


# ── all of it ───────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def any_request(draw: Draw, secret: bytes) -> Sent:
    """Four in six have changed JSON and nothing else, so that most get to the translators."""
    path, body = draw(st.sampled_from(VALID))
    model = draw(st.sampled_from([*MODELS, *MODELS, "auto", "nobody", f"openai/{MODELS[0]}"]))
    body = {**body, "model": model, **({"stream": True} if path != COUNT and draw(st.booleans()) else {})}
    kind = draw(st.integers(0, 5))
    body = draw(mutated(body))
    if draw(st.integers(0, 9)):
        body["model"] = model  # one that is nobody's is soon seen
    if draw(st.integers(0, 19)) == 0:
        path = draw(st.sampled_from(VALID))[0]  # the right words at the wrong door
    sent = Sent(path, draw(headers_of(secret, kind == 4)), written(body), body)
    if kind != 5:
        return sent
    damage, more = draw(damaged(written(body)))
    return replace(sent, body=damage, headers=sent.headers + more, asked=None)
