"""What `make bench-kernels` runs on: shapes, the lengths of real texts, and how work and bars are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Shape:
    """``[B, H, S, D]`` of one measurement."""

    kind: str
    batch: int
    heads: int
    length: int
    head_dim: int
    causal: bool = False

    @property
    def flop(self) -> float:
        """Of both products; half of the scores where the mask is causal."""
        return 4.0 * self.batch * self.heads * self.length**2 * self.head_dim * (0.5 if self.causal else 1.0)


ENCODERS = [Shape("encoder", b, 12, s, d) for b in (1, 8, 32, 128) for s in (16, 64, 128, 512) for d in (32, 64)]
LONG = [
    Shape("long", max(1, 16384 // s), 16, s, d, causal)
    for s in (1024, 2048, 4096, 8192, 16384)
    for d in (64, 128)
    for causal in (False, True)
]
DECODE = [Shape("decode", b, 32, s, 128) for b in (1, 16, 64) for s in (1024, 8192)]
KV_HEADS = 8
"""Of decode's cache."""

# Tokens of the 3,080 sentences of BANKING77's test set (Casanueva et al. 2020, CC BY 4.0) with MiniLM's tokenizer, the
# two special ones included: how many sentences have so many.
_BANKING77 = {
    4: 1, 5: 4, 6: 25, 7: 62, 8: 138, 9: 230, 10: 304, 11: 316, 12: 320, 13: 276, 14: 259, 15: 222, 16: 157, 17: 119,
    18: 102, 19: 78, 20: 51, 21: 38, 22: 36, 23: 37, 24: 33, 25: 19, 26: 18, 27: 25, 28: 19, 29: 16, 30: 13, 31: 11,
    32: 17, 33: 11, 34: 10, 35: 12, 36: 12, 37: 3, 38: 9, 39: 7, 40: 5, 41: 7, 42: 4, 43: 3, 44: 1, 45: 10, 46: 8,
    47: 3, 48: 5, 50: 2, 51: 3, 52: 1, 53: 1, 54: 2, 55: 2, 56: 1, 57: 1, 58: 2, 59: 1, 60: 1, 62: 1, 64: 1, 69: 1,
    71: 1, 76: 1, 81: 1, 82: 1,
}  # fmt: skip
DISTRIBUTIONS = ("banking77", "mean128")
LONGEST = 512
"""What an encoder takes at most."""


def draw_lengths(distribution: str, batch: int, seed: int = 0) -> list[int]:
    """Tokens of each sequence of one batch.

    Args:
        distribution: ``banking77``, its sentences; or ``mean128``, the same shape stretched to a mean of 128 tokens and
            cut at 512.
        batch: Sequences.
        seed: Of the draw.

    Raises:
        ValueError: There is no such distribution.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    sizes = np.array(list(_BANKING77), float)
    counts = np.array(list(_BANKING77.values()), float)
    if distribution == "mean128":
        low, high = 1.0, 64.0
        for _ in range(60):  # cutting lowers the mean: the factor is found by halving
            factor = (low + high) / 2
            mean = float(np.minimum(sizes * factor, LONGEST) @ counts / counts.sum())
            low, high = (factor, high) if mean < 128 else (low, factor)
        sizes = np.minimum(np.rint(sizes * low), LONGEST)
    drawn = np.random.default_rng(seed).choice(sizes, batch, p=counts / counts.sum())
    return [int(size) for size in drawn]


def varlen_flop(lengths: Sequence[int], heads: int, head_dim: int) -> float:
    """Of both products over the tokens that are there: padding is no work."""
    return 4.0 * heads * head_dim * float(sum(length**2 for length in lengths))


def decode_bytes(shape: Shape, kv_heads: int = KV_HEADS, bytes_per_value: int = 2) -> float:
    """That one step must read: keys and values."""
    return 2.0 * shape.batch * shape.length * kv_heads * shape.head_dim * bytes_per_value


BARS = {
    "varlen": 1.5,  # of the best padded SDPA, on real lengths
    "short": 1.0,  # of the best other, D 64, S up to 512
    "long": 0.9,  # of the best other, 1k to 16k
    "decode": 0.9,  # of the measured memory bandwidth
}


def judge(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each result stands to its bar; those without a bar are left out.

    Args:
        results: Each with ``kind``, ``head_dim``, and ``rows`` of ``implementation`` and ``median_ms`` or ``refused``;
            for decode with ``bandwidth_share`` too. Rows whose name starts with ``lepto`` are ours.

    Returns:
        For each ``what``, ``ratio`` (others' best time over ours, or the share), ``bar`` and ``kept``.
    """
    verdicts = []
    for result in results:
        rows = [row for row in result["rows"] if "median_ms" in row]
        ours = [row for row in rows if row["implementation"].startswith("lepto")]
        others = [row for row in rows if not row["implementation"].startswith("lepto")]
        kind = result["kind"]
        if kind == "encoder" and (result["head_dim"] != 64 or result["length"] > 512):
            continue
        bar = {"encoder": "short"}.get(kind, kind)
        if bar not in BARS:
            continue
        if not ours or (kind != "decode" and not others):
            verdicts.append({"what": result["shape"], "ratio": None, "bar": BARS[bar], "kept": False})
            continue
        if kind == "decode":
            ratio = ours[0]["bandwidth_share"]
        else:
            if kind == "varlen":
                others = [row for row in others if row["implementation"].startswith("sdpa")]
                ours = [row for row in ours if "varlen" in row["implementation"]]
            ratio = min(row["median_ms"] for row in others) / min(row["median_ms"] for row in ours)
        verdicts.append({"what": result["shape"], "ratio": ratio, "bar": BARS[bar], "kept": ratio >= BARS[bar]})
    return verdicts


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one line for each implementation on each shape."""
    lines = ["| shape | implementation | ms | TFLOP/s | of the peak | max error |", "|---|---|---|---|---|---|"]
    for result in results:
        for row in result["rows"]:
            if "refused" in row:
                lines.append(f"| {result['shape']} | {row['implementation']} | {row['refused']} | | | |")
                continue
            share = row.get("peak_share", row.get("bandwidth_share"))
            cells = [
                f"{row['median_ms']:.4f}",
                f"{row['tflops']:.1f}" if "tflops" in row else "",
                "" if share is None else f"{share:.1%}",
                "" if row.get("max_error") is None else f"{row['max_error']:.1e}",
            ]
            lines.append(f"| {result['shape']} | {row['implementation']} | {' | '.join(cells)} |")
    return "\n".join(lines)
