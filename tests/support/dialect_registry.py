"""All dialects of tests, by kind."""

from typing import Any

from gateway import models
from tests.support.dialect_anthropic import Anthropic, AnthropicDoor
from tests.support.dialect_bases import Door, Provider
from tests.support.dialect_ollama import Ollama
from tests.support.dialect_openai import OpenAI, OpenAIDoor
from tests.support.upstream import Upstream
from tests.support.world import make_deployment, make_price, make_provider

DOORS: dict[str, Door] = {door.kind: door for door in (OpenAIDoor(), AnthropicDoor())}
PROVIDERS: dict[str, Provider] = {provider.kind: provider for provider in (OpenAI(), Anthropic(), Ollama())}


def serve(
    upstream: Upstream,
    kind: str,
    name: str = "the-model",
    *,
    model: str | None = None,
    slug: str = "upstream",
    **fields: Any,
) -> Provider:
    """Have a model served, at the usual price, by the scripted upstream as a provider of this dialect."""
    provider = PROVIDERS[kind]
    found = models.Provider.objects.filter(slug=slug).first()
    at = found or make_provider(provider.url(upstream), slug, kind=kind)
    make_price(model or provider.model, provider=slug)
    make_deployment(at, name, model or provider.model, **fields)
    return provider
