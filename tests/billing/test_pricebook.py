"""Which price applies, and how prices come into the table."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from billing import pricebook, pricing
from billing.models.prices import Price, PriceImport, Source
from billing.pricebook import Book, PriceRow
from billing.pricing import Rates
from gateway.models import ConfigVersion
from gateway.types import Usage

D = Decimal
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def row(id, model="gpt-5.1", *, input=1, **changes) -> PriceRow:
    """A row of the book, of OpenAI's and the price list's unless told otherwise."""
    blank = dict.fromkeys(PriceRow._fields)
    given = {
        "provider": "openai",
        "model": model,
        "deployment": "",
        "source": "seed",
        "effective_from": pricebook.ALWAYS,
        "output": D(0),
        "request": D(0),
        "tiers": [],
        "service_tiers": {},
    }
    return PriceRow(**{**blank, **given, "id": id, "input": D(input), **changes})


def found(rows, model="gpt-5.1", *, provider="openai", deployment="chat", at=NOW) -> int | None:
    """The id of the row that prices this."""
    price = Book(rows).find(provider, model, deployment, at)
    return None if price is None else price.id


def priced(book: Book, model: str = "gpt-5.1", *, provider="openai", at=NOW) -> pricing.Price:
    """The price that the book must know."""
    price = book.find(provider, model, "", at)
    assert price is not None
    return price


# ── looking up ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_model_has_no_price_rather_than_a_free_one():
    """Lesson 9."""
    assert found([row(1)], "gpt-5.1-mini") is None
    assert found([row(1)], provider="mistral") is None
    assert found([]) is None


def test_names_are_compared_without_case():
    assert found([row(1, "Qwen/Qwen3")], "qwen/qwen3") == 1


def test_a_price_applies_from_its_start_until_its_end():
    rows = [row(1, effective_until=NOW), row(2, effective_from=NOW, effective_until=NOW + DAY)]
    moments = [NOW - DAY, NOW - timedelta(microseconds=1), NOW, NOW + DAY]
    assert [found(rows, at=at) for at in moments] == [1, 1, 2, None]


def test_one_book_honours_a_date_that_passes():
    """The memo answers for as long as it is right, and no longer."""
    book = Book([row(1), row(2, source="finance", effective_from=NOW, effective_until=NOW + DAY)])
    moments = [NOW - DAY, NOW, NOW + DAY, NOW - DAY]
    assert [priced(book, at=at).id for at in moments] == [1, 2, 1, 1]


def test_one_book_honours_the_hours_of_the_day():
    night = {"daily_from": time(22), "daily_until": time(6)}
    book = Book([row(1), row(2, **night)])
    moments = [(20, 5), (20, 6), (20, 12), (20, 21), (20, 22), (20, 23), (21, 5), (21, 12), (22, 12)]
    prices = [priced(book, at=datetime(2026, 11, *moment, tzinfo=UTC)).id for moment in moments]
    assert prices == [2, 1, 1, 1, 2, 2, 2, 1, 1]
    amsterdam = datetime.fromisoformat("2026-11-20T06:30+01:00")  # 05:30 UTC
    assert priced(book, at=amsterdam).id == 2


def test_a_snapshots_name_finds_its_models_price():
    clause = {"or": [{"equals": "gpt-5.1"}, {"starts_with": "gpt-5.1-2025"}]}
    assert found([row(1, match=clause)], "gpt-5.1-2025-11-13") == 1


def test_a_date_without_dashes_is_the_same_snapshot():
    assert found([row(1, match={"equals": "gpt-5.1-2025-11-13"})], "gpt-5.1-20251113") == 1


DEPLOYED = row(1, deployment="chat")
FINANCE = row(2, source="finance")
CONFIG = row(3, source="config")
EXACT = row(4)
PATTERN = row(5, "gpt-5", match={"starts_with": "gpt-5"})


@pytest.mark.parametrize(
    ("rows", "winner"),
    [
        ([FINANCE, DEPLOYED], 1),
        ([DEPLOYED, row(9, deployment="chat", source="finance")], 9),
        ([CONFIG, FINANCE], 2),
        ([EXACT, CONFIG], 3),
        ([PATTERN, EXACT], 4),
        ([EXACT, row(9, "gpt-5", match={"starts_with": "gpt-5"}, source="finance")], 9),
        ([row(0, effective_from=NOW - DAY), EXACT], 0),
        ([row(8, deployment="another"), PATTERN], 5),
        ([row(8, source="finance", effective_until=NOW), EXACT], 4),  # finance's has ended: the list's applies again
    ],
)
def test_precedence(rows, winner):
    assert found(rows) == winner
    assert found(rows[::-1]) == winner


def test_what_finance_sets_for_a_model_holds_for_its_snapshots():
    """Finance types `gpt-5.1`; the answer says gpt-5.1-2025-11-13, which only the price list knows to be the same."""
    listed = row(1, match={"starts_with": "gpt-5.1-2025"})
    assert found([listed, FINANCE], "gpt-5.1-2025-11-13") == 2
    other = row(3, "gpt-5.1-codex")
    assert found([listed, FINANCE, other], "gpt-5.1-codex") == 3


def test_a_reseller_charges_its_sources_price_unless_it_has_its_own():
    assert found([row(1)], provider="azure") == 1
    assert found([row(1, source="finance"), row(2, provider="azure")], provider="azure") == 2
    assert found([row(1)], provider="groq") is None


def test_the_memo_is_bounded(monkeypatch):
    monkeypatch.setattr(pricebook, "MEMO_SIZE", 10)
    book = Book([row(1, match={"starts_with": "gpt"})])
    for number in range(1000):
        assert priced(book, f"gpt-{number}").id == 1
    assert len(book._memo) <= 10


# ── setting a price ─────────────────────────────────────────────────────────────────────────────────────────────────


def set_price(model="gpt-5.1", *, input=1, output=2, **more) -> Price:
    return pricebook.set_price(provider="openai", model=model, rates=Rates(input=D(input), output=D(output)), **more)


def listed(**changes) -> list[tuple]:
    """What the table says of a model, oldest first."""
    rows = Price.objects.filter(**{"model": "gpt-5.1", **changes}).order_by("effective_from", "id")
    return list(rows.values_list("input", "effective_from", "effective_until"))


@pytest.mark.django_db
def test_a_new_price_closes_the_old_one():
    first = set_price(input=1)
    second = set_price(input=2)
    first.refresh_from_db()
    assert first.input == 1
    assert first.effective_until == second.effective_from
    assert second.effective_until is None
    assert priced(pricebook.load(), at=timezone.now()).id == second.pk


@pytest.mark.django_db
def test_a_price_is_in_force_once_the_version_is_seen():
    def version() -> int:
        return ConfigVersion.objects.filter(section="prices").values_list("number", flat=True).first() or 0

    before = version()
    set_price()
    assert version() > before


@pytest.mark.django_db
def test_setting_the_same_price_again_changes_nothing():
    first = set_price(input="1.50", service_tiers={"batch": "0.5"})
    assert set_price(input="1.5", service_tiers={"batch": "0.5"}).pk == first.pk
    assert Price.objects.count() == 1


@pytest.mark.django_db
def test_a_planned_price_stays_planned():
    planned = timezone.now() + 30 * DAY
    set_price(input=9, effective_from=planned)
    now = set_price(input=1)
    assert listed() == [(1, now.effective_from, planned), (9, planned, None)]


@pytest.mark.django_db
def test_a_price_planned_for_the_same_moment_is_withdrawn():
    planned = timezone.now() + 30 * DAY
    set_price(input=8, effective_from=planned)
    set_price(input=9, effective_from=planned)
    assert listed() == [(8, planned, planned), (9, planned, None)]
    assert priced(pricebook.load(), at=planned).rates.input == 9


@pytest.mark.django_db
def test_the_past_is_not_priced_anew():
    """Lesson 10: old rows never change; an answer's price can be found again."""
    set_price(input=1, effective_from=timezone.now() - 10 * DAY)
    with pytest.raises(ValidationError, match="in force"):
        set_price(input=2, effective_from=timezone.now() - 5 * DAY)
    assert Price.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("field", ["input", "model", "effective_from", "tiers", "source"])
