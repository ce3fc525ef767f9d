"""The pictures of docs/routing.md: `python -m benchmarks.plot_routing` (half a minute; the same pictures every time).

One a strategy, three panels each: a deployment that is slow, dead or cheap for two minutes, and where the requests go
meanwhile. Simulated by `gateway.simulation`, which is the gateway's own planner on another clock.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from billing.pricebook import Book, PriceRow
    from gateway.simulation.outcome import Cell, Outcome
    from gateway.simulation.upstream import Spell
    from gateway.types import Deployment

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images" / "routing"
SEED = 7
SECONDS, BEGINS, ENDS = 300, 60, 180  # all of it, and what happens to the one
PER_SECOND = 60  # requests: enough that a share is a share
STRETCH = 3.0  # seconds of one step of the picture

NAMES = ("affected", "second", "third", "fourth")
COLOURS = ("#d9622b", "#27566b", "#6d9dab", "#b9d0d3")
FIRST = (0.40, 0.50, 0.60, 0.70)  # seconds to the first token: the affected one is the fastest while it is well
TOKEN = 0.008  # seconds
SPREAD = 0.3
SLOWER = 5.0
PRICES = (1.0, 1.2, 1.4, 1.6)  # dollars a million tokens, and five times that for the answer's
DEAR, CHEAP = 2.0, 0.5  # the affected one's in the third panel: but for these two minutes it is the dearest


@dataclass(frozen=True)
class Event:
    """A panel."""

    title: str
    prices: Sequence[float]
    spells: Callable[[], Sequence[Spell]]
    told: Callable[[Outcome], str]
    cheap: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot_routing", description=__doc__)
    parser.add_argument("strategy", nargs="*", help="default: all")
    parser.add_argument("--to", type=Path, default=IMAGES, help="folder of the pictures (docs/images/routing)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ailb-plot-") as folder:
        _set_up(Path(folder))
        from gateway.routing import strategies

        options.to.mkdir(parents=True, exist_ok=True)
        for strategy in options.strategy or strategies():
            path = options.to / f"{strategy}.png"
            path.write_bytes(_picture(strategy))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


def _set_up(folder: Path) -> None:
    """Settings, for the modules that the gateway's import; nothing is read from a database."""
    os.environ |= {"DJANGO_SETTINGS_MODULE": "ailb_project.settings", "AILB_DATA_DIR": str(folder)}
    os.environ["MPLCONFIGDIR"] = str(folder)
    import django

    django.setup()
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "axes.linewidth": 0.6, "text.hinting": "none"})


# ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────────


def _events() -> list[Event]:
    from gateway.simulation.upstream import Spell

    return [
        Event(
            "Slow: from 60 to 180 s it takes 5 × as long",
            PRICES,
            lambda: [Spell(BEGINS, ENDS, slower=SLOWER)],
            _latencies,
        ),
        Event(
            "Dead: from 60 to 180 s it fails every call",
            PRICES,
            lambda: [Spell(BEGINS, ENDS, error_rate=1.0)],
            _failures,
        ),
        Event("Cheap: from 60 to 180 s, else it is the dearest", (DEAR, *PRICES[1:]), list, _costs, cheap=True),
    ]


def _outcome(strategy: str, event: Event) -> Outcome:
    from gateway.registry import Pool, Route
    from gateway.simulation.simulator import Asked, Simulator
    from gateway.simulation.upstream import Quantiles, Service, Upstream

    deployments = tuple(_deployment(number, name) for number, name in enumerate(NAMES))
    upstreams = {
        name: Upstream(
            Service(Quantiles.around(first, SPREAD), Quantiles.around(TOKEN, SPREAD), failing=Quantiles((0.01,))),
            event.spells() if name == NAMES[0] else (),
        )
        for name, first in zip(NAMES, FIRST, strict=True)
    }
    simulator = Simulator(strategy, upstreams, _book(event), strategy=strategy, seed=SEED, stretch=STRETCH)
    route, dice = Route("chat", (Pool("chat", deployments),)), random.Random(SEED)
    for at in _arrivals(dice):
        prompt, answer = int(dice.lognormvariate(5.5, 0.8)), int(dice.lognormvariate(4.8, 0.5))
        simulator.ask(Asked(at=at, route=route, prompt_tokens=prompt, completion_tokens=answer, stream=True))
    return simulator.finish()


def _arrivals(dice: random.Random) -> Iterator[float]:
    at = 0.0
    while (at := at + dice.expovariate(PER_SECOND)) < SECONDS:
        yield at


def _deployment(number: int, name: str) -> Deployment:
    from gateway.types import Deployment, ProviderConfig

    provider = ProviderConfig(
        id=number, slug=name, kind="openai", base_url="http://127.0.0.1:9/v1", headers={}, price_book=name,
        connect_timeout=5.0, first_byte_timeout=60.0, idle_timeout=60.0, trusted_network=True,
    )  # fmt: skip
    return Deployment(
        name=name, provider=provider, upstream_model="model", weight=1, priority=number, max_output=None,
        context_window=None,
    )  # fmt: skip


