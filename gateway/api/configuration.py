"""`/api/providers`, `/api/deployments`, `/api/models` and `/api/routing/weights`: what the data plane calls, under
which names, and how traffic is split.

A body is looked at before the object is looked for: everything here is the organisation's, so that it tells nobody
anything that they may not know.
"""

from typing import Any, TypeVar

from django.db.models import F, QuerySet
from django.http import Http404
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from gateway import services
from gateway.api import bodies
from gateway.models import Deployment, ModelGroup, Provider, TrafficWeight
from keys import policy
from keys.actors import Actor
from keys.api.base import ApiView, actor_of, checked, checked_query, page, paged
from keys.api.queries import PageQuery
from keys.api.serializers import Problem

R = TypeVar("R", Provider, Deployment, ModelGroup)

TAKEN = OpenApiResponse(Problem, "The name is taken, or it is defined elsewhere.")
DEFINED_ELSEWHERE = OpenApiResponse(Problem, "It is defined elsewhere, by its `managed_by`.")
UNREACHED = OpenApiResponse(Problem, "The provider's server did not answer, or not with a list of models.")

BESIDE_NAMES = frozenset({"kind", "enabled"})
"""What a role that reads names is shown with them: it says whether the name is in use, and nothing of where."""


def _shown(
    serializer: type[BaseSerializer[Any]],
    row: Any,
    actor: Actor,
    resource: str,
    *,
    beside_names: frozenset[str] = BESIDE_NAMES,
) -> dict[str, Any]:
    """The row's fields that the policy lets this actor see."""
    data = dict(serializer(row).data)
    allowed = policy.allowed_fields(actor, resource, "read")
    return data if allowed is None else {name: data[name] for name in data if name in allowed | beside_names}


def _found(rows: QuerySet[R], **names: Any) -> R:
    found = rows.filter(**names).first()
    if found is None:
        raise Http404("No such object.")
    return found


# ── providers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _provider(provider: Provider, actor: Actor) -> dict[str, Any]:
    return _shown(bodies.ProviderData, provider, actor, "providers")


class ProvidersView(ApiView):
    resource = "providers"

    @extend_schema(parameters=[PageQuery], responses=bodies.ProviderList, operation_id="list_providers")
    def get(self, request: Request) -> Response:
        """The upstreams, by slug."""
        query, rows = checked_query(PageQuery, request), Provider.objects.order_by("slug")
        shown = [_provider(row, actor_of(request)) for row in page(rows, query)]
        return paged("providers", shown, rows.count(), query)

    @extend_schema(
        request=bodies.NewProvider,
        responses={201: bodies.ProviderData, 409: TAKEN},
        operation_id="create_provider",
    )
    def post(self, request: Request) -> Response:
        """Make a provider. Its credentials are never shown, in no answer."""
        actor = actor_of(request)
        provider = services.create_provider(actor=actor, **checked(bodies.NewProvider, request))
        return Response(_provider(provider, actor), status.HTTP_201_CREATED)


class ProviderView(ApiView):
    resource = "providers"

    @extend_schema(responses=bodies.ProviderData, operation_id="get_provider")
    def get(self, request: Request, name: str) -> Response:
        """A provider."""
        return Response(_provider(_found(Provider.objects.all(), slug=name), actor_of(request)))

    @extend_schema(
        request=bodies.ProviderPatch,
        responses={200: bodies.ProviderData, 409: DEFINED_ELSEWHERE},
        operation_id="update_provider",
    )
    def patch(self, request: Request, name: str) -> Response:
        """Change a provider; what is omitted stays. Where scheme, host or port of `base_url` change, each credential
        that is set must be given again, or null to have it forgotten.
        """
        actor = actor_of(request)
        changes = checked(bodies.ProviderPatch, request, partial=True)
        provider = _found(Provider.objects.all(), slug=name)
        return Response(_provider(services.update_provider(actor=actor, provider=provider, changes=changes), actor))

    @extend_schema(responses={204: None, 409: DEFINED_ELSEWHERE}, operation_id="delete_provider")
    def delete(self, request: Request, name: str) -> Response:
        """Delete a provider and its deployments; the ledger keeps their names."""
        services.delete_provider(actor=actor_of(request), provider=_found(Provider.objects.all(), slug=name))
        return Response(status=status.HTTP_204_NO_CONTENT)