def test_a_stored_price_is_never_rewritten(field):
    price = set_price(input=1)
    values = {
        "input": D(5),
        "model": "other",
        "effective_from": NOW,
        "tiers": [{"above": 9, "input": "1"}],
        "source": Source.SEED,
    }
    setattr(price, field, values[field])
    for write in (price.save, price.full_clean):
        with pytest.raises(ValidationError, match="never rewritten"):
            write()


@pytest.mark.django_db
def test_a_closed_price_is_not_opened_again():
    price = set_price(effective_from=timezone.now() - DAY)
    price.effective_until = timezone.now()
    price.save()
    price.effective_until = None
    with pytest.raises(ValidationError, match="not opened again"):
        price.save()


@pytest.mark.django_db
def test_a_note_may_be_added():
    price = set_price()
    price.note = "contract 17"
    price.save()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "prices",
    [
        {"input": 1001},
        {"input": "0.00000125"},  # per token, where per million belongs
        {"tiers": [{"above": 200_000, "output": "1250"}]},
        {"input": 300, "service_tiers": {"priority": "4"}},
        {"service_tiers": {"priority": {"input": "2500"}}},
    ],
)
def test_an_unusual_rate_is_to_be_confirmed(prices):
    """Lesson 10: a slip of a million locks users out, or bills them nothing."""
    with pytest.raises(ValidationError) as refused:
        set_price(**prices)
    assert list(refused.value.message_dict) == ["confirmed"]
    assert set_price(**prices, confirmed=True).confirmed


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("input", {"input": "-1"}),
        ("match", {"match": {"is": "gpt"}}),
        ("match", {"match": {"regex": "("}}),
        ("tiers", {"tiers": [{"above": -1, "input": 5}]}),
        ("service_tiers", {"service_tiers": {"batch": "half"}}),
        ("source", {"source": "rumour"}),
    ],
)
def test_what_is_malformed_is_refused_by_its_field(field, changes):
    with pytest.raises(ValidationError) as refused:
        set_price(**changes)
    assert field in refused.value.message_dict


