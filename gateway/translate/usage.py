"""What upstreams report of tokens, made consistent where it is read."""

import msgspec

from gateway.types import Usage


def consistent(usage: Usage) -> Usage:
    """Nothing below nought, and no part larger than its whole: cached and written tokens are parts of the prompt,
    thinking is part of the answer (lesson 7). Audio is left to the price, which knows what it is part of.
    """
    parts = usage.cached_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens
    least = min(
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.cache_write_tokens,
        usage.cache_write_1h_tokens, usage.reasoning_tokens,
    )  # fmt: skip
    if least >= 0 and parts <= usage.prompt_tokens and usage.reasoning_tokens <= usage.completion_tokens:
        return usage
    prompt, completion = max(usage.prompt_tokens, 0), max(usage.completion_tokens, 0)
    left = prompt
    cut = {}
    for name in ("cached_tokens", "cache_write_1h_tokens", "cache_write_tokens"):
        cut[name] = min(max(getattr(usage, name), 0), left)
        left -= cut[name]
    reasoning = min(max(usage.reasoning_tokens, 0), completion)
    return msgspec.structs.replace(
        usage, prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=reasoning, **cut
    )
