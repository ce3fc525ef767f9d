"""Blocked terms, compared without case and width, with positions of the text as it came."""

import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from security.detectors import terms
from tests.security.builders import policy
from tests.security.contract import DetectorContract


class TestTerms(DetectorContract):
    name = "terms"
    policy = policy("Project Titan", "größe", "機密情報", "한국")
    held = [
        "Project Titan",
        "PROJECT TITAN",
        "ｐｒｏｊｅｃｔ ｔｉｔａｎ",  # full width
        "pro\u00adject ti\u200btan",  # soft hyphen, zero-width space
        "GRÖSSE",
        "gro\u0308ße",
        "機密情報",
        "한국",
    ]
    clean = ["a project of titans", "grosse", "機密", "한글", "titan project"]
    hostile = ["project tita", "größ", "機密情", "e\u0301", "한", "\u200b"]


def found(text, *blocked):
    return [text[hit.start : hit.end] for hit in terms.find(text, policy(*blocked))]


def test_without_terms_there_is_nothing_to_find():
    assert not terms.applies(policy())
    assert terms.applies(policy("titan"))


def test_a_term_is_found_inside_a_longer_word_and_each_time():
    assert found("Titanic, TITANIUM", "titan") == ["Titan", "TITAN"]


def test_an_accent_makes_another_letter():
    assert found("Caf\u00e9 cafe\u0301", "cafe") == []
    assert found("Caf\u00e9 cafe\u0301", "café") == ["Caf\u00e9", "cafe\u0301"]


def test_a_term_that_was_no_match_may_begin_one_character_later():
    assert found("aaa\u0301 aaa", "aaa") == ["aaa"]
    assert found("ába\u0301ba", "ába") == ["a\u0301ba"]


@pytest.mark.parametrize(
    ("text", "blocked", "expected"),
    [
        ("ﬁreﬁghters", "fight", "ﬁght"),  # a ligature is one character and two letters
        ("İstanbul plan", "plan", "plan"),  # grows when its case is folded
        ("a ㎏ of plans", "kg of", "㎏ of"),
        ("the ﬀt, the stuﬀ!", "stuf", "stuﬀ"),  # half of a ligature takes all of it
    ],
)
def test_positions_are_those_of_the_text_as_it_came(text, blocked, expected):
    assert found(text, blocked) == [expected]


@given(st.text(), st.text(min_size=3, max_size=10), st.text())
@example("", "ΑΣ.", "")
@example("", "ﬃx", "x")
def test_any_term_is_found_in_any_case(before, term, after):
    folded = terms.fold(term)
    assume(folded)  # a term of nothing visible is refused when it is saved
    text = f"{before} {term.upper()} {after}"
    hits = terms.find(text, policy(term.upper()))
    assert any(folded in terms.fold(text[hit.start : hit.end]) for hit in hits)


@given(st.text())
def test_folding_is_stable_and_does_not_depend_on_the_normal_form(text):
    once = terms.fold(text)
    assert terms.fold(once) == once
    assert {terms.fold(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")} == {once}


def test_the_remembered_code_points_stay_within_bounds(monkeypatch):
    monkeypatch.setattr(terms, "_MOST_FOLDS", len(terms._folds))
    terms.fold("\U00012000")  # a character that no other test folds
    assert len(terms._folds) <= terms._MOST_FOLDS
