"""How often a console password may be guessed.

Failures are counted for an account as seen from one address, and for the account from everywhere, never for an address
alone: behind a proxy everybody comes from the same one. Names that nobody has are counted alike, so that a refusal
tells nothing about who exists. Counted in the database, which all processes share, and before the password is looked
at: of many attempts at once no more than the limit get as far.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.utils import timezone

from keys import secrets
from keys.models import LoginFailure, User

log = structlog.get_logger()

_FROM_EVERYWHERE = 10
"""Times the limit of one address: what a botnet may try, and what it costs a stranger to lock somebody out who comes
from elsewhere."""


def begin(*, account: str, address: str) -> LoginFailure | None:
    """Count an attempt as failed until `succeed` takes it back. None: refused, and not counted, so that an account
    that is tried on and on opens again.
    """
    since = _since()
    LoginFailure.objects.filter(at__lt=since).delete()
    attempt = LoginFailure.objects.create(account=_digest(account), address=address)
    here, everywhere = _earlier(attempt, since)
    if max(here, everywhere // _FROM_EVERYWHERE) >= settings.LOGIN_FAILURES:
        attempt.delete()
        return None
    if here + 1 == settings.LOGIN_FAILURES:
        _tell(account, address)
    return attempt


def succeed(attempt: LoginFailure) -> None:
    """The password was right: this address starts anew. What others tried from elsewhere still counts."""
    LoginFailure.objects.filter(account=attempt.account, address=attempt.address).delete()


def _since() -> datetime:
    return timezone.now() - timedelta(seconds=settings.LOGIN_LOCK_SECONDS)


def _digest(account: str) -> str:
    """Of what was typed as a name: people type passwords into the wrong field."""
    return secrets.digest(f"login\0{account}", settings.KEY_PEPPER)


def _earlier(attempt: LoginFailure, since: datetime) -> tuple[int, int]:
    """The other failures that count, from this address and in all. Each attempt is there before it counts, so that of
    two at once one at least sees the other.
    """
    rows = LoginFailure.objects.filter(account=attempt.account, at__gte=since).exclude(pk=attempt.pk)
    return rows.filter(address=attempt.address).count(), rows.count()


def _tell(account: str, address: str) -> None:
    """The last attempt for now; asked of names that nobody has too, which takes as long."""
    known = User.objects.filter(username=account).exists()
    log.warning("console_login_at_its_limit", user=account if known else None, ip=address)
