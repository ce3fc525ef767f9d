"""DDSketch: a histogram of buckets that grow geometrically, so that a quantile is off by 1 % of its value at most.

Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees", VLDB 2019
(http://www.vldb.org/pvldb/vol12/p2195-masson.pdf). Bucket i holds the values in (γ^(i-1), γ^i], where
γ = (1 + α) / (1 - α); 2 γ^i / (γ + 1) is within α of each of them. To merge is to add counts: nothing is lost.

Our own, since it is these few lines, and by measurement (CPU µs an `add`, CPython 3.11): this 0.2; `ddsketch` 3.0.1
0.5, and its way into a database is protobuf; `hdrhistogram` 0.10.8 0.9; `pytdigest` 0.1.4 3.1. `fastdigest` 0.12 (Rust)
takes 0.12, but a t-digest bounds the error of the rank, not of the value: beside the gap between two modes it was 4 %
off.
"""

from collections.abc import Mapping
from math import ceil, log

ACCURACY = 0.01
"""α. Rows in the database are of this one: whoever changes it has to remove them."""
SMALLEST = 0.001
"""Smaller values count as this one: latencies come in milliseconds with three digits."""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_BUCKETS_PER_E = 1 / log(_GAMMA)
_LOWEST = ceil(log(SMALLEST) * _BUCKETS_PER_E)


class Sketch:
    """Of positive numbers. A microsecond to a day need 1 260 buckets, the answers of a model some 200."""

    __slots__ = ("counts", "total")

    def __init__(self, counts: Mapping[int, int] | None = None, total: float = 0.0) -> None:
        self.counts = dict(counts or {})
        """How many values each bucket holds."""
        self.total = total
        """The sum of the values."""

    def add(self, value: float) -> None:
        bucket = ceil(log(value) * _BUCKETS_PER_E) if value > SMALLEST else _LOWEST
        counts = self.counts
        counts[bucket] = counts.get(bucket, 0) + 1
        self.total += value

    def merge(self, other: "Sketch") -> None:
        """Take what `other` has, to which another thread may be adding."""
        counts = self.counts
        for bucket, count in other.counts.copy().items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.total += other.total

    def mean(self) -> float | None:
        """Exact; None of no values."""
        count = sum(self.counts.values())
        return self.total / count if count else None

    def quantiles(self, *wanted: float) -> list[float | None]:
        """The values at these quantiles, which ascend from 0 to 1: of n values in order, number ⌊q (n - 1)⌋ from 0."""
        count = sum(self.counts.values())
        if not count:
            return [None] * len(wanted)
        ascending, found, below = iter(sorted(self.counts.items())), list[float | None](), 0
        bucket = _LOWEST
        for quantile in wanted:
            while below <= int(quantile * (count - 1)):
                bucket, held = next(ascending)
                below += held
            found.append(2 * _GAMMA**bucket / (_GAMMA + 1))
        return found
