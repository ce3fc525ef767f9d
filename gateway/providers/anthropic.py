"""Anthropic, and what speaks as it does. Bedrock and Vertex frame and sign otherwise: they are not this."""

import msgspec
from yarl import URL

from gateway.errors import UpstreamError
from gateway.providers.base import HttpProvider, UpstreamMessage
from gateway.providers.reading import EventReader
from gateway.providers.sse import EventDecoder
from gateway.translate import anthropic
from gateway.types import ChatRequest, Completion, Deployment, Dialect, Json, Prompt, ProviderConfig, Written

# The last that takes sampling parameters, of those models that still have them; 2026-10-21 refuses them all, and has
# nothing that this one lacks (platform.claude.com, "Versions").
_VERSION = "2023-06-01"
# Of a request, what `/v1/messages/count_tokens` takes (anthropic 2.12, `message_count_tokens_params`, and its betas).
_COUNTED = frozenset(
    {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control", "speed"}
    | {"mcp_servers", "context_management"}
)
# "prompt is too long: 210000 tokens > 200000 maximum", "input length and `max_tokens` exceed context limit: …"
_TOO_LONG = ("prompt is too long", "exceed context limit")
_LEAST_BUDGET = 1024


class _Count(msgspec.Struct):
    input_tokens: int


_count = msgspec.json.Decoder(_Count)
_encode = msgspec.json.Encoder().encode


class Vendor(HttpProvider):
    """Anthropic's Messages."""

    slug = "anthropic"
    env_prefix = "ANTHROPIC"
    default_base_url = "https://api.anthropic.com"
    wrong_endings = ("/v1",)
    dialect = Dialect.ANTHROPIC
    path = "/v1/messages"

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        self._headers = {"anthropic-version": _VERSION, **self._headers}
        self._count_url = URL(config.base_url + self.path + "/count_tokens")

    @staticmethod
    def auth_headers(api_key: str | None) -> dict[str, str]:
        return {"x-api-key": api_key} if api_key else {}

    def headers_for(self, request: ChatRequest) -> dict[str, str]:
        if request.dialect is Dialect.ANTHROPIC and request.betas:
            return {**self._headers, "anthropic-beta": request.betas}
        return self._headers

    def own(self, request: ChatRequest, deployment: Deployment) -> Json:
        body = {**request.body, "model": deployment.upstream_model}
        most, asked = request.max_output, body.get("max_tokens")
        if most is not None and (asked is None or asked > most):
            body["max_tokens"] = most
            thinking = body.get("thinking")
            if isinstance(thinking, dict) and thinking.get("type") == "enabled":
                body.update(_fitting(thinking, most))
        return body

    def write(self, prompt: Prompt, deployment: Deployment) -> Written:
        return anthropic.write_request(prompt, deployment.upstream_model, max_output=deployment.max_output)

    def decode(self, body: bytes, *, native: bool) -> Completion:
        return anthropic.read_answer(body, native=native)

    def reader(self, *, native: bool) -> EventReader:
        return EventReader(self, EventDecoder(), anthropic.Events(native=native))

    def read_error(self, body: bytes) -> UpstreamMessage:
        error = super().read_error(body)
        if any(words in error.message.lower() for words in _TOO_LONG):
            return msgspec.structs.replace(error, code="context_length_exceeded")
        return error

    async def count_tokens(self, request: ChatRequest, deployment: Deployment) -> int:
        """The input tokens of a request, as Anthropic counts them. Raises as `complete` does."""
        call = self.prepare(request, deployment)
        body = {name: value for name, value in msgspec.json.decode(call.data).items() if name in _COUNTED}
        answer = await self._plain(msgspec.structs.replace(call, data=_encode(body)), self._count_url)
        try:
            return _count.decode(answer).input_tokens
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise UpstreamError("The provider's count was none.", upstream_status=200) from None


def _fitting(thinking: Json, most: int) -> Json:
    """The thinking whose budget is below the lowered cap; none where that leaves less than Anthropic's least."""
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or budget < most:
        return {}
    return {"thinking": {**thinking, "budget_tokens": most - 1} if most > _LEAST_BUDGET else {"type": "disabled"}}
