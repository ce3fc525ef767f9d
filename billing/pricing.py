"""What an answer costs: exact arithmetic over one price. Pure, and on every request's path.

Rates are US dollars per million tokens. Inside, a rate is a whole number of pico-dollars per million tokens and a
sum a whole number of 1e-18 dollars: integers are exact whatever `decimal` context the caller has, where
`Decimal` rounds at 28 digits (24 of a rate and 7 of a token count do not fit).

A price is chosen by three facts of the answer:

* its service tier (`batch`, `flex`, `priority`, `fast`). A name that the price does not list is the standard price:
  providers say `default`, `standard`, `auto` or `scale` for it;
* the length of its prompt. A context tier prices the *whole* request, output too, once the prompt is longer than
  its threshold: 200 001 tokens of a model with a tier above 200 000 are all dear. So do Anthropic, Google and
  OpenAI, and genai-prices ("threshold-based pricing", `TieredPrices`);
* how the tokens split into cached, cache writes, audio and reasoning.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from functools import cached_property
from typing import Any

import msgspec

from gateway.types import Usage

PLACES = 12
"""Decimal places of money: those of the database's columns."""

STANDARD_TIERS = frozenset({"default", "standard", "standard_only"})
"""What a request says to be served at the standard price, and never at a dearer one."""

_PICO = 10**PLACES
_TOKENS_PER_RATE = 10**6
# Wide enough that nothing here is ever rounded but by the two steps that say so.
_EXACT = Context(prec=80)
_QUANTUM = Decimal(1).scaleb(-PLACES)


class MalformedPrice(ValueError):
    """Tiers, service tiers or a clause that mean nothing. The message is for whoever typed them."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens; `request` is dollars per request. None falls back to the rate named."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    """else `input`"""
    cache_write_5m: Decimal | None = None
    """else `input`"""
    cache_write_1h: Decimal | None = None
    """else `cache_write_5m`"""
    reasoning: Decimal | None = None
    """else `output`"""
    audio_input: Decimal | None = None
    """else `input`"""
    audio_output: Decimal | None = None
    """else `output`"""
    request: Decimal = Decimal(0)


RATE_NAMES: tuple[str, ...] = Rates.__struct_fields__
PER_TOKEN = tuple(name for name in RATE_NAMES if name != "request")


class Tier(msgspec.Struct, frozen=True):
    """The rates of a request whose prompt is longer than `above` tokens."""

    above: int
    rates: Rates


class Schedule(msgspec.Struct, frozen=True):
    """The rates of one service tier: short prompts, and longer ones."""

    rates: Rates
    tiers: tuple[Tier, ...] = ()


class _Level(msgspec.Struct, frozen=True):
    """One tier with its fallbacks resolved, in integers: what `cost` multiplies."""

    above: int
    amounts: tuple[int, ...]
    """input, cached, 5 min write, 1 h write, audio in, output, reasoning, audio out (pico-dollars per million
    tokens), and the request's fee (1e-18 dollars)"""
    dearest: tuple[int, int]
    """of input, and of output, without audio"""
    dearest_audio: tuple[int, int]
    """the same where tokens may be audio"""


class Price(msgspec.Struct, frozen=True, dict=True):
    """What one model costs at one moment. `id` is the row that it came from, which the ledger keeps."""

    id: int | None
    rates: Rates
    tiers: tuple[Tier, ...] = ()
    service_tiers: Mapping[str, Schedule] = {}

    @cached_property
    def levels(self) -> dict[str | None, tuple[_Level, ...]]:
        """By service tier (None is the standard one), longest prompts first: the first that fits is right."""
        levels: dict[str | None, tuple[_Level, ...]] = {
            name: _levels(schedule) for name, schedule in self.service_tiers.items()
        }
        levels[None] = _levels(Schedule(self.rates, self.tiers))
        return levels

    def every_rate(self) -> Iterator[tuple[str, Decimal]]:
        """Each rate given anywhere in the price, with its name: for checks."""
        for schedule in (Schedule(self.rates, self.tiers), *self.service_tiers.values()):
            for rates in (schedule.rates, *(tier.rates for tier in schedule.tiers)):
                yield from ((name, rate) for name in RATE_NAMES if (rate := getattr(rates, name)) is not None)


