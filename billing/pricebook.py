"""Which price applies: the book that the data plane looks prices up in, and the two ways prices come into the table.

`Book.find` answers for a price book (a provider), a model's name, a deployment and a moment. Of the rows that speak of
that name, in order of weight:

1. a row for the deployment before one for any;
2. finance's before the configuration's, and both before the price list's (`seed`);
3. a row for exactly this name before one that knows the name as another of its model's;
4. a row for these hours of the day before one for the whole day; then the latest.

A name is also every model of the price list whose clause matches it: an answer served by `gpt-5.1-2025-11-13` finds
the price that finance set for `gpt-5.1`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from billing import pricing
from billing.models.prices import Price, PriceImport, Source, in_hours
from gateway import versioning

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

MEMO_SIZE = 4096
"""Names whose price is remembered: more than any installation deploys, and a few MB."""

FALLBACK_BOOKS: Mapping[str, tuple[str, ...]] = {
    "azure": ("openai", "anthropic", "deepseek", "x-ai", "moonshotai"),
    "google": ("anthropic",),
}
"""Providers that resell others' models at the others' price (genai-prices: `fallback_model_providers`)."""

ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)
"""Before any model had a price: the start of a price whose start is not known."""

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_RANK = {Source.SEED: 0, Source.CONFIG: 1, Source.FINANCE: 2}


class PriceRow(NamedTuple):
    """A row of the table as the book keeps it; the fields' names are the columns'."""

    id: int
    provider: str
    model: str
    deployment: str
    match: dict[str, Any] | None
    source: str
    effective_from: datetime
    effective_until: datetime | None
    daily_from: time | None
    daily_until: time | None
    input: Decimal
    output: Decimal
    cached_input: Decimal | None
    cache_write_5m: Decimal | None
    cache_write_1h: Decimal | None
    reasoning: Decimal | None
    audio_input: Decimal | None
    audio_output: Decimal | None
    request: Decimal
    tiers: list[Any]
    service_tiers: dict[str, Any]

    def applies(self, at: datetime) -> bool:
        """Whether the price is in force at `at` (aware)."""
        if at < self.effective_from or (self.effective_until is not None and at >= self.effective_until):
            return False
        if self.daily_from is None or self.daily_until is None:
            return True
        return in_hours(at.astimezone(UTC).time(), self.daily_from, self.daily_until)

    def edges(self, at: datetime) -> Iterator[datetime]:
        """Moments around `at` at which `applies` may change."""
        yield self.effective_from
        if self.effective_until is not None:
            yield self.effective_until
        for hour in (self.daily_from, self.daily_until):
            if hour is not None:
                today = datetime.combine(at.astimezone(UTC).date(), hour, UTC)
                yield from (today + timedelta(days=days) for days in (-1, 0, 1))

    def to_pricing(self) -> pricing.Price:
        columns = {name: getattr(self, name) for name in pricing.RATE_NAMES}
        return pricing.from_columns(id=self.id, columns=columns, tiers=self.tiers, service_tiers=self.service_tiers)


class _Shelf:
    """The rows of one price book, by model name and by clause."""

    def __init__(self) -> None:
        self.named: dict[str, list[PriceRow]] = defaultdict(list)
        self.matching: list[PriceRow] = []

    def add(self, row: PriceRow) -> None:
        self.named[row.model.lower()].append(row)
        if row.match is not None:
            self.matching.append(row)

    def about(self, name: str) -> dict[int, tuple[bool, PriceRow]]:
        """Rows for a lower-case name, by id, with whether the name is their own."""
        known = [row for row in self.matching if row.match is not None and pricing.matches(row.match, name)]
        found = {row.id: (False, row) for row in known}
        for alias in {row.model.lower() for row in known}:
            found.update((row.id, (False, row)) for row in self.named[alias])
        found.update((row.id, (True, row)) for row in self.named.get(name, ()))
        return found


class _Answer(NamedTuple):
    """What `find` remembers: the price of a name from one moment until another."""

    since: datetime
    until: datetime
    price: pricing.Price | None


class Book:
    """All prices at one time. Immutable but for its memo, which any thread may fill."""

    def __init__(self, rows: Iterable[PriceRow]) -> None:
        self._shelves: dict[str, _Shelf] = defaultdict(_Shelf)
        for row in rows:
            self._shelves[row.provider].add(row)
        self._shelves.default_factory = None
        self._memo: dict[tuple[str, str, str], _Answer] = {}

    def find(self, provider: str, model: str, deployment: str, at: datetime) -> pricing.Price | None:
        """The price in force at `at` (aware). None where none is known: that is not free, it is `unpriced`."""
        key = (provider, model, deployment)
        answer = self._memo.get(key)
        if answer is None or not answer.since <= at < answer.until:
            answer = self._look_up(provider, model, deployment, at)
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()  # names of upstream answers are not ours to bound: forget, and go on
            self._memo[key] = answer
        return answer.price

    def _look_up(self, provider: str, model: str, deployment: str, at: datetime) -> _Answer:
        since, until = _FIRST, _LAST
        for book in (provider, *FALLBACK_BOOKS.get(provider, ())):
            rows = self._about(book, model.lower(), deployment)
            for _, row in rows:
                for edge in row.edges(at):
                    since, until = (max(since, edge), until) if edge <= at else (since, min(until, edge))
            in_force = [(_weight(own, row), row) for own, row in rows if row.applies(at)]
            if in_force:
                return _Answer(since, until, max(in_force, key=lambda pair: pair[0])[1].to_pricing())
        return _Answer(since, until, None)

    def _about(self, book: str, name: str, deployment: str) -> list[tuple[bool, PriceRow]]:
        shelf = self._shelves.get(book)
        if shelf is None:
            return []
        found = shelf.about(name)
        if not found and (dashed := _dashed_date(name)) != name:
            found = shelf.about(dashed)
        return [(own, row) for own, row in found.values() if row.deployment in ("", deployment)]


def _weight(own: bool, row: PriceRow) -> tuple[Any, ...]:
    return (
        row.deployment != "",
        _RANK.get(Source(row.source), 0),
        own,
        row.daily_from is not None,
        row.effective_from,
        row.id,
    )


def _dashed_date(name: str) -> str:
    """`gpt-5.2-20251211` as `gpt-5.2-2025-12-11`: OpenRouter names snapshots without the dashes of the clauses."""
    return re.sub(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)", r"-\1-\2-\3", name)


def load() -> Book:
    """The book of all rows in the table, the past ones too."""
    return Book(PriceRow._make(row) for row in Price.objects.order_by("id").values_list(*PriceRow._fields))


# ── a price that somebody sets ──────────────────────────────────────────────────────────────────────────────────────


def set_price(
    *,
    provider: str,
    model: str,
    rates: pricing.Rates,
    deployment: str = "",
    tiers: list[Any] | None = None,
    service_tiers: dict[str, Any] | None = None,
    match: dict[str, Any] | None = None,
    effective_from: datetime | None = None,
    source: str = Source.FINANCE,
    confirmed: bool = False,
    note: str = "",
) -> Price:
    """Price a model from `effective_from` (default: now) on, and close the price that is in force then.

    A price already planned for a later moment stays: the new one ends where it starts. What the same source planned
    for the very same moment is withdrawn. Setting the price that is already in force, by the same clause, changes
    nothing and returns its row, so that a configuration file can be applied at every start.
    Raises `ValidationError`: malformed, unusual and not `confirmed`, or a change of what has been in force.
    """
    price = Price(
        **{name: getattr(rates, name) for name in pricing.RATE_NAMES},
        provider=provider,
        model=model,
        deployment=deployment,
        match=match,
        source=source,
        tiers=tiers or [],
        service_tiers=service_tiers or {},
        effective_from=effective_from or timezone.now(),
        confirmed=confirmed,
        note=note,
    )
    with transaction.atomic():
        # First of all: its row's lock makes concurrent changes of prices wait for each other.
        versioning.bump(Price.snapshot_section)
        rivals = _rivals(price)
        current = next((row for row in rivals if row.effective_from <= price.effective_from), None)
        if current is not None and _terms(current) == _terms(price):
            return current
        later = [row.effective_from for row in rivals if row.effective_from > price.effective_from]
        price.effective_until = min(later, default=None)
        if current is not None:
            current.effective_until = price.effective_from
            current.save()
        price.full_clean()
        price.save()
    return price


def _rivals(price: Price) -> list[Price]:
    """Whole-day rows of the same model, place and source that are in force then or later, latest first."""
    rows = Price.objects.filter(
        provider=price.provider,
        model__iexact=price.model,
        deployment=price.deployment,
        source=price.source,
        daily_from=None,
    ).order_by("-effective_from", "-id")
    end = Q(effective_until__isnull=True) | Q(effective_until__gt=price.effective_from)
    return [row for row in rows.filter(end) if row.effective_until != row.effective_from]


def _terms(price: Price) -> tuple[Any, ...]:
    """What makes two rows the same price."""
    rates = tuple(
        None if (rate := getattr(price, name)) is None else pricing.to_places(Decimal(rate))
        for name in pricing.RATE_NAMES
    )
    return (*rates, *(_canonical(value) for value in (price.match, price.tiers, price.service_tiers)))


def _canonical(value: Any) -> bytes:
    """JSON that does not depend on the order of keys."""
    return msgspec.json.encode(value, order="deterministic")


# ── the price list ──────────────────────────────────────────────────────────────────────────────────────────────────

PACKAGE = "genai-prices"
IMPORT_REVISION = 1
"""Raise it where what is made of the package's data changes: the next start then imports it again."""

