"""`manage.py verify_counters`: every budget's counter beside what the ledger adds up to."""

from argparse import ArgumentParser
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from billing import verification
from billing.counters.base import Amount

_HEADINGS = ("budget", "since", "ledger", "open", "counter", "reserved", "leased", "")
_IN_PROCESS = (
    "REDIS_URL is not set: the counters are inside the gateway's process, which compares them itself once a day. "
    "Shown is what the ledger says."
)


class Command(BaseCommand):
    help = "Compare each budget's counter with the ledger; exit status 1 where one differs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--repair", action="store_true", help="make the counters what the ledger says")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            results = list(verification.verify(repair=options["repair"]))
        except redis.RedisError as error:
            raise CommandError(f"Redis does not answer: {type(error).__name__}") from None
        self.stdout.write(_table([_HEADINGS, *(_row(result) for result in results)]))
        if settings.ENV.REDIS_URL is None:
            self.stdout.write(_IN_PROCESS)
        differing = sum(result.differs for result in results)
        if differing:
            done = "was repaired" if options["repair"] else "is to be repaired with --repair"
            raise CommandError(f"{differing} of {len(results)} counters differed from the ledger, which {done}.")


def _row(result: verification.Result) -> tuple[str, ...]:
    note = "differs" if result.differs else ""
    if result.unexplained:
        note += f": {len(result.unexplained)} reserved by requests that are not open"
    return (
        f"{result.budget.pk} {result.budget}", f"{result.since:%Y-%m-%d %H:%M}", _told(result.ledger),
        _told(result.open), _told(result.counted), _told(result.reserved), _told(result.leased), note,
    )  # fmt: skip


def _told(amount: Amount | None) -> str:
    if amount is None:
        return "-"
    return f"${(amount.usd or Decimal(0)).normalize():f} {amount.tokens} tokens"


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in padded)
