"""What an answer costs. The numbers of the lessons are checked to the last digit."""

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import pricing
from billing.pricing import MalformedPrice, Price, Rates, Schedule, Tier
from gateway.types import Usage

D = Decimal

GPT_5_1 = Price(1, Rates(input=D("1.25"), output=D(10), cached_input=D("0.125")))
SONNET_4_5 = Price(
    2,
    Rates(input=D(3), output=D(15), cached_input=D("0.3"), cache_write_5m=D("3.75"), cache_write_1h=D(6)),
    tiers=(
        Tier(
            200_000,
            Rates(input=D(6), output=D("22.5"), cached_input=D("0.6"), cache_write_5m=D("7.5"), cache_write_1h=D(12)),
        ),
    ),
    service_tiers={"batch": Schedule(Rates(input=D("1.5"), output=D("7.5")))},
)


def exactly(amount: Decimal, expected: str) -> bool:
    """Equal, and written with twelve places."""
    return amount == D(expected) and amount.as_tuple().exponent == -12


# ── worked examples ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_cached_tokens_are_neither_full_price_nor_counted_twice():
    """Lesson 6, figures of LiteLLM#35127: 172k in, of them 155k read and 3k written; not $0.860."""
    price = Price(1, Rates(input=D(5), output=D(25), cached_input=D("0.5"), cache_write_5m=D("6.25")))
    usage = Usage(172_000, 0, cached_tokens=155_000, cache_write_tokens=3_000)
    assert exactly(pricing.cost(price, usage), "0.166250")


def test_reasoning_tokens_are_part_of_the_completion():
    """Lesson 8: completion=482 of which reasoning=448 is 482 tokens."""
    assert exactly(pricing.cost(GPT_5_1, Usage(0, 482, reasoning_tokens=448)), "0.00482")


def test_reasoning_may_have_a_price_of_its_own():
    """Perplexity's sonar-deep-research: 3 where other output costs 8."""
    price = Price(1, Rates(input=D(2), output=D(8), reasoning=D(3)))
    assert exactly(pricing.cost(price, Usage(0, 1000, reasoning_tokens=400)), "0.006")


def test_openai_by_hand():
    """parts.md section 3: 1200 in (1000 cached) + 300 out."""
    assert exactly(pricing.cost(GPT_5_1, Usage(1200, 300, cached_tokens=1000)), "0.003375")


def test_anthropic_by_hand():
    """parts.md section 3: 200 + 5000 read + 600 for 5 minutes + 400 for an hour + 300 out."""
    usage = Usage(6200, 300, cached_tokens=5000, cache_write_tokens=600, cache_write_1h_tokens=400)
    assert exactly(pricing.cost(SONNET_4_5, usage), "0.01125")


def test_audio_is_priced_apart_from_text():
    """gpt-audio: 2.5/10 for text, 32/64 for audio."""
    price = Price(1, Rates(input=D("2.5"), output=D(10), audio_input=D(32), audio_output=D(64)))
    usage = Usage(1000, 500, audio_prompt_tokens=800, audio_completion_tokens=400)
    assert exactly(pricing.cost(price, usage), "0.0527")  # 200×2.5 + 800×32 + 100×10 + 400×64, a million times


def test_a_fee_per_request_comes_once_even_for_no_tokens():
    price = Price(1, Rates(input=D(1), output=D(1), request=D("0.012")))
    assert exactly(pricing.cost(price, Usage(0, 0)), "0.012")
    assert exactly(pricing.cost(price, Usage(1000, 1000)), "0.014")


def test_what_is_free_costs_zero():
    assert exactly(pricing.cost(Price(1, Rates(input=D(0), output=D(0))), Usage(5000, 5000)), "0")


# ── tiers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [(200_000, "0.615"), (200_001, "1.222506")],  # 200 001 × 6 + 1000 × 22.5: all of it, the output too
)
def test_a_long_prompt_prices_the_whole_request(prompt, expected):
    assert exactly(pricing.cost(SONNET_4_5, Usage(prompt, 1000)), expected)


def test_cached_tokens_count_towards_the_threshold():
    usage = Usage(250_000, 0, cached_tokens=240_000)
    assert exactly(pricing.cost(SONNET_4_5, usage), "0.204")  # 10 000 × 6 + 240 000 × 0.6