def new_row(**changes) -> Price:
    given = {"provider": "openai", "model": "gpt-5.1", "input": D(1), "output": D(2), "effective_from": NOW}
    return Price(**{**given, **changes})


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("effective_until", {"effective_until": NOW - DAY}),
        ("daily_until", {"daily_from": time(1)}),
        ("daily_until", {"daily_from": time(1), "daily_until": time(1)}),
        ("input", {"input": None}),
    ],
)
def test_a_row_that_says_nothing_is_refused(field, changes):
    with pytest.raises(ValidationError) as refused:
        new_row(**changes).full_clean()
    assert field in refused.value.message_dict


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("changes", "overlaps"),
    [
        ({}, True),
        ({"model": "GPT-5.1"}, True),
        ({"effective_from": NOW + DAY}, True),
        ({"effective_from": NOW - DAY}, True),
        ({"effective_from": NOW - DAY, "effective_until": NOW}, False),
        ({"effective_from": NOW + 5 * DAY}, False),
        ({"deployment": "chat"}, False),
        ({"source": Source.SEED}, False),
        ({"daily_from": time(1), "daily_until": time(4)}, False),
        ({"effective_from": NOW + DAY, "effective_until": NOW + DAY}, False),
    ],
)
def test_two_prices_of_one_source_do_not_overlap(changes, overlaps):
    new_row(effective_until=NOW + 5 * DAY).save()
    if overlaps:
        with pytest.raises(ValidationError, match="Another price"):
            new_row(**changes).full_clean()
    else:
        new_row(**changes).full_clean()