# The package's names of what we price. The others it knows (web searches, hours of audio, images, pages) are in no
# answer's token usage: the row's note names them.
_RATE_KEYS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write_5m",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
    "requests_kcount": "request",
}

# The service tiers of answers, and what the package calls them. Asked for `service_tier: batch` it silently answers
# with the standard price; it knows batch as `processing`. Anthropic's fast mode is a tier to us as OpenAI's is.
_SERVICE_CONTEXTS = (
    ("batch", "processing", "batch"),
    ("flex", "service_tier", "flex"),
    ("priority", "service_tier", "priority"),
    ("fast", "service_tier", "fast"),
    ("fast", "speed", "fast"),
)

HALF_PRICE_BATCHES = frozenset({"openai", "anthropic"})
"""Providers whose batch price is half the standard one wherever the package has no batch price of the model's own
(https://platform.openai.com/docs/guides/batch, https://platform.claude.com/docs/en/build-with-claude/batch-processing)."""

# An empty price says "free" of these, and "not known any more" of others: only what is free is priced at zero.
_FREE = re.compile(r"free of charge|included in the subscription", re.IGNORECASE)

_Key: TypeAlias = tuple[str, str]
_Hours: TypeAlias = tuple[time, time]
_Columns: TypeAlias = dict[str, Any]


