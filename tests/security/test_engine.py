"""The screen as the pipeline calls it: what it looks at, what it does, what it leaves alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GuardUnavailable, PromptBlocked
from security import engine
from security.detectors import Detector, detectors
from security.detectors.base import Category, Hit, Severity
from security.detectors.secrets import REPLACEMENT
from tests.security.builders import assistant, chat, policy, system, user

SECRET = "sk-" + "ant-api03-" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8" * 3
TERM = "project titan"

# Where a model reads text: each takes a text and gives the messages and further fields of a request.
PLACES = {
    "system": lambda text: ([system(text), user("hi")], {}),
    "developer": lambda text: ([{"role": "developer", "content": text}, user("hi")], {}),
    "user": lambda text: ([user(text)], {}),
    "an earlier turn": lambda text: ([user(text), assistant("ok"), user("hi")], {}),
    "assistant": lambda text: ([assistant(text), user("hi")], {}),
    "tool result": lambda text: ([user("hi"), {"role": "tool", "tool_call_id": "call_1", "content": text}], {}),
    "content part": lambda text: ([user([{"type": "text", "text": "hi"}, {"type": "text", "text": text}])], {}),
    "image URL": lambda text: (
        [user([{"type": "image_url", "image_url": {"url": f"https://example.com/a.png?key={text}"}}])],
        {},
    ),
    "file name": lambda text: ([user([{"type": "file", "file": {"filename": text, "file_data": "QUJD"}}])], {}),
    "name": lambda text: ([{**user("hi"), "name": text}], {}),
    "tool call's arguments": lambda text: (
        [
            assistant(
                None, tool_calls=[{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": text}}]
            )
        ],
        {},
    ),
    "tool definition": lambda text: (
        [user("hi")],
        {"tools": [{"type": "function", "function": {"name": "f", "description": text}}]},
    ),
    "tool's schema": lambda text: (
        [user("hi")],
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"properties": {"x": {"enum": ["a", text]}}}},
                }
            ]
        },
    ),
    "response format": lambda text: (
        [user("hi")],
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "description": text}}},
    ),
    "a field that we do not know": lambda text: ([user("hi")], {"documents": [{"body": text}]}),
    "deep inside": lambda text: ([user("hi")], {"extra": json.loads("[" * 400 + json.dumps(text) + "]" * 400)}),
}


def request_with(place, text):
    messages, fields = PLACES[place](text)
    return chat(messages, body=fields)


def test_a_request_in_which_nothing_is_found_is_given_back_as_it_came():
    request = chat([system("You are helpful."), user("What is a risk-free task?")])
    verdict = engine.screen(request, policy(TERM))
    assert (verdict.action, verdict.findings) == ("allow", ())
    assert engine.enforce(verdict) is request


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_taken_out_wherever_a_model_reads(place):
    request = request_with(place, f"it is {SECRET}, see")
    verdict = engine.screen(request, policy())
    sent = engine.enforce(verdict).body
    assert verdict.action == "sanitize"
    assert sent == request_with(place, f"it is {REPLACEMENT}, see").body
    assert request.body == request_with(place, f"it is {SECRET}, see").body, "the client's own request was changed"


@pytest.mark.parametrize("place", PLACES)
def test_a_blocked_term_blocks_wherever_a_model_reads(place):
    request = request_with(place, "about Project Titan, please")
    verdict = engine.screen(request, policy(TERM))
    assert (verdict.action, verdict.request) == ("block", request)
    with pytest.raises(PromptBlocked) as refused:
        engine.enforce(verdict)
    assert "custom" in refused.value.message
    assert "titan" not in refused.value.message.lower()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just(SECRET), st.just(f"a {SECRET} b")),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=10), inner)),
)


@given(content=json_values, extra=json_values)
def test_only_the_secret_is_replaced_whatever_the_json(content, extra):
    request = chat([{"role": "user", "content": content}], body={"extra": extra})
    before = json.dumps(request.body)
    verdict = engine.screen(request, policy())
    assert json.dumps(verdict.request.body) == before.replace(SECRET, REPLACEMENT)
    assert json.dumps(request.body) == before
    assert len(verdict.findings) == before.count(SECRET)


def test_what_holds_no_secret_is_shared_not_copied():
    request = chat([user(SECRET), user("hi")], body={"tools": [{"type": "function"}]})
    sent = engine.screen(request, policy()).request.body
    assert sent["messages"][1] is request.body["messages"][1]
    assert sent["tools"] is request.body["tools"]


def test_a_secret_in_a_fields_name_cannot_be_taken_out_and_blocks():
    request = chat([user("hi")], body={"metadata": {SECRET: "x"}})
    verdict = engine.screen(request, policy())
    assert verdict.action == "block"
    assert engine.screen(request, policy(secret="flag")).action == "flag"


@pytest.mark.parametrize(
    ("part", "field"),
    [("image_url", "url"), ("input_audio", "data"), ("file", "file_data")],
)
def test_the_bytes_of_files_are_not_read_as_text(part, field):
    # Base64 that happens to hold a prefix and what it takes.
    data = "data:image/png;base64,iVBOR+AKIA" + "Q3EGRZ7WXY2LMN4P" + "+AAAA"
    request = chat([user([{"type": part, part: {field: data}}])])
    assert engine.screen(request, policy()).action == "allow"
    request = chat([user([{"type": "text", "text": data}])])
    assert engine.screen(request, policy()).action == "sanitize"


@pytest.mark.parametrize(
    ("action", "verdict", "text"),
    [
        ("block", "block", SECRET),
        ("sanitize", "sanitize", REPLACEMENT),
        ("flag", "flag", SECRET),
        ("off", "allow", SECRET),
    ],
)
def test_the_policy_decides_what_is_done(action, verdict, text):
    screened = engine.screen(chat([user(SECRET)]), policy(secret=action))
    assert screened.action == verdict
    assert [finding.action for finding in screened.findings] == ([] if action == "off" else [action])
    assert screened.request.body["messages"][0]["content"] == text


def test_the_strongest_action_counts_and_every_finding_is_told():
    request = chat([system(f"{SECRET} and {SECRET}"), user("project TITAN")])
    verdict = engine.screen(request, policy(TERM))
    assert verdict.action == "block"
    told = [(f.category, f.detector, f.action, f.severity, f.part, f.start, f.end) for f in verdict.findings]
    size = len(SECRET)
    assert told == [
        ("secret", "secrets", "sanitize", "high", "messages[0].content", 0, size),
        ("secret", "secrets", "sanitize", "high", "messages[0].content", size + 5, 2 * size + 5),
        ("custom", "terms", "block", "medium", "messages[1].content", 0, 13),
    ]
    with pytest.raises(PromptBlocked, match="custom") as refused:
        engine.enforce(verdict)
    assert "secret" not in refused.value.message  # that one would not have blocked


def test_spans_that_overlap_are_replaced_once():
    verdict = engine.screen_text(f"a {SECRET} b", policy("api03", custom="sanitize"), "memory")
    assert verdict.text == f"a {REPLACEMENT} b"
    assert len(verdict.findings) == 2


@pytest.mark.parametrize("place", PLACES)
def test_a_finding_never_shows_what_the_client_wrote(place):
    verdict = engine.screen(request_with(place, f"it is {SECRET}, see"), policy())
    (finding,) = verdict.findings
    assert SECRET not in repr(finding)


def test_a_name_that_the_client_chose_is_not_shown():
    request = chat([user("hi")], body={"metadata": {SECRET: {"text": SECRET}}})
    parts = {finding.part for finding in engine.screen(request, policy()).findings}
    assert parts == {"metadata"}
    request = chat([user("hi")], body={SECRET: SECRET})
    assert {finding.part for finding in engine.screen(request, policy()).findings} == {"body"}


class _Log:
    def __init__(self):
        self.lines = []

    def error(self, event, **fields):
        self.lines.append((event, fields))


@pytest.mark.parametrize("screen", [engine.screen, lambda request, p: engine.screen_text("x", p, "passage")])
def test_a_detector_that_breaks_refuses_and_says_nothing_of_the_text(monkeypatch, screen):
    def find(text, policy):
        raise KeyError(f"quoted: {text}")

    broken = Detector(name="broken", category=Category.SECRET, replacement="", find=find)
    log = _Log()
    monkeypatch.setattr(engine, "detectors", lambda: (broken,))
    monkeypatch.setattr(engine, "log", log)
    with pytest.raises(GuardUnavailable) as refused:
        screen(chat([user("private words")]), policy())
    assert "private" not in refused.value.message
    assert refused.value.__cause__ is None
    assert log.lines == [("detector_broken", {"detector": "broken", "error": "KeyError"})]
    # What is off is not looked for, and cannot break.
    screen(chat([user("private words")]), policy(secret="off"))


def test_a_new_detector_is_asked_with_the_policy(monkeypatch):
    asked = []

    def find(text, policy):
        asked.append((text, policy.name))
        return [Hit(0, 2, Severity.LOW)] if text == "hi there" else ()

    new = Detector(name="new", category=Category.CUSTOM, replacement="[x]", find=find)
    monkeypatch.setattr(engine, "detectors", lambda: (*detectors(), new))
    verdict = engine.screen(chat([user("hi there")]), policy(custom="sanitize"))
    assert verdict.request.body["messages"][0]["content"] == "[x] there"
    assert ("hi there", "test") in asked


class TestScreenText:
    def test_a_clean_text_is_given_back(self):
        assert engine.screen_text("a passage", policy(TERM), "passage") == engine.ScreenedText("allow", (), "a passage")

    def test_a_secret_is_taken_out(self):
        screened = engine.screen_text(f"the key {SECRET}.", policy(), "passage")
        assert (screened.action, screened.text) == ("sanitize", f"the key {REPLACEMENT}.")
        assert [finding.part for finding in screened.findings] == ["passage"]

    def test_a_blocked_term_blocks(self):
        assert engine.screen_text("Project Titan", policy(TERM), "memory").action == "block"


def test_detectors_and_engine_need_no_orm():
    code = "import sys; from security import engine; engine.detectors(); sys.exit('django' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_kilobyte_is_screened_in_microseconds():
    # 15 µs on the machine this was written on; the bound leaves room for a slow and busy one, not for a slow screen.
    request = chat([system("You are helpful."), user("The quick brown fox takes a risk-free desk. " * 23)])
    assert min(_timed(request, policy()) for _ in range(200)) < 150e-6


@pytest.mark.parametrize("text", [f"x {SECRET} ", "project titan "], ids=["secrets", "terms"])
def test_a_megabyte_of_findings_takes_seconds_at_most(text):
    request = chat([user(text * (1_000_000 // len(text)))])
    assert _timed(request, policy(TERM)) < 5


def test_a_body_of_many_and_deep_places_is_edited_in_linear_time():
    deep = json.loads("[" * 900 + ",".join([json.dumps(SECRET)] * 20_000) + "]" * 900)
    request = chat([user("hi")], body={"extra": deep})
    assert _timed(request, policy()) < 5


def _timed(request, p):
    started = time.process_time()
    engine.screen(request, p)
    return time.process_time() - started
