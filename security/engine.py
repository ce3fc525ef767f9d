"""The screen: one look at everything of a request that a model would read, and what the policy says about it.

Pure and synchronous, linear in the text; a request in which nothing is found is given back as it came.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import structlog

from gateway.errors import GuardUnavailable, PromptBlocked
from gateway.types import ChatRequest, Json
from security.detectors import Detector, detectors
from security.detectors.base import Action, Category, Hit, ScreenPolicy, Severity

log = structlog.get_logger()

_STRENGTH: Final = {action: strength for strength, action in enumerate(Action)}

_MEDIA: Final[dict[str | int, str]] = {"image_url": "url", "input_audio": "data", "file": "file_data", "source": "data"}
"""Of the wire's parts that carry a file, the field with its bytes: base64 is no text, and megabytes of it are usual."""

_SIGNED: Final[dict[str, str]] = {"thinking": "signature", "redacted_thinking": "data"}
"""Of a model's own blocks, the field with its signature: changed, the model would refuse the whole conversation."""

# Names of the wire that stand in nearly every request: not looked at, and shown in an event. Any other name is the
# client's own choice: it is looked at like a text, and never shown.
_WIRE: Final = """
messages role content name type text image_url url detail input_audio data format file file_data file_id filename
refusal tool_calls tool_call_id function_call id function arguments tools functions description parameters strict
properties required items enum anyOf additionalProperties tool_choice parallel_tool_calls response_format json_schema
schema stream stream_options include_usage temperature top_p n stop seed max_tokens max_completion_tokens
frequency_penalty presence_penalty logprobs top_logprobs user metadata reasoning_effort
system source media_type input input_schema tool_use_id is_error cache_control ttl thinking thinking_blocks
budget_tokens stop_sequences disable_parallel_tool_use user_id service_tier title context citations enabled signature
output_config effort reasoning_content
"""
_WIRE_NAMES: Final = frozenset(_WIRE.split())
_WIRE_VALUES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function", "text", "image_url"})
"""Words of the wire's own in nearly every message: no text, wherever they stand."""
_NOT_SCREENED: Final = frozenset({"model"})
"""Of the body: what names a deployment, and was looked up."""
_DEEPEST_SHOWN: Final = 32
"""Steps; the wire's own structure has a dozen."""


class Finding(msgspec.Struct, frozen=True):
    """A hit, and what the policy does about it. Says where, never what."""

    category: Category
    detector: str
    action: Action
    severity: Severity
    part: str
    """Where the text stands, such as `messages[2].content`."""
    start: int
    end: int
    """Characters of that text."""


class Verdict(msgspec.Struct, frozen=True):
    """The screen's answer about a request."""

    action: str
    """allow, flag, sanitize or block: the strongest of the findings'."""
    findings: tuple[Finding, ...]
    request: ChatRequest
    """As it came, or a copy without what is sanitised."""


class ScreenedText(msgspec.Struct, frozen=True):
    """The screen's answer about one text. `text` is without what is sanitised."""

    action: str
    findings: tuple[Finding, ...]
    text: str


class _Place:
    """Where in the body something stands: a step of the way, and what comes before it. Compared by identity."""

    __slots__ = ("before", "step")

    def __init__(self, before: "_Place | None", step: str | int) -> None:
        self.before = before
        self.step = step


def screen(request: ChatRequest, policy: ScreenPolicy) -> Verdict:
    """Look at all text of the messages, tool calls and their results, tool definitions and other fields.

    Blocks nothing by itself: `enforce` does. Raises `GuardUnavailable` where a detector breaks.
    """
    active = _active(policy)
    findings: list[Finding] = []
    edits: list[tuple[_Place, str]] = []
    for before, step, text, is_name in _texts(request.body):
        found = _look(text, active, policy)
        if not found:
            continue
        place = _Place(before, step)
        part = _described(place)
        findings += _findings(found, policy, part, unchangeable=is_name)
        sanitised = text if is_name else _sanitised(text, found, policy)
        if sanitised != text:
            edits.append((place, sanitised))
    if edits:
        request = msgspec.structs.replace(request, body=_edited(request.body, edits))
    return Verdict(_strongest(findings), tuple(findings), request)


def screen_text(text: str, policy: ScreenPolicy, part: str) -> ScreenedText:
    """Look at a text that is about to join a prompt: a passage, a recalled turn. `part` says which in the findings.

    Raises `GuardUnavailable` where a detector breaks.
    """
    found = _look(text, _active(policy), policy)
    if not found:
        return ScreenedText("allow", (), text)
    findings = _findings(found, policy, part)
    return ScreenedText(_strongest(findings), findings, _sanitised(text, found, policy))


def enforce(verdict: Verdict) -> ChatRequest:
    """The request to go on with. Raises `PromptBlocked`, which names the categories and nothing of the text."""
    if verdict.action != Action.BLOCK:
        return verdict.request
    categories = sorted({finding.category for finding in verdict.findings if finding.action == Action.BLOCK})
    raise PromptBlocked(f"The prompt was blocked by the security policy: {', '.join(categories)}.")