class ProviderDiscoverView(ApiView):
    resource = "providers"
    actions = {"POST": "update"}

    @extend_schema(
        request=bodies.Discovery,
        responses={200: bodies.DiscoveredModels, 409: DEFINED_ELSEWHERE, 502: UNREACHED},
        operation_id="discover_models",
    )
    def post(self, request: Request, name: str) -> Response:
        """Ask the provider's server for its models: missing deployments are made, those of gone models disabled."""
        checked(bodies.Discovery, request)
        provider = _found(Provider.objects.all(), slug=name)
        return Response({"models": services.discover_models(actor=actor_of(request), provider=provider)})


# ── deployments ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _deployments() -> QuerySet[Deployment]:
    return Deployment.objects.select_related("provider").order_by("name")


def _deployment(deployment: Deployment, actor: Actor) -> dict[str, Any]:
    return _shown(bodies.DeploymentData, deployment, actor, "routing")


class DeploymentsView(ApiView):
    resource = "routing"

    @extend_schema(parameters=[PageQuery], responses=bodies.DeploymentList, operation_id="list_deployments")
    def get(self, request: Request) -> Response:
        """The models at providers, by public name."""
        query, rows = checked_query(PageQuery, request), _deployments()
        shown = [_deployment(row, actor_of(request)) for row in page(rows, query)]
        return paged("deployments", shown, rows.count(), query)

    @extend_schema(
        request=bodies.NewDeployment,
        responses={201: bodies.DeploymentData, 409: TAKEN},
        operation_id="create_deployment",
    )
    def post(self, request: Request) -> Response:
        """Make a deployment."""
        actor = actor_of(request)
        deployment = services.create_deployment(actor=actor, **checked(bodies.NewDeployment, request))
        return Response(_deployment(deployment, actor), status.HTTP_201_CREATED)


class DeploymentView(ApiView):
    resource = "routing"

    @extend_schema(responses=bodies.DeploymentData, operation_id="get_deployment")
    def get(self, request: Request, name: str) -> Response:
        """A deployment; names may hold `/` and `:`."""
        return Response(_deployment(_found(_deployments(), name=name), actor_of(request)))

    @extend_schema(
        request=bodies.NewDeployment,
        responses={200: bodies.DeploymentData, 409: TAKEN},
        operation_id="update_deployment",
    )
    def patch(self, request: Request, name: str) -> Response:
        """Change a deployment; what is omitted stays."""
        actor = actor_of(request)
        changes = checked(bodies.NewDeployment, request, partial=True)
        deployment = _found(_deployments(), name=name)
        return Response(
            _deployment(services.update_deployment(actor=actor, deployment=deployment, changes=changes), actor)
        )

    @extend_schema(responses={204: None, 409: DEFINED_ELSEWHERE}, operation_id="delete_deployment")
    def delete(self, request: Request, name: str) -> Response:
        """Delete a deployment, and its places in groups; the ledger keeps its name."""
        services.delete_deployment(actor=actor_of(request), deployment=_found(_deployments(), name=name))
        return Response(status=status.HTTP_204_NO_CONTENT)


# ── model groups ────────────────────────────────────────────────────────────────────────────────────────────────────


def _groups() -> QuerySet[ModelGroup]:
    return ModelGroup.objects.prefetch_related("members__deployment", "fallbacks__fallback").order_by("name")


def _group(group: ModelGroup, actor: Actor) -> dict[str, Any]:
    return _shown(bodies.ModelGroupData, group, actor, "routing")


class ModelGroupsView(ApiView):
    resource = "routing"

    @extend_schema(parameters=[PageQuery], responses=bodies.ModelGroupList, operation_id="list_model_groups")
    def get(self, request: Request) -> Response:
        """The names that stand for several deployments."""
        query, rows = checked_query(PageQuery, request), _groups()
        shown = [_group(row, actor_of(request)) for row in page(rows, query)]
        return paged("models", shown, rows.count(), query)

    @extend_schema(
        request=bodies.NewModelGroup,
        responses={201: bodies.ModelGroupData, 409: TAKEN},
        operation_id="create_model_group",
    )
    def post(self, request: Request) -> Response:
        """Make a model group."""
        actor = actor_of(request)
        group = services.create_group(actor=actor, **checked(bodies.NewModelGroup, request))
        return Response(_group(_found(_groups(), pk=group.pk), actor), status.HTTP_201_CREATED)