@pytest.mark.django_db
def test_hours_of_the_day_do_not_overlap_either():
    new_row(daily_from=time(22), daily_until=time(6)).save()
    new_row(daily_from=time(6), daily_until=time(22)).full_clean()
    with pytest.raises(ValidationError, match="Another price"):
        new_row(daily_from=time(5), daily_until=time(8)).full_clean()


@pytest.mark.django_db
def test_a_row_and_the_books_row_are_the_same_price():
    price = set_price(
        tiers=[{"above": 9, "input": "3"}], service_tiers={"batch": "0.5"}, note="what", match={"equals": "gpt-5-1"}
    )
    price.refresh_from_db()
    assert priced(pricebook.load(), "gpt-5-1", at=timezone.now()) == price.to_pricing()


# ── the price list ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.django_db
def test_a_second_start_reads_nothing(monkeypatch):
    monkeypatch.setattr(pricebook, "_read_package", lambda: ({}, []))
    assert not pricebook.seed_prices().skipped
    monkeypatch.setattr(pricebook, "_read_package", lambda: pytest.fail("read again"))
    assert pricebook.seed_prices().skipped


@pytest.mark.django_db
def test_of_two_first_starts_one_seeds(monkeypatch):
    """The other one comes in while this one is still reading the package."""
    read = pricebook._read_package

    def interrupted():
        PriceImport.objects.create(version=f"{pricebook._package()} import {pricebook.IMPORT_REVISION}")
        return read()

    monkeypatch.setattr(pricebook, "_read_package", interrupted)
    assert pricebook.seed_prices().skipped
    assert not Price.objects.exists()


