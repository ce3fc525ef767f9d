"""A price list in a file: what things would cost at other prices. Nothing of it is written anywhere.

```yaml
prices:
  - {provider: openai, model: gpt-4o, input: "2.0", output: "8.0", effective_from: 2026-01-01}
  - {provider: local, model: "llama3:8b", input: "0", output: "0"}
```

The fields are the price table's: US dollars per million tokens, `deployment`, `match`, `tiers` and `service_tiers`
included (`billing.models.prices.Price` says what each is). JSON is YAML too.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from billing import pricing
from billing.models.prices import Source
from billing.pricebook import ALWAYS, Book, PriceRow
from gateway.config_file import document

_NEEDED = ("provider", "model", "input", "output")
_FIELDS = (*_NEEDED, *(name for name in PriceRow._fields if name not in (*_NEEDED, "id", "source")))
_TEXTS = ("provider", "model", "deployment")
_MOMENTS = ("effective_from", "effective_until")
_HOURS = ("daily_from", "daily_until")
_DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(PriceRow._fields),
    "source": Source.FINANCE.value, "deployment": "", "effective_from": ALWAYS, "request": Decimal(0), "tiers": [],
    "service_tiers": {},
}  # fmt: skip


class BookOver(Book):
    """A book whose rows come before all of another's."""

    def __init__(self, rows: Iterable[PriceRow], under: Book) -> None:
        super().__init__(rows)
        self._under = under

    def find(self, provider: str, model: str, deployment: str, at: datetime) -> pricing.Price | None:
        """As `Book.find`; what this list does not speak of costs what it does in the other."""
        found = super().find(provider, model, deployment, at)
        return found if found is not None else self._under.find(provider, model, deployment, at)


def read(path: Path, under: Book) -> Book:
    """The file's prices over those of `under`. Raises `document.ConfigError`, one line for whoever wrote it."""
    file = document.read(path)
    entries = file.data.get("prices") if isinstance(file.data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise file.error((), "takes a list of prices under the name `prices`")
    rows = []
    for number, entry in enumerate(entries):
        try:
            rows.append(_row(number, entry))
        except ValueError as error:
            raise file.error(("prices", number), str(error)) from None
    return BookOver(rows, under)


def _row(number: int, entry: Any) -> PriceRow:
    """Raises `ValueError`, `pricing.MalformedPrice` among them."""
    if not isinstance(entry, dict):
        raise ValueError("takes the fields of a price")
    if unknown := [str(name) for name in entry if name not in _FIELDS]:
        raise ValueError(f"{unknown[0][:100]}: unknown; takes {', '.join(_FIELDS)}")
    if missing := [name for name in _NEEDED if entry.get(name) is None]:
        raise ValueError(f"{missing[0]} is needed")
    given = {name: _read(name, value) for name, value in entry.items() if value is not None}
    row = PriceRow(**{**_DEFAULTS, "id": number, **given})
    row.to_pricing()  # what is malformed is to be told now, not in the middle of a replay
    if row.match is not None:
        pricing.check_clause(row.match)
    return row


def _read(name: str, value: Any) -> Any:
    if name in pricing.RATE_NAMES:
        return _rate(name, value)
    if name in _TEXTS:
        return str(value)
    if name in _MOMENTS:
        return _moment(name, value)
    return _hour(name, value) if name in _HOURS else value


def _rate(name: str, value: Any) -> Decimal:
    """JSON's floats are read as they are written: 0.1 is one tenth."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f'{name} is a number, best in quotes ("0.125")')
    try:
        rate = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{name} is a number, not {value!r:.50}") from None
    if not rate.is_finite() or rate < 0:
        raise ValueError(f"{name} is zero or more, not {value!r:.50}")
    return rate


def _moment(name: str, value: Any) -> datetime:
    """ISO 8601, UTC where it names no zone; a date is its midnight."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{name} is a date, such as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _hour(name: str, value: Any) -> time:
    # YAML 1.1 reads 17:30 as a number of base 60.
    text = f"{value // 60:02}:{value % 60:02}" if isinstance(value, int) else str(value)
    try:
        return time.fromisoformat(text)
    except ValueError:
        raise ValueError(f'{name} is a time of day in UTC, such as "17:30"') from None
