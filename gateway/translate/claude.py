"""What Claude models take and refuse: data, a row a model.

Sources, read in November 2026: platform.claude.com, "Troubleshooting thinking" (which `thinking.type` a model rejects),
"Effort", "Structured outputs", the models' own "What's new" pages (forced tools, sampling), "Models overview" (output).
"""

import re
from enum import StrEnum
from typing import Final

import msgspec


class Style(StrEnum):
    """How a model is asked to think."""

    NEVER = "never"
    BUDGET = "budget"
    """`thinking: {type: enabled, budget_tokens}`; refused since 4.7"""
    ADAPTIVE = "adaptive"
    """`thinking: {type: adaptive}` and `output_config.effort`"""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What one model takes. The defaults are those of an Anthropic-compatible server's model that is no Claude."""

    max_output: int = 4096
    """Tokens. Anthropic requires a cap, so that this is one where nobody named any."""
    style: Style = Style.BUDGET
    thinks_unasked: bool = False
    off: str | None = "disabled"
    """The `thinking.type` that keeps it from thinking; None: nothing does."""
    efforts: tuple[str, ...] = ()
    """Of `output_config.effort`, the least first"""
    samples: bool = True
    """Takes temperature, top_p and top_k; others refuse any but the default."""
    samples_by_one: bool = False
    """Refuses temperature and top_p together."""
    forces_tools: bool = True
    """Takes `tool_choice` any and tool."""
    formats: bool = False
    """Takes `output_config.format` and strict tools."""


_EFFORTS_4_5: Final = ("low", "medium", "high")
_EFFORTS_4_6: Final = (*_EFFORTS_4_5, "max")
_EFFORTS: Final = (*_EFFORTS_4_5, "xhigh", "max")

_CLAUDE_3 = Model(style=Style.NEVER)
_CLAUDE_3_5 = Model(max_output=8_192, style=Style.NEVER)
_CLAUDE_4_5 = Model(max_output=64_000, samples_by_one=True, formats=True)
_CLAUDE_4_6 = Model(
    max_output=128_000, style=Style.ADAPTIVE, efforts=_EFFORTS_4_6, samples_by_one=True, formats=True
)  # fmt: skip
_CLAUDE_4_7 = Model(max_output=128_000, style=Style.ADAPTIVE, efforts=_EFFORTS, samples=False, formats=True)
_CLAUDE_5 = msgspec.structs.replace(_CLAUDE_4_7, thinks_unasked=True)
_ALWAYS_THINKING = msgspec.structs.replace(_CLAUDE_5, off=None)
_NEWEST = msgspec.structs.replace(_ALWAYS_THINKING, forces_tools=False)

_MODELS: Final[dict[str, dict[tuple[int, int], Model]]] = {
    "haiku": {(3, 0): _CLAUDE_3, (3, 5): _CLAUDE_3_5, (4, 5): _CLAUDE_4_5, (5, 5): _CLAUDE_5},
    "sonnet": {
        (3, 0): _CLAUDE_3,
        (3, 5): _CLAUDE_3_5,
        (3, 7): Model(max_output=64_000),
        (4, 5): _CLAUDE_4_5,
        (4, 6): _CLAUDE_4_6,
        (5, 0): _CLAUDE_5,
        (5, 5): msgspec.structs.replace(_CLAUDE_5, off="between_tools", forces_tools=False),
    },
    "opus": {
        (3, 0): _CLAUDE_3,
        (4, 0): Model(max_output=32_000),
        (4, 1): Model(max_output=32_000, samples_by_one=True, formats=True),
        (4, 5): _CLAUDE_4_5,
        (4, 6): _CLAUDE_4_6,
        (4, 7): _CLAUDE_4_7,
        (5, 0): _CLAUDE_5,
        (5, 5): _NEWEST,
    },
    "fable": {(5, 0): _ALWAYS_THINKING, (5, 1): _NEWEST},
    "mythos": {
        (0, 0): msgspec.structs.replace(_ALWAYS_THINKING, efforts=_EFFORTS_4_6),  # mythos-preview
        (5, 0): _ALWAYS_THINKING,
        (5, 1): _NEWEST,
    },
}
# claude-opus-4-5-20251101, claude-3-5-haiku-latest, us.anthropic.claude-sonnet-4-20250514-v1:0, x/claude-opus-4.8
_NAME = re.compile(r"claude-(?:(\d)(?:[-.](\d))?-)?([a-z]+)(?:-(\d)(?!\d)(?:[-.](\d)(?!\d))?)?")


def model(name: str) -> Model:
    """What the model of this name takes. A version that is not listed is like the newest one before it, a family that
    is not listed like the newest models: what those take, none refuses.
    """
    match = _NAME.search(name.lower())
    if match is None:
        return Model()
    versions = _MODELS.get(match[3])
    if versions is None:
        return _NEWEST
    version = int(match[1] or match[4] or 0), int(match[2] or match[5] or 0)
    return versions[max((known for known in versions if known <= version), default=min(versions))]