def _book(event: Event) -> Book:
    from billing.pricebook import Book

    always, begins, ends = (datetime.fromtimestamp(at, UTC) for at in (-1, BEGINS, ENDS))
    rows = [_price(name, rate, always) for name, rate in zip(NAMES, event.prices, strict=True)]
    if event.cheap:
        rows.append(_price(NAMES[0], CHEAP, begins, ends))
    return Book(row._replace(id=number) for number, row in enumerate(rows))


def _price(name: str, rate: float, since: datetime, until: datetime | None = None) -> PriceRow:
    from billing.pricebook import PriceRow

    return PriceRow(
        id=0, provider=name, model="model", deployment="", match=None, source="config", effective_from=since,
        effective_until=until, daily_from=None, daily_until=None, input=Decimal(str(rate)),
        output=Decimal(str(rate * 5)), cached_input=None, cache_write_5m=None, cache_write_1h=None, reasoning=None,
        audio_input=None, audio_output=None, request=Decimal(0), tiers=[], service_tiers={},
    )  # fmt: skip


# ── what is told of it ──────────────────────────────────────────────────────────────────────────────────────────────


def _cells(outcome: Outcome, since: float, until: float) -> Iterator[Cell]:
    for load in outcome.loads.values():
        yield from (cell for at, cell in load.cells.items() if since <= at * STRETCH < until)


def _latencies(outcome: Outcome) -> str:
    return f"95 % of answers within {_p95(_cells(outcome, 0, BEGINS))} s, meanwhile {_meanwhile(outcome)} s"


def _meanwhile(outcome: Outcome) -> str:
    return _p95(_cells(outcome, BEGINS, ENDS))


def _p95(cells: Iterable[Cell]) -> str:
    from gateway.statistics.sketch import Sketch

    merged = Sketch()
    for cell in cells:
        merged.merge(cell.latency)
    (p95,) = merged.quantiles(0.95)
    return "–" if p95 is None else f"{p95 / 1000:.1f}"


def _failures(outcome: Outcome) -> str:
    tries = sum(cell.failures for cell in _cells(outcome, 0, SECONDS))
    return f"{tries} failed tries, {outcome.failures or 'no'} failed requests"


def _costs(outcome: Outcome) -> str:
    before, meanwhile = _cost_a_request(outcome, 0, BEGINS), _cost_a_request(outcome, BEGINS, ENDS)
    change = round((meanwhile / before - 1) * 100)
    return f"cost a request meanwhile {change:+d} %".replace("-", "−") if change else "cost a request unchanged"


def _cost_a_request(outcome: Outcome, since: float, until: float) -> float:
    cells = list(_cells(outcome, since, until))
    answers: int = sum(sum(cell.latency.counts.values()) for cell in cells)
    return float(sum((cell.cost for cell in cells), Decimal(0))) / answers


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _picture(strategy: str) -> bytes:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.1), dpi=100, sharey=True)
    for panel, event in zip(panels, _events(), strict=True):
        outcome = _outcome(strategy, event)
        _draw(panel, outcome)
        panel.set_title(event.title, fontsize=10, loc="left", pad=7)
        panel.set_xlabel(event.told(outcome), fontsize=9, labelpad=6)
    panels[0].set_ylabel("share of requests")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.06, right=0.995, top=0.89, bottom=0.275, wspace=0.07)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    plt.close(figure)
    return _with_few_colours(file)


def _with_few_colours(file: BytesIO) -> bytes:
    """A picture of flat areas needs no more than 64, and then a third of the bytes."""
    from PIL import Image

    smaller = BytesIO()
    Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(smaller, "png", optimize=True)
    return smaller.getvalue()


def _draw(panel: Axes, outcome: Outcome) -> None:
    shares = _shares(outcome)
    steps = [at * STRETCH for at in range(len(shares[0]))]
    labels = ("the one it happens to", "second", "third", "fourth")
    panel.stackplot(steps, shares, colors=COLOURS, labels=labels, step="post", linewidth=0)
    for at in (BEGINS, ENDS):
        panel.axvline(at, color="black", linewidth=0.9, linestyle=(0, (4, 3)))
    panel.set_xlim(0, SECONDS)
    panel.set_ylim(0, 1)
    panel.set_xticks(range(0, SECONDS + 1, 60), ["0", "60 s", "120 s", "180 s", "240 s", ""])
    panel.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    panel.tick_params(length=3, width=0.6, labelsize=8.5)


def _shares(outcome: Outcome) -> list[list[float]]:
    """By deployment, over time: of the calls that were begun."""
    steps = range(int(SECONDS / STRETCH))
    calls = [[outcome.of(name).cells[at].tries for at in steps] for name in NAMES]
    totals = [sum(at) or 1 for at in zip(*calls, strict=True)]
    shares = [[count / total for count, total in zip(one, totals, strict=True)] for one in calls]
    return [[*one, one[-1]] for one in shares]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
