"""The part of `/v1` that is no inference call: the models, and every path that is not there or not yet."""

from typing import Any, cast

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from gateway import snapshot
from gateway.errors import ModelNotFound, NotImplementedYet
from gateway.registry import ModelCard, visible
from keys.api.authentication import KeyAuthentication, KeyPrincipal
from keys.api.base import View


class V1View(View):
    """Keys only: `/v1` ignores cookies, or a page could spend a visitor's money."""

    authentication_classes = [KeyAuthentication]


class ModelData(serializers.Serializer[Any]):
    id = serializers.CharField()
    object = serializers.ChoiceField(["model"], default="model")
    created = serializers.IntegerField()
    owned_by = serializers.CharField()
    provider = serializers.CharField()


class ModelList(serializers.Serializer[Any]):
    object = serializers.ChoiceField(["list"])
    data = ModelData(many=True)  # type: ignore[assignment]  # a field, which DRF takes off the class


class ModelsView(V1View):
    @extend_schema(responses=ModelList, operation_id="list_models")
    def get(self, request: Request) -> Response:
        """The models that the caller's key may use."""
        return Response({"object": "list", "data": [_shown(card) for card in _visible(request)]})


class ModelView(V1View):
    @extend_schema(responses=ModelData, operation_id="get_model")
    def get(self, request: Request, model: str) -> Response:
        """One model; names may hold `/` and `:`."""
        for card in _visible(request):
            if card.id == model:
                return Response(_shown(card))
        raise ModelNotFound(f"The model '{model[:200]}' does not exist or is not yours to use.", param="model")


class NotYetView(V1View):
    """A path of OpenAI's or Anthropic's API that comes later: for whoever has a key, 501."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise NotImplementedYet("This endpoint is not there yet.")


def _visible(request: Request) -> list[ModelCard]:
    caller = cast(KeyPrincipal, request.user)  # the only kind that `authentication_classes` lets in
    allowed = caller.key.allowed_models
    return visible(snapshot.current().catalog, frozenset(allowed) if allowed is not None else None)


def _shown(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": card.owned_by,
        "provider": card.provider,
    }
