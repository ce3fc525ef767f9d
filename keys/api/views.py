"""`/api/keys`, `/api/users`, `/api/teams`."""

from collections.abc import Sequence
from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from billing import selectors as billing
from keys import selectors, services
from keys.api import serializers
from keys.api.base import ApiView, actor_of, checked, checked_query, page, paged
from keys.api.queries import PageQuery
from keys.models import VirtualKey
from keys.selectors import KeyRow

CONFLICT = OpenApiResponse(serializers.Problem, "The object's state forbids it.")


def _rows(keys: Sequence[VirtualKey]) -> list[KeyRow]:
    quotas = billing.key_quotas([key.pk for key in keys])
    return [KeyRow(key, quotas.get(key.pk)) for key in keys]


def _detail(key: VirtualKey) -> dict[str, Any]:
    """A key with this month's usage."""
    (row,) = _rows([key])
    return dict(serializers.KeyDetail(KeyRow(key, row.quota, billing.key_figures(key.pk))).data)


def _with_secret(key: VirtualKey, secret: str) -> dict[str, Any]:
    return {"key": secret, "key_data": serializers.KeyData(_rows([key])[0]).data}


class KeysView(ApiView):
    resource = "keys"

    @extend_schema(parameters=[serializers.KeyQuery], responses=serializers.KeyList, operation_id="list_keys")
    def get(self, request: Request) -> Response:
        """The keys that the caller may see, newest first."""
        query = checked_query(serializers.KeyQuery, request)
        keys = selectors.keys(actor=actor_of(request), status=query.get("status"))
        return paged("keys", serializers.KeyData(_rows(page(keys, query)), many=True).data, keys.count(), query)

    @extend_schema(request=serializers.NewKey, responses={201: serializers.KeyWithSecret}, operation_id="create_key")
    def post(self, request: Request) -> Response:
        """Make a key. Its secret is shown in this answer and never again."""
        key, secret = services.create_key(actor=actor_of(request), **checked(serializers.NewKey, request))
        return Response(_with_secret(key, secret), status.HTTP_201_CREATED)


class KeyView(ApiView):
    resource = "keys"
    actions = {"GET": "read", "HEAD": "read", "PATCH": "update", "DELETE": "revoke"}

    @extend_schema(responses=serializers.KeyDetail, operation_id="get_key")
    def get(self, request: Request, key_id: str) -> Response:
        """A key, with this month's usage."""
        return Response(_detail(selectors.find_key(actor=actor_of(request), key_id=key_id)))

    @extend_schema(request=serializers.NewKey, responses=serializers.KeyDetail, operation_id="update_key")
    def patch(self, request: Request, key_id: str) -> Response:
        """Change a key; what is omitted stays."""
        actor = actor_of(request)
        key = selectors.find_key(actor=actor, key_id=key_id)
        changes = checked(serializers.NewKey, request, partial=True)
        return Response(_detail(services.update_key(actor=actor, key=key, changes=changes)))

    @extend_schema(responses={204: None, 409: CONFLICT}, operation_id="revoke_key")
    def delete(self, request: Request, key_id: str) -> Response:
        """Revoke a key, for good."""
        actor = actor_of(request)
        services.revoke_key(actor=actor, key=selectors.find_key(actor=actor, key_id=key_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class KeyRotateView(ApiView):
    resource = "keys"
    actions = {"POST": "rotate"}

    @extend_schema(
        request=serializers.Rotation,
        responses={200: serializers.KeyWithSecret, 409: CONFLICT},
        operation_id="rotate_key",
    )
    def post(self, request: Request, key_id: str) -> Response:
        """A new secret for the same key; the old one lasts for the grace period."""
        actor = actor_of(request)
        key = selectors.find_key(actor=actor, key_id=key_id)
        key, secret, _ = services.rotate_key(actor=actor, key=key, **checked(serializers.Rotation, request))
        return Response(_with_secret(key, secret))


class UsersView(ApiView):
    resource = "people"

    @extend_schema(parameters=[PageQuery], responses=serializers.UserList, operation_id="list_users")
    def get(self, request: Request) -> Response:
        """The people that the caller may see."""
        query = checked_query(PageQuery, request)
        people = selectors.people(actor=actor_of(request))
        return paged("users", serializers.UserData(page(people, query), many=True).data, people.count(), query)

    @extend_schema(
        request=serializers.NewUser, responses={201: serializers.UserData, 409: CONFLICT}, operation_id="create_user"
    )
    def post(self, request: Request) -> Response:
        """Make a person or program that owns keys; it cannot sign in."""
        user = services.create_user(actor=actor_of(request), **checked(serializers.NewUser, request))
        return Response(serializers.UserData(user).data, status.HTTP_201_CREATED)


class UserView(ApiView):
    resource = "people"

    @extend_schema(responses=serializers.UserData, operation_id="get_user")
    def get(self, request: Request, user_id: str) -> Response:
        """A person."""
        return Response(serializers.UserData(selectors.find_user(actor=actor_of(request), user_id=user_id)).data)

    @extend_schema(request=serializers.UserPatch, responses=serializers.UserData, operation_id="update_user")
    def patch(self, request: Request, user_id: str) -> Response:
        """Change a person; what is omitted stays."""
        actor = actor_of(request)
        user = selectors.find_user(actor=actor, user_id=user_id)
        changes = checked(serializers.UserPatch, request, partial=True)
        return Response(serializers.UserData(services.update_user(actor=actor, user=user, changes=changes)).data)


class TeamsView(ApiView):
    resource = "people"

    @extend_schema(parameters=[PageQuery], responses=serializers.TeamList, operation_id="list_teams")
    def get(self, request: Request) -> Response:
        """The teams that the caller may see."""
        query = checked_query(PageQuery, request)
        teams = selectors.teams(actor=actor_of(request))
        return paged("teams", serializers.TeamData(page(teams, query), many=True).data, teams.count(), query)

    @extend_schema(
        request=serializers.NewTeam, responses={201: serializers.TeamData, 409: CONFLICT}, operation_id="create_team"
    )
    def post(self, request: Request) -> Response:
        """Make a team."""
        team = services.create_team(actor=actor_of(request), **checked(serializers.NewTeam, request))
        return Response(serializers.TeamData(team).data, status.HTTP_201_CREATED)


class TeamView(ApiView):
    resource = "people"

    @extend_schema(responses=serializers.TeamData, operation_id="get_team")
    def get(self, request: Request, name: str) -> Response:
        """A team."""
        return Response(serializers.TeamData(selectors.find_team(actor=actor_of(request), name=name)).data)

    @extend_schema(
        request=serializers.TeamPatch, responses={200: serializers.TeamData, 409: CONFLICT}, operation_id="update_team"
    )
    def patch(self, request: Request, name: str) -> Response:
        """Change a team; what is omitted stays."""
        actor = actor_of(request)
        team = selectors.find_team(actor=actor, name=name)
        changes = checked(serializers.TeamPatch, request, partial=True)
        return Response(serializers.TeamData(services.update_team(actor=actor, team=team, changes=changes)).data)
