"""What every provider keeps. Subclass it in `tests/gateway/providers/test_<kind>.py`.

`kind` is the provider's. `prepare` gets the scripted upstream for a vendor that speaks HTTP and says what it will
answer: `SAID`, in several pieces where it streams.
"""

import asyncio
import json
from typing import Any, ClassVar

import pytest

from gateway import providers, requests
from gateway.providers.base import Provider, StreamEvent
from gateway.types import ChatRequest, Deployment, ProviderConfig
from tests.support.upstream import Upstream

KEY = "sk-a-credential-of-the-contract"


def asked(stream: bool = False, **body: Any) -> ChatRequest:
    """A request as the door reads it."""
    full = {"model": "gpt-test", "messages": [{"role": "user", "content": "Say it."}], "stream": stream, **body}
    return requests.parse(json.dumps(full).encode(), {})


def configured(kind: str, base_url: str = "", **fields: Any) -> ProviderConfig:
    vendor = providers.vendor(kind)
    values: dict[str, Any] = {
        "id": 1,
        "slug": kind,
        "kind": kind,
        "base_url": base_url or vendor.default_base_url,
        "headers": vendor.auth_headers(KEY),
        "price_book": vendor.price_book or kind,
        "connect_timeout": 2.0,
        "first_byte_timeout": 5.0,
        "idle_timeout": 5.0,
        "trusted_network": True,
    }
    return ProviderConfig(**{**values, **fields})


def deployed(config: ProviderConfig, **fields: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": "gpt-test", "provider": config, "upstream_model": "gpt-upstream", "weight": 1, "priority": 0,
        "max_output": None, "context_window": None,
    }  # fmt: skip
    return Deployment(**{**values, **fields})


async def gathered(provider: Provider, request: ChatRequest, deployment: Deployment) -> list[StreamEvent]:
    return [event async for events in provider.stream(request, deployment) for event in events]


class ProviderContract:
    kind: ClassVar[str]

    def prepare(self, upstream: Upstream) -> None:
        """Script the upstream."""

    @pytest.fixture
    async def provider(self, upstream):
        self.prepare(upstream)
        provider = providers.vendor(self.kind)(configured(self.kind, upstream.url))
        yield provider
        await provider.close()

    @pytest.fixture
    def deployment(self, provider):
        return deployed(provider.config)

    def test_its_slug_is_its_modules_name(self):
        vendor = providers.vendor(self.kind)
        assert vendor.slug == self.kind
        assert vendor.__module__ == f"gateway.providers.{self.kind}"

    def test_the_credential_is_in_its_headers_and_nothing_without_one(self):
        vendor = providers.vendor(self.kind)
        assert KEY in str(vendor.auth_headers(KEY))
        assert vendor.auth_headers(None) == {}
        assert vendor.auth_headers("") == {}
        assert all(name == name.lower() for name in vendor.auth_headers(KEY))

    async def test_a_plain_answer_is_a_chat_completion(self, provider, deployment):
        answer = await provider.complete(asked(), deployment)
        body = json.loads(answer.body)
        assert body["object"] == "chat.completion"
        assert isinstance(body["created"], int)
        (choice,) = body["choices"]
        assert choice["index"] == 0
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == answer.text != ""
        assert choice["finish_reason"] == answer.finish_reason == "stop"
        assert body["model"] == answer.served_model

    async def test_its_usage_is_what_the_body_says(self, provider, deployment):
        answer = await provider.complete(asked(), deployment)
        usage = json.loads(answer.body)["usage"]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            usage["prompt_tokens"], usage["completion_tokens"],
        )  # fmt: skip
        assert usage["total_tokens"] == answer.usage.total_tokens > 0
        assert not answer.usage.estimated

    async def test_a_stream_is_chunks_of_one_line(self, provider, deployment):
        events = await gathered(provider, asked(True), deployment)
        assert all(b"\n" not in event.data and b"\r" not in event.data for event in events)
        chunks = [json.loads(event.data) for event in events]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"

    async def test_a_stream_says_what_a_plain_answer_does(self, provider, deployment):
        plain = await provider.complete(asked(), deployment)
        events = await gathered(provider, asked(True), deployment)
        deltas = [choice["delta"] for event in events for choice in json.loads(event.data)["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == plain.text
        assert "".join(event.text for event in events) == plain.text

    async def test_content_is_marked_and_a_role_is_none(self, provider, deployment):
        events = await gathered(provider, asked(True), deployment)
        for event in events:
            said = any(choice["delta"].get("content") for choice in json.loads(event.data)["choices"])
            assert event.content is said
            assert bool(event.text) is said
        assert sum(event.content for event in events) >= 2

    async def test_a_stream_finishes_once_and_then_tells_its_usage(self, provider, deployment):
        events = await gathered(provider, asked(True), deployment)
        finishes = [event.finish_reason for event in events if event.finish_reason is not None]
        assert finishes == ["stop"]
        *others, last = events
        assert last.usage_only
        assert last.usage is not None
        assert json.loads(last.data)["choices"] == []
        assert not any(event.usage_only or event.usage for event in others)
        plain = await provider.complete(asked(), deployment)
        assert last.usage == plain.usage

    async def test_null_usage_is_marked(self, provider, deployment):
        for event in await gathered(provider, asked(True), deployment):
            chunk = json.loads(event.data)
            assert event.null_usage is ("usage" in chunk and chunk["usage"] is None)

    async def test_a_stream_that_is_left_is_left(self, provider, deployment):
        source = provider.stream(asked(True), deployment)
        async for events in source:
            if any(event.content for event in events):
                break
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(source)

    async def test_one_that_is_never_begun_can_be_closed(self, provider, deployment):
        await provider.stream(asked(True), deployment).aclose()

    async def test_many_at_once(self, provider, deployment):
        plain = await provider.complete(asked(), deployment)
        answers = await asyncio.gather(*(provider.complete(asked(), deployment) for _ in range(20)))
        assert {answer.text for answer in answers} == {plain.text}

    async def test_closing_it_twice_is_closing_it(self, provider, deployment):
        await provider.complete(asked(), deployment)
        await provider.close()
        await provider.close()
