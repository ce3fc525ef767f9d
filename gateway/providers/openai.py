"""The OpenAI dialect, and OpenAI itself. An OpenAI-compatible server is this with another base URL."""

from typing import ClassVar

from gateway.providers.base import HttpProvider
from gateway.providers.reading import EventReader
from gateway.providers.sse import EventDecoder
from gateway.translate import openai
from gateway.types import ChatRequest, Completion, Deployment, Dialect, Json, Prompt, Written


class Compatible(HttpProvider):
    """Whoever speaks OpenAI's chat completions."""

    dialect = Dialect.OPENAI
    path = "/chat/completions"
    output_cap: ClassVar[str | None] = None
    """The one name of the output cap that the vendor knows; None: both, so that the client's is kept."""

    def own(self, request: ChatRequest, deployment: Deployment) -> Json:
        body = {**request.body, "model": deployment.upstream_model}
        if request.stream:
            # Usage is always asked for: without it a stream could not be billed by what it was.
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        self._cap(body, request.max_output, deployment.upstream_model)
        return body

    def _cap(self, body: Json, most: int | None, model: str) -> None:
        """One output cap: of the client's two the newer one, where it set none the gateway's."""
        newer, older = body.get("max_completion_tokens"), body.get("max_tokens")
        cap = most if newer is None and older is None else newer if newer is not None else older
        if cap is None:
            return
        body.pop("max_completion_tokens", None)
        body.pop("max_tokens", None)
        keeps_older = newer is None and older is not None and not openai.reasons(model)
        body[self.output_cap or ("max_tokens" if keeps_older else "max_completion_tokens")] = cap

    def write(self, prompt: Prompt, deployment: Deployment) -> Written:
        cap = self.output_cap or "max_completion_tokens"
        return openai.write_request(prompt, deployment.upstream_model, output_cap=cap)

    def decode(self, body: bytes, *, native: bool) -> Completion:
        return openai.read_answer(body, native=native)

    def reader(self, *, native: bool) -> EventReader:
        return EventReader(self, EventDecoder(), openai.Events(native=native))


class Vendor(Compatible):
    """OpenAI itself."""

    slug = "openai"
    env_prefix = "OPENAI"
    default_base_url = "https://api.openai.com/v1"
