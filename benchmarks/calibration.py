"""Whether a classifier is right as often as it says: reliability and the expected calibration error.

Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2: fixed bins of equal width
over the confidence of the best class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.compiler.proportions import wilson_interval

BINS: Final = 15

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """How often a side is right in each bin of confidence; empty bins are left out.

    Attributes:
        edges: ``[M, 2]`` lower and upper end of each bin.
        count: ``[M]`` samples in it.
        confidence: ``[M]`` mean probability of the best class.
        accuracy: ``[M]`` share of right answers.
        low: ``[M]`` lower end of its 95 % interval.
        high: ``[M]`` upper end.
        ece: Expected calibration error over all samples, in [0, 1].
    """

    edges: Floats
    count: npt.NDArray[np.int64]
    confidence: Floats
    accuracy: Floats
    low: Floats
    high: Floats
    ece: float


def reliability(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> Reliability:
    """Bin answers by confidence.

    Args:
        confidence: ``[N]`` probability of the best class, in [0, 1].
        right: ``[N]`` whether it is the right one.
        bins: How many bins of equal width.

    Raises:
        ValueError: The vectors differ, are empty, or a confidence is no probability.
    """
    sure, hit = _columns(confidence, right)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    place = _bins(sure, bins)
    used = np.unique(place)
    count = np.array([(place == i).sum() for i in used], np.int64)
    mean = np.array([sure[place == i].mean() for i in used])
    accuracy = np.array([hit[place == i].mean() for i in used])
    ends = np.array([wilson_interval(int(hit[place == i].sum()), int((place == i).sum())) for i in used])
    edges = np.stack([used / bins, (used + 1) / bins], axis=1)
    ece = float((count * np.abs(mean - accuracy)).sum() / sure.size)
    return Reliability(edges, count, mean, accuracy, ends[:, 0], ends[:, 1], ece)


def calibration_error(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> float:
    """The expected calibration error alone, in [0, 1]; see :func:`reliability`."""
    sure, hit = _columns(confidence, right)
    place = _bins(sure, bins)
    return float(np.abs(np.bincount(place, weights=sure - hit, minlength=bins)).sum() / sure.size)


def calibration_change(
    baseline: tuple[npt.ArrayLike, npt.ArrayLike],
    candidate: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    bins: int = BINS,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: npt.NDArray[Any] | None = None,
) -> tuple[float, float, float]:
    """By how much the calibration error rose, with a basic bootstrap interval over the paired samples.

    A resample is more ragged than the sample, so that its error is too large; the basic interval (Davison & Hinkley,
    "Bootstrap Methods and their Application", 1997, section 5.2) takes that off both sides alike.

    Args:
        baseline: Confidences ``[N]`` and right answers ``[N]``.
        candidate: The same for the same samples.
        bins: See :func:`reliability`.
        confidence: Two-sided level.
        resamples: How many resamples are drawn.
        seed: Of the generator.
        groups: ``[N]`` numbers from 0 of what is drawn together, such as the words of a row; by default each by itself.

    Returns:
        Candidate less baseline, lower end, upper end.

    Raises:
        ValueError: The vectors differ in length or are empty.
    """
    sides = [_columns(*side) for side in (baseline, candidate)]
    n = sides[0][0].size
    if sides[1][0].size != n:
        raise ValueError(f"both sides need the same samples, got {n} and {sides[1][0].size}")
    gaps = [(_bins(sure, bins), sure - hit) for sure, hit in sides]
    generator = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    units = n if groups is None else int(groups.max()) + 1
    for i in range(resamples):
        weight = np.bincount(generator.integers(0, units, size=units), minlength=units)
        if groups is not None:
            weight = weight[groups]
        before, after = (
            float(np.abs(np.bincount(place, weights=gap * weight, minlength=bins)).sum() / weight.sum())
            for place, gap in gaps
        )
        drawn[i] = after - before
    change = calibration_error(*candidate, bins) - calibration_error(*baseline, bins)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return change, 2 * change - float(high), 2 * change - float(low)


def _columns(confidence: Any, right: Any) -> tuple[Floats, Floats]:
    sure, hit = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    if sure.ndim != 1 or sure.shape != hit.shape or not sure.size:
        raise ValueError(
            f"confidences and right answers must be two vectors of one length, got {sure.shape}, {hit.shape}"
        )
    if not np.isfinite(sure).all() or sure.min() < 0 or sure.max() > 1 + 1e-6:
        raise ValueError(f"a confidence must be in [0, 1], got {sure.min()} to {sure.max()}")
    return np.minimum(sure, 1.0), hit


def _bins(sure: Floats, bins: int) -> npt.NDArray[np.int64]:
    # The last bin holds 1, too.
    return np.minimum((sure * bins).astype(np.int64), bins - 1)
