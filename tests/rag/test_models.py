"""Documents and the passages they are cut into."""

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from hypothesis import example, given
from hypothesis import strategies as st

from rag.models import PASSAGE, Collection, Document, Passage, split


def letters(text):
    return "".join(text.split())


@given(st.text(alphabet="ab. \n。é", max_size=200).map(lambda text: text * 20))
@example("word " * 1000)
@example("x" * 5000)
@example(" " * 5000)
@example("a\r\n\r\nb")
@example("x" * 1000 + "\n\n" + "y" * 1000)
@example("x" * 999 + " " * 50 + "y" * 1000)
def test_passages_hold_everything_in_order_and_none_is_too_long(text):
    passages = split(text)
    assert all(0 < len(passage) <= PASSAGE for passage in passages)
    assert all(passage == passage.strip() for passage in passages)
    assert letters("".join(passages)) == letters(text)


def test_short_paragraphs_share_a_passage():
    assert split("A title\n\nA paragraph.\n \n\nAnother.") == ["A title\n\nA paragraph.\n\nAnother."]


def test_paragraphs_are_not_torn_where_they_fit():
    first, second = "a" * 600, "b" * 600
    assert split(f"{first}\n\n{second}") == [first, second]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("x" * 700 + "\n" + "y z. " * 100, "x" * 700),
        ("x" * 700 + ". " + "y z " * 100, "x" * 700 + "."),
        ("字" * 700 + "。" + "字" * 700, "字" * 700 + "。"),
        ("x" * 700 + " " + "y" * 700, "x" * 700),
        ("x" * 1500, "x" * 1000),
    ],
)
def test_a_long_paragraph_is_cut_at_a_line_a_sentence_a_word_or_else_anywhere(text, first):
    assert split(text)[0] == first


@pytest.mark.django_db
class TestDocument:
    def test_saving_it_makes_its_passages(self):
        collection = Collection.objects.create(name="handbook")
        document = Document.objects.create(collection=collection, title="Leave", text="a" * 900 + "\n\n" + "b" * 900)
        assert list(document.passages.values_list("position", "text")) == [(0, "a" * 900), (1, "b" * 900)]
        assert document.public_id.startswith("doc_")

    def test_a_new_text_makes_new_passages(self):
        document = Document.objects.create(collection=Collection.objects.create(name="c"), text="old")
        document.text = "new"
        document.save()
        assert list(Passage.objects.values_list("text", flat=True)) == ["new"]

    def test_another_title_leaves_the_passages(self):
        document = Document.objects.create(collection=Collection.objects.create(name="c"), text="same")
        before = Passage.objects.get().pk
        document.title = "Renamed"
        document.save(update_fields=["title"])
        assert Passage.objects.get().pk == before

    def test_deleting_a_collection_leaves_nothing(self):
        collection = Collection.objects.create(name="c")
        Document.objects.create(collection=collection, text="text")
        collection.delete()
        assert not Passage.objects.exists()


@pytest.mark.django_db
class TestCollection:
    def test_a_name_is_given_once(self):
        Collection.objects.create(name="c", owner="user:alice")
        with pytest.raises(IntegrityError), transaction.atomic():
            Collection.objects.create(name="c", owner="user:bob")

    @pytest.mark.parametrize("name", ["", "two words", "a/b", "tab\t", "line\n", "nul\x00"])
    def test_a_bad_name_is_refused(self, name):
        with pytest.raises(ValidationError):
            Collection(name=name).full_clean()

    @pytest.mark.parametrize("name", ["handbook", "Handbuch-2026.v2", "製品"])
    def test_a_good_name_is_taken(self, name):
        Collection(name=name).full_clean()
