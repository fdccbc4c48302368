"""Intervals and tests as pure functions: the search and the gate judge alike.

Nothing here measures, reads or prints. Every function takes plain numbers or arrays, is deterministic, and names the
paper that it comes from. Differences are always *candidate minus baseline* and speed ratios always *baseline over
candidate*, so that more is better on both axes.

Dimensions: K blocks, R repetitions in a block, N samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats  # type: ignore[import-untyped]  # scipy ships no types

FloatArray = npt.NDArray[np.float64]

# Below this many discordant pairs the normal approximation of McNemar's test is not trusted (Agresti, "Categorical
# Data Analysis", section 11.1; Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91).
EXACT_BELOW = 25


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


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The change in accuracy from baseline to candidate on the same samples.

    Attributes:
        value: (n01 - n10) / n; negative when the candidate is worse.
        low: One-sided lower confidence bound of the change (Tango's score interval).
        p_worse: One-sided p-value against "the candidate is no worse": exact McNemar below 25 discordant pairs, else
            the score test.
        n10: Samples that only the baseline gets right.
        n01: Samples that only the candidate gets right.
        n: All samples.
    """

    value: float
    low: float
    p_worse: float
    n10: int
    n01: int
    n: int

    @property
    def discordant_rate(self) -> float:
        """Fraction of samples on which exactly one of the two is right."""
        return (self.n10 + self.n01) / self.n


def _check_level(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must be in (0, 1), got {value}")


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided score interval of a proportion.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927),
    209-212. Unlike the Wald interval it stays inside [0, 1] and keeps its coverage near 0 % and 100 %.

    Args:
        successes: Samples that are right, 0 <= successes <= n.
        n: All samples, at least 1.
        confidence: Level of the interval, in (0, 1).

    Returns:
        The lower and the upper end, both in [0, 1].

    Raises:
        ValueError: If a number is out of its range.
    """
    _check_level("confidence", confidence)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in [0, n={n}], got {successes}")
    z = float(stats.norm.isf((1.0 - confidence) / 2.0))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the two ends the formula gives exactly 0 and 1; rounding must not move them.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def _tango_score(n10: int, n01: int, n: int, difference: float) -> float:
    """Tango's score statistic for "the true change is `difference`" (standard normal under it)."""
    numerator = (n01 - n10) - n * difference
    a = 2.0 * n
    b = -n10 - n01 + (2.0 * n - n01 + n10) * difference
    c = -n10 * difference * (1.0 - difference)
    only_baseline = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)
    variance = n * (2.0 * only_baseline + difference * (1.0 - difference))
    if variance <= 0.0:
        return 0.0 if numerator == 0.0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def mcnemar_worse(n10: int, n01: int) -> float:
    """Exact one-sided McNemar p-value that the candidate is worse.

    Given the discordant pairs, n10 is Binomial(n10 + n01, 1/2) when both are equally good. Source: Q. McNemar,
    Psychometrika 12 (1947), 153-157.

    Args:
        n10: Samples that only the baseline gets right.
        n01: Samples that only the candidate gets right.

    Returns:
        The probability of n10 or more; 1 when there is no discordant pair.

    Raises:
        ValueError: If a count is negative.
    """
    if n10 < 0 or n01 < 0:
        raise ValueError(f"n10 and n01 must not be negative, got {n10} and {n01}")
    return float(stats.binom.sf(n10 - 1, n10 + n01, 0.5))


