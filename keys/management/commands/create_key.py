"""`manage.py create_key`: a virtual key, its secret alone on standard output."""

from argparse import ArgumentParser
from decimal import Decimal, InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from gateway.errors import GatewayError
from keys.actors import COMMAND
from keys.services import create_key


def _dollars(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError from None
    if not amount.is_finite() or amount < 0:
        raise ValueError
    return amount


class Command(BaseCommand):
    help = "Create a virtual key and print its secret, which is shown this once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--name", required=True)
        parser.add_argument("--user", help="user id; made where there is none of that name")
        parser.add_argument("--team", help="team; made where there is none of that name")
        parser.add_argument("--models", help="comma-separated names; default: all")
        parser.add_argument("--rpm", type=int, help="requests a minute")
        parser.add_argument("--tpm", type=int, help="tokens a minute")
        parser.add_argument("--monthly-dollars", type=_dollars, help="monthly budget in US dollars")

    def handle(self, *args: Any, **options: Any) -> None:
        models = options["models"]
        try:
            _, secret = create_key(
                actor=COMMAND,
                name=options["name"],
                user_id=options["user"],
                team=options["team"],
                allowed_models=[m.strip() for m in models.split(",") if m.strip()] if models is not None else None,
                rate_limit_rpm=options["rpm"],
                rate_limit_tpm=options["tpm"],
                monthly_quota_dollars=options["monthly_dollars"],
            )
        except GatewayError as error:
            raise CommandError(error.message) from None
        self.stdout.write(secret)
