"""`manage.py apply_config FILE [--plan]`: bring a configuration file into the database, or say what would change."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from gateway import config_file, environment


class Command(BaseCommand):
    help = "Apply a configuration file (docs/config-file.md), whole or not at all, and say what changed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--plan", action="store_true", help="say what would change, and change nothing")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                changes = config_file.apply(options["file"])
                environment.apply_demo()  # which makes room for a file's first models
                transaction.set_rollback(options["plan"])
        except config_file.ConfigError as error:
            raise CommandError(str(error)) from None
        for change in changes:
            self.stdout.write(str(change))
        if not changes:
            self.stdout.write("nothing to change")