class Package:
    """A price list of our own in the package's shapes, so that it can change from one version to the next."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self._version = 0

    def says(self, *prices, model="gpt-5.1", provider="openai", **more) -> None:
        """From the next `seed`, one model: its price, or several with the date from which each applies."""
        from genai_prices import types

        rules = [
            types.ConditionalPrice(since and types.StartDateConstraint(since), prices=self._rates(rate))
            for since, rate in prices
        ]
        info = types.ModelInfo(id=model, match=types.ClauseEquals(model), prices=rules, **more)
        self.has([types.Provider(id=provider, name=provider, api_pattern="", models=[info])])

    @staticmethod
    def _rates(rate):
        from genai_prices import types

        rates = rate if isinstance(rate, dict) else {"input_mtok": rate, "output_mtok": rate}
        return types.ModelPrice(**{key: value if hasattr(value, "base") else D(value) for key, value in rates.items()})

    def has(self, providers) -> None:
        self._version += 1
        self._monkeypatch.setattr("genai_prices.data.providers", providers)
        self._monkeypatch.setattr(pricebook, "_package", lambda: f"genai-prices test {self._version}")


@pytest.fixture
def package(monkeypatch) -> Package:
    return Package(monkeypatch)


@pytest.mark.django_db
def test_an_unchanged_price_is_left_alone(package):
    package.says((None, 1), (date(2026, 1, 1), 2), (date(2099, 1, 1), 3))
    pricebook.seed_prices()
    before = listed()
    assert [rate for rate, _, _ in before] == [1, 2, 3]
    package.says((None, 1), (date(2026, 1, 1), 2), (date(2099, 1, 1), 3))
    assert pricebook.seed_prices() == pricebook.Seeding()
    assert listed() == before


@pytest.mark.django_db
def test_a_changed_price_closes_the_old_row_and_adds_another(package):
    package.says((None, 1))
    pricebook.seed_prices()
    package.says((None, 2))
    assert pricebook.seed_prices()[:2] == (1, 1)
    (old, since, until), (new, again, end) = listed()
    assert (old, since, new, end) == (1, pricebook.ALWAYS, 2, None)
    assert until == again
    assert timezone.now() - until < timedelta(minutes=1)


@pytest.mark.django_db
def test_an_announced_price_starts_on_its_day(package):
    announced = datetime(2099, 1, 1, tzinfo=UTC)
    package.says((None, 1))
    pricebook.seed_prices()
    package.says((None, 1), (announced.date(), 2))
    pricebook.seed_prices()
    assert listed() == [(1, pricebook.ALWAYS, announced), (2, announced, None)]


@pytest.mark.django_db
def test_an_announcement_that_is_taken_back_never_applies(package):
    package.says((None, 1), (date(2099, 1, 1), 2))
    pricebook.seed_prices()
    package.says((None, 1))
    pricebook.seed_prices()
    book = pricebook.load()
    assert [priced(book, at=at).rates.input for at in (NOW, NOW + 36500 * DAY)] == [1, 1]


@pytest.mark.django_db
def test_a_change_that_the_package_learns_late_does_not_reprice_the_past(package):
    package.says((None, 1))
    pricebook.seed_prices()
    package.says((None, 1), (date(2026, 1, 1), 2))
    pricebook.seed_prices()
    book = pricebook.load()
    assert priced(book, at=datetime(2026, 6, 1, tzinfo=UTC)).rates.input == 1
    assert priced(book, at=timezone.now()).rates.input == 2


@pytest.mark.django_db
def test_what_finance_set_survives_a_new_price_list(package):
    package.says((None, 1))
    pricebook.seed_prices()
    mine = set_price(input=7)
    package.says((None, 2))
    pricebook.seed_prices()
    mine.refresh_from_db()
    assert (mine.input, mine.effective_until) == (7, None)
    assert priced(pricebook.load(), at=timezone.now()).id == mine.pk


@pytest.mark.django_db
def test_a_list_price_that_somebody_closed_stays_closed(package):
    package.says((None, 1))
    pricebook.seed_prices()
    price = Price.objects.get(model="gpt-5.1")
    price.effective_until = timezone.now()
    price.save()
    package.says((None, 2))
    assert pricebook.seed_prices()[:2] == (0, 0)
    assert pricebook.load().find("openai", "gpt-5.1", "", timezone.now()) is None


@pytest.mark.django_db
def test_a_model_that_the_package_dropped_keeps_its_price(package):
    package.says((None, 1))
    pricebook.seed_prices()
    package.says((None, 2), model="gpt-7")
    assert pricebook.seed_prices()[:2] == (1, 0)
    assert priced(pricebook.load(), at=timezone.now()).rates.input == 1


@pytest.mark.django_db
def test_a_price_by_the_hour_applies_at_its_hours(package):
    from genai_prices import types

    peak = types.ConditionalPrice(
        types.TimeOfDateConstraint(time(0, 30, tzinfo=UTC), time(16, 30, tzinfo=UTC)),
        prices=types.ModelPrice(input_mtok=D(2), output_mtok=D(4)),
    )
    plain = types.ConditionalPrice(prices=types.ModelPrice(input_mtok=D(1), output_mtok=D(2)))
    info = types.ModelInfo(id="deepseek-chat", match=types.ClauseEquals("deepseek-chat"), prices=[plain, peak])
    package.has([types.Provider(id="deepseek", name="", api_pattern="", models=[info])])
    pricebook.seed_prices()
    book = pricebook.load()
    hours = [datetime(2026, 11, 20, *at, tzinfo=UTC) for at in ((0, 0), (0, 30), (16, 29), (16, 30))]
    assert [priced(book, "deepseek-chat", provider="deepseek", at=at).rates.input for at in hours] == [1, 2, 2, 1]
    package.has([types.Provider(id="deepseek", name="", api_pattern="", models=[info])])
    assert pricebook.seed_prices()[:2] == (0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        ({"audio_hours": 3}, "priced by audio_hours"),
        ({"input_mtok": 1, "output_mtok": 2, "output_image_mtok": 30}, "output_image_mtok is dearer than text"),
        ({}, "no rates"),
    ],
)
def test_what_token_usage_cannot_price_is_left_without_a_price(package, rates, reason):
    """Lesson 9: never at 0, nor at a fraction."""
    package.says((None, rates))
    seeded = pricebook.seed_prices()
    assert len(seeded.unpriced) == 1
    assert reason in seeded.unpriced[0]
    assert pricebook.load().find("openai", "gpt-5.1", "", timezone.now()) is None


@pytest.mark.django_db
def test_what_is_said_to_be_free_is_free(package):
    package.says((None, {}), description="All moderation models are free of charge")
    pricebook.seed_prices()
    assert priced(pricebook.load(), at=timezone.now()).rates == Rates(input=D(0), output=D(0))


# ── the package as it is installed ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def whole_list():
    """The installed price list as the book has it, without a database: it is read once."""
    spans, unpriced = pricebook._read_package()
    rows = [pricebook._row(key, span) for key, found in spans.items() for span in found]
    book = Book(PriceRow(**{**_values(price), "id": number}) for number, price in enumerate(rows))
    return book, rows, unpriced


def _values(price) -> dict:
    return {name: getattr(price, name) for name in PriceRow._fields}


def cost_of(whole_list, provider, model, usage, tier=None, at=NOW) -> Decimal:
    price = whole_list[0].find(provider, model, "", at)
    assert price is not None
    return pricing.cost(price, usage, tier)


def test_the_examples_of_the_trial(whole_list):
    """parts.md section 3, both checked by hand."""
    openai = Usage(1200, 300, cached_tokens=1000)
    anthropic = Usage(6200, 300, cached_tokens=5000, cache_write_tokens=600, cache_write_1h_tokens=400)
    assert cost_of(whole_list, "openai", "gpt-5.1", openai) == D("0.003375")
    assert cost_of(whole_list, "anthropic", "claude-sonnet-4-5", anthropic) == D("0.01125")


def test_batches_are_half_price(whole_list):
    """The package prices `service_tier: batch` silently as standard."""
    usage = Usage(1_000_000, 1_000_000, cached_tokens=500_000)
    for provider, model in [
        ("openai", "gpt-5.1"),  # the package has a batch price
        ("openai", "gpt-5.1-2025-11-13"),
        ("openai", "text-embedding-3-small"),
        ("openai", "gpt-audio"),  # it has none
        ("anthropic", "claude-haiku-4-5"),
        ("anthropic", "claude-3-haiku"),
        ("azure", "gpt-5.1"),
    ]:
        standard = cost_of(whole_list, provider, model, usage)
        assert cost_of(whole_list, provider, model, usage, "batch") == standard / 2 > 0


def test_priority_and_flex(whole_list):
    usage = Usage(1_000_000, 1_000_000)
    costs = {tier: cost_of(whole_list, "openai", "gpt-5.1", usage, tier) for tier in (None, "flex", "priority", "fast")}
    assert costs == {None: D("11.25"), "flex": D("5.625"), "priority": D("22.5"), "fast": D("22.5")}


def test_a_price_that_is_announced_for_new_year(whole_list):
    """gemini-3.8-flash doubles on 2027-01-01, in the running process's book."""
    old, new = (
        cost_of(whole_list, "google", "gemini-3.8-flash", Usage(1_000_000, 0), at=datetime(*day, 23, 59, tzinfo=UTC))
        for day in ((2026, 12, 31), (2027, 1, 1))
    )
    assert (old, new) == (D("0.75"), D("1.5"))


