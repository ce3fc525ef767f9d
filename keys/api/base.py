"""What every view of `/api`, and every DRF view of `/v1`, has in common.

A view says which `resource` of the policy it serves, and which action each method is; whoever the policy refuses is
refused before anything is read. In a view, `request.auth` is the `keys.actors.Actor` (and nothing else ever is), and
`request.user` is the console's `User` or a `KeyPrincipal`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import msgspec
from django.conf import settings
from django.http import Http404, HttpRequest
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser, JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from gateway import render
from gateway.errors import RequestTooLarge
from keys import policy, services
from keys.actors import Actor
from keys.api.fields import Name

ACTIONS: Mapping[str, str] = {"GET": "read", "HEAD": "read", "POST": "create", "PATCH": "update", "DELETE": "delete"}


class StrictJSONParser(JSONParser):
    """JSON as RFC 8259 has it: no NaN, no lone surrogates, no infinite numbers; neither deep nesting nor long
    integers are a defect of ours.
    """

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(most + 1)
        if len(body) > most:
            raise RequestTooLarge("The request body is larger than 20 MiB.")
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ParseError from None


class AlwaysJson(BaseContentNegotiation):
    """There is one representation, whatever `Accept` or `?format=` says: no 406, no 404 for a format."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> Any:
        wanted = request.content_type.partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == wanted), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type or ""


class View(APIView):
    """JSON in, JSON out, and the request's id on every answer."""

    parser_classes = [StrictJSONParser]
    content_negotiation_class = AlwaysJson
    http_method_names = [method.lower() for method in (*ACTIONS, "PUT")]  # without OPTIONS and TRACE

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if any("\0" in value for value in kwargs.values() if isinstance(value, str)):
            raise Http404  # nothing has such a name, and PostgreSQL does not even take the question
        _state_length(request._request)
        length = request.META.get("CONTENT_LENGTH") or "0"
        if length.isdecimal() and int(length) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise RequestTooLarge("The request body is larger than 20 MiB.")

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        # Django would log every 5xx as an error of ours; a 501 is none, and a 503 has its own line (gateway.render).
        response._has_been_logged = True
        response["x-request-id"] = render.request_id(request)
        response["Cache-Control"] = "no-store"  # secrets among it, and figures that are old a second later
        return response


class ApiView(View):
    """A resource of `/api`."""

    resource: ClassVar[str]
    actions: ClassVar[Mapping[str, str]] = ACTIONS

    def perform_authentication(self, request: Request) -> None:
        super().perform_authentication(request)
        user_id = request.headers.get("X-User-ID")
        if user_id is not None and isinstance(request.auth, Actor):
            request.auth = services.act_as(
                actor=request.auth, user_id=_user_id(user_id), method=str(request.method), path=request.path
            )

    def check_permissions(self, request: Request) -> None:
        super().check_permissions(request)
        method = str(request.method)
        # A method that the view serves without naming its action is a defect: a KeyError, not an open door.
        if method.lower() in self.http_method_names and hasattr(self, method.lower()):
            policy.require(actor_of(request), self.resource, self.actions[method])


def actor_of(request: Request) -> Actor:
    """Who asks."""
    assert isinstance(request.auth, Actor), "permissions let nobody else through"
    return request.auth


def checked(serializer: type[BaseSerializer[Any]], request: Request, *, partial: bool = False) -> dict[str, Any]:
    """The request's body as the serializer takes it. Raises `ValidationError` (400)."""
    taken = serializer(data=request.data, partial=partial)
    taken.is_valid(raise_exception=True)
    return dict(taken.validated_data)


def checked_query(serializer: type[BaseSerializer[Any]], request: Request) -> dict[str, Any]:
    """The request's query. A misspelt filter is refused: ignored, it would show everything."""
    taken = serializer(data=request.query_params.dict())
    taken.is_valid(raise_exception=True)
    return dict(taken.validated_data)


def page(rows: Any, query: Mapping[str, Any]) -> list[Any]:
    """The part of an ordered query set that `limit` and `offset` ask for."""
    return list(rows[query["offset"] : query["offset"] + query["limit"]])


def paged(name: str, shown: Any, total: int, query: Mapping[str, Any]) -> Response:
    """A list as `/api` answers it."""
    return Response({name: shown, "total": total, "limit": query["limit"], "offset": query["offset"]})


def next_page(request: Request, cursor: str) -> str:
    """The path of the page that `cursor` begins, with the same filters."""
    query = request.query_params.copy()
    query["cursor"] = cursor
    return f"{request.path}?{query.urlencode()}"


def _state_length(request: HttpRequest) -> None:
    """DRF takes a chunked body, which states no length, for none at all."""
    if "CONTENT_LENGTH" not in request.META and "HTTP_TRANSFER_ENCODING" in request.META:
        request.META["CONTENT_LENGTH"] = str(len(request.body))


def _user_id(header: str) -> str:
    """Servers hand headers over as Latin-1; what is not ASCII was meant as UTF-8."""
    try:
        return str(Name(max_length=200).run_validation(header.encode("latin-1").decode()))
    except UnicodeError:
        raise ValidationError({"X-User-ID": ["Not UTF-8."]}) from None
    except ValidationError as error:
        raise ValidationError({"X-User-ID": error.detail}) from None