class Seeding(NamedTuple):
    """What `seed_prices` did, in rows; `unpriced` lists the models that it left without a price, with the reason."""

    added: int = 0
    closed: int = 0
    unpriced: tuple[str, ...] = ()
    skipped: bool = False


class _Span(NamedTuple):
    """A price over time, before it is a row."""

    since: datetime
    until: datetime | None
    hours: _Hours | None
    columns: _Columns
    note: str


def seed_prices() -> Seeding:
    """Bring the installed price list into the table. Runs at each start; nothing to do is one query.

    The first import takes all of the package's history. A later one changes the future only: what the package says
    otherwise from now on closes its old row and adds another. Rows of finance and of the configuration are not
    looked at, a model whose list price somebody closed stays closed, and one that the package has dropped keeps its
    last price: it may still be served.
    """
    version = f"{_package()} import {IMPORT_REVISION}"
    if PriceImport.objects.filter(version=version).exists():
        return Seeding(skipped=True)
    wanted, unpriced = _read_package()  # heavy, so before the transaction: SQLite has one writer
    with transaction.atomic():
        try:
            with transaction.atomic():
                PriceImport.objects.create(version=version)
        except IntegrityError:
            return Seeding(skipped=True)  # another process started at the same time
        versioning.bump(Price.snapshot_section)
        added, closed = _reconcile(wanted, timezone.now())
        Price.objects.bulk_update(closed, ["effective_until"], batch_size=500)
        Price.objects.bulk_create(added, batch_size=500)
    return Seeding(added=len(added), closed=len(closed), unpriced=tuple(unpriced))


def _reconcile(wanted: Mapping[_Key, list[_Span]], now: datetime) -> tuple[list[Price], list[Price]]:
    """Rows to add, and rows that end sooner than they did."""
    stored: dict[_Key, list[Price]] = defaultdict(list)
    for row in Price.objects.filter(source=Source.SEED, deployment=""):
        stored[row.provider, row.model].append(row)
    added: list[Price] = []
    closed: list[Price] = []
    for key, spans in wanted.items():
        rows = stored.get(key)
        if rows is None:
            added += [_row(key, span) for span in spans]
        # The import always leaves one row open: without one, somebody closed it and meant it.
        elif any(row.effective_until is None and row.daily_from is None for row in rows):
            more, ended = _differences(key, rows, spans, now)
            added += more
            closed += ended
    return added, closed