def test_the_demonstration_model_is_free(whole_list):
    assert cost_of(whole_list, "demo", "ailb-demo", Usage(10**6, 10**6)) == 0


def test_fallbacks_are_the_packages():
    from genai_prices.data import providers

    theirs = {p.id: tuple(p.fallback_model_providers) for p in providers if p.fallback_model_providers}
    assert theirs == pricebook.FALLBACK_BOOKS


def test_no_list_price_is_unusual(whole_list):
    """Else the limits of lesson 10 would be wrong, and the console could not save a seeded row."""
    from billing.models import prices

    dearest = max(rate for price in whole_list[1] for _, rate in price.to_pricing().every_rate())
    cheapest = min(rate for price in whole_list[1] for _, rate in price.to_pricing().every_rate() if rate)
    assert prices.UNUSUAL_BELOW < cheapest < dearest < prices.UNUSUAL_ABOVE


def _sample():
    """Every model with dates, hours or variants, and each fifth of the others."""
    from genai_prices.data import providers

    for provider in providers:
        for number, model in enumerate(provider.models):
            if isinstance(model.prices, list) or model.price_variants or number % 5 == 0:
                yield provider, model


def _a_name(model) -> str | None:
    """A name that the model goes by: its id is not always one."""
    names = [model.id.lower()]
    clauses = [model.match]
    while clauses:
        clause = clauses.pop()
        ((_, operand),) = vars(clause).items()
        if isinstance(operand, str):
            names.append(operand.lower())
        else:
            clauses += operand
    return next((name for name in names if model.is_match(name)), None)


