"""Speed-ups from paired measurements, and intervals without a formula, as pure functions: search and gate judge alike.

Nothing here measures, reads or prints. Every function takes plain numbers or arrays, is deterministic, and names the
paper that it comes from. Differences are always *candidate minus baseline* and speed ratios always *baseline over
candidate*, so that more is better on both axes.

Dimensions: K blocks, R repetitions in a block. Shares of right answers have :mod:`lepto.compiler.proportions`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A speed-up with its confidence interval.

    Attributes:
        value: Baseline time over candidate time; above 1 the candidate is faster.
        low: Lower end of the two-sided confidence interval.
        high: Upper end of the two-sided confidence interval.
        n: Pairs of blocks behind it.
    """

    value: float
    low: float
    high: float
    n: int


def check_level(name: str, value: float) -> None:
    """Refuse a level or quantile outside (0, 1)."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must be in (0, 1), got {value}")


def normal_quantile(probability: float) -> float:
    """The standard normal's quantile."""
    return float(stats.norm.ppf(probability))


def log_ratios(baseline_blocks: npt.ArrayLike, candidate_blocks: npt.ArrayLike, quantile: float = 0.5) -> FloatArray:
    """log(baseline / candidate) of one quantile, block by block.

    Blocks that were measured side by side share the machine's mood; their ratio does not.

    Args:
        baseline_blocks: [K, R] seconds.
        candidate_blocks: [K, R'] seconds; row k was measured beside the baseline's row k.
        quantile: Which quantile of each block is compared, in (0, 1).

    Returns:
        [K] log-ratios; positive where the candidate is faster.

    Raises:
        ValueError: If shapes differ in K, or a time is not positive and finite.
    """
    check_level("quantile", quantile)
    before = np.asarray(baseline_blocks, dtype=np.float64)
    after = np.asarray(candidate_blocks, dtype=np.float64)
    for name, block in (("baseline_blocks", before), ("candidate_blocks", after)):
        if block.ndim != 2 or block.size == 0:
            raise ValueError(f"{name} must be [blocks, per_block] and not empty, got shape {block.shape}")
        if not np.all(np.isfinite(block) & (block > 0.0)):
            raise ValueError(f"{name} must hold positive finite seconds")
    if before.shape[0] != after.shape[0]:
        raise ValueError(f"blocks must be paired: baseline has {before.shape[0]}, candidate {after.shape[0]}")
    result: FloatArray = np.log(np.quantile(before, quantile, axis=1)) - np.log(np.quantile(after, quantile, axis=1))
    return result


