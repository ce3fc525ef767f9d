"""The demo provider: an echo that says so."""

import json

import pytest

from gateway import tokens
from tests.gateway.providers.contract import ProviderContract, asked, deployed, gathered


class TestDemo(ProviderContract):
    kind = "demo"

    async def test_it_says_that_it_is_an_echo(self, provider, deployment):
        answer = await provider.complete(asked(messages=[{"role": "user", "content": "marmalade"}]), deployment)
        assert "demo" in answer.text
        assert "marmalade" in answer.text

    async def test_it_needs_no_upstream(self, provider, deployment, upstream):
        await provider.complete(asked(), deployment)
        assert not upstream.requests

    @pytest.mark.parametrize("cap", [1, 5, 10])
    async def test_it_honours_the_cap(self, provider, deployment, cap):
        answer = await provider.complete(asked(max_tokens=cap), deployment)
        assert answer.usage.completion_tokens <= cap
        assert answer.finish_reason == "length"
        events = await gathered(provider, asked(True, max_tokens=cap), deployment)
        assert [event.finish_reason for event in events if event.finish_reason] == ["length"]

    async def test_several_choices(self, provider, deployment):
        answer = await provider.complete(asked(n=3), deployment)
        assert [choice["index"] for choice in json.loads(answer.body)["choices"]] == [0, 1, 2]
        assert answer.usage.completion_tokens == 3 * tokens.count(answer.text[: len(answer.text) // 3], "ailb-demo")

    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "system", "content": "x"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}],
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text"}, {"type": "text", "text": None}],
                }
            ],
        ],
    )
    async def test_whatever_is_asked_it_answers(self, provider, deployment, messages):
        assert (await provider.complete(asked(messages=messages), deployment)).text

    async def test_whatever_it_is_deployed_as(self, provider):
        answer = await provider.complete(asked(), deployed(provider.config, name="x", upstream_model="y"))
        assert answer.served_model == "ailb-demo"
