"""What a conversation holds besides words, and what an answer is to be, in the words of the provider that is asked."""

import json
import re
from dataclasses import replace

import pytest

from tests.support.dialect_registry import DOORS, PROVIDERS, serve
from tests.support.dialects import (
    CASES,
    CITY,
    CLOCK,
    KOELN,
    PNG,
    Ask,
    Called,
    Picture,
    Result,
    Said,
    Say,
    Thought,
)  # fmt: skip

OPENAI, ANTHROPIC = DOORS["openai"], DOORS["anthropic"]
TEXT = CASES["text"].say
each_kind = pytest.mark.parametrize("kind", PROVIDERS)
each_door = pytest.mark.parametrize("door", DOORS)
foreign = pytest.mark.parametrize("kind", ["anthropic", "ollama"])


class TestResultsOfTools:
    def ask(self, gateway, alice, content):
        call = {"type": "tool_use", "id": "a", "name": "clock", "input": {}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": content},
        ]
        return ANTHROPIC.ask(gateway, alice, Ask(tools=(CLOCK,)), messages=messages)

    @pytest.mark.parametrize(
        ("content", "text"),
        [({"content": "x"}, "x"), ({"content": [{"type": "text", "text": "x"}]}, "x"), ({}, ""), ({"content": []}, "")],
    )
    @each_kind
    def test_in_each_of_its_forms(self, gateway, alice, upstream, kind, content, text):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        heard = self.ask(gateway, alice, [{"type": "tool_result", "tool_use_id": "a", **content}])
        assert heard.status == 200
        assert provider.read(upstream.only).items[-1] == Result("a", text)

    @pytest.mark.parametrize("kind", ["openai", "ollama"])
    def test_they_come_before_what_the_user_says(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        said, told = {"type": "text", "text": "So?"}, {"type": "tool_result", "tool_use_id": "a", "content": "x"}
        self.ask(gateway, alice, [said, told])
        assert provider.read(upstream.only).items[-2:] == (Result("a", "x"), Said("So?"))

    def test_ids_of_other_vendors_are_still_pairs_for_anthropic(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        calls = (Called("functions.clock:0", "clock", {}), Called("functions.clock:1", "clock", {}))
        results = tuple(Result(call.id, f"result {number}") for number, call in enumerate(calls))
        OPENAI.ask(gateway, alice, Ask(items=(Said("Hi"), *calls, *results), tools=(CLOCK,)))
        _, one, other, *told = provider.read(upstream.only).items
        assert [result.id for result in told] == [one.id, other.id]
        assert one.id != other.id
        assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", call.id) for call in (one, other))


class TestDocuments:
    PDF = "JVBERi0xLjQK"

    def test_a_pdf_is_a_document_of_anthropics(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{self.PDF}"}
        messages = [{"role": "user", "content": [{"type": "file", "file": file}, {"type": "text", "text": "What?"}]}]
        OPENAI.ask(gateway, alice, Ask(), messages=messages)
        document, _ = upstream.only.body["messages"][0]["content"]
        assert document["type"] == "document"
        assert document["source"] == {"type": "base64", "media_type": "application/pdf", "data": self.PDF}

    def test_and_a_file_of_openais(self, gateway, alice, upstream):
        provider = serve(upstream, "openai")
        upstream.will(provider.says(TEXT))
        source = {"type": "base64", "media_type": "application/pdf", "data": self.PDF}
        messages = [{"role": "user", "content": [{"type": "document", "source": source}]}]
        ANTHROPIC.ask(gateway, alice, Ask(), messages=messages)
        (part,) = upstream.only.body["messages"][-1]["content"]
        assert part["type"] == "file"
        assert part["file"]["file_data"] == f"data:application/pdf;base64,{self.PDF}"

    @each_door
    def test_ollama_has_no_eyes_for_one(self, gateway, alice, upstream, door):
        serve(upstream, "ollama")
        source = {"type": "base64", "media_type": "application/pdf", "data": self.PDF}
        file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{self.PDF}"}
        part = {"openai": {"type": "file", "file": file}, "anthropic": {"type": "document", "source": source}}[door]
        heard = DOORS[door].ask(gateway, alice, Ask(), messages=[{"role": "user", "content": [part]}])
        DOORS[door].assert_error(heard, 400, "invalid_request_error", "unsupported_parameter")
        assert not upstream.requests

    @each_kind
    def test_a_text_is_read_everywhere(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        source = {"type": "text", "media_type": "text/plain", "data": "The whole story."}
        messages = [{"role": "user", "content": [{"type": "document", "source": source}]}]
        assert ANTHROPIC.ask(gateway, alice, Ask(), messages=messages).status == 200
        assert "The whole story." in upstream.only.raw.decode()


class TestPictures:
    def test_by_their_address(self, gateway, alice, upstream):
        serve(upstream, "anthropic")
        serve(upstream, "openai", "other-model", slug="other")
        upstream.will(PROVIDERS["anthropic"].says(TEXT), PROVIDERS["openai"].says(TEXT))
        url = "https://example.com/a.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        OPENAI.ask(gateway, alice, Ask(), messages=[{"role": "user", "content": [part]}])
        (block,) = upstream.last.body["messages"][0]["content"]
        assert block == {"type": "image", "source": {"type": "url", "url": url}}
        content = [block]
        ANTHROPIC.ask(gateway, alice, Ask(model="other-model"), messages=[{"role": "user", "content": content}])
        (told,) = upstream.last.body["messages"][-1]["content"]
        assert (told["type"], told["image_url"]["url"]) == ("image_url", url)

    @pytest.mark.parametrize(
        ("kind", "url"),
        [
            ("anthropic", f"data:image/bmp;base64,{PNG}"),
            ("anthropic", "ftp://example.com/a.png"),
            ("ollama", "https://example.com/a.png"),
        ],
    )
    def test_those_that_a_provider_cannot_take(self, gateway, alice, upstream, kind, url):
        serve(upstream, kind)
        part = {"type": "image_url", "image_url": {"url": url}}
        heard = OPENAI.ask(gateway, alice, Ask(), messages=[{"role": "user", "content": [part]}])
        assert heard.status == 400
        assert heard.error["error"]["type"] == "invalid_request_error"
        assert not upstream.requests

    @pytest.mark.parametrize("kind", ["openai", "ollama"])
    def test_one_in_a_tools_result_is_shown_by_the_user(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(TEXT))
        image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
        content = [{"type": "text", "text": "Here."}, image]
        messages = [
            {"role": "user", "content": "Show me."},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "clock", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": content}]},
        ]
        ANTHROPIC.ask(gateway, alice, Ask(tools=(CLOCK,)), messages=messages)
        assert provider.read(upstream.only).items[-2:] == (Result("a", "Here."), Picture("image/png", PNG))

    @foreign
    def test_sound_is_nothing_for_these(self, gateway, alice, upstream, kind):
        serve(upstream, kind)
        part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
        heard = OPENAI.ask(gateway, alice, Ask(), messages=[{"role": "user", "content": [part]}])
        assert heard.status == 400
        assert heard.error["error"]["code"] == "unsupported_parameter"


class TestFormats:
    def test_a_model_without_formats_answers_by_a_tool_that_nobody_sees(self, gateway, alice, upstream, stream):
        """wire.md section 2: of older models a forced tool, unwrapped on the way back."""
        provider = serve(upstream, "anthropic", model="claude-3-7-sonnet-20250219")

        async def script(call):
            body = call.received.body
            assert "output_config" not in body
            name = body["tool_choice"]["name"]
            (tool,) = [tool for tool in body["tools"] if tool["name"] == name]
            assert tool["input_schema"]["properties"] == CITY["properties"]
            say = Say(calls=(replace(KOELN, name=name),), stop="tools", tokens=TEXT.tokens)
            await provider.says(say)(call)

        upstream.will(script)
        heard = OPENAI.ask(gateway, alice, Ask(schema=CITY, stream=stream))
        assert heard.calls == []
        assert json.loads(heard.text) == {"city": "Köln"}
        assert heard.stop == "stop"

    @foreign
    def test_any_object(self, gateway, alice, upstream, kind):
        provider = serve(upstream, kind)
        upstream.will(provider.says(Say(text="{}")))
        heard = OPENAI.ask(gateway, alice, Ask(), response_format={"type": "json_object"})
        assert heard.status == 200
        if kind == "ollama":
            assert upstream.only.body["format"] == "json"


class TestThinking:
    @pytest.mark.parametrize("effort", ["low", "medium", "high"])
    @pytest.mark.parametrize("model", ["claude-opus-4-6", "claude-sonnet-4-5"])
    def test_efforts_are_said_as_the_model_takes_them(self, gateway, alice, upstream, stream, model, effort):
        provider = serve(upstream, "anthropic", model=model)
        upstream.will(provider.says(CASES["thinking"].say))
        heard = OPENAI.ask(gateway, alice, Ask(max_output=8000, stream=stream), reasoning_effort=effort)
        assert heard.thinking
        body = upstream.only.body
        if model == "claude-opus-4-6":
            assert body["thinking"]["type"] == "adaptive"
            assert body["output_config"]["effort"] == effort
        else:
            assert body["thinking"]["type"] == "enabled"
            assert 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]
            assert "output_config" not in body

    def test_no_thinking_where_the_cap_leaves_no_room(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        heard = OPENAI.ask(gateway, alice, Ask(max_output=500), reasoning_effort="high")
        assert heard.dropped == {"reasoning_effort"}
        assert upstream.only.body["max_tokens"] <= 500
        assert "thinking" not in upstream.only.body

    def test_a_thought_without_a_signature_is_not_given_to_anthropic(self, gateway, alice, upstream):
        provider = serve(upstream, "anthropic")
        upstream.will(provider.says(TEXT))
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "reasoning_content": "Hm."},
            {"role": "user", "content": "And now?"},
        ]
        heard = OPENAI.ask(gateway, alice, Ask(), messages=messages)
        assert heard.status == 200
        assert any("reasoning_content" in name for name in heard.dropped)
        assert not [item for item in provider.read(upstream.only).items if isinstance(item, Thought)]

    def test_redacted_thoughts_go_there_and_back(self, gateway, alice, upstream, stream):
        provider = serve(upstream, "anthropic")
        block = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3p"}
        plain = provider.plain(TEXT)
        plain["content"].insert(0, block)
        start, *rest = provider.pieces(TEXT)
        shifted = [piece.replace(b'"index": 0', b'"index": 1') for piece in rest]
        first = [
            provider.event("content_block_start", index=0, content_block=block),
            provider.event("content_block_stop", index=0),
        ]
        upstream.will(provider.plays(plain, start, *first, *shifted), provider.says(TEXT))
        with OPENAI.asking(gateway, alice, Ask(thinks=True, stream=stream)) as response:
            raw = response.read().decode()
        assert '"redacted_thinking"' in raw
        assert block["data"] in raw
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "thinking_blocks": [block]},
            {"role": "user", "content": "And now?"},
        ]
        OPENAI.ask(gateway, alice, Ask(thinks=True), messages=messages)
        assert upstream.last.body["messages"][1]["content"][0] == block