def _signed_rank_tail(n: int) -> FloatArray:
    """P(W <= w) of the Wilcoxon signed-rank statistic for n pairs without ties, w = 0 … n(n+1)/2."""
    counts = np.zeros(n * (n + 1) // 2 + 1, dtype=np.float64)
    counts[0] = 1.0
    for rank in range(1, n + 1):
        counts[rank:] += counts[:-rank].copy()
        counts /= 2.0  # keeps the numbers probabilities: 2^n would overflow past n = 1023
    result: FloatArray = np.cumsum(counts)
    return result


def pairs_needed(confidence: float = 0.95) -> int:
    """Fewest pairs whose signed-rank interval can reach a two-sided confidence (6 for 95 %)."""
    check_level("confidence", confidence)
    return max(2, math.ceil(1.0 - math.log2(1.0 - confidence) - 1e-9))


def hodges_lehmann(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Centre of symmetric data with the interval of the inverted Wilcoxon signed-rank test.

    The estimate is the median of the Walsh averages (x_i + x_j) / 2, i <= j; the interval's ends are order statistics
    of them. Source: Hodges & Lehmann, Ann. Math. Stat. 34 (1963), 598-611; Hollander, Wolfe & Chicken, "Nonparametric
    Statistical Methods", 3rd ed., sections 3.2-3.3. It needs no normality and shrugs at spikes in a few blocks.

    Args:
        values: [K] numbers.
        confidence: Two-sided level, in (0, 1).

    Returns:
        (estimate, low, high).

    Raises:
        ValueError: If there are too few values for the confidence, or one is not finite.
    """
    check_level("confidence", confidence)
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.all(np.isfinite(x)):
        raise ValueError("values must be a vector of finite numbers")
    n = int(x.size)
    if n < pairs_needed(confidence):
        raise ValueError(f"a {confidence:.4g} interval needs at least {pairs_needed(confidence)} pairs, got {n}")
    first, second = np.triu_indices(n)
    walsh = np.sort((x[first] + x[second]) / 2.0)
    tail = _signed_rank_tail(n)
    # Largest count whose lower tail still fits into half of what the confidence leaves.
    outside = int(np.searchsorted(tail, (1.0 - confidence) / 2.0, side="right"))
    return float(np.median(walsh)), float(walsh[outside - 1]), float(walsh[walsh.size - outside])


def ratio_interval(
    baseline_blocks: npt.ArrayLike,
    candidate_blocks: npt.ArrayLike,
    confidence: float = 0.95,
    quantile: float = 0.5,
) -> Ratio:
    """Speed-up of the candidate, from blocks measured in pairs.

    One log-ratio of the quantile (the median unless told otherwise) for each pair of blocks; their Hodges-Lehmann
    centre and inverted Wilcoxon interval, taken back from logarithms. Deterministic.

    Args:
        baseline_blocks: [K, R] seconds.
        candidate_blocks: [K, R'] seconds; row k was measured beside the baseline's row k.
        confidence: Two-sided level, in (0, 1).
        quantile: Which quantile of each block is compared, in (0, 1).

    Returns:
        Baseline over candidate: above 1 the candidate is faster.

    Raises:
        ValueError: If the blocks are not paired, not positive, or too few for the confidence (6 for 95 %).
    """
    values = log_ratios(baseline_blocks, candidate_blocks, quantile)
    centre, low, high = hodges_lehmann(values, confidence)
    return Ratio(value=math.exp(centre), low=math.exp(low), high=math.exp(high), n=int(values.size))


def wilcoxon_greater(values: npt.ArrayLike, shift: float = 0.0) -> float:
    """One-sided Wilcoxon signed-rank p-value against "the centre is at most `shift`".

    Source: F. Wilcoxon, Biometrics Bulletin 1 (1945), 80-83; exact without ties up to 50 values, normal approximation
    otherwise (scipy's choice).

    Args:
        values: [K] paired differences, such as log-ratios.
        shift: The centre that is to be refuted.

    Returns:
        The p-value; 1 when every value equals the shift.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.all(np.isfinite(x)):
        raise ValueError("values must be a non-empty vector of finite numbers")
    differences = x - shift
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, alternative="greater").pvalue)


def spend_alpha(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Level of each pre-declared look, so that all of them together stay below alpha.

    Linear spending in the share of information gained since the last look (Lan & DeMets, Biometrika 70 (1983),
    659-663) under the union bound, which needs no assumption about how the looks depend on each other.

    Args:
        looks: Total number of pairs at each look, rising.
        alpha: What all looks may spend together, in (0, 1).

    Returns:
        One level for each look; they add up to alpha.

    Raises:
        ValueError: If there is no look or the numbers do not rise.
    """
    check_level("alpha", alpha)
    if not looks or looks[0] < 1 or any(b <= a for a, b in itertools.pairwise(looks)):
        raise ValueError(f"looks must be rising positive numbers of pairs, got {list(looks)}")
    before = (0, *looks[:-1])
    return tuple(alpha * (now - last) / looks[-1] for last, now in zip(before, looks, strict=True))


def bootstrap_interval(
    metric: Callable[..., float],
    *columns: npt.NDArray[Any],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval for a metric that has no formula of its own (F1, MCC, correlation, …).

    Rows are drawn with replacement, all columns together, so a metric over (truth, baseline, candidate) gives a paired
    interval. Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        metric: Called with the resampled columns; returns one number.
        *columns: Arrays with one row for each sample, all of one length.
        confidence: Two-sided level, in (0, 1).
        resamples: How many resamples are drawn, at least 100.
        seed: Of the generator; same seed, same interval.

    Returns:
        The lower and the upper end. Resamples where the metric is not defined (NaN) are left out.

    Raises:
        ValueError: If the columns differ in length or are empty, or the metric is defined for too few resamples.
    """
    check_level("confidence", confidence)
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    lengths = {int(column.shape[0]) for column in columns}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"columns must have one common length above 0, got {sorted(lengths)}")
    n = lengths.pop()
    generator = np.random.default_rng(seed)
    values = np.empty(resamples, dtype=np.float64)
    for i in range(resamples):
        rows = generator.integers(0, n, size=n)
        values[i] = metric(*(column[rows] for column in columns))
    defined = values[np.isfinite(values)]
    if defined.size < resamples // 2:
        raise ValueError(f"the metric is defined for only {defined.size} of {resamples} resamples: too few samples")
    low, high = np.quantile(defined, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)