def _differences(key: _Key, rows: list[Price], spans: list[_Span], now: datetime) -> tuple[list[Price], list[Price]]:
    """How one model's stored future becomes what the package says of it: rows to add, and rows with their new end."""
    future = [row for row in rows if row.effective_until is None or row.effective_until > now]
    stored = {_identity(row, now): row for row in future}
    ends: dict[int, datetime | None] = {row.pk: max(now, row.effective_from) for row in future}
    added = []
    for span in spans:
        if span.until is not None and span.until <= now:
            continue
        new = _row(key, span._replace(since=max(span.since, now)))
        same = stored.get(_identity(new, now))
        if same is not None and (same.effective_until or _LAST) >= (new.effective_until or _LAST):
            ends[same.pk] = new.effective_until
        else:
            added.append(new)
    closed = [row for row in future if row.effective_until != ends[row.pk]]
    for row in closed:
        row.effective_until = ends[row.pk]
    return added, closed


def _identity(row: Price, now: datetime) -> tuple[Any, ...]:
    return max(row.effective_from, now), row.daily_from, row.daily_until, _terms(row)


def _row(key: _Key, span: _Span) -> Price:
    daily_from, daily_until = span.hours or (None, None)
    return Price(
        provider=key[0],
        model=key[1],
        source=Source.SEED,
        effective_from=span.since,
        effective_until=span.until,
        daily_from=daily_from,
        daily_until=daily_until,
        note=span.note,
        **span.columns,
    )


# ── reading the package ─────────────────────────────────────────────────────────────────────────────────────────────


class _Unpriceable(Exception):
    """The package prices this model by something that token usage does not tell."""


def _read_package() -> tuple[dict[_Key, list[_Span]], list[str]]:
    """The package's models as spans of prices, and those that our columns cannot price."""
    from genai_prices.data import providers  # 0.2 s and 40 MB: only when a new version is imported

    free: _Columns = {"input": Decimal(0), "output": Decimal(0)}
    prices = {("demo", "ailb-demo"): [_Span(ALWAYS, None, None, free, "AILB's own demonstration model is free.")]}
    unpriced = []
    for provider in providers:
        for model in provider.models:
            try:
                prices[provider.id, model.id] = list(_spans(provider.id, model))
            except _Unpriceable as reason:
                unpriced.append(f"{provider.id}/{model.id}: {reason}")
    return prices, unpriced


def _spans(provider: str, model: "ModelInfo") -> Iterator[_Span]:
    """The model's prices, one after the other, for the whole day and for the hours that have their own.

    The package's resolver is asked at each moment at which its answer may change; its rules are not copied.
    """
    days, hours = _changes(model)
    for window in (None, *hours):
        hour = _hour_outside(hours) if window is None else window[0]
        spans = [_span(provider, model, day, hour, window) for day in days]
        pairs = zip([None, *spans], spans, strict=False)
        changes = [span for before, span in pairs if before is None or before.columns != span.columns]
        ends = [span.since for span in changes[1:]]
        yield from (span._replace(until=end) for span, end in zip(changes, [*ends, None], strict=True))


def _span(provider: str, model: "ModelInfo", day: date, hour: time, window: _Hours | None) -> _Span:
    at = datetime.combine(day, hour, UTC)
    columns = {"match": _match(model), **_columns(provider, model, at)}
    return _Span(datetime.combine(day, time(), UTC), None, window, columns, _note(model, at))


def _changes(model: "ModelInfo") -> tuple[list[date], list[_Hours]]:
    """The days from which a price of this model may differ, and the hours of the day that have their own."""
    from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

    dated = model.prices if isinstance(model.prices, list) else []
    constraints = [rule.constraint for rule in (*dated, *(model.price_variants or ()))]
    days = {rule.start_date for rule in constraints if isinstance(rule, StartDateConstraint)}
    hours = [
        (_utc(rule.start_time), _utc(rule.end_time)) for rule in constraints if isinstance(rule, TimeOfDateConstraint)
    ]
    return [ALWAYS.date(), *sorted(days)], list(dict.fromkeys(hours))


def _utc(at: time) -> time:
    """A time of day in UTC, as the table keeps it. The package's naive times are UTC."""
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return datetime.combine(ALWAYS.date(), aware).astimezone(UTC).time()


def _hour_outside(hours: list[_Hours]) -> time:
    """A time of day at which the whole-day price applies."""
    for at in (time(), *(end for _, end in hours)):
        if not any(in_hours(at, *window) for window in hours):
            return at
    raise _Unpriceable("every hour of the day has its own price")


