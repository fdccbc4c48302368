"""Judge what was measured, and lay it out: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from lepto.compiler.proportions import PairedDifference, paired_difference, wilson_interval
from lepto.compiler.statistics import Ratio, ratio_interval

Role = Literal["eager", "peer", "lepto"]

LATENCY_COLUMNS: Final = ("model", "accuracy", "on disk", "p50", "p90", "x eager", "x best peer")
THROUGHPUT_COLUMNS: Final = ("model", "samples/s", "x eager", "x best peer")


@dataclass(frozen=True, slots=True)
class Measured:
    """One model and its raw numbers.

    Attributes:
        role: What it is in the comparison.
        bytes: Size of the model's files.
        right: [N] whether each sample was answered rightly.
        single_s: [K, R] seconds at batch 1.
        batches_s: K' lists of seconds, one for each batch of the block.
        batch_samples: Samples in all these batches together.
    """

    role: Role
    bytes: int
    right: npt.NDArray[np.bool_]
    single_s: Sequence[Sequence[float]]
    batches_s: Sequence[Sequence[float]]
    batch_samples: int


@dataclass(frozen=True, slots=True)
class Row:
    """One model, judged.

    Attributes:
        role: What it is in the comparison.
        accuracy: Over all samples.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end.
        difference: Against eager, with the one-sided 95 % lower bound; None for eager itself.
        bytes: Size on disk.
        p50_ms: Median at batch 1.
        p90_ms: 90th percentile at batch 1.
        samples_per_s: Offline throughput.
        latency: Speed-ups of the p50 with 95 % intervals, against ``eager`` and against ``best peer``.
        throughput: The same for the throughput.
    """

    role: Role
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    difference: PairedDifference | None
    bytes: int
    p50_ms: float
    p90_ms: float
    samples_per_s: float
    latency: Mapping[str, Ratio]
    throughput: Mapping[str, Ratio]


@dataclass(frozen=True, slots=True)
class Table:
    """The comparison.

    Attributes:
        rows: By name; eager first, then the peers, then Lepto's.
        best_latency: The peer with the lowest p50; None if no peer was measured.
        best_throughput: The peer with the most samples a second.
    """

    rows: Mapping[str, Row]
    best_latency: str | None
    best_throughput: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def judge(measured: Mapping[str, Measured]) -> Table:
    """Compare every model with PyTorch eager and with the best peer.

    Args:
        measured: By name; exactly one is eager, and all were measured in the same blocks.

    Raises:
        ValueError: There is not one eager model, or the blocks are not paired or too few.
    """
    eager = [name for name, one in measured.items() if one.role == "eager"]
    if len(eager) != 1:
        raise ValueError(f"one model must be eager, got {len(eager)}")
    peers = [name for name, one in measured.items() if one.role == "peer"]
    best_latency = min(peers, key=lambda name: float(np.median(measured[name].single_s)), default=None)
    best_throughput = max(peers, key=lambda name: _samples_per_s(measured[name]), default=None)
    rank: dict[Role, int] = {"eager": 0, "peer": 1, "lepto": 2}
    rows = {}
    for name in sorted(measured, key=lambda name: rank[measured[name].role]):
        one, baseline = measured[name], measured[eager[0]]
        p50, p90 = (1e3 * float(value) for value in np.quantile(one.single_s, (0.5, 0.9)))
        right, n = int(np.count_nonzero(one.right)), len(one.right)
        low, high = wilson_interval(right, n)
        rows[name] = Row(
            role=one.role,
            accuracy=right / n,
            accuracy_low=low,
            accuracy_high=high,
            difference=None if one is baseline else paired_difference(baseline.right, one.right),
            bytes=one.bytes,
            p50_ms=p50,
            p90_ms=p90,
            samples_per_s=_samples_per_s(one),
            latency={
                against: ratio_interval(measured[other].single_s, one.single_s)
                for against, other in (("eager", eager[0]), ("best peer", best_latency))
                if other is not None and other != name
            },
            throughput={
                against: ratio_interval(_block_sums(measured[other]), _block_sums(one))
                for against, other in (("eager", eager[0]), ("best peer", best_throughput))
                if other is not None and other != name
            },
        )
    return Table(rows, best_latency, best_throughput)


def latency_rows(table: Table, failed: Mapping[str, str]) -> list[list[str]]:
    """Cells for :data:`LATENCY_COLUMNS`; what failed has a row, too."""
    rows = []
    for name, row in table.rows.items():
        accuracy = f"{row.accuracy:.2%}"
        if row.difference is not None:
            accuracy += f" ({100 * row.difference.value:+.2f}, at least {100 * row.difference.low:+.2f})"
        numbers = [accuracy, f"{row.bytes / 1e6:.1f} MB", f"{row.p50_ms:.3f} ms", f"{row.p90_ms:.3f} ms"]
        rows.append([name, *numbers, *_ratios(row.latency, name == table.best_latency)])
    return rows + [[name, "failed", *["-"] * (len(LATENCY_COLUMNS) - 2)] for name in failed]


def throughput_rows(table: Table, failed: Mapping[str, str]) -> list[list[str]]:
    """Cells for :data:`THROUGHPUT_COLUMNS`; what failed has a row, too."""
    rows = [
        [name, f"{row.samples_per_s:,.0f}", *_ratios(row.throughput, name == table.best_throughput)]
        for name, row in table.rows.items()
    ]
    return rows + [[name, "failed", *["-"] * (len(THROUGHPUT_COLUMNS) - 2)] for name in failed]


def _ratios(ratios: Mapping[str, Ratio], best: bool) -> list[str]:
    cells = []
    for against in ("eager", "best peer"):
        ratio = ratios.get(against)
        nothing = "the best" if against == "best peer" and best else "-"
        cells.append(nothing if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
    return cells


def _samples_per_s(one: Measured) -> float:
    return one.batch_samples / sum(map(sum, one.batches_s))


def _block_sums(one: Measured) -> list[list[float]]:
    return [[sum(block)] for block in one.batches_s]
