"""The first password is for one use."""

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin

from keys.models import User

_CONSOLE = "/admin/"
_OPEN = ("admin:password_change", "admin:password_change_done", "admin:logout", "admin:login", "admin:jsi18n")


class FirstPasswordMiddleware(MiddlewareMixin):
    """Sends whoever signed in with a password they were given to the page that replaces it (`services.set_password`
    ends the duty). `/api` refuses such a session by itself (`keys.api.authentication`), `/v1` knows no sessions.
    """

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        if not request.path.startswith(_CONSOLE) or request.path in map(reverse, _OPEN):
            return None
        user = request.user
        waiting = isinstance(user, User) and user.must_change_password
        return HttpResponseRedirect(reverse("admin:password_change")) if waiting else None