class ModelGroupView(ApiView):
    resource = "routing"

    @extend_schema(responses=bodies.ModelGroupData, operation_id="get_model_group")
    def get(self, request: Request, name: str) -> Response:
        """A model group; names may hold `/` and `:`."""
        return Response(_group(_found(_groups(), name=name), actor_of(request)))

    @extend_schema(
        request=bodies.NewModelGroup,
        responses={200: bodies.ModelGroupData, 409: TAKEN},
        operation_id="update_model_group",
    )
    def patch(self, request: Request, name: str) -> Response:
        """Change a model group; what is omitted stays, `deployments` and `fallbacks` take the place of whole lists."""
        actor = actor_of(request)
        changes = checked(bodies.NewModelGroup, request, partial=True)
        group = services.update_group(actor=actor, group=_found(_groups(), name=name), changes=changes)
        return Response(_group(_found(_groups(), pk=group.pk), actor))

    @extend_schema(responses={204: None, 409: DEFINED_ELSEWHERE}, operation_id="delete_model_group")
    def delete(self, request: Request, name: str) -> Response:
        """Delete a model group, its traffic weights and its places among others' fallbacks; its deployments stay."""
        services.delete_group(actor=actor_of(request), group=_found(_groups(), name=name))
        return Response(status=status.HTTP_204_NO_CONTENT)


# ── traffic weights ─────────────────────────────────────────────────────────────────────────────────────────────────


def _weights() -> QuerySet[TrafficWeight]:
    """Those for all traffic first, by version."""
    return TrafficWeight.objects.select_related("group").order_by(F("group__name").asc(nulls_first=True), "version")


def _weight(weight: TrafficWeight, actor: Actor) -> dict[str, Any]:
    # Its version and group are its name.
    return _shown(bodies.TrafficWeightData, weight, actor, "routing", beside_names=frozenset({"version", "group"}))


def _set_weight(request: Request) -> Response:
    actor = actor_of(request)
    weight, is_new = services.set_traffic_weight(actor=actor, **checked(bodies.NewTrafficWeight, request))
    return Response(_weight(weight, actor), status.HTTP_201_CREATED if is_new else status.HTTP_200_OK)


_SET_WEIGHT: dict[str, Any] = {
    "request": bodies.NewTrafficWeight,
    "responses": {200: bodies.TrafficWeightData, 201: bodies.TrafficWeightData, 409: DEFINED_ELSEWHERE},
}


class TrafficWeightsView(ApiView):
    resource = "routing"
    actions = {**ApiView.actions, "PUT": "update"}

    @extend_schema(
        parameters=[bodies.TrafficWeightsQuery], responses=bodies.TrafficWeightList, operation_id="list_traffic_weights"
    )
    def get(self, request: Request) -> Response:
        """The shares of the traffic that versions of deployments get: those for all traffic first."""
        query, rows = checked_query(bodies.TrafficWeightsQuery, request), _weights()
        if "group" in query:
            rows = rows.filter(group__name=query["group"])
        shown = [_weight(row, actor_of(request)) for row in page(rows, query)]
        return paged("weights", shown, rows.count(), query)

    @extend_schema(**_SET_WEIGHT, operation_id="set_traffic_weight")
    def put(self, request: Request) -> Response:
        """Give a version a share of the traffic: of one group's, or of all. The same again changes nothing."""
        return _set_weight(request)

    @extend_schema(**_SET_WEIGHT, operation_id="add_traffic_weight")
    def post(self, request: Request) -> Response:
        """As `PUT`, for clients that make things with `POST`."""
        return _set_weight(request)


class TrafficWeightView(ApiView):
    resource = "routing"

    @extend_schema(
        parameters=[bodies.TrafficWeightQuery],
        responses={204: None, 409: DEFINED_ELSEWHERE},
        operation_id="remove_traffic_weight",
    )
    def delete(self, request: Request, version: str) -> Response:
        """Take a weight away: a version without one counts 100."""
        query = checked_query(bodies.TrafficWeightQuery, request)
        services.remove_traffic_weight(actor=actor_of(request), version=version, **query)
        return Response(status=status.HTTP_204_NO_CONTENT)
