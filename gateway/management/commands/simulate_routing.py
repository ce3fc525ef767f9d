"""`manage.py simulate_routing --since 24h --strategy NAME …`: what other strategies or prices would have done."""

import json
import re
from argparse import ArgumentParser
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from billing import history, pricebook, pricelist
from gateway import registry
from gateway.config_file.document import ConfigError
from gateway.routing import strategies
from gateway.simulation.replay import Terms, replay
from gateway.simulation.report import as_json, as_table
from keys.models import VirtualKey

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Command(BaseCommand):
    help = (
        "Replay the ledger's requests through other strategies or at other prices, and print cost, expected latency "
        "and load per deployment against what happened (docs/routing.md)."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--since", required=True, help="a date (2026-01-31, UTC) or how long ago: 24h, 7d")
        parser.add_argument("--until", help="likewise; default: now")
        parser.add_argument("--strategy", action="append", default=[], help="one to try; may be given several times")
        parser.add_argument("--prices", type=Path, help="a file of other prices (docs/routing.md)")
        parser.add_argument("--model", help="only what was asked for by this name")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--format", choices=("table", "json"), default="table")

    def handle(self, *args: Any, **options: Any) -> None:
        terms = _terms(options)
        requests = partial(history.closed_requests, terms.since, terms.until, options["model"])
        replayed = replay(requests, terms)
        if options["format"] == "json":
            self.stdout.write(json.dumps(as_json(replayed), indent=2))
            return
        for line in as_table(replayed):
            self.stdout.write(line)


def _terms(options: dict[str, Any]) -> Terms:
    """Raises `CommandError`."""
    now = datetime.now(UTC)
    since, until = _moment("--since", options["since"], now), now
    if options["until"] is not None:
        until = _moment("--until", options["until"], now)
    if since >= until:
        raise CommandError("--since must be before --until")
    for name in options["strategy"]:
        if name not in strategies():
            raise CommandError(f"--strategy: there is no {name[:100]!r}; there are {', '.join(strategies())}")
    if not options["strategy"] and options["prices"] is None:
        raise CommandError("nothing to try: give --strategy, --prices or both")
    book = pricebook.load()
    return Terms(
        since=since,
        until=until,
        strategies=list(dict.fromkeys(options["strategy"])),
        catalog=registry.load(),
        allowed=_allowed(),
        book=book,
        prices=_prices(options["prices"], book),
        default=settings.ENV.ROUTING_STRATEGY,
        again=settings.ENV.AILB_RETRIES,
        seed=options["seed"],
    )


def _moment(option: str, text: str, now: datetime) -> datetime:
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    try:
        if ago is not None:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        told = "takes a date (2026-01-31, 2026-01-31T12:00Z) or how long ago (30m, 24h, 7d)"
        raise CommandError(f"{option}: {told}, not {text[:100]!r}") from None


def _prices(path: Path | None, book: pricebook.Book) -> pricebook.Book | None:
    if path is None:
        return None
    try:
        return pricelist.read(path, book)
    except ConfigError as error:
        raise CommandError(f"--prices: {error}") from None


def _allowed() -> dict[str, frozenset[str] | None]:
    """By key, the models that it may use; keys that may use all are not there."""
    rows = VirtualKey.objects.exclude(allowed_models=None).order_by().values_list("id", "allowed_models")
    return {key: frozenset(models or ()) for key, models in rows}
