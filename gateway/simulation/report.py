"""A replay as a table for people, and as JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from gateway.simulation.outcome import Load, Outcome
from gateway.simulation.replay import Replayed, stretch_of
from gateway.statistics.sketch import Sketch

_HEADINGS = ("", "cost $", "vs. then", "mean ms", "p50 ms", "p95 ms", "first p50", "failed")
_LOAD_HEADINGS = ("", "deployment", "share", "calls", "failed", "in flight", "most", "p50 ms", "p95 ms", "cost $")
_NAMED = 10  # things that one line names


def as_json(replayed: Replayed) -> dict[str, Any]:
    """What the table has and more: load over time too. Money is text, so that nothing is rounded on its way."""
    terms = replayed.terms
    seconds = (terms.until - terms.since).total_seconds()
    return {
        "since": terms.since.isoformat(),
        "until": terms.until.isoformat(),
        "seed": terms.seed,
        "requests": replayed.happened.requests,
        "unanswered": replayed.unanswered,
        "unroutable": dict(replayed.unroutable),
        "guessed": list(replayed.guessed),
        "stretch_seconds": stretch_of(terms),
        "outcomes": [_outcome(outcome, seconds, terms.since.timestamp()) for outcome in _outcomes(replayed)],
    }


def as_table(replayed: Replayed) -> Iterator[str]:
    """Lines."""
    happened, terms = replayed.happened, replayed.terms
    yield f"{happened.requests} requests from {terms.since:%Y-%m-%d %H:%M} to {terms.until:%Y-%m-%d %H:%M} UTC"
    yield from _left_out(replayed)
    if not happened.requests:
        return
    yield ""
    yield from _columns([_HEADINGS, *(_totals(outcome, happened) for outcome in _outcomes(replayed))])
    yield ""
    seconds = (terms.until - terms.since).total_seconds()
    rows = [row for outcome in _outcomes(replayed) for row in _loads(outcome, seconds)]
    yield from _columns([_LOAD_HEADINGS, *rows], texts=2)
    if any(outcome.unpriced for outcome in _outcomes(replayed)):
        yield ""
        yield from (f"{o.name}: {o.unpriced} answers without a price" for o in _outcomes(replayed) if o.unpriced)


def _left_out(replayed: Replayed) -> Iterator[str]:
    if replayed.unanswered:
        yield f"left out: {replayed.unanswered} that nobody answered"
    if replayed.unroutable:
        names = [f"{name} ({count})" for name, count in sorted(replayed.unroutable.items(), key=lambda x: -x[1])]
        yield f"left out: {sum(replayed.unroutable.values())} whose model is no longer configured: {_some(names)}"
    if replayed.guessed:
        yield f"never seen, taken to be as the median of their pool: {_some(sorted(replayed.guessed))}"
    if not replayed.services:
        yield "too few answers to learn from: nothing was simulated"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _outcomes(replayed: Replayed) -> list[Outcome]:
    repriced = [replayed.repriced] if replayed.repriced is not None else []
    return [replayed.happened, *repriced, *replayed.simulated]


def _totals(outcome: Outcome, happened: Outcome) -> tuple[str, ...]:
    p50, p95 = outcome.latency.quantiles(0.5, 0.95)
    (first,) = outcome.first.quantiles(0.5)
    change = f"{(outcome.cost / happened.cost - 1) * 100:+.1f} %" if happened.cost and outcome is not happened else ""
    return (
        outcome.name, f"{outcome.cost:.6f}", change, _ms(outcome.latency.mean()), _ms(p50), _ms(p95), _ms(first),
        str(outcome.failures),
    )  # fmt: skip


def _loads(outcome: Outcome, seconds: float) -> Iterator[tuple[str, ...]]:
    calls = sum(load.tries for load in outcome.loads.values())
    for name, load in sorted(outcome.loads.items(), key=lambda pair: (-pair[1].tries, pair[0])):
        p50, p95 = load.latency.quantiles(0.5, 0.95)
        yield (
            outcome.name, name, f"{load.tries / calls:.1%}", str(load.tries), str(load.failures),
            f"{load.busy / seconds:.2f}", str(load.most), _ms(p50), _ms(p95), f"{load.cost:.6f}",
        )  # fmt: skip


def _columns(rows: Sequence[Sequence[str]], texts: int = 1) -> Iterator[str]:
    """The first columns are texts, the others figures."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        cells = [row[at].ljust(width) if at < texts else row[at].rjust(width) for at, width in enumerate(widths)]
        yield "  ".join(cells).rstrip()


def _ms(milliseconds: float | None) -> str:
    return "–" if milliseconds is None else f"{milliseconds:.0f}"


def _outcome(outcome: Outcome, seconds: float, since: float) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "requests": outcome.requests,
        "failures": outcome.failures,
        "unpriced": outcome.unpriced,
        "cost_usd": _money(outcome.cost),
        "latency_ms": _figures(outcome.latency),
        "ttft_ms": _figures(outcome.first),
        "deployments": {name: _load(load, seconds, since) for name, load in sorted(outcome.loads.items())},
    }


def _load(load: Load, seconds: float, since: float) -> dict[str, Any]:
    return {
        "calls": load.tries,
        "failures": load.failures,
        "answers": load.answers,
        "in_flight_mean": load.busy / seconds,
        "in_flight_most": load.most,
        "cost_usd": _money(load.cost),
        "latency_ms": _figures(load.latency),
        "over_time": [
            {"stretch": at - load.stretch_of(since), "calls": c.tries, "failures": c.failures, "in_flight": c.most}
            for at, c in sorted(load.cells.items())
        ],
    }


def _figures(sketch: Sketch) -> Mapping[str, float | None]:
    p50, p95 = sketch.quantiles(0.5, 0.95)
    return {name: _rounded(value) for name, value in (("mean", sketch.mean()), ("p50", p50), ("p95", p95))}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _money(amount: Decimal) -> str:
    return f"{amount:f}"