# ── cost and ceiling ────────────────────────────────────────────────────────────────────────────────────────────────


def cost(price: Price, usage: Usage, service_tier: str | None = None) -> Decimal:
    """US dollars that this answer costs, to twelve places.

    `service_tier` is the one that the *answer* reports. The result is rounded half to even, once, at the end:
    unlike half up it has no direction, so that the sum of millions of answers does not drift from the invoice.

    Never raises: the answer is paid for, its numbers are what there is. A part larger than its whole is cut to
    what is left of it, the cheapest kind of token served first (cached, then 5 minute writes, then 1 hour writes,
    then audio; reasoning, then audio), so an inconsistent report is read in the customer's favour and the totals
    stay the bound. A negative count is none.
    """
    return _EXACT.scaleb(Decimal(_half_even(exact_cost(price, usage, service_tier))), -PLACES)


def exact_cost(price: Price, usage: Usage, service_tier: str | None = None) -> int:
    """`cost` before it is rounded, in 1e-18 US dollars."""
    prompt = usage.prompt_tokens
    amounts = amounts_at(price, prompt, service_tier)
    plain_in, cached, write_5m, write_1h, audio_in, plain_out, reasoning, audio_out, total = amounts

    left = prompt if prompt > 0 else 0
    if (count := usage.cached_tokens) > 0:
        part = count if count < left else left
        total += part * cached
        left -= part
    if (count := usage.cache_write_tokens) > 0:
        part = count if count < left else left
        total += part * write_5m
        left -= part
    if (count := usage.cache_write_1h_tokens) > 0:
        part = count if count < left else left
        total += part * write_1h
        left -= part
    if (count := usage.audio_prompt_tokens) > 0:
        part = count if count < left else left
        total += part * audio_in
        left -= part
    total += left * plain_in

    left = usage.completion_tokens if usage.completion_tokens > 0 else 0
    if (count := usage.reasoning_tokens) > 0:
        part = count if count < left else left
        total += part * reasoning
        left -= part
    if (count := usage.audio_completion_tokens) > 0:
        part = count if count < left else left
        total += part * audio_out
        left -= part
    return total + left * plain_out


def amounts_at(price: Price, prompt_tokens: int, service_tier: str | None = None) -> tuple[int, ...]:
    """What a token of each kind costs in an answer to a prompt of this length, in `_Level`'s order and units."""
    levels = price.levels
    steps = levels.get(service_tier) or levels[None]
    for step in steps:
        if prompt_tokens > step.above:
            return step.amounts
    return steps[-1].amounts  # the base, which alone fits a negative count


