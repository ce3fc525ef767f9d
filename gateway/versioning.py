"""Configuration that the data plane reads: every write tells it so.

A model whose rows are part of the snapshot derives from `Versioned`. Its manager's bulk writes and its own saves
and deletes raise the section's number in the same transaction, so whoever sees the number sees the change; on
commit this process refreshes its snapshot at once, and others find the number by polling.

A leaf: the snapshot registers itself with `on_change`, nothing here knows it.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from django.db import models, transaction
from django.db.models import F

M = TypeVar("M", bound=models.Model)

_listeners: list[Callable[[], None]] = []


def on_change(listener: Callable[[], None]) -> None:
    """Call `listener` after each commit that changed configuration in this process."""
    _listeners.append(listener)


def forget(listener: Callable[[], None]) -> None:
    """Undo `on_change`."""
    _listeners.remove(listener)


def bump(section: str, using: str | None = None) -> None:
    """Raise `section`'s number in the current transaction and tell this process's listeners on commit."""
    from gateway.models import ConfigVersion

    with transaction.atomic(using=using):
        rows = ConfigVersion.objects.using(using).filter(section=section)
        if not rows.update(number=F("number") + 1):
            ConfigVersion.objects.using(using).get_or_create(section=section, defaults={"number": 1})
            rows.update(number=F("number") + 1)
        transaction.on_commit(_tell, using=using)


def _tell() -> None:
    for listener in tuple(_listeners):
        listener()


class VersionedQuerySet(models.QuerySet[M]):
    """Bulk writes that pass `Model.save` by still raise the version."""

    def _changed(self) -> None:
        bump(self.model.snapshot_section, using=self.db)  # type: ignore[attr-defined]

    def update(self, **kwargs: Any) -> int:
        with transaction.atomic(using=self.db):
            count = super().update(**kwargs)
            self._changed()
        return count

    def delete(self) -> tuple[int, dict[str, int]]:
        with transaction.atomic(using=self.db):
            result = super().delete()
            self._changed()
        return result

    def bulk_create(self, objs: Iterable[M], *args: Any, **kwargs: Any) -> list[M]:
        with transaction.atomic(using=self.db):
            result = super().bulk_create(objs, *args, **kwargs)
            self._changed()
        return result

    def bulk_update(self, objs: Iterable[M], *args: Any, **kwargs: Any) -> int:
        with transaction.atomic(using=self.db):
            count = super().bulk_update(objs, *args, **kwargs)
            self._changed()
        return count

    def update_quietly(self, **kwargs: Any) -> int:
        """An update of columns that the snapshot does not read (`last_used`): no version, no reload."""
        return super().update(**kwargs)


class Versioned(models.Model):
    """Base of every model in the snapshot; `snapshot_section` names the part that is read again."""

    snapshot_section: ClassVar[str]
    quiet_fields: ClassVar[frozenset[str]] = frozenset()
    """Columns that the snapshot does not read: `save(update_fields=…)` of these alone raises no version."""

    objects = models.Manager.from_queryset(VersionedQuerySet)()

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        with transaction.atomic(using=kwargs.get("using")):
            super().save(*args, **kwargs)
            if not (kwargs.get("update_fields") and self.quiet_fields.issuperset(kwargs["update_fields"])):
                bump(self.snapshot_section, using=kwargs.get("using"))

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        with transaction.atomic(using=kwargs.get("using")):
            result = super().delete(*args, **kwargs)
            bump(self.snapshot_section, using=kwargs.get("using"))
        return result