def test_the_highest_tier_reached_applies():
    """qwen3-coder-flash has tiers above 32k and 128k."""
    tiers = tuple(Tier(above, Rates(input=D(rate), output=D(0))) for above, rate in [(32_000, 2), (128_000, 3)])
    price = Price(1, Rates(input=D(1), output=D(0)), tiers=tiers)
    costs = [pricing.cost(price, Usage(tokens, 0)) for tokens in (32_000, 128_000, 200_000)]
    assert costs == [D("0.032"), D("0.256"), D("0.6")]


def test_the_answers_service_tier_chooses_the_rates():
    usage = Usage(1000, 1000)
    assert exactly(pricing.cost(SONNET_4_5, usage, "batch"), "0.009")
    for standard in (None, "default", "standard", "scale", "never heard of"):
        assert exactly(pricing.cost(SONNET_4_5, usage, standard), "0.018")


def test_a_multiplier_scales_every_token_rate_and_tier_and_no_fee():
    price = pricing.from_columns(
        id=1,
        columns={"input": D(3), "output": D(15), "cached_input": D("0.3"), "request": D("0.01")},
        tiers=[{"above": 200_000, "input": "6", "output": "22.5"}],
        service_tiers={"batch": "0.5"},
    )
    batch = price.service_tiers["batch"]
    assert batch.rates == Rates(input=D("1.5"), output=D("7.5"), cached_input=D("0.15"), request=D("0.01"))
    assert batch.tiers == (
        Tier(200_000, Rates(input=D(3), output=D("11.25"), cached_input=D("0.15"), request=D("0.01"))),
    )


def test_named_rates_replace_and_the_others_stay():
    price = pricing.from_columns(
        id=1,
        columns={"input": D(2), "output": D(12), "cached_input": D("0.2")},
        tiers=[{"above": 200_000, "input": 4}],
        service_tiers={"priority": {"input": 3.6, "output": "21.6"}},
    )
    assert price.tiers == (Tier(200_000, Rates(input=D(4), output=D(12), cached_input=D("0.2"))),)
    # A service tier has only the context tiers that it lists itself.
    assert price.service_tiers["priority"] == Schedule(Rates(input=D("3.6"), output=D("21.6"), cached_input=D("0.2")))


@pytest.mark.parametrize(
    ("tiers", "service_tiers"),
    [
        ({"above": 1}, {}),
        ([{"above": 200_000}], {}),
        ([{"above": "many", "input": 1}], {}),
        ([{"above": True, "input": 1}], {}),
        ([{"above": 0, "input": 1}], {}),
        ([{"above": 5, "inptu": 1}], {}),
        ([{"above": 5, "input": -1}], {}),
        ([{"above": 5, "input": "NaN"}], {}),
        ([{"above": 5, "input": None}], {}),
        ([{"above": 9, "input": 1}, {"above": 5, "input": 2}], {}),
        ([{"above": 5, "input": 1}, {"above": 5, "input": 2}], {}),
        ([], ["batch"]),
        ([], {"batch": "half"}),
        ([], {"batch": "-0.5"}),
        ([], {"batch": True}),
        ([], {"batch": {"inptu": 1}}),
        ([], {"batch": {"input": 1, "tiers": "none"}}),
        ([], {"default": "2"}),
        ([], {"": "2"}),
    ],
)
def test_malformed_tiers_are_refused(tiers, service_tiers):
    with pytest.raises(MalformedPrice):
        pricing.from_columns(id=None, columns={"input": D(1), "output": D(1)}, tiers=tiers, service_tiers=service_tiers)


# ── bad usage ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(100, 0, cached_tokens=5000), "0.0000125"),  # lesson 7: cached ≤ prompt
        (Usage(100, 0, cached_tokens=60, cache_write_tokens=60), "0.0000575"),  # 60 cached, 40 written
        (Usage(0, 100, reasoning_tokens=5000), "0.001"),
        (Usage(-5, -5, cached_tokens=-5, reasoning_tokens=-1), "0"),
        (Usage(100, 0, cached_tokens=-50), "0.000125"),
    ],
)
def test_parts_larger_than_their_whole_are_cut(usage, expected):
    assert exactly(pricing.cost(GPT_5_1, usage), expected)


