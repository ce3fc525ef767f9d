"""Which deployments a request is tried at, and in what order."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from billing import pricing
from billing.pricebook import Book
from gateway import tokens
from gateway.circuits_memory import Health, MemoryCircuits
from gateway.errors import NoHealthyDeployment
from gateway.registry import Route
from gateway.routing import order
from gateway.types import ChatRequest, Deployment, Usage

_EXPECTED_OUTPUT = 500  # tokens of an answer whose length nobody stated; only the order of prices depends on it


def plan(route: Route, request: ChatRequest, signals: Health, book: Book, default: str) -> list[Deployment]:
    """The route's deployments that may be tried, best first. The request's strategy beats the route's, that the
    installation's.

    One whose circuit is open is left out; one that opened early comes last, for where nothing else answers. Raises
    `NoHealthyDeployment` where none is left.
    """
    candidates: Sequence[Deployment] = route.candidates
    if not candidates:
        raise NoHealthyDeployment(f"No deployment of '{route.name[:200]}' is in service.", retry_after=5)
    spare: list[Deployment] = []
    if signals.circuits.troubled:
        candidates, spare = signals.circuits.sorted_out(candidates)
        if not candidates:
            candidates, spare = spare, []
        if not candidates:
            raise unhealthy(route.name, route.candidates, signals.circuits)
    if len(candidates) == 1:
        return [*candidates, *spare]
    strategy = request.routing_strategy or route.pools[0].strategy or default
    if strategy == "cost_optimized":
        signals.cost = _expected_costs(candidates, request, book).get
    return order(strategy)(candidates, signals) + spare


def unhealthy(name: str, candidates: Iterable[Deployment], circuits: MemoryCircuits) -> NoHealthyDeployment:
    """The refusal where all circuits are open, with the time at which the first may be tried."""
    wait = circuits.wait(candidates)
    return NoHealthyDeployment(
        f"Every deployment of '{name[:200]}' is failing at the moment. Try again in {wait} s.", retry_after=wait
    )


def smallest_window(candidates: Sequence[Deployment]) -> int | None:
    """The smallest known context window among the candidates, in tokens."""
    return min((d.context_window for d in candidates if d.context_window is not None), default=None)


def _expected_costs(candidates: Sequence[Deployment], request: ChatRequest, book: Book) -> dict[str, Decimal | None]:
    """US dollars, by deployment, for this prompt and an answer of its cap or of ordinary length."""
    now = datetime.now(UTC)
    # The bound is bytes; four bytes a token is text's usual measure, and the same for every candidate.
    prompt = tokens.bound_prompt(request.body) // 4
    usage = Usage(prompt, min(request.max_output or _EXPECTED_OUTPUT, _EXPECTED_OUTPUT) * request.n)
    found = {d.name: book.find(d.provider.price_book, d.upstream_model, d.name, now) for d in candidates}
    return {name: pricing.cost(price, usage) if price is not None else None for name, price in found.items()}
