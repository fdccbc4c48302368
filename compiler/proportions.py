"""Shares of right answers and their differences, as pure functions: the search and the gate judge alike.

Every function takes plain numbers or arrays, is deterministic, and names the paper that it comes from. Differences are
always *candidate minus baseline*, so that more is better. N samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats  # type: ignore[import-untyped]  # scipy ships no types

from lepto.compiler.statistics import check_level

# Below this many discordant pairs the normal approximation of McNemar's test is not trusted (Agresti, "Categorical
# Data Analysis", section 11.1; Fagerland, Lydersen & Laake 2013, BMC Med. Res. Methodol. 13:91).
EXACT_BELOW = 25


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
    check_level("confidence", confidence)
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
    check_level("confidence", confidence)
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
    check_level("alpha", alpha)
    check_level("power", power)
    check_level("margin", margin)
    if not 0.0 <= discordant_rate <= 1.0:
        raise ValueError(f"discordant_rate must be in [0, 1], got {discordant_rate}")
    z_alpha, z_power = float(stats.norm.isf(alpha)), float(stats.norm.ppf(power))
    needed = (z_alpha + z_power) ** 2 * discordant_rate / margin**2
    # With no discordant pair Tango's bound is -z^2 / (n + z^2): even a perfect agreement needs this many samples.
    floor = z_alpha**2 * (1.0 / margin - 1.0)
    return max(1, math.ceil(max(needed, floor)))
