"""`manage.py settings_docs`: docs/configuration.md, made from the settings themselves."""

from typing import Any

from django.core.management.base import BaseCommand

from ailb_project.env import documentation


class Command(BaseCommand):
    help = "Print docs/configuration.md."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(documentation(), ending="")
