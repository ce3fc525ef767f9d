"""Groq: the OpenAI dialect at another address."""

from tests.gateway.providers.contract import ProviderContract
from tests.support.upstream import says


class TestGroq(ProviderContract):
    kind = "groq"

    def prepare(self, upstream):
        upstream.always(says("Hello", " there", "."))
