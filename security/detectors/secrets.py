"""Credentials whose format has a prefix of its own: our virtual keys and those of well-known providers.

A text without any of the prefixes costs one substring search for each. Every pattern begins with its literal, so that
`re` searches for that, and none backtracks: runs are possessive, and what a run must hold is checked after the match.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from keys.secrets import LENGTH, PREFIX, well_formed
from security.detectors.base import Category, Hit, ScreenPolicy, Severity

CATEGORY: Final = Category.SECRET
REPLACEMENT: Final = "[secret removed]"

_SHORTEST: Final = 15  # of all that is looked for: Slack's


class _Format(NamedTuple):
    prefix: str
    pattern: re.Pattern[str]
    has_digit: bool
    """Random keys of this length do; `sk-proj-your-api-key-goes-here` does not."""


def _format(prefix: str, body: str, *, has_digit: bool = False) -> _Format:
    """A prefix that no letter or digit precedes, unless that letter is the end of JSON's `\\n`, and its body."""
    border = rf"(?:(?<![0-9A-Za-z]{prefix})|(?<=\\[nrtbf]{prefix}))"
    return _Format(prefix, re.compile(prefix + border + body, re.ASCII), has_digit)


# As gitleaks and GitHub's secret scanning describe them.
_FORMATS: Final = (
    # Anthropic, OpenAI (projects, service accounts, admins), OpenRouter; then OpenAI's older ones and DeepSeek's.
    _format("sk-", r"(?:(?:ant|proj|svcacct|admin|or-v1)-[\w-]{20,}+|[0-9A-Za-z]{32,}+)", has_digit=True),
    _format("AKIA", r"[0-9A-Z]{16}(?![0-9A-Za-z])"),  # AWS access key ids, long-lived
    _format("ASIA", r"[0-9A-Z]{16}(?![0-9A-Za-z])"),  # and temporary
    *(_format(f"gh{kind}_", r"[0-9A-Za-z]{36,}+") for kind in "pousr"),  # GitHub tokens
    _format("github_pat_", r"\w{40,}+"),
    _format("xox", r"[abprs]-[0-9A-Za-z-]{10,}+", has_digit=True),  # Slack
    _format("AIza", r"[\w-]{35}(?![\w-])"),  # Google
)
_VIRTUAL_KEY: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{LENGTH - len(PREFIX)}}}")
_DIGIT: Final = re.compile("[0-9]")

_PEM_MARK: Final = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_PEM_RUN: Final = re.compile(r"[0-9A-Za-z+/=]{40}")
"""A line of a key has 64 characters: prose about the marks has no such run."""
_PEM_BODY: Final = re.compile(r"""(?:(?:\\[nrt]|[\s"'\\,>])*+[0-9A-Za-z+/=]{20,}+)++""")
"""What follows the mark of a key that was cut off: base64 lines, also as JSON or source code writes them."""


def find(text: str, policy: ScreenPolicy) -> Sequence[Hit]:
    """Every credential in `text`; spans may overlap."""
    if len(text) < _SHORTEST:
        return ()
    return [Hit(start, end, Severity.HIGH) for start, end in _spans(text)]


def _spans(text: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    if PREFIX in text:
        # The checksum says what is one, whatever stands before or after it.
        spans += (match.span() for match in _VIRTUAL_KEY.finditer(text) if well_formed(match[0]))
    for prefix, pattern, has_digit in _FORMATS:
        if prefix in text:
            matches = pattern.finditer(text)
            spans += (match.span() for match in matches if not has_digit or _DIGIT.search(match[0]))
    if "PRIVATE KEY" in text:
        spans += _private_keys(text)
    return spans


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    # Each mark's text is looked at up to the next mark only: however many marks there are, every character once.
    marks = list(_PEM_MARK.finditer(text))
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        if mark[1] != "BEGIN":
            continue
        limit = following.start() if following else len(text)
        if following and following[1] == "END" and _PEM_RUN.search(text, mark.end(), limit):
            yield mark.start(), following.end()
        elif body := _PEM_BODY.match(text, mark.end(), limit):
            yield mark.start(), body.end()
