"""Ranges for 8-bit activations, from what was seen of them: pure functions of a histogram.

ONNX Runtime's own calibrators look for ranges that lie symmetrically around zero in the histogram; after a GELU or a
normalization with a shift, values do not, and half of the 256 levels would be spent on nothing. Here both ends move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Method = Literal["min-max", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

BINS = 4096
"""Bins of a histogram: sixteen to a level, so that a range may be cut to a sixteenth of what was seen."""

_LEVELS = 256
_STEP = 0.95
"""Ratio of neighbouring candidates for an end of a range."""

Counts = npt.NDArray[np.float64]
Range = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """How often values were seen.

    Attributes:
        counts: ``[n]`` float64, values in each of n equal bins.
        low: Lower edge of the first bin: the smallest value seen.
        high: Upper edge of the last bin: the largest value seen.
    """

    counts: Counts
    low: float
    high: float

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The counts are no histogram, or the edges are no finite interval.
        """
        if self.counts.ndim != 1 or not len(self.counts) or not (self.counts >= 0).all() or not self.counts.any():
            raise ValueError(f"counts must be [n], not negative and not all zero, got shape {list(self.counts.shape)}")
        if not np.isfinite([self.low, self.high]).all() or self.low > self.high:
            raise ValueError(f"edges must be finite and in order, got {self.low} and {self.high}")

    @property
    def centres(self) -> Counts:
        """``[n]`` float64, the middle of each bin."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        middle: Counts = (edges[:-1] + edges[1:]) / 2
        return middle


def count_values(values: npt.NDArray[np.floating[Any]], low: float, high: float, bins: int = BINS) -> Counts:
    """``[bins]`` float64, how many values lie in each of ``bins`` equal parts of ``[low, high]``."""
    if low == high:
        counts = np.zeros(bins)
        counts[0] = values.size
        return counts
    return np.histogram(values, bins=bins, range=(low, high))[0].astype(np.float64)


def quantization_parameters(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of asymmetric uint8 for a range that includes 0.

    ONNX operator ``DynamicQuantizeLinear`` (opset 11) gives the formula; here the range is known beforehand.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    # A range of denormals has a scale that rounds to zero.
    scale = np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny))) if high > low else np.float32(1)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


def activation_range(histogram: Histogram, method: Method, *, percentile: float = 99.99) -> Range:
    """The range of a tensor's uint8 quantization, low <= 0 <= high.

    Args:
        histogram: What was seen of the tensor.
        method: How the range is chosen; see the functions of these names.
        percentile: Percent of the values that stay inside, for ``percentile`` alone.
    """
    if method == "min-max":
        return min_max_range(histogram)
    if method == "percentile":
        return percentile_range(histogram, percentile)
    if method == "entropy":
        return entropy_range(histogram)
    if method == "mse":
        return mse_range(histogram)
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def min_max_range(histogram: Histogram) -> Range:
    """Everything that was seen, and zero."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """The values that are neither among the smallest nor the largest ``(100 - percentile) / 2`` percent, and zero.

    Wu et al., "Integer Quantization for Deep Learning Inference", arXiv 2004.09602, section 3.3.

    Raises:
        ValueError: ``percentile`` is not in (0, 100].
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}")
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    share = np.concatenate([[0.0], np.cumsum(histogram.counts)]) / histogram.counts.sum()
    tail = (1 - percentile / 100) / 2
    # Rounding of the sums must not cut the first or last bin where nothing is to be cut.
    low = float(edges[np.flatnonzero(share <= tail + 1e-12)[-1]])
    high = float(edges[np.flatnonzero(share >= 1 - tail - 1e-12)[0]])
    return min(low, 0.0), max(high, 0.0)


def mse_range(histogram: Histogram) -> Range:
    """The range with the smallest mean square of the quantization error, clipping included.

    Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference", arXiv 1902.06822.
    """
    return _search(histogram, lambda low, high: squared_error(histogram, low, high))


def entropy_range(histogram: Histogram) -> Range:
    """The range that loses the least information by Kullback and Leibler's divergence.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017); both ends are searched instead of one threshold.
    """
    return _search(histogram, lambda low, high: divergence(histogram, low, high))


def squared_error(histogram: Histogram, low: float, high: float) -> float:
    """Mean of the squared difference between values and their uint8 quantization with this range, in their units."""
    scale, zero = quantization_parameters(low, high)
    values = histogram.centres
    quantized = (_levels(values, low, high) - float(zero)) * float(scale)
    return float(np.average((values - quantized) ** 2, weights=histogram.counts))


def divergence(histogram: Histogram, low: float, high: float) -> float:
    """Kullback and Leibler's divergence of the quantized from the clipped distribution, in nats.

    What is clipped is counted in the outermost bins of the reference, but not in those of the quantized distribution,
    in which each level's mass lies evenly on its bins that are not empty: so both clipping and coarse levels cost.
    """
    values, counts = histogram.centres, histogram.counts
    inside = (values >= low) & (values <= high)
    kept = counts[inside]
    if not kept.any():
        return float("inf")
    reference = kept.copy()
    reference[0] += counts[values < low].sum()
    reference[-1] += counts[values > high].sum()
    levels = _levels(values[inside], low, high).astype(np.int64)
    mass = np.bincount(levels, weights=kept, minlength=_LEVELS)
    used = np.bincount(levels, weights=reference > 0, minlength=_LEVELS)
    spread = np.where(reference > 0, mass[levels] / np.maximum(used[levels], 1), 0)
    p, q = reference / reference.sum(), spread / spread.sum()
    seen = p > 0
    # A bin that holds nothing but what was clipped has no mass in q: a small one keeps the divergence finite.
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-10))).sum())


def _levels(values: Counts, low: float, high: float) -> Counts:
    scale, zero = quantization_parameters(low, high)
    levels: Counts = np.clip(np.round(values / float(scale)) + float(zero), 0, _LEVELS - 1)
    return levels


def _search(histogram: Histogram, loss: Callable[[float, float], float]) -> Range:
    """Shorten one end after the other, again and again, while that makes the loss smaller."""
    low, high = min_max_range(histogram)
    shortest = _LEVELS / len(histogram.counts)
    factors = [_STEP**i for i in range(int(np.log(shortest) / np.log(_STEP)) + 1)]
    best = loss(low, high)
    ends = [low, high]
    improved = True
    while improved:
        improved = False
        for end, whole in ((1, high), (0, low)):
            for factor in factors if whole else ():
                tried = list(ends)
                tried[end] = whole * factor
                value = loss(*tried)
                if value < best * (1 - 1e-9):
                    best, ends, improved = value, tried, True
    return ends[0], ends[1]