def _active(policy: ScreenPolicy) -> list[Detector]:
    return [d for d in detectors() if policy.actions[d.category] is not Action.OFF and d.applies(policy)]


def _look(text: str, active: Sequence[Detector], policy: ScreenPolicy) -> list[tuple[Detector, Sequence[Hit]]]:
    found = []
    for detector in active:
        try:
            hits = detector.find(text, policy)
        except Exception as error:  # noqa: BLE001  # a guard that breaks refuses, whatever broke it
            # Neither its message nor a traceback: they may quote the prompt.
            log.error("detector_broken", detector=detector.name, error=type(error).__name__)
            raise GuardUnavailable("The prompt could not be checked.") from None
        if hits:
            found.append((detector, hits))
    return found


def _findings(
    found: Sequence[tuple[Detector, Sequence[Hit]]], policy: ScreenPolicy, part: str, *, unchangeable: bool = False
) -> tuple[Finding, ...]:
    def action(detector: Detector) -> Action:
        wanted = policy.actions[detector.category]
        # What cannot be taken out is kept out.
        return Action.BLOCK if unchangeable and wanted == Action.SANITIZE else wanted

    return tuple(
        Finding(detector.category, detector.name, action(detector), hit.severity, part, hit.start, hit.end)
        for detector, hits in found
        for hit in hits
    )


def _strongest(findings: Sequence[Finding]) -> str:
    if not findings:
        return "allow"
    return max((finding.action for finding in findings), key=_STRENGTH.__getitem__).value


def _sanitised(text: str, found: Sequence[tuple[Detector, Sequence[Hit]]], policy: ScreenPolicy) -> str:
    """`text` with a replacement for every span to be sanitised; spans that touch or overlap get one."""
    spans = sorted(
        (hit.start, hit.end, detector.replacement)
        for detector, hits in found
        if policy.actions[detector.category] == Action.SANITIZE
        for hit in hits
    )
    pieces: list[str] = []
    done = 0
    for start, end, replacement in spans:
        if start >= done:
            pieces += (text[done:start], replacement)
        done = max(done, end)
    return "".join([*pieces, text[done:]])


def _texts(body: Json) -> Iterator[tuple[_Place | None, str | int, str, bool]]:
    """Every text of the body and where it stands, outer ones first; true where the text is a field's name."""
    queue: list[tuple[_Place | None, Any]] = [(None, body)]
    for place, container in queue:  # it grows while it is read: a walk without recursion, as deep as JSON may be
        if isinstance(container, dict):
            bytes_field = None if place is None else _MEDIA.get(place.step)
            kind = container.get("type")
            if bytes_field is not None and place is not None and place.step == "source" and kind != "base64":
                bytes_field = None  # Anthropic's documents may be plain text
            signed = _SIGNED.get(kind) if isinstance(kind, str) else None
            for name, value in container.items():
                if name not in _WIRE_NAMES:
                    if place is None and name in _NOT_SCREENED:
                        continue
                    yield place, name, name, True
                if isinstance(value, str):
                    if value in _WIRE_VALUES:
                        continue
                    if (name != bytes_field and name != signed) or not _is_bytes(value):
                        yield place, name, value, False
                elif isinstance(value, dict | list):
                    queue.append((_Place(place, name), value))
        else:
            for index, value in enumerate(container):
                if isinstance(value, str):
                    yield place, index, value, False
                elif isinstance(value, dict | list):
                    queue.append((_Place(place, index), value))


def _is_bytes(value: str) -> bool:
    """Whether a file's field holds its bytes: a data URL, or base64 (which has no space); a URL is a text."""
    return "://" not in value[:20] and " " not in value[:1000]


def _described(place: _Place) -> str:
    """The way to a place, up to the first name that the client chose."""
    way: list[_Place] = []
    at: _Place | None = place
    while at is not None:
        way.append(at)
        at = at.before
        if len(way) > _DEEPEST_SHOWN:
            return "body"
    shown = ""
    for at in reversed(way):
        if isinstance(at.step, str) and at.step not in _WIRE_NAMES:
            break
        shown += f"[{at.step}]" if isinstance(at.step, int) else f".{at.step}"
    return shown[:200].removeprefix(".") or "body"


def _edited(body: Json, edits: Sequence[tuple[_Place, str]]) -> Json:
    """A copy of `body` with other texts at some places; what is on no way to them is shared, and nothing is changed."""
    edited = dict(body)
    copies: dict[_Place | None, Any] = {None: edited}  # by where the container stands
    for place, text in edits:
        missing: list[_Place] = []
        at = place.before
        while at is not None and at not in copies:
            missing.append(at)
            at = at.before
        for inner in reversed(missing):
            copies[inner] = copies[inner.before][inner.step] = copies[inner.before][inner.step].copy()
        copies[place.before][place.step] = text
    return edited
