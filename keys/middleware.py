"""The first password is for one use."""

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.deprecation import MiddlewareMixin

from keys import services
from keys.api.authentication import actor_of_user
from keys.models import User

_CONSOLE = "/admin/"
_OPEN = ("admin:password_change", "admin:password_change_done", "admin:logout", "admin:login", "admin:jsi18n")


class FirstPasswordMiddleware(MiddlewareMixin):
    """Sends whoever signed in with a password they were given to the page that replaces it, and notices when they
    have. `/api` refuses such a session by itself (`keys.api.authentication`), `/v1` knows no sessions.
    """

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        if not request.path.startswith(_CONSOLE) or _waiting(request) is None or _is_open(request.path):
            return None
        return HttpResponseRedirect(reverse("admin:password_change"))

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        changed = request.method == "POST" and response.status_code == 302
        if changed and request.path == reverse("admin:password_change") and (user := _waiting(request)) is not None:
            # The same password again is no change.
            if request.POST.get("new_password1") != request.POST.get("old_password"):
                actor = actor_of_user(user, via="console", ip=request.META.get("REMOTE_ADDR"))
                services.finish_first_password(actor=actor, user=user)
        return response


def _waiting(request: HttpRequest) -> User | None:
    """The signed-in user, while they still have the password they were given."""
    user = getattr(request, "user", None)
    return user if isinstance(user, User) and user.must_change_password else None


def _is_open(path: str) -> bool:
    return any(path == reverse(name) for name in _OPEN)
