"""Knowledge: collections of documents, cut into the passages that prompts are given."""

import re
import secrets
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from django.core.validators import RegexValidator
from django.db import models, transaction
from django.utils import timezone

NAME = RegexValidator(r"^[^\s/\x00-\x1f\x7f]+\Z", "No spaces, slashes or control characters.")
PASSAGE: Final = 1_000
"""Characters, the most a passage has: a few paragraphs, some 250 tokens."""

_BLANK_LINES: Final = re.compile(r"\n\s*\n")


def split(text: str) -> list[str]:
    """Cut `text` into passages of at most `PASSAGE` characters.

    Between paragraphs where possible, then at an end of line, of a sentence or of a word, and in a word only where
    there is nothing else. Nothing but white space is lost.
    """
    passages: list[str] = []
    for paragraph in _BLANK_LINES.split(text):
        for piece in _pieces(paragraph.strip()):
            if passages and len(passages[-1]) + len(piece) + 2 <= PASSAGE:
                passages[-1] += "\n\n" + piece
            else:
                passages.append(piece)
    return passages


def _pieces(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > PASSAGE:
        end = start + _border(paragraph[start : start + PASSAGE])
        yield paragraph[start:end].rstrip()
        start = end + len(paragraph[end : end + PASSAGE]) - len(paragraph[end : end + PASSAGE].lstrip())
    if start < len(paragraph):
        yield paragraph[start:]


def _border(piece: str) -> int:
    """Where to cut: after the last border in its second half."""
    for mark in ("\n", ". ", "。", " "):
        at = piece.rfind(mark, PASSAGE // 2)
        if at >= 0:
            return at + len(mark)
    return len(piece)


def new_document_id() -> str:
    return f"doc_{secrets.token_hex(10)}"


class Collection(models.Model):
    """Documents that are searched together."""

    name = models.CharField(max_length=200, unique=True, validators=[NAME])
    owner = models.CharField(
        max_length=250,
        blank=True,
        default="",
        help_text="`user:` or `key:` and whose (gateway.types.Caller.owner); empty: everyone's in the organisation.",
    )
    description = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class Document(models.Model):
    """A text of a collection. Saving it cuts it into passages; `QuerySet.update` does not."""

    collection = models.ForeignKey(Collection, on_delete=models.CASCADE, related_name="documents")
    public_id = models.CharField("id", max_length=40, unique=True, default=new_document_id, editable=False)
    title = models.CharField(max_length=500, blank=True, default="")
    text = models.TextField()
    metadata = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]

    def __str__(self) -> str:
        return self.title or self.public_id

    def save(self, *args: Any, **kwargs: Any) -> None:
        fields = kwargs.get("update_fields")
        with transaction.atomic(using=kwargs.get("using")):
            super().save(*args, **kwargs)
            if fields is None or "text" in fields:
                self.passages.all().delete()
                Passage.objects.bulk_create(
                    Passage(document=self, position=position, text=text)
                    for position, text in enumerate(split(self.text))
                )


class Passage(models.Model):
    """A piece of a document, small enough to be put into a prompt."""

    document = models.ForeignKey(Document, on_delete=models.CASCADE, related_name="passages")
    position = models.PositiveIntegerField(help_text="Within the document, from 0.")
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["document", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["document", "position"], name="one_passage_a_position"),
        ]

    def __str__(self) -> str:
        return f"{self.document} {self.position}"
