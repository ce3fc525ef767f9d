# mypy: disallow-untyped-decorators=False, warn-return-any=False, disallow-any-generics=False
"""What every page of the console has in common.

The console is Django's admin in unfold's clothes. Who may see and do what is not Django's permissions but the one
table of `keys.policy`, as on `/api`; every write goes through a service, or is audited here in its own transaction;
Django's own log of changes is off. Other people's objects are not found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from django import forms
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models, router, transaction
from django.db.models.deletion import Collector, ProtectedError, RestrictedError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.paginator import InfinitePaginator

from ailb_project.console_fields import DollarsField, trimmed
from billing.fields import MoneyField
from keys import policy
from keys.actors import Actor
from keys.api.authentication import actor_of_user
from keys.policy import Conflict, Reach
from security import audit

READ: Final[Mapping[str, str]] = {"view": "read"}
WRITE: Final[Mapping[str, str]] = {"view": "read", "add": "create", "change": "update", "delete": "delete"}
"""Django's permissions, and the policy's actions that they stand for."""

_NEVER_LOOKED_UP = frozenset({"password", "digest", "previous_digest", "credentials"})
"""Columns that `?column__startswith=…` on a list would give away a character at a time."""

_PROTECTED_SHOWN = 20


def actor_of(request: HttpRequest) -> Actor:
    """Who is signed in, as services and the policy know them."""
    return actor_of_user(request.user, via="console", ip=request.META.get("REMOTE_ADDR"))  # type: ignore[arg-type]


def sees(request: HttpRequest, label: str) -> bool:
    """Whether the list of this model (`app.model`) is there for them."""
    registered = admin.site._registry.get(apps.get_model(label))
    return registered is not None and registered.has_module_permission(request)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Refused(Exception):
    """A service, or the database, said no to what the form had let through. Undoes the transaction, then is shown."""

    def __init__(self, error: ValidationError) -> None:
        super().__init__("; ".join(error.messages))
        self.error = error


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what services raise for the one who asked into `Refused`."""
    try:
        yield
    except ValidationError as error:
        raise Refused(error) from error
    except (Conflict, PermissionDenied) as error:
        raise Refused(ValidationError(str(error) or "Not allowed.")) from error
    except (ProtectedError, RestrictedError) as error:
        raise Refused(ValidationError(str(error.args[0]))) from error


def _refusing(form: type[forms.ModelForm], error: ValidationError, names: Mapping[str, str]) -> type[forms.ModelForm]:
    """The form that shows the error and keeps what was typed."""
    told = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}

    class Refusing(form):  # type: ignore[misc,valid-type]
        def clean(self) -> Any:
            cleaned = super().clean()
            for name, texts in told.items():
                field = names.get(name, name)
                self.add_error(field if field in self.fields else None, texts)
            return cleaned

    return Refusing


# ── the admin of a model ────────────────────────────────────────────────────────────────────────────────────────────


