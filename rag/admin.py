# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Collections and documents in the console: made, read and deleted; a changed text is a new document."""

from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.db.models.functions import Length
from django.http import HttpRequest
from unfold.contrib.filters.admin import RelatedDropdownFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminFileFieldWidget, UnfoldAdminTextareaWidget

from ailb_project.console import ConsoleAdmin, actor_of, owned
from ailb_project.console_fields import json_object
from keys import policy
from keys.actors import Actor
from keys.policy import Reach
from rag.models import Collection, Document, Passage

_WAYS = {"view": "read", "add": "create", "delete": "delete"}
_LARGEST = 5 * 1024 * 1024
"""Bytes of an uploaded text: a thick book is one million characters. More comes through `/api`."""


@admin.register(Collection)
class CollectionAdmin(ConsoleAdmin):
    resource = "collections"
    ways = _WAYS
    list_display = ("name", "owner_name", "documents", "created_at")
    search_fields = ("name", "owner", "description")
    ordering = ("name",)
    readonly_fields = ("created_at",)
    fieldsets = ((None, {"fields": ("name", "owner", "description", "created_at")}),)

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return owned(Collection.objects.all(), actor, self.resource, action, shared=action == "read")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).annotate(number=models.Count("documents"))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Whoever makes collections for themselves alone does not say whose."""
        fieldsets = super().get_fieldsets(request, obj)
        if obj is not None or policy.reach(actor_of(request), "collections", "create") is Reach.ALL:
            return fieldsets
        return [(None, {"fields": ("name", "description")})]

    @display(description="owner", ordering="owner")
    def owner_name(self, collection: Collection) -> str:
        return collection.owner or "everyone"

    @display(description="documents", ordering="number")
    def documents(self, collection: Any) -> int:
        return int(collection.number)

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        actor = actor_of(request)
        if policy.reach(actor, "collections", "create") is not Reach.ALL:
            obj.owner = f"user:{actor.user_id}"
        super().write(request, obj, form, change)


class DocumentForm(forms.ModelForm):
    """A text, typed or from a file."""

    text = forms.CharField(required=False, strip=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 12}))
    file = forms.FileField(
        required=False,
        widget=UnfoldAdminFileFieldWidget,
        help_text="Instead of typing: a text in UTF-8 (txt, md, csv, json), up to 5 MB.",
    )

    class Meta:
        model = Document
        fields = ("collection", "title", "text", "metadata")

    def clean_metadata(self) -> Any:
        return json_object(self.cleaned_data["metadata"])

    def clean_file(self) -> Any:
        file = self.cleaned_data["file"]
        if file is not None and file.size > _LARGEST:
            raise forms.ValidationError("The file is larger than 5 MB.")
        return file

    def clean(self) -> Any:
        cleaned = super().clean()
        file = self.cleaned_data.get("file")
        if file is not None:
            self.cleaned_data["text"] = self._decoded(file)
            self.cleaned_data["title"] = self.cleaned_data.get("title") or file.name[:500]
        if not self.errors and not (self.cleaned_data.get("text") or "").strip():
            self.add_error("text", "A text, or a file that holds one.")
        return cleaned

    def _decoded(self, file: Any) -> str:
        try:
            text: str = file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            self.add_error("file", "This is not a text in UTF-8.")
            return ""
        if "\0" in text:
            self.add_error("file", "This is not a text.")
            return ""
        return text


@admin.register(Document)
class DocumentAdmin(ConsoleAdmin):
    resource = "collections"
    ways = _WAYS
    form = DocumentForm
    unaudited = frozenset({"text"})
    audit_each = False
    list_display = ("name", "collection", "length", "created_at")
    list_filter = (("collection", RelatedDropdownFilter),)
    list_select_related = ("collection",)
    search_fields = ("title", "public_id__exact", "collection__name")
    readonly_fields = ("public_id", "passages", "created_at")
    add_fieldsets = ((None, {"fields": ("collection", "title", "file", "text", "metadata")}),)
    fieldsets = (
        (None, {"fields": ("collection", "title", ("public_id", "created_at"), "passages", "metadata", "text")}),
    )

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        within = owned(Collection.objects.all(), actor, self.resource, action, shared=action == "read")
        return Document.objects.filter(collection__in=within)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("text").annotate(number=Length("text"))

    def get_list_filter(self, request: HttpRequest) -> Any:
        # Its choices are all collections there are.
        everything = policy.reach(actor_of(request), "collections", "read") is Reach.ALL
        return super().get_list_filter(request) if everything else ()

    def get_field_queryset(self, db: Any, db_field: Any, request: HttpRequest) -> Any:
        """Shared collections are read by everyone and filled by admins."""
        if db_field.name == "collection":
            return owned(Collection.objects.all(), actor_of(request), "collections", "create")
        return super().get_field_queryset(db, db_field, request)

    @display(description="title", ordering="title")
    def name(self, document: Document) -> str:
        return str(document)

    @display(description="characters", ordering="number")
    def length(self, document: Any) -> int:
        return int(document.number)

    @display(description="passages")
    def passages(self, document: Document) -> int:
        return Passage.objects.filter(document=document).count()
