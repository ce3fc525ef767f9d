"""Ollama, by its own API. It needs no credential; one that is configured is sent (ollama.com takes a bearer token)."""

import re
from typing import Final

import msgspec

from gateway.errors import UpstreamError
from gateway.providers.base import HttpProvider, UpstreamMessage
from gateway.providers.ndjson import LineDecoder
from gateway.providers.reading import EventReader, StreamReader
from gateway.translate import ollama
from gateway.types import ChatRequest, Completion, Deployment, Dialect, Json, Prompt, Written

# Ollama's own words, its runner's and llama.cpp's; the status beside them is 400, 413 or 500, by version and model.
_TOO_LONG: Final = re.compile(
    r"(?i)input length.{0,40} exceeds|exceeds the (available )?context (size|length)|exceed_context_size"
)
_EMBEDS: Final = re.compile(r"(?i)bert")
"""Families of models that only embed: bert, nomic-bert, xlm-roberta, …"""


class _Details(msgspec.Struct):
    family: str | None = None


class _Model(msgspec.Struct):
    name: str | None = None
    model: str | None = None
    details: _Details | None = None
    capabilities: list[str] | None = None

    @property
    def chats(self) -> bool:
        """Servers that do not tell capabilities tell at least the family; an unknown one chats."""
        if self.capabilities:
            return "completion" in self.capabilities
        return self.details is None or not _EMBEDS.search(self.details.family or "")


class _Tags(msgspec.Struct):
    models: list[_Model] | None = None


_tags = msgspec.json.Decoder(_Tags)


class Vendor(HttpProvider):
    """An Ollama server."""

    slug = "ollama"
    env_prefix = "OLLAMA"
    default_base_url = "http://127.0.0.1:11434"
    wrong_endings = ("/v1", "/api")
    dialect = Dialect.OLLAMA
    path = "/api/chat"

    def own(self, request: ChatRequest, deployment: Deployment) -> Json:
        raise NotImplementedError("no door speaks Ollama's dialect")

    def write(self, prompt: Prompt, deployment: Deployment) -> Written:
        return ollama.write_request(prompt, deployment.upstream_model, context_window=deployment.context_window)

    def decode(self, body: bytes, *, native: bool) -> Completion:
        return ollama.read_answer(body, native=native)

    def reader(self, *, native: bool) -> StreamReader:
        return EventReader(self, LineDecoder(), ollama.Events(native=native))

    def read_error(self, body: bytes) -> UpstreamMessage:
        """`{"error": "text"}`, and where the prompt was too long the code that clients know for it."""
        told = super().read_error(body)
        if _TOO_LONG.search(told.message):
            return UpstreamMessage(told.message, "messages", "context_length_exceeded")
        return told

    async def models(self) -> list[str]:
        """The models that the server has and that can chat. Raises `UpstreamError`."""
        try:
            listed = _tags.decode(await self._get("/api/tags")).models or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UpstreamError("The provider's list of models was not one.", upstream_status=200) from None
        return [name for model in listed if model.chats and (name := model.model or model.name)]
