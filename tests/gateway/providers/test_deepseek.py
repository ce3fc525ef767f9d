"""DeepSeek: the OpenAI dialect at another address."""

import pytest

from gateway.providers import vendor
from tests.gateway.providers.contract import ProviderContract, asked, completed, configured, deployed
from tests.support.upstream import says


class TestDeepSeek(ProviderContract):
    kind = "deepseek"

    def prepare(self, upstream):
        upstream.always(says("Hello", " there", "."))


@pytest.fixture
async def provider(upstream):
    provider = vendor("deepseek")(configured("deepseek", upstream.url))
    yield provider
    await provider.close()


@pytest.fixture
def deployment(provider):
    return deployed(provider.config)


async def test_either_name_of_the_output_cap_becomes_the_one_it_knows(provider, deployment, upstream):
    for name in ("max_tokens", "max_completion_tokens"):
        await completed(provider, asked(**{name: 7}), deployment)
        assert upstream.last.body["max_tokens"] == 7
        assert "max_completion_tokens" not in upstream.last.body
