"""How services of the control plane write: one at a time."""

from collections.abc import Generator
from contextlib import contextmanager

from django.db import transaction

from gateway.models import ConfigVersion
from gateway.versioning import Versioned


@contextmanager
def alone(section: type[Versioned]) -> Generator[None, None, None]:
    """A transaction that begins with the lock that its writes end in: the version row of the model's section.

    Every write raises that number, so writers queue there anyway; but late, each with rows of its own already locked,
    and two who made a user and a team in different orders would wait for each other until PostgreSQL ended one. As a
    decorator: `@alone(VirtualKey)`. On SQLite transactions exclude each other as they are.
    """
    row = ConfigVersion.objects.select_for_update().filter(section=section.snapshot_section)
    with transaction.atomic():
        if row.first() is None:  # the first write of all
            ConfigVersion.objects.get_or_create(section=section.snapshot_section)
            row.get()
        yield