def _columns(provider: str, model: "ModelInfo", at: datetime) -> _Columns:
    """The rates, tiers and service tiers at one moment, as the table's columns."""
    price = model.get_prices(at)
    standard = _rates(model, price), _tiers(price)
    return {
        "input": Decimal(0),
        "output": Decimal(0),
        **standard[0],
        "tiers": standard[1],
        "service_tiers": _service_tiers(provider, model, at, standard),
    }


def _rates(model: "ModelInfo", price: "ModelPrice") -> dict[str, Decimal]:
    """The rates of a short prompt. Raises `_Unpriceable`."""
    given = {key: _at(value, 0) for key, value in vars(price).items() if value is not None}
    if not given:
        if model.id.endswith(":free") or _FREE.search(f"{model.description} {model.price_comments}"):
            return {}
        raise _Unpriceable("the package gives no rates")
    rates = {name: pricing.to_places(given[key]) for key, name in _RATE_KEYS.items() if key in given}
    if "input" not in rates:
        raise _Unpriceable(f"priced by {', '.join(sorted(given))}")
    # A dearer kind of output that usage does not tell from text would be billed at a fraction of its price.
    for key in given.keys() - _RATE_KEYS.keys():
        if key.startswith("output_") and given[key] > rates.get("output", Decimal(0)):
            raise _Unpriceable(f"{key} is dearer than text, and usage does not tell them apart")
    if "request" in rates:
        rates["request"] = pricing.to_places(rates["request"] / 1000)
    return rates


def _tiers(price: "ModelPrice") -> list[_Columns]:
    """The context tiers, as the table's JSON: at each threshold every rate that has tiers."""
    tiered = {
        name: value
        for key, name in _RATE_KEYS.items()
        if (value := vars(price).get(key)) is not None and not isinstance(value, Decimal)
    }
    thresholds = sorted({tier.start for value in tiered.values() for tier in value.tiers})
    return [
        {"above": above, **{name: _plain(_at(value, above + 1)) for name, value in tiered.items()}}
        for above in thresholds
    ]


def _service_tiers(
    provider: str, model: "ModelInfo", at: datetime, standard: tuple[dict[str, Decimal], list[_Columns]]
) -> _Columns:
    """The service tiers that are not priced as the standard one, as the table's JSON."""
    services: _Columns = {}
    listed = set()
    for name, key, value in _SERVICE_CONTEXTS:
        if _has_variant(model, key, value, at):
            listed.add(name)
            price = model.get_prices(at, {key: value})
            rates, tiers = _rates(model, price), _tiers(price)
            if (rates, tiers) != standard:
                changed = {rate: _plain(amount) for rate, amount in rates.items() if amount != standard[0].get(rate)}
                services[name] = {**changed, "tiers": tiers} if tiers else changed
    if provider in HALF_PRICE_BATCHES and "batch" not in listed:
        services["batch"] = "0.5"
    return services


def _has_variant(model: "ModelInfo", key: str, value: str, at: datetime) -> bool:
    return any(
        variant.when == {key: value} and (variant.constraint is None or variant.constraint.active(at))
        for variant in model.price_variants or ()
    )


def _at(value: "Decimal | TieredPrices", prompt_tokens: int) -> Decimal:
    """A rate of the package for a prompt of so many tokens."""
    if isinstance(value, Decimal):
        return value
    reached = [tier.price for tier in value.tiers if prompt_tokens > tier.start]
    return reached[-1] if reached else value.base


def _plain(amount: Decimal) -> str:
    """A decimal as JSON keeps it: a string, without exponent or idle zeros."""
    text = f"{pricing.to_places(amount):f}"
    return text.rstrip("0").rstrip(".")


def _match(model: "ModelInfo") -> _Columns | None:
    """The model's clause as the table's JSON; None where it says no more than the model's own name."""
    clause = _clause(model.match)
    return None if clause == {"equals": model.id} else clause


def _clause(match: Any) -> _Columns:
    # One field each; `or_` and `and_` are named around Python's keywords.
    ((operator, operand),) = vars(match).items()
    return {operator.rstrip("_"): operand if isinstance(operand, str) else [_clause(part) for part in operand]}


def _note(model: "ModelInfo", at: datetime) -> str:
    """Where the price comes from, and what the package would charge besides."""
    besides = sorted(vars(model.get_prices(at)).keys() - _RATE_KEYS.keys())
    extra = f" Not included: {', '.join(besides)}." if besides else ""
    return f"{_package()}.{extra}"


@cache
def _package() -> str:
    """The package and its version, which takes a millisecond to find."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"
