"""A key's new secret on its way to the one page that shows it.

It waits in the session, on the server and encrypted, and leaves it as it is shown: it is in no URL, no message, no
log and no audit entry, and a page that is loaded again has nothing to show.
"""

import shlex

from django.http import HttpRequest

from gateway import vault
from gateway.models import Deployment
from keys.models import VirtualKey

_SLOT = "new-secret-of-"


def keep(request: HttpRequest, key: VirtualKey, secret: str) -> None:
    """Until the next page."""
    request.session[_SLOT + key.pk] = vault.seal({"secret": secret})


def take(request: HttpRequest, key: VirtualKey) -> str | None:
    """The secret, once."""
    sealed = request.session.pop(_SLOT + key.pk, None)
    if sealed is None:
        return None
    secret: str = vault.open_sealed(sealed)["secret"]
    return secret


def curl(request: HttpRequest, key: VirtualKey, secret: str) -> str:
    """A first request with the key, ready to paste."""
    url = request.build_absolute_uri("/v1/chat/completions")
    body = f'{{"model": "{_model(key)}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"curl -sS {shlex.quote(url)} -H {shlex.quote(f'Authorization: Bearer {secret}')} "
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def _model(key: VirtualKey) -> str:
    if key.allowed_models:
        return str(key.allowed_models[0])
    names = Deployment.objects.filter(enabled=True, provider__enabled=True).order_by("id")
    return names.values_list("name", flat=True).first() or "auto"
