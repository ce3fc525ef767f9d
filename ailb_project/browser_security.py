"""What browsers are told to refuse on the console's pages, and how they come."""

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

_PAGES = {
    "default-src": "'self'",
    # Scripts are files of ours, never part of a page. Alpine.js, which unfold is built on, makes functions of the
    # texts of its attributes; its build that does not understands none of unfold's.
    "script-src": "'self' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",  # unfold writes its colours into the page
    "img-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
_DATA = {"default-src": "'none'", "frame-ancestors": "'none'"}
"""For answers that are no pages: a browser that is made to show one runs nothing of it."""


def _policy(sources: dict[str, str]) -> str:
    return "; ".join(f"{name} {places}" for name, places in sources.items())


PAGES, DATA = map(_policy, (_PAGES, _DATA))


@sync_and_async_middleware
def middleware(get_response):  # type: ignore[no-untyped-def]  # two kinds of callable, each for its own
    """The first of all, so that every answer passes it. A view's own policy stays."""
    if iscoroutinefunction(get_response):

        async def passed(request: HttpRequest) -> HttpResponseBase:
            _arrives(request)
            return _leaves(await get_response(request))
    else:

        def passed(request: HttpRequest) -> HttpResponseBase:  # type: ignore[misc]
            _arrives(request)
            return _leaves(get_response(request))

    return passed


def _arrives(request: HttpRequest) -> None:
    if settings.BEHIND_TLS:
        request.META["AILB_SCHEME"] = "https"  # a name that no header gets


def _leaves(response: HttpResponseBase) -> HttpResponseBase:
    is_page = response.headers.get("Content-Type", "").startswith("text/html")
    response.headers.setdefault("Content-Security-Policy", PAGES if is_page else DATA)
    response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
    return response
