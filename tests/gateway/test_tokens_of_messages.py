"""Prompts in Anthropic's dialect, and Claude's tokens."""

import base64

import pytest

from gateway import tokens

CLAUDE = "claude-sonnet-5"
OLD = "claude-sonnet-4-5"


def body(*content, **more):
    return {"messages": [{"role": "user", "content": list(content)}], "max_tokens": 10, **more}


def text(value):
    return {"type": "text", "text": value}


def pictured(size):
    data = base64.b64encode(b"x" * size).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def test_a_picture_counts_as_one_whatever_its_bytes():
    small, large = (tokens.bound_prompt(body(pictured(size)), CLAUDE) for size in (10, 1_000_000))
    assert small == large
    assert 4_000 < small < 6_000


def test_so_does_one_in_a_tools_result():
    result = {"type": "tool_result", "tool_use_id": "t", "content": [pictured(1_000_000), text("word")]}
    assert 4_000 < tokens.bound_prompt(body(result), CLAUDE) < 6_000


def test_a_pdf_counts_by_its_size_and_a_text_by_its_words():
    data = base64.b64encode(b"%PDF-" + b"x" * 400_000).decode()
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}
    assert 100_000 < tokens.bound_prompt(body(pdf), CLAUDE) < 110_000
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "word " * 100}}
    assert 500 <= tokens.bound_prompt(body(plain), CLAUDE) < 700


@pytest.mark.parametrize("system", ["word " * 100, [text("word " * 100)]])
def test_the_system_prompt_counts(system):
    assert tokens.bound_prompt(body(text("x"), system=system)) - tokens.bound_prompt(body(text("x"))) >= 500


def test_a_signature_is_no_prompt_and_a_thought_is():
    thought = {"type": "thinking", "thinking": "word " * 100, "signature": "x" * 10_000}
    assert 500 <= tokens.bound_prompt(body(thought)) < 1_000


def test_tools_cost_claude_more_than_their_words():
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    plain = tokens.bound_prompt(body(text("x")), CLAUDE)
    assert tokens.bound_prompt(body(text("x"), tools=tools), CLAUDE) > plain + 500


@pytest.mark.parametrize(
    "said", ["The quick brown fox jumps. " * 40, "def f(x):\n    return x\n" * 40, "Привет, мир. " * 40]
)
def test_claudes_tokens_are_more_than_openais_and_never_above_the_bound(said):
    request = body(text(said))
    openai, old, new = (tokens.count_prompt(request, model) for model in ("gpt-4o", OLD, CLAUDE))
    assert openai < old <= new <= tokens.bound_prompt(request, CLAUDE)


@pytest.mark.parametrize(
    ("model", "old"),
    [("claude-3-5-haiku", True), ("claude-sonnet-4-5", True), ("claude-opus-4-1", True), ("claude-opus-4-6", True),
     ("claude-opus-4-20250514", True), ("anthropic/claude-haiku-4-5", True), ("claude-opus-4-7", False),
     ("claude-opus-5", False), ("claude-sonnet-5", False)],
)  # fmt: skip
def test_which_models_have_the_new_tokenizer(model, old):
    words = ["The quick brown fox. " * 50]
    assert tokens._claude_factor(model, words) == (1.25 if old else 1.5)
