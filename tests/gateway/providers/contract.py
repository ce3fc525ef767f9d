"""What every provider keeps. Subclass it in `tests/gateway/providers/test_<kind>.py`.

`kind` is the provider's. `prepare` gets the scripted upstream for a vendor that speaks HTTP and says what it will
answer: `SAID`, in several pieces where it streams.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import pytest

from gateway import providers
from gateway.doors.base import Door
from gateway.doors.chat import ChatDoor
from gateway.doors.messages import MessagesDoor
from gateway.providers.base import Provider
from gateway.translate.openai import BETWEEN
from gateway.types import ChatRequest, Completion, Deployment, Frame, Json, ProviderConfig, StreamEvent, Usage
from tests.support.upstream import Upstream

KEY = "sk-a-credential-of-the-contract"


DOORS: dict[str, Door] = {"chat": ChatDoor(), "messages": MessagesDoor()}
FRAME = Frame(id="req-1", created=1_760_000_000, model="gpt-upstream", input_tokens=9)


def asked(stream: bool = False, *, door: str = "chat", **body: Any) -> ChatRequest:
    """A request as a door reads it."""
    more = {"max_tokens": 50} if door == "messages" else {}
    full = {"model": "gpt-test", "messages": [{"role": "user", "content": "Say it."}], "stream": stream, **more, **body}
    return DOORS[door].parse(json.dumps(full).encode(), {})


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


async def completed(provider: Provider, request: ChatRequest, deployment: Deployment) -> Completion:
    return await provider.complete(provider.prepare(request, deployment))


def streaming(
    provider: Provider, request: ChatRequest, deployment: Deployment
) -> AsyncGenerator[list[StreamEvent], None]:
    return provider.stream(provider.prepare(request, deployment))


async def gathered(provider: Provider, request: ChatRequest, deployment: Deployment) -> list[StreamEvent]:
    return [event async for events in streaming(provider, request, deployment) for event in events]


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

    @pytest.fixture(params=DOORS)
    def door(self, request):
        """Whatever a provider speaks, both doors are served by it."""
        return request.param

    async def whole(self, provider, deployment, door) -> Json:
        """A plain answer as a client of `door` gets it."""
        completion = await completed(provider, asked(door=door), deployment)
        body: Json = json.loads(DOORS[door].whole(completion, completion.usage or Usage(1, 1), lambda: FRAME, ()))
        return body

    async def events(self, provider, deployment, door) -> tuple[list[StreamEvent], list[Json]]:
        """A stream's events, and the JSON that a client of `door` gets for them."""
        request = asked(True, door=door)
        events = await gathered(provider, request, deployment)
        stream = DOORS[door].stream(request, lambda: FRAME, ())
        sent = b"".join([stream.render([event]) for event in events] + [stream.end(stream.usage or Usage(1, 1))])
        payloads = [line[6:] for line in sent.decode().split("\n") if line.startswith("data: ")]
        assert payloads.pop() == "[DONE]" if door == "chat" else json.loads(payloads[-1])["type"] == "message_stop"
        return events, [json.loads(payload) for payload in payloads]

    async def test_a_plain_answer_is_one_of_the_doors(self, provider, deployment, door):
        answer = await completed(provider, asked(door=door), deployment)
        body = await self.whole(provider, deployment, door)
        assert body["model"] == answer.served_model
        if door == "messages":
            assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "end_turn")
            assert [block["text"] for block in body["content"]] == [answer.text] != [""]
            return
        assert body["object"] == "chat.completion"
        assert isinstance(body["created"], int)
        (choice,) = body["choices"]
        assert choice["index"] == 0
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == answer.text != ""
        assert choice["finish_reason"] == "stop"

    async def test_its_usage_is_what_the_body_says(self, provider, deployment, door):
        usage = (await completed(provider, asked(door=door), deployment)).usage
        told = (await self.whole(provider, deployment, door))["usage"]
        assert usage is not None
        assert not usage.estimated
        if door == "messages":
            assert (told["input_tokens"], told["output_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
            return
        assert (usage.prompt_tokens, usage.completion_tokens) == (told["prompt_tokens"], told["completion_tokens"])
        assert told["total_tokens"] == usage.total_tokens > 0

    async def test_a_stream_says_what_a_plain_answer_does(self, provider, deployment, door):
        plain = await completed(provider, asked(door=door), deployment)
        events, told = await self.events(provider, deployment, door)
        if door == "messages":
            assert told[0]["type"] == "message_start"
            text = "".join(event["delta"].get("text", "") for event in told if event["type"] == "content_block_delta")
        else:
            assert {chunk["object"] for chunk in told} == {"chat.completion.chunk"}
            assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in told}) == 1
            assert told[0]["choices"][0]["delta"]["role"] == "assistant"
            text = "".join(choice["delta"].get("content") or "" for chunk in told for choice in chunk["choices"])
        assert text == plain.text
        assert "".join(event.text for event in events) == plain.text

    async def test_content_is_marked_and_a_role_is_none(self, provider, deployment, door):
        events = await gathered(provider, asked(True, door=door), deployment)
        assert all(event.content is bool(event.text) for event in events)
        assert sum(event.content for event in events) >= 2
        payloads = [payload for event in events for payload in event.data.split(BETWEEN)]
        assert all(b"\n" not in payload and b"\r" not in payload for payload in payloads)

    async def test_a_stream_finishes_once_and_tells_its_usage(self, provider, deployment, door):
        events, told = await self.events(provider, deployment, door)
        assert sum(event.finish_reason is not None for event in events) == 1
        usages = [event.usage for event in events if event.usage is not None]
        assert usages[-1] == (await completed(provider, asked(door=door), deployment)).usage
        if door == "chat":
            assert not any("usage" in chunk for chunk in told), "the client did not ask for it"
        else:
            (delta,) = (event for event in told if event["type"] == "message_delta")
            assert delta["usage"]["output_tokens"] == usages[-1].completion_tokens
            assert delta["delta"]["stop_reason"] == "end_turn"

    async def test_a_stream_that_is_left_is_left(self, provider, deployment):
        source = streaming(provider, asked(True), deployment)
        async for events in source:
            if any(event.content for event in events):
                break
        await source.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(source)

    async def test_one_that_is_never_begun_can_be_closed(self, provider, deployment):
        await streaming(provider, asked(True), deployment).aclose()

    async def test_many_at_once(self, provider, deployment):
        plain = await completed(provider, asked(), deployment)
        answers = await asyncio.gather(*(completed(provider, asked(), deployment) for _ in range(20)))
        assert {answer.text for answer in answers} == {plain.text}

    async def test_closing_it_twice_is_closing_it(self, provider, deployment):
        await completed(provider, asked(), deployment)
        await provider.close()
        await provider.close()