class ConsoleAdmin(ModelAdmin):
    """Asks the policy who may, narrows what is found, audits what is written.

    A model with a service overrides `write` (and `remove`) to call it; for the others `write` and `remove` here save
    and delete, and record it. Every admin has `fieldsets`.
    """

    resource: ClassVar[str]
    ways: ClassVar[Mapping[str, str]] = WRITE
    everyones: ClassVar[bool] = False
    """Belongs to nobody in particular: only who reaches everything may write it."""
    policy_names: ClassVar[Mapping[str, str]] = {}
    """What the policy calls a field, where that is not the field's own name."""
    fixed: ClassVar[Sequence[str]] = ()
    """Fields that are given once and then stay."""
    unaudited: ClassVar[frozenset[str]] = frozenset()
    """Columns with what people wrote: the audit log has their length."""
    audit_each: ClassVar[bool] = True
    """Whether rows that go with what they belong to are each recorded, or only counted."""
    has_service: ClassVar[bool] = False

    list_per_page = 50
    show_full_result_count = False
    list_filter_submit = True
    compressed_fields = False
    warn_unsaved_form = True
    change_form_outer_before_template = "admin/console/managed.html"

    def __init__(self, model: type[models.Model], admin_site: admin.AdminSite) -> None:
        super().__init__(model, admin_site)
        amounts = [field.name for field in model._meta.fields if isinstance(field, MoneyField)]
        self.readonly_preprocess_fields: dict[str, Any] = dict.fromkeys(amounts, trimmed)

    # who may

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        """The rows that the action reaches."""
        rows = self.model._default_manager.all()
        return rows if policy.reach(actor, self.resource, action) is Reach.ALL else rows.none()

    def allowed_fields(self, actor: Actor, action: str) -> frozenset[str] | None:
        """By the policy's names; None is all."""
        return policy.allowed_fields(actor, self.resource, action)

    def may(self, request: HttpRequest, way: str, obj: models.Model | None = None) -> bool:
        """Whether the policy lets them, over this object where there is one."""
        action = self.ways.get(way)
        if action is None:
            return False
        actor = actor_of(request)
        distance = policy.reach(actor, self.resource, action)
        if distance is Reach.ALL or obj is None or distance is Reach.NONE:
            return distance is Reach.ALL or (distance is not Reach.NONE and (way == "view" or not self.everyones))
        if self.everyones and way != "view":
            return False
        return bool(self.scoped(actor, action).filter(pk=obj.pk).exists())

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        shown = self._shown(request)
        return self.may(request, "view", obj) and (shown is None or bool(shown))

    def has_add_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return self.may(request, "add")

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return not getattr(obj, "managed_by", "") and self.may(request, "change", obj)

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return not getattr(obj, "managed_by", "") and self.may(request, "delete", obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated and self.has_view_permission(request)

    # what is found

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        rows = self.scoped(actor_of(request), self.ways["view"])
        ordering = self.get_ordering(request)
        return rows.order_by(*ordering) if ordering else rows

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> models.Model:
        found = super().get_object(request, object_id, from_field)
        if found is None:
            raise Http404("No such object.")
        return found

    def get_field_queryset(self, db: Any, db_field: Any, request: HttpRequest) -> models.QuerySet | None:
        """What a select offers, and takes, is what they may see."""
        related = self.admin_site._registry.get(db_field.remote_field.model)
        return (
            related.get_queryset(request) if related is not None else super().get_field_queryset(db, db_field, request)
        )

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        parts = lookup.split("__")
        shown = self._shown(request) if request is not None else None
        if _NEVER_LOOKED_UP.intersection(parts) or (shown is not None and parts[0] not in shown):
            return False
        return bool(super().lookup_allowed(lookup, value, request))

    # what is shown

    def _shown(self, request: HttpRequest) -> frozenset[str] | None:
        """The fields that they may see; None is all."""
        allowed = self.allowed_fields(actor_of(request), self.ways["view"])
        if allowed is None:
            return None
        return frozenset(field.name for field in self.opts.fields if self._policy_name(field.name) in allowed)

    def _policy_name(self, field: str) -> str:
        return self.policy_names.get(field, field)

    def _written(self, request: HttpRequest, way: str, names: Iterable[str]) -> list[str]:
        """Those of the names that they may write."""
        allowed = self.allowed_fields(actor_of(request), self.ways[way])
        return [name for name in names if allowed is None or self._policy_name(name) in allowed]

    def get_fieldsets(self, request: HttpRequest, obj: models.Model | None = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        names = flatten_fieldsets(fieldsets)
        shown = self._shown(request)
        if shown is not None:
            names = [name for name in names if name in shown]
        if obj is None:
            names = self._written(request, "add", [name for name in names if name not in self.readonly_fields])
        return _narrowed(fieldsets, names)

    def get_readonly_fields(self, request: HttpRequest, obj: models.Model | None = None) -> Sequence[str]:
        if obj is None:
            return tuple(self.readonly_fields)
        names = flatten_fieldsets(super().get_fieldsets(request, obj))
        if not self.has_change_permission(request, obj):
            return tuple(names)
        written = set(self._written(request, "change", names)) - set(self.fixed)
        return (*self.readonly_fields, *(name for name in names if name not in written))

    def get_list_display(self, request: HttpRequest) -> Any:
        shown = self._shown(request)
        columns = super().get_list_display(request)
        return columns if shown is None else [name for name in columns if name in shown]

    def get_list_filter(self, request: HttpRequest) -> Any:
        return super().get_list_filter(request) if self._shown(request) is None else ()

    def get_search_fields(self, request: HttpRequest) -> Any:
        shown = self._shown(request)
        names = super().get_search_fields(request)
        return names if shown is None else [name for name in names if name.split("__")[0] in shown]

    def get_inlines(self, request: HttpRequest, obj: models.Model | None) -> Any:
        return super().get_inlines(request, obj) if self._shown(request) is None else ()

    def formfield_for_dbfield(self, db_field: models.Field, request: HttpRequest, **kwargs: Any) -> Any:
        if isinstance(db_field, MoneyField):
            return db_field.formfield(form_class=DollarsField)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    # writing

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        error = getattr(request, "console_refusal", None)
        if error is not None:
            form = _refusing(form, error, {theirs: ours for ours, theirs in self.policy_names.items()})
        # A field that a form declares is there for Django whether or not the page has it.
        there = set(flatten_fieldsets(self.get_fieldsets(request, obj)))
        form.base_fields = {name: field for name, field in form.base_fields.items() if name in there}
        return form

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        if self.ways is READ:
            extra_context = {"show_history": False, **(extra_context or {})}
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except Refused as refused:
            # Its transaction is undone: the same request again, whose form now says what was wrong.
            request.console_refusal = refused.error  # type: ignore[attr-defined]
            return super().changeform_view(request, object_id, form_url, extra_context)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        try:
            return super().changelist_view(request, extra_context)
        except Refused as refused:
            return self.refuse(request, refused, request.get_full_path())

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except Refused as refused:
            return self.refuse(request, refused, reverse(self._url_name("change"), args=[object_id]))

    def refuse(self, request: HttpRequest, refused: Refused, url: str) -> HttpResponse:
        self.message_user(request, str(refused), messages.ERROR)
        return HttpResponseRedirect(url)

    def save_model(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        with refusals():
            form.was = self.audited_state(self._stored(obj)) if change and not self.has_service else None
            self.write(request, obj, form, change)

    def write(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        """Save what the form says. Where `has_service`, it also records it."""
        if form.has_changed() or not change:
            obj.save()

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        with refusals():
            super().save_related(request, form, formsets, change)
            if not self.has_service:
                self._record_saved(request, form, change)

    def _record_saved(self, request: HttpRequest, form: Any, change: bool) -> None:
        after = {**self.audited_state(form.instance), **self.audited_notes(form)}
        if not change:
            self.record(request, form.instance, "create", after=after)
            return
        was, now = audit.difference(form.was, after)
        if now:
            self.record(request, form.instance, "update", before=was, after=now)

    def _stored(self, obj: models.Model) -> models.Model:
        return self.model._base_manager.select_for_update().get(pk=obj.pk)

    def audited_state(self, obj: models.Model) -> dict[str, Any]:
        """The row as the audit log keeps it."""
        told = audit.state(obj)
        return told | {name: f"({len(told[name] or '')} characters)" for name in self.unaudited}

    def audited_notes(self, form: Any) -> dict[str, Any]:
        """What a form changed that its row's state does not show."""
        return {}

    def record(self, request: HttpRequest, obj: models.Model, action: str, **told: Any) -> None:
        audit.record(actor=actor_of(request), action=action, target=obj, **told)

    # deleting

    def get_deleted_objects(self, objs: Iterable[Any], request: HttpRequest) -> tuple[Any, Any, Any, Any]:
        """For the confirmation: counts, not a list of every passage or turn that goes along."""
        objs = list(objs)
        refused = {self.opts.verbose_name for obj in objs if not self.has_delete_permission(request, obj)}
        try:
            counts = [_counts(collected(obj)) for obj in objs]
        except (ProtectedError, RestrictedError) as error:
            return [str(obj) for obj in objs], {}, refused, _named(error)
        total: dict[str, int] = {}
        for model, number in (pair for count in counts for pair in count.items()):
            name = str(apps.get_model(model)._meta.verbose_name_plural)
            total[name] = total.get(name, 0) + number
        return [f"{capfirst(self.opts.verbose_name)}: {obj}" for obj in objs], total, refused, []

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        with refusals(), transaction.atomic():
            self.remove(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        with transaction.atomic():
            for obj in queryset:
                self.delete_model(request, obj)

    def remove(self, request: HttpRequest, obj: models.Model) -> None:
        """Delete and record, what goes along too."""
        goes = collected(obj)
        along = {label: number for label, number in _counts(goes).items() if label != self.opts.label_lower}
        self.record(request, obj, "delete", before=self.audited_state(obj) | ({"along": along} if along else {}))
        for model, rows in goes.data.items():
            theirs = self.admin_site._registry.get(model)
            if model is not self.model and isinstance(theirs, ConsoleAdmin) and theirs.audit_each:
                for row in model._base_manager.filter(pk__in=[row.pk for row in rows]):
                    theirs.record(request, row, "delete", before=theirs.audited_state(row))
        obj.delete()

    # Django's own log: the audit log has it all

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        return None

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None:
        return None

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        return None

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        if not (self.has_view_permission(request, obj) and sees(request, "security.auditentry")):
            raise PermissionDenied
        query = urlencode({"object_type": self.opts.label_lower, "object_id": obj.pk})
        return HttpResponseRedirect(f"{reverse('admin:security_auditentry_changelist')}?{query}")

    def _url_name(self, page: str) -> str:
        return f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{page}"


class LongList(ConsoleAdmin):
    """A read-only list of perhaps millions of rows, newest first: nothing is counted, nothing sorted."""

    ways = READ
    actions = None
    list_fullwidth = True
    paginator = InfinitePaginator
    sortable_by = ()
    show_facets = admin.ShowFacets.NEVER


class Switchable(ConsoleAdmin):
    """A model whose rows can be switched off."""

    actions = ("enable", "disable")

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._switch(request, queryset, enabled=True)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._switch(request, queryset, enabled=False)

    def _switch(self, request: HttpRequest, queryset: models.QuerySet, *, enabled: bool) -> None:
        left = 0
        with refusals(), transaction.atomic():
            # By their ids: PostgreSQL locks no rows of a list that counts something beside them.
            for row in self.model._base_manager.select_for_update().filter(pk__in=queryset.values("pk")):
                if not self.has_change_permission(request, row):
                    left += 1
                elif row.enabled is not enabled:
                    row.enabled = enabled
                    row.full_clean()
                    row.save()
                    self.record(request, row, "update", before={"enabled": not enabled}, after={"enabled": enabled})
        if left:
            self.message_user(request, f"{left} left as they are: they are defined elsewhere.", messages.WARNING)


def owned(rows: models.QuerySet, actor: Actor, resource: str, action: str, *, shared: bool = False) -> models.QuerySet:
    """Rows whose `owner` is `user:` and a name, as memory and knowledge have it; `shared`: everyone's too."""
    distance = policy.reach(actor, resource, action)
    if distance is Reach.ALL:
        return rows
    owners = [f"user:{actor.user_id}", *([""] if shared else [])]
    return rows.none() if distance is Reach.NONE or actor.user_id is None else rows.filter(owner__in=owners)


def check_owner(scope: str, owner: str) -> None:
    """Refuse an owner that is not there: a limit on a misspelt name would limit nobody."""
    found = {
        "key": apps.get_model("keys.virtualkey").objects.filter(pk=owner),
        "user": apps.get_model("keys.user").objects.filter(username=owner),
        "team": apps.get_model("keys.team").objects.filter(name=owner),
    }
    if scope in found and not found[scope].exists():
        raise ValidationError({"owner": f"There is no such {scope}."})


def collected(obj: models.Model) -> Collector:
    """What deleting it deletes. Raises `ProtectedError`."""
    collector = Collector(using=router.db_for_write(type(obj)), origin=obj)
    collector.collect([obj])
    return collector


def _counts(goes: Collector) -> dict[str, int]:
    counts = {model._meta.label_lower: len(rows) for model, rows in goes.data.items()}
    for rows in goes.fast_deletes:
        label = rows.model._meta.label_lower
        counts[label] = counts.get(label, 0) + rows.count()
    return {label: number for label, number in counts.items() if number}


def _named(error: ProtectedError | RestrictedError) -> list[str]:
    rows = error.protected_objects if isinstance(error, ProtectedError) else error.restricted_objects
    names = sorted(f"{capfirst(row._meta.verbose_name)}: {row}" for row in rows)
    more = len(names) - _PROTECTED_SHOWN
    return [*names[:_PROTECTED_SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _narrowed(fieldsets: Any, names: Iterable[str]) -> list[tuple[Any, dict[str, Any]]]:
    """The fieldsets with these names alone; empty ones are left out."""
    kept = set(names)
    narrowed = []
    for title, options in fieldsets:
        lines = [_line(line, kept) for line in options["fields"]]
        if fields := [line for line in lines if line]:
            narrowed.append((title, {**options, "fields": fields}))
    return narrowed


def _line(line: Any, kept: set[str]) -> Any:
    if isinstance(line, str):
        return line if line in kept else None
    return tuple(name for name in line if name in kept)
