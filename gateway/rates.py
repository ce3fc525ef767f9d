"""What a request costs at each deployment of a pool, for routing: fast rather than rounded.

A price is a straight line in the prompt's and the answer's tokens, unless it has context tiers or the request a service
tier. Its two slopes are looked up once a second: 100 deployments are priced in 15 µs, by `billing.pricing` in 150.
"""

import math
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from time import monotonic

from billing import pricing
from billing.pricebook import Book
from gateway.registry import Pool
from gateway.types import Deployment, Usage

_FRESH = 1.0  # seconds: a price that takes effect may be a second late in routing, never in what is charged


class RateCard:
    """Of some deployments, at one moment."""

    def __init__(self, candidates: Sequence[Deployment], book: Book, at: datetime, until: float) -> None:
        self.candidates = candidates
        self.book = book
        self.until = until
        self._places = {d.name: place for place, d in enumerate(candidates)}
        self._prices = [book.find(d.provider.price_book, d.upstream_model, d.name, at) for d in candidates]
        self._lines = [_line(price) for price in self._prices]
        self._bent = [at for at, price in enumerate(self._prices) if price is not None and len(price.levels[None]) > 1]

    def place(self, name: str) -> int | None:
        """Where among the candidates a deployment is."""
        return self._places.get(name)

    def straight(self, tier: str | None) -> bool:
        """Whether all of them rise in a straight line with the prompt's length."""
        return tier is None and not self._bent

    def costs(self, prompt: int, output: int, held: Collection[str], tier: str | None) -> list[float]:
        """By the candidates' order, in 1e-18 US dollars; infinity where unpriced. `held` have the prompt cached."""
        if prompt:
            costs = [fee + into * prompt + out * output for into, out, fee in self._lines]
        else:
            costs = [fee + out * output for _, out, fee in self._lines]
        for at in range(len(costs)) if tier is not None else self._bent:
            costs[at] = self._exact(at, Usage(prompt, output), tier)
        for name in held:
            place = self._places.get(name)
            if place is not None:
                costs[place] = self._exact(place, Usage(prompt, output, cached_tokens=prompt), tier)
        return costs

    def _exact(self, at: int, usage: Usage, tier: str | None) -> float:
        price = self._prices[at]
        return math.inf if price is None else pricing.exact_cost(price, usage, tier)


def _now() -> datetime:
    return datetime.now(UTC)


class RateCards:
    """Those of whole pools, kept for a moment. `now` is the time whose prices are in force, `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic, now: Callable[[], datetime] = _now) -> None:
        self._clock = clock
        self._now = now
        self._cards: dict[str, RateCard] = {}

    def of(self, pool: Pool, candidates: Sequence[Deployment], book: Book) -> RateCard:
        if candidates is not pool.deployments:
            return self._card(candidates, book)
        card = self._cards.get(pool.name)
        if card is None or card.candidates is not candidates or card.book is not book or self._clock() >= card.until:
            card = self._cards[pool.name] = self._card(candidates, book)
        return card

    def _card(self, candidates: Sequence[Deployment], book: Book) -> RateCard:
        return RateCard(candidates, book, self._now(), self._clock() + _FRESH)


def _line(price: pricing.Price | None) -> tuple[float, float, float]:
    """What a token of the prompt, one of the answer, and the request itself cost."""
    if price is None:
        return (0.0, 0.0, math.inf)
    amounts = pricing.amounts_at(price, 0)
    return (float(amounts[0]), float(amounts[5]), float(amounts[8]))
