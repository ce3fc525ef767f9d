"""The plain terms that a policy forbids, wherever they stand, in longer words too.

Compared as Unicode's compatibility caseless match: case, width, ligatures and how an accent is written make no
difference; an accent itself does. Invisible format characters are passed over.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from security.detectors.base import Category, Hit, ScreenPolicy, Severity

CATEGORY: Final = Category.CUSTOM
REPLACEMENT: Final = "[removed]"

_MOST_FOLDS: Final = 30_000
"""Code points remembered: more than living languages use, and no more than some megabytes."""


class _Folds(dict[int, str]):
    """Code point to what it is compared as. Folding each on its own keeps positions: see `_position`."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character) == "Cf":
            folded = ""
        else:
            # Unicode 3.13, D146 but for the order of marks, which `fold` sets.
            folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        if len(self) < _MOST_FOLDS:
            self[code] = folded
        return folded


_folds: Final = _Folds()


def fold(text: str) -> str:
    """`text` as it is compared."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKD", text.translate(_folds))


def applies(policy: ScreenPolicy) -> bool:
    """Only a policy with terms has anything to look for."""
    return bool(policy.blocked_terms)


def find(text: str, policy: ScreenPolicy) -> Sequence[Hit]:
    """Every blocked term in `text`; spans may overlap."""
    folded = fold(text)
    spans = [span for term in policy.blocked_terms if term in folded for span in _spans(term, folded)]
    if not spans or text.isascii():
        return [Hit(start, end, Severity.MEDIUM) for start, end in spans]
    ends = list(accumulate(len(_folds[ord(character)]) for character in text))
    return [Hit(_position(ends, start), _position(ends, end - 1) + 1, Severity.MEDIUM) for start, end in spans]


def _spans(term: str, folded: str) -> Iterator[tuple[int, int]]:
    start = folded.find(term)
    while start >= 0:
        end = start + len(term)
        if _continues(folded[end : end + 1]):
            end = start + 1
        else:
            yield start, end
        start = folded.find(term, end)


def _continues(character: str) -> bool:
    """Whether what follows makes the term's last letter another one: an accent, a vowel or final of Hangul."""
    return character != "" and (unicodedata.combining(character) != 0 or "\u1160" <= character <= "\u11ff")


def _position(ends: list[int], index: int) -> int:
    """The character of the original whose folded form holds `index`; `ends` are where those forms end."""
    return bisect_right(ends, index)