def ceiling(
    price: Price, prompt_tokens: int, completion_tokens: int, service_tier: str | None = None, *, audio: bool = True
) -> Decimal:
    """The most, in US dollars and rounded up, that an answer of at most so many tokens can cost.

    Every split of the tokens is allowed for (all of them one hour cache writes, say), and every context tier that the
    prompt can reach.

    `service_tier` is what the *request* asks for. Asked for nothing, or for `auto`, a provider serves what the
    account's own settings say, priority included: the dearest tier counts. Asked for a tier by name, it serves that or
    the standard one, never a third (`default` never priority; flex and priority fall back to standard): the dearer of
    the two counts. So a gateway that sends `default` where its client names none holds half as much on OpenAI.
    `audio=False` says that the request neither carries nor asks for audio, often many times text's price.
    """
    prompt = prompt_tokens if prompt_tokens > 0 else 0
    completion = completion_tokens if completion_tokens > 0 else 0
    most = 0
    for levels in _possible(price, service_tier):
        for level in levels:
            if level.above < prompt:
                into, out = level.dearest_audio if audio else level.dearest
                most = max(most, prompt * into + completion * out + level.amounts[-1])
    return _EXACT.scaleb(Decimal(-(-most // _TOKENS_PER_RATE)), -PLACES)


def _possible(price: Price, asked: str | None) -> Sequence[tuple[_Level, ...]]:
    levels = price.levels
    if asked is None or asked == "auto":
        return tuple(levels.values())
    return (levels[None], levels.get(asked, ())) if asked not in STANDARD_TIERS else (levels[None],)


def _half_even(total: int) -> int:
    """`total` / 1e6, to the nearest integer; a tie goes to the even one."""
    whole, rest = divmod(total, _TOKENS_PER_RATE)
    half = _TOKENS_PER_RATE // 2
    return whole + 1 if rest > half or (rest == half and whole & 1) else whole


def _levels(schedule: Schedule) -> tuple[_Level, ...]:
    longest_first = sorted(schedule.tiers, key=lambda tier: -tier.above)
    # -1: the base applies to an empty prompt too, and ends every search.
    return (*(_level(tier.above, tier.rates) for tier in longest_first), _level(-1, schedule.rates))


def _level(above: int, rates: Rates) -> _Level:
    plain_in, plain_out = _pico(rates.input), _pico(rates.output)
    cached = _pico(rates.cached_input, plain_in)
    write_5m = _pico(rates.cache_write_5m, plain_in)
    write_1h = _pico(rates.cache_write_1h, write_5m)
    audio_in = _pico(rates.audio_input, plain_in)
    reasoning = _pico(rates.reasoning, plain_out)
    audio_out = _pico(rates.audio_output, plain_out)
    into, out = max(plain_in, cached, write_5m, write_1h), max(plain_out, reasoning)
    return _Level(
        above=above,
        amounts=(
            *(plain_in, cached, write_5m, write_1h, audio_in, plain_out, reasoning, audio_out),
            _pico(rates.request) * _TOKENS_PER_RATE,
        ),
        dearest=(into, out),
        dearest_audio=(max(into, audio_in), max(out, audio_out)),
    )


def _pico(rate: Decimal | None, fallback: int = 0) -> int:
    return fallback if rate is None else int(_EXACT.scaleb(to_places(rate), PLACES))


def to_places(amount: Decimal) -> Decimal:
    """`amount` as the database keeps it: twelve places, half to even."""
    return amount.quantize(_QUANTUM, rounding=ROUND_HALF_EVEN, context=_EXACT)


# ── a price from what finance edits ─────────────────────────────────────────────────────────────────────────────────


def from_columns(
    *, id: int | None, columns: Mapping[str, Decimal | None], tiers: Any = None, service_tiers: Any = None
) -> Price:
    """A price from a row: its rate columns, and the JSON of its tiers. Raises `MalformedPrice`.

    `tiers`: `[{"above": 200000, "input": "6", "output": "22.5"}]`; a rate that a tier does not name is the base's.
    `service_tiers`: `{"batch": "0.5"}` multiplies every token rate, context tiers included, and leaves the fee per
    request; `{"priority": {"input": "2.5", "output": "20", "tiers": [...]}}` names rates (others are the base's) and
    has only the context tiers that it lists itself.
    """
    base = {name: _amount(name, rate) for name, rate in columns.items() if rate is not None}
    rates = _rates(base)
    parsed = parse_tiers(base, tiers)
    return Price(id, rates, parsed, parse_service_tiers(base, Schedule(rates, parsed), service_tiers))


def parse_tiers(base: Mapping[str, Decimal], raw: Any) -> tuple[Tier, ...]:
    """Context tiers over the rates `base`, shortest first. Raises `MalformedPrice`."""
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise MalformedPrice('tiers are a list: [{"above": 200000, "input": "6", "output": "22.5"}]')
    tiers = tuple(_tier(base, entry) for entry in raw)
    thresholds = [tier.above for tier in tiers]
    if thresholds != sorted(set(thresholds)):
        raise MalformedPrice(f"tiers go from short prompts to long ones, each threshold once: not {thresholds}")
    return tiers


def parse_service_tiers(base: Mapping[str, Decimal], standard: Schedule, raw: Any) -> dict[str, Schedule]:
    """Service tiers by name. Raises `MalformedPrice`."""
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        raise MalformedPrice('service tiers are an object: {"batch": "0.5"}')
    if clash := raw.keys() & (STANDARD_TIERS | {"auto", ""}):
        raise MalformedPrice(f"{', '.join(sorted(clash))}: that is the standard price, the row's own columns")
    return {name: _service_tier(base, standard, name, entry) for name, entry in raw.items()}


def _tier(base: Mapping[str, Decimal], entry: Any) -> Tier:
    if not isinstance(entry, Mapping) or len(entry) < 2:
        raise MalformedPrice('a tier is {"above": tokens, and the rates that change}')
    above = entry.get("above")
    if not isinstance(above, int) or isinstance(above, bool) or above <= 0:
        raise MalformedPrice(f"a tier's `above` is a positive number of prompt tokens, not {above!r}")
    return Tier(above, _rates(base, {name: rate for name, rate in entry.items() if name != "above"}))


def _service_tier(base: Mapping[str, Decimal], standard: Schedule, name: str, entry: Any) -> Schedule:
    if not isinstance(entry, Mapping):
        factor = _amount(f"{name}'s multiplier", entry)
        tiers = tuple(Tier(tier.above, _scaled(tier.rates, factor)) for tier in standard.tiers)
        return Schedule(_scaled(standard.rates, factor), tiers)
    named = {key: _amount(key, rate) for key, rate in entry.items() if key != "tiers"}
    own = {**base, **named}
    return Schedule(_rates(own), parse_tiers(own, entry.get("tiers")))


def _rates(base: Mapping[str, Decimal], named: Mapping[str, Any] | None = None) -> Rates:
    merged = {**base, **{name: _amount(name, rate) for name, rate in (named or {}).items()}}
    if unknown := merged.keys() - set(RATE_NAMES):
        raise MalformedPrice(f"no such rate: {', '.join(sorted(unknown))}; there are {', '.join(RATE_NAMES)}")
    return Rates(**merged)


def _scaled(rates: Rates, factor: Decimal) -> Rates:
    changed = {
        name: to_places(_EXACT.multiply(rate, factor))
        for name in PER_TOKEN
        if (rate := getattr(rates, name)) is not None
    }
    return msgspec.structs.replace(rates, **changed)


def _amount(name: str, value: Any) -> Decimal:
    """A finite number, zero or more. JSON's floats are read as they are written: 0.1 is one tenth."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise MalformedPrice(f'{name} is a number, best in quotes ("0.125"), not {value!r}')
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise MalformedPrice(f"{name} is not a number: {value!r}") from None
    if not amount.is_finite() or amount < 0:
        raise MalformedPrice(f"{name} is zero or more, not {value}")
    return amount


# ── clauses: which model names a price is for ───────────────────────────────────────────────────────────────────────

# genai-prices' own language, so that its rows are taken as they are: one key each, an operator and its operand.
_TEXT_CLAUSES: dict[str, Callable[[str, str], bool]] = {
    "equals": lambda text, operand: text == operand.lower(),
    "starts_with": lambda text, operand: text.startswith(operand.lower()),
    "ends_with": lambda text, operand: text.endswith(operand.lower()),
    "contains": lambda text, operand: operand.lower() in text,
    "regex": lambda text, operand: re.search(operand, text) is not None,
}


def matches(clause: Mapping[str, Any], name: str) -> bool:
    """Whether a model's name, in lower case, is one that `clause` speaks of."""
    ((operator, operand),) = clause.items()
    if operator == "or":
        return any(matches(part, name) for part in operand)
    if operator == "and":
        return all(matches(part, name) for part in operand)
    return _TEXT_CLAUSES[operator](name, operand)


def check_clause(clause: Any) -> None:
    """Raises `MalformedPrice` where `matches` could not read it."""
    if not isinstance(clause, Mapping) or len(clause) != 1:
        raise MalformedPrice('a clause has one key: {"equals": "gpt-5.1"} or {"or": [clause, clause]}')
    ((operator, operand),) = clause.items()
    if operator in ("or", "and"):
        if not isinstance(operand, list) or not operand:
            raise MalformedPrice(f"`{operator}` takes a list of clauses")
        for part in operand:
            check_clause(part)
    elif operator not in _TEXT_CLAUSES:
        raise MalformedPrice(f"no such clause: {operator!r}; there are {', '.join(_TEXT_CLAUSES)}, or, and")
    elif not isinstance(operand, str) or not operand:
        raise MalformedPrice(f"`{operator}` takes a text, not {operand!r}")
    elif operator == "regex":
        _check_regex(operand)


def _check_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise MalformedPrice(f"`regex` {pattern!r}: {error}") from None