# ── exactness ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rate", "tokens", "expected"),
    [
        ("0.0000005", 1, "0"),  # half a pico-dollar: to even
        ("0.0000015", 1, "0.000000000002"),
        ("0.0000025", 1, "0.000000000002"),
        ("0.0000005", 3, "0.000000000002"),
        ("0.00000051", 1, "0.000000000001"),
        ("123456789012.123456789012", 9_999_999, "1234567766664.445555766663"),
    ],
)
def test_half_a_pico_dollar_goes_to_the_even_one(rate, tokens, expected):
    price = Price(1, Rates(input=D(rate), output=D(0)))
    assert exactly(pricing.cost(price, Usage(tokens, 0)), expected)


def test_the_callers_decimal_context_does_not_matter():
    with localcontext() as context:
        context.prec = 3
        assert exactly(pricing.cost(SONNET_4_5, Usage(123_457, 7_919)), "0.489156")
        assert exactly(pricing.ceiling(SONNET_4_5, 123_457, 7_919, "default"), "0.859527")


rates_to_six_places = st.decimals(0, 1000, places=6)
optional = st.none() | rates_to_six_places
rates = st.builds(
    Rates,
    input=rates_to_six_places,
    output=rates_to_six_places,
    cached_input=optional,
    cache_write_5m=optional,
    cache_write_1h=optional,
    reasoning=optional,
    audio_input=optional,
    audio_output=optional,
    request=st.decimals(0, 1, places=6),
)
schedules = st.builds(
    Schedule, rates, st.lists(st.builds(Tier, st.integers(1, 300), rates), unique_by=lambda t: t.above).map(tuple)
)
names = st.sampled_from(["batch", "flex", "priority", "fast"])
prices = st.builds(
    lambda standard, services: Price(1, standard.rates, standard.tiers, services),
    schedules,
    st.dictionaries(names, schedules),
)
counts = st.integers(-10, 500)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    completion_tokens=counts,
    cached_tokens=counts,
    cache_write_tokens=counts,
    cache_write_1h_tokens=counts,
    reasoning_tokens=counts,
    audio_prompt_tokens=counts,
    audio_completion_tokens=counts,
)


@given(prices, usages, st.none() | names | st.just("default"), st.integers(0, 50), st.integers(0, 50))
def test_no_answer_costs_more_than_its_ceiling(price, usage, answered, more_prompt, more_completion):
    """Whatever is reported: any split of the tokens, any service tier, fewer tokens than were allowed for."""
    bound = pricing.ceiling(price, usage.prompt_tokens + more_prompt, usage.completion_tokens + more_completion)
    assert 0 <= pricing.cost(price, usage, answered) <= bound


@given(prices, usages, names | st.just("default"), st.booleans())
def test_a_tier_asked_for_by_name_is_answered_by_it_or_the_standard_one(price, usage, asked, fell_back):
    bound = pricing.ceiling(price, usage.prompt_tokens, usage.completion_tokens, asked)
    assert pricing.cost(price, usage, None if fell_back else asked) <= bound
    assert bound <= pricing.ceiling(price, usage.prompt_tokens, usage.completion_tokens)


@given(prices, usages)
def test_without_audio_the_ceiling_need_not_allow_for_it(price, usage):
    silent = Usage(**{name: getattr(usage, name) for name in Usage.__struct_fields__ if not name.startswith("audio")})
    bound = pricing.ceiling(price, usage.prompt_tokens, usage.completion_tokens, audio=False)
    assert pricing.cost(price, silent) <= bound


def test_the_ceiling_is_rounded_up():
    price = Price(1, Rates(input=D("0.0000001"), output=D(0)))
    assert exactly(pricing.ceiling(price, 1, 0), "0.000000000001")
    assert exactly(pricing.cost(price, Usage(1, 0)), "0")


