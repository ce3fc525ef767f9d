"""`/api/billing`: budgets and usage."""

from typing import Any

from django.http import Http404
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response

from billing import selectors, services
from billing.api import serializers
from billing.models import Budget
from billing.models.budgets import Scope
from keys import selectors as keys
from keys import services as key_services
from keys.actors import Actor
from keys.api.base import ApiView, actor_of, checked, checked_query, next_page, page, paged
from keys.api.queries import PageQuery, cursor
from keys.api.serializers import Problem

DEFINED_ELSEWHERE = OpenApiResponse(Problem, "It is defined elsewhere, by its `managed_by`.")


class BudgetsView(ApiView):
    resource = "budgets"

    @extend_schema(parameters=[PageQuery], responses=serializers.BudgetList, operation_id="list_budgets")
    def get(self, request: Request) -> Response:
        """All budgets that the caller may see."""
        query = checked_query(PageQuery, request)
        budgets = selectors.budgets(actor=actor_of(request))
        return paged("budgets", serializers.BudgetData(page(budgets, query), many=True).data, budgets.count(), query)

    @extend_schema(
        request=serializers.NewBudget,
        responses={201: serializers.BudgetData, 409: DEFINED_ELSEWHERE},
        operation_id="set_budget",
    )
    def post(self, request: Request) -> Response:
        """Give a key, user, team or the organisation a budget, in place of the one they have for the period."""
        actor = actor_of(request)
        terms = checked(serializers.NewBudget, request)
        _find_owner(actor, terms["scope"], terms["owner"])
        budget = services.set_budget(actor=actor, **terms)
        return Response(serializers.BudgetData(budget).data, status.HTTP_201_CREATED)


def _find_owner(actor: Actor, scope: str, owner: str) -> None:
    """An owner whom the actor does not reach is not found; users and teams that are named for the first time are made
    by whoever may make people.
    """
    if scope == Scope.KEY:
        keys.find_key(actor=actor, key_id=owner)
    elif selectors.reaches_all_budgets(actor=actor):
        _ensure_owner(actor, scope, owner)
    elif scope != Scope.ORGANISATION and not selectors.reaches_owner(
        actor=actor, action="create", scope=scope, owner=owner
    ):
        raise Http404


def _ensure_owner(actor: Actor, scope: str, owner: str) -> None:
    if scope == Scope.USER:
        key_services.ensure_user(actor=actor, user_id=owner)
    elif scope == Scope.TEAM:
        key_services.ensure_team(actor=actor, name=owner)


class BudgetView(ApiView):
    resource = "budgets"

    @extend_schema(responses=serializers.BudgetDetail, operation_id="get_budget")
    def get(self, request: Request, budget_id: int) -> Response:
        """A budget, with the figures of its current period."""
        return Response(_detail(selectors.find_budget(actor=actor_of(request), budget_id=budget_id)))

    @extend_schema(
        request=serializers.BudgetPatch,
        responses={200: serializers.BudgetDetail, 409: DEFINED_ELSEWHERE},
        operation_id="update_budget",
    )
    def patch(self, request: Request, budget_id: int) -> Response:
        """Change a budget; what is omitted stays. Whose it is and its period are for good."""
        actor = actor_of(request)
        budget = selectors.find_budget(actor=actor, budget_id=budget_id)
        changes = checked(serializers.BudgetPatch, request, partial=True)
        return Response(_detail(services.update_budget(actor=actor, budget=budget, changes=changes)))

    @extend_schema(responses={204: None, 409: DEFINED_ELSEWHERE}, operation_id="delete_budget")
    def delete(self, request: Request, budget_id: int) -> Response:
        """Lift a budget."""
        actor = actor_of(request)
        services.delete_budget(actor=actor, budget=selectors.find_budget(actor=actor, budget_id=budget_id))
        return Response(status=status.HTTP_204_NO_CONTENT)


def _detail(budget: Budget) -> dict[str, Any]:
    return dict(serializers.BudgetDetail(budget, context={"figures": selectors.budget_figures(budget)}).data)


class KeyBudgetView(ApiView):
    resource = "budgets"

    @extend_schema(responses=serializers.KeyBudget, operation_id="get_key_budget")
    def get(self, request: Request, key_id: str) -> Response:
        """The key's monthly budget and what is left of it, from the ledger."""
        key = keys.find_key(actor=actor_of(request), key_id=key_id)
        return Response(serializers.KeyBudget(selectors.key_figures(key.pk)).data)


class UsageView(ApiView):
    resource = "spend"

    @extend_schema(parameters=[serializers.UsageQuery], responses=serializers.UsageList, operation_id="list_usage")
    def get(self, request: Request) -> Response:
        """The ledger, a row a request, newest first."""
        query = checked_query(serializers.UsageQuery, request)
        limit, before = query.pop("limit"), query.pop("cursor", None)
        rows, further = selectors.usage(actor=actor_of(request), filters=query, limit=limit, before=before)
        following = next_page(request, cursor(further)) if further is not None else None
        return Response({"results": serializers.UsageData(rows, many=True).data, "next": following})
