"""DeepSeek's models, over its OpenAI-compatible API (api-docs.deepseek.com)."""

from gateway.providers import openai


class Vendor(openai.Compatible):
    """As OpenAI's, elsewhere, with the older name of the output cap."""

    slug = "deepseek"
    default_base_url = "https://api.deepseek.com/v1"
    output_cap = "max_tokens"