def paired_difference_lower_bound(n10: int, n01: int, n: int, confidence: float = 0.95) -> PairedDifference:
    """Change in accuracy on paired predictions, with a one-sided lower bound.

    The bound is Tango's score interval (T. Tango, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17 (1998), 891-908), which keeps its coverage
    with few discordant pairs and does not collapse to a point when there is none. Non-inferiority with a margin is
    shown when ``low > -margin``.

    Args:
        n10: Samples that only the baseline gets right.
        n01: Samples that only the candidate gets right.
        n: All samples, at least n10 + n01 and at least 1.
        confidence: Level of the one-sided bound, in (0, 1).

    Returns:
        The change, its bound, and the p-value against "no worse".

    Raises:
        ValueError: If a count or the level is out of its range.
    """
    _check_level("confidence", confidence)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if n10 < 0 or n01 < 0 or n10 + n01 > n:
        raise ValueError(f"n10 and n01 must not be negative nor exceed n={n} together, got {n10} and {n01}")
    value = (n01 - n10) / n
    z = float(stats.norm.ppf(confidence))

    def gap(difference: float) -> float:
        # An infinite statistic would hide the sign change from the root finder.
        return min(_tango_score(n10, n01, n, difference), 1e6) - z

    edge = -1.0 + 1e-12
    # The statistic falls as the assumed change rises. It is below z over the whole range only when every sample
    # speaks against the candidate; then nothing above -1 is excluded.
    low = -1.0 if gap(edge) <= 0.0 else float(optimize.brentq(gap, edge, max(value, edge + 1e-12), xtol=1e-12))
    if n10 + n01 < EXACT_BELOW:
        p_worse = mcnemar_worse(n10, n01)
    else:
        p_worse = float(stats.norm.cdf(_tango_score(n10, n01, n, 0.0)))
    return PairedDifference(value=value, low=min(low, value), p_worse=p_worse, n10=n10, n01=n01, n=n)


def paired_difference(
    baseline_right: npt.ArrayLike, candidate_right: npt.ArrayLike, confidence: float = 0.95
) -> PairedDifference:
    """The same from two boolean vectors: is sample i right under the baseline, and under the candidate.

    Args:
        baseline_right: [N] booleans.
        candidate_right: [N] booleans, same samples in the same order.
        confidence: Level of the one-sided bound, in (0, 1).

    Returns:
        See :func:`paired_difference_lower_bound`.

    Raises:
        ValueError: If the shapes differ or there is no sample.
    """
    before, after = np.asarray(baseline_right, dtype=bool), np.asarray(candidate_right, dtype=bool)
    if before.ndim != 1 or before.shape != after.shape:
        raise ValueError(f"paired predictions must be two vectors of one length, got {before.shape} and {after.shape}")
    n10 = int(np.count_nonzero(before & ~after))
    n01 = int(np.count_nonzero(~before & after))
    return paired_difference_lower_bound(n10, n01, int(before.size), confidence)


def samples_needed(discordant_rate: float, margin: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Samples for a paired non-inferiority test to have the given power when both models are equally good.

    n = (z_alpha + z_power)^2 * discordant_rate / margin^2: Nam, "Establishing equivalence of two treatments and sample
    size requirements in matched-pairs design", Biometrics 53 (1997), 1422-1430, leading term.

    Args:
        discordant_rate: Expected fraction of samples on which exactly one is right, in [0, 1].
        margin: The drop that must be excluded, in (0, 1).
        alpha: One-sided level.
        power: Wanted probability of showing it.

    Returns:
        The number of samples, rounded up; at least what the bound needs when no pair is discordant.

    Raises:
        ValueError: If a number is out of its range.
    """
    _check_level("alpha", alpha)
    _check_level("power", power)
    _check_level("margin", margin)
    if not 0.0 <= discordant_rate <= 1.0:
        raise ValueError(f"discordant_rate must be in [0, 1], got {discordant_rate}")
    z_alpha, z_power = float(stats.norm.isf(alpha)), float(stats.norm.ppf(power))
    needed = (z_alpha + z_power) ** 2 * discordant_rate / margin**2
    # With no discordant pair Tango's bound is -z^2 / (n + z^2): even a perfect agreement needs this many samples.
    floor = z_alpha**2 * (1.0 / margin - 1.0)
    return max(1, math.ceil(max(needed, floor)))


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
    _check_level("quantile", quantile)
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
    _check_level("confidence", confidence)
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
    _check_level("confidence", confidence)
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
    _check_level("alpha", alpha)
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
    _check_level("confidence", confidence)
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
