"""Both dialects against a server that nobody scripted: llama.cpp's, with a small model."""

import pytest

from gateway import providers
from tests.gateway.providers.contract import asked, completed, configured, deployed, gathered

QUESTION = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
BASES = {"openai": "/v1", "anthropic": ""}


@pytest.fixture(params=BASES)
async def provider(request, real_model):
    """A provider of either dialect, whatever the client's."""
    kind = request.param
    provider = providers.vendor(kind)(configured(kind, real_model + BASES[kind], first_byte_timeout=60.0))
    yield provider
    await provider.close()


@pytest.fixture(params=["chat", "messages"])
def door(request):
    return request.param


async def test_a_plain_answer(provider, door):
    request = asked(messages=QUESTION, temperature=0, max_tokens=40, door=door)
    answer = await completed(provider, request, deployed(provider.config))
    assert "Rome" in answer.text
    assert answer.usage.prompt_tokens > 20
    assert answer.usage.completion_tokens > 1
    assert answer.served_model == "ailb-demo"


async def test_a_stream(provider, door):
    request = asked(True, messages=QUESTION, temperature=0, max_tokens=40, door=door)
    events = await gathered(provider, request, deployed(provider.config))
    assert "Rome" in "".join(event.text for event in events)
    usages = [event.usage for event in events if event.usage is not None]
    assert usages[-1].completion_tokens > 1
    assert sum(event.finish_reason is not None for event in events) == 1


async def test_one_that_is_cut_off_by_its_cap(provider, door):
    answer = await completed(provider, asked(max_tokens=3, door=door), deployed(provider.config))
    assert answer.usage.completion_tokens == 3
    assert answer.finish_reason in ("length", "max_tokens")
