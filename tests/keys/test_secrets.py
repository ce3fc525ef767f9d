"""Virtual keys as strings."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import secrets

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PEPPER = b"pepper"


@given(st.binary(min_size=32, max_size=32))
def test_every_key_is_well_formed(entropy):
    secret = secrets.new_secret(entropy)
    assert re.fullmatch(r"sk-ailb_[0-9A-Za-z]{49}", secret)
    assert len(secret) == secrets.LENGTH
    assert secrets.well_formed(secret)


@given(one=st.binary(min_size=32, max_size=32), other=st.binary(min_size=32, max_size=32))
def test_different_bytes_are_different_keys(one, other):
    assert (secrets.new_secret(one) == secrets.new_secret(other)) is (one == other)


def test_each_is_new():
    assert len({secrets.new_secret() for _ in range(1000)}) == 1000


def test_all_characters_come_up():
    # The first of the 43 is the rest of 256 bits, and small; all others are any of 62.
    seen = Counter(character for _ in range(300) for character in secrets.new_secret()[9:])
    assert set(seen) == set(ALPHABET)


@given(st.binary(min_size=32, max_size=32), st.integers(8, secrets.LENGTH - 1), st.sampled_from(ALPHABET))
def test_a_slip_of_one_character_is_found(entropy, place, character):
    secret = secrets.new_secret(entropy)
    slipped = secret[:place] + character + secret[place + 1 :]
    assert secrets.well_formed(slipped) is (slipped == secret)


@given(st.binary(min_size=32, max_size=32), st.integers(8, secrets.LENGTH - 2))
def test_so_are_two_that_changed_places(entropy, place):
    secret = secrets.new_secret(entropy)
    swapped = secret[:place] + secret[place + 1] + secret[place] + secret[place + 2 :]
    assert secrets.well_formed(swapped) is (swapped == secret)


@pytest.mark.parametrize(
    "text", ["", "sk-ailb_", "sk-proj-" + "a" * 49, "sk-ailb_" + "a" * 49, "SK-AILB_" + "0" * 49, "ü" * 57]
)
def test_other_texts_are_none(text):
    assert not secrets.well_formed(text)


@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_any_text_can_be_asked_about(text):
    secrets.well_formed(text)
    assert re.fullmatch(r"[0-9a-f]{64}", secrets.digest(text, PEPPER))


def test_a_digest_needs_the_pepper():
    # HMAC-SHA256 of RFC 4231, test case 2.
    assert secrets.digest("what do ya want for nothing?", b"Jefe") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    assert secrets.digest("x", b"one") != secrets.digest("x", b"other")


def test_a_named_rotation_is_the_same_for_the_same_name_only():
    def rotated(**changes):
        return secrets.rotation_secret(**{"pepper": PEPPER, "key_id": "key_1", "rotation_id": "r1", **changes})

    assert rotated() == rotated()
    assert secrets.well_formed(rotated())
    assert len({rotated(), rotated(key_id="key_2"), rotated(rotation_id="r2"), rotated(pepper=b"other")}) == 4


def test_a_hint_is_four_characters():
    assert secrets.hint("sk-ailb_abcdefgh") == "efgh"


def test_key_ids_are_no_secrets():
    ids = {secrets.new_key_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"key_[0-9a-f]{20}", key_id) for key_id in ids)
