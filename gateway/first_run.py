"""What a first start makes: the console's login, the admin key, a first virtual key, and a curl to try it with.

Secrets are shown on a terminal only; elsewhere they go to a file that its owner alone reads, and the log names it.
"""

import os
import secrets
import shlex
import stat
import sys
from pathlib import Path

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from ailb_project.env import Env
from gateway.models import Deployment
from gateway.types import Role
from keys import secrets as key_secrets
from keys.actors import ENVIRONMENT, SYSTEM
from keys.models import User, VirtualKey
from keys.services import create_key
from security import audit

log = structlog.get_logger()

ADMIN_KEY_ID = "key_admin"
FILE_NAME = "first-run.txt"


@transaction.atomic
def prepare(env: Env) -> str | None:
    """Make what is missing. Returns the text to show on a first start, None on later ones."""
    given = env.AILB_ADMIN_KEY.get_secret_value() if env.AILB_ADMIN_KEY else None
    if User.objects.exists() or VirtualKey.objects.exists():
        apply_admin_key(given)
        return None
    password = secrets.token_urlsafe(15)
    User.objects.create_superuser("admin", password, must_change_password=True)
    admin_key = given or secrets.token_urlsafe(32)
    apply_admin_key(admin_key, managed=given is not None)
    _, first_key = create_key(actor=SYSTEM, name="first key")
    return _text(env, password, None if given else admin_key, first_key)


def apply_admin_key(secret: str | None, *, managed: bool = True) -> None:
    """The key of AILB_ADMIN_KEY: one row, whose digest follows the variable; gone from there, it expires."""
    key = VirtualKey.objects.filter(pk=ADMIN_KEY_ID).first()
    if secret is None:
        if key is not None and key.managed_by and key.expires_at is None:
            _save(key, expires_at=timezone.now())
        return
    digest = key_secrets.digest(secret, settings.KEY_PEPPER)
    managed_by = "environment" if managed else ""
    if key is None:
        key = VirtualKey(id=ADMIN_KEY_ID, name="admin key", role=Role.ADMIN.value)
        _save(key, digest=digest, hint=key_secrets.hint(secret), managed_by=managed_by)
    elif key.digest != digest or key.expires_at is not None:
        _save(key, digest=digest, hint=key_secrets.hint(secret), managed_by=managed_by, expires_at=None)


def _save(key: VirtualKey, **changes: object) -> None:
    before = audit.state(key)
    new = key._state.adding
    for name, value in changes.items():
        setattr(key, name, value)
    key.save()
    was, now = audit.difference(before, audit.state(key))
    audit.record(actor=ENVIRONMENT, action="create" if new else "update", target=key, before=was, after=now)


def _text(env: Env, password: str, admin_key: str | None, first_key: str) -> str:
    base = f"http://{_reachable(env.HOST)}:{env.HTTP_PORT}"
    model = Deployment.objects.filter(enabled=True, provider__enabled=True).order_by("id").first()
    body = f'{{"model": "{model.name if model else "auto"}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    curl = (
        f"curl -sS {base}/v1/chat/completions -H {shlex.quote(f'Authorization: Bearer {first_key}')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    return "\n".join(
        [
            f"Console:     {base}/admin/",
            f"Login:       admin / {password}   (to be changed at the first login)",
            f"Admin key:   {admin_key or 'the one of AILB_ADMIN_KEY'}",
            f"Virtual key: {first_key}",
            "",
            "Try it:",
            curl,
            "",
        ]
    )


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):  # noqa: S104  # a comparison
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def show(text: str, folder: Path) -> None:
    """On a terminal the text itself; elsewhere a file of mode 0600, named in the log."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\nThis is the first start. Keep these, they are not shown again:\n\n{text}\n")
        sys.stdout.flush()
        return
    path = folder / FILE_NAME
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
        file.write(text)
    log.info("first_run_secrets_written", file=FILE_NAME, folder=str(folder))
