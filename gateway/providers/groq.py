"""Groq's models, over its OpenAI-compatible API (console.groq.com/docs/openai)."""

from gateway.providers import openai


class Vendor(openai.Compatible):
    """As OpenAI's, elsewhere."""

    slug = "groq"
    default_base_url = "https://api.groq.com/openai/v1"