USAGES = [
    (
        Usage(6200, 300, cached_tokens=5000, cache_write_tokens=600, cache_write_1h_tokens=400, reasoning_tokens=100),
        {"cache_read_tokens": 5000, "cache_write_tokens": 1000, "cache_write_1h_tokens": 400},
    ),
    (
        Usage(600_001, 7_777, audio_prompt_tokens=123, audio_completion_tokens=456),
        {"input_audio_tokens": 123, "output_audio_tokens": 456},
    ),
]
CONTEXTS = [
    (None, {}),
    ("flex", {"service_tier": "flex"}),
    ("priority", {"service_tier": "priority"}),
    ("batch", {"processing": "batch"}),
]
MOMENTS = [
    NOW,
    datetime(2026, 11, 20, 2, tzinfo=UTC),  # DeepSeek's peak
    datetime(2025, 8, 1, tzinfo=UTC),
    datetime(2027, 2, 1, tzinfo=UTC),
]


def test_our_cost_is_genai_prices_cost(whole_list):
    """Cross-checked as data. The one difference meant is batch where the package has no batch price."""
    from genai_prices import Usage as TheirUsage

    book, _, unpriced = whole_list
    left_out = {entry.partition(": ")[0] for entry in unpriced}
    compared = 0
    for provider, model in _sample():
        name = _a_name(model)
        if name is None or f"{provider.id}/{model.id}" in left_out:
            continue
        dated = isinstance(model.prices, list) or model.price_variants
        for at in MOMENTS if dated else MOMENTS[:1]:
            price = book.find(provider.id, name, "", at)
            assert price is not None, (provider.id, name)
            for tier, context in CONTEXTS if model.price_variants else CONTEXTS[:1]:
                if tier == "batch" and not _batch_price(model, at):
                    continue
                for ours, theirs in USAGES:
                    usage = TheirUsage(
                        input_tokens=ours.prompt_tokens,
                        output_tokens=ours.completion_tokens,
                        output_reasoning_tokens=ours.reasoning_tokens,
                        **theirs,
                    )
                    expected = model.calc_price(usage, provider, genai_request_timestamp=at, price_context=context)
                    drift = abs(pricing.cost(price, ours, tier) - expected.total_price)
                    # Theirs is not rounded, and has rates such as 0.13999999999999999.
                    assert drift <= D("1e-12"), (provider.id, name, at, tier, ours)
                    compared += 1
    assert compared > 3000


def _batch_price(model, at) -> bool:
    return pricebook._has_variant(model, "processing", "batch", at)


@pytest.mark.django_db
def test_the_whole_list_goes_into_the_table(whole_list):
    seeded = pricebook.seed_prices()
    assert seeded.added == len(whole_list[1]) > 2500
    assert Price.objects.filter(source=Source.SEED).count() == seeded.added
    book = pricebook.load()
    for provider, model in [("openai", "gpt-5.4"), ("anthropic", "claude-sonnet-4-5"), ("deepseek", "deepseek-v4-pro")]:
        stored, fresh = (priced(b, model, provider=provider) for b in (book, whole_list[0]))
        assert (stored.rates, stored.tiers, stored.service_tiers) == (fresh.rates, fresh.tiers, fresh.service_tiers)
    for price in Price.objects.filter(provider="google"):
        price.full_clean()