def test_a_ceiling_by_hand():
    """Sonnet's dearest: long prompt, all of it written to the cache for an hour."""
    assert exactly(pricing.ceiling(SONNET_4_5, 300_000, 1000), "3.6225")  # 300 000 × 12 + 1000 × 22.5
    assert exactly(pricing.ceiling(SONNET_4_5, 1000, 1000), "0.021")  # the tier is out of reach: 6 and 15
    priority = Price(1, GPT_5_1.rates, service_tiers={"priority": Schedule(Rates(input=D("2.5"), output=D(20)))})
    assert [
        pricing.ceiling(priority, 1000, 1000, asked) for asked in (None, "auto", "priority", "default", "flex")
    ] == [
        D("0.0225"),
        D("0.0225"),
        D("0.0225"),
        D("0.01125"),
        D("0.01125"),
    ]


@given(rates, usages, usages)
def test_costs_add_up(one_rates, first, second):
    """Without tiers and fees, and with rates of at most six places, nothing is rounded: the parts are the sum."""
    price = Price(1, Rates(input=one_rates.input, output=one_rates.output))
    both = Usage(
        max(first.prompt_tokens, 0) + max(second.prompt_tokens, 0),
        max(first.completion_tokens, 0) + max(second.completion_tokens, 0),
    )
    assert pricing.cost(price, first) + pricing.cost(price, second) == pricing.cost(price, both)


@given(prices, usages)
def test_the_cost_is_the_sum_of_its_tokens_one_by_one(price, usage):
    """An independent reading of the same rules, in plain `Decimal`."""
    reached = [tier.rates for tier in sorted(price.tiers, key=lambda t: t.above) if usage.prompt_tokens > tier.above]
    use = reached[-1] if reached else price.rates
    write = use.cache_write_5m if use.cache_write_5m is not None else use.input
    kinds_in = [
        (usage.cached_tokens, use.cached_input if use.cached_input is not None else use.input),
        (usage.cache_write_tokens, write),
        (usage.cache_write_1h_tokens, use.cache_write_1h if use.cache_write_1h is not None else write),
        (usage.audio_prompt_tokens, use.audio_input if use.audio_input is not None else use.input),
    ]
    kinds_out = [
        (usage.reasoning_tokens, use.reasoning if use.reasoning is not None else use.output),
        (usage.audio_completion_tokens, use.audio_output if use.audio_output is not None else use.output),
    ]
    total = use.request * 1_000_000
    for whole, kinds, plain in (
        (usage.prompt_tokens, kinds_in, use.input),
        (usage.completion_tokens, kinds_out, use.output),
    ):
        tokens = [rate for count, rate in kinds for _ in range(count)][: max(whole, 0)]
        total += sum(tokens, D(0)) + plain * (max(whole, 0) - len(tokens))
    assert pricing.cost(price, usage) == total / 1_000_000


# ── clauses ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("clause", "name", "expected"),
    [
        ({"equals": "GPT-5.1"}, "gpt-5.1", True),
        ({"equals": "gpt-5.1"}, "gpt-5.1-mini", False),
        ({"starts_with": "gpt-"}, "gpt-5", True),
        ({"ends_with": ":free"}, "llama:free", True),
        ({"contains": "claude"}, "anthropic.claude-3", True),
        ({"regex": r"^gpt-6-\d{4}$"}, "gpt-6-2026", True),
        ({"regex": r"^gpt-6-\d{4}$"}, "gpt-6-mini", False),
        ({"or": [{"equals": "a"}, {"equals": "b"}]}, "b", True),
        ({"and": [{"starts_with": "a"}, {"ends_with": "z"}]}, "abz", True),
        ({"and": [{"starts_with": "a"}, {"ends_with": "z"}]}, "ab", False),
    ],
)
def test_clauses(clause, name, expected):
    pricing.check_clause(clause)
    assert pricing.matches(clause, name) is expected


@pytest.mark.parametrize(
    "clause",
    [
        None,
        "gpt-5.1",
        {},
        {"equals": "a", "contains": "b"},
        {"is": "a"},
        {"equals": 5},
        {"equals": ""},
        {"or": []},
        {"or": {"equals": "a"}},
        {"and": [{"equals": "a"}, {"is": "b"}]},
        {"regex": "("},
    ],
)
def test_malformed_clauses_are_refused(clause):
    with pytest.raises(MalformedPrice):
        pricing.check_clause(clause)
