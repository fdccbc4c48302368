"""Whether a candidate treats the groups of a column more unevenly: the gap of the accuracy between them.

The gap is that between the best and the worst group. Compression can widen it while the mean holds (Hooker et al.,
"Characterising Bias in Compressed Models", arXiv 2010.03058).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LEAST = 30
"""Samples that a group needs to count: with fewer its accuracy is known to no better than some 18 points."""


@dataclass(frozen=True)
class Gap:
    """The gap between groups, and how it changed.

    Attributes:
        baseline: Accuracy of the best less that of the worst group, in [0, 1].
        candidate: The same of the candidate.
        change: Candidate less baseline; positive is less even.
        low: Lower end of its interval.
        high: Upper end.
        best: The group that the candidate answers best.
        worst: The one that it answers worst.
        groups: For each group that counts: samples, accuracy of the baseline, of the candidate.
        left_out: Groups with too few samples.
    """

    baseline: float
    candidate: float
    change: float
    low: float
    high: float
    best: str
    worst: str
    groups: Mapping[str, tuple[int, float, float]]
    left_out: Mapping[str, int] = field(default_factory=dict)


def fairness_gap(
    groups: Sequence[str],
    baseline: npt.ArrayLike,
    candidate: npt.ArrayLike,
    *,
    least: int = LEAST,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Gap:
    """The gap on both sides, with a basic bootstrap interval of its change.

    Samples are drawn within each group, and for both sides the same. A maximum over resampled groups is too large; the
    basic interval takes that off, as both sides have it.

    Args:
        groups: ``[N]`` the group of each sample.
        baseline: ``[N]`` whether the baseline is right.
        candidate: ``[N]`` whether the candidate is right.
        least: Samples that a group needs.
        confidence: Two-sided level.
        resamples: How many resamples are drawn.
        seed: Of the generator.

    Raises:
        ValueError: The columns differ in length, or fewer than two groups have enough samples.
    """
    first, second = np.asarray(baseline, np.float64), np.asarray(candidate, np.float64)
    if not first.shape == second.shape == (len(groups),):
        raise ValueError(f"every sample needs every column, got {len(groups)}, {first.shape} and {second.shape}")
    cells = np.asarray(groups)
    sizes = {name: int((cells == name).sum()) for name in dict.fromkeys(groups)}
    names = [name for name, size in sizes.items() if size >= least]
    left_out = {name: size for name, size in sizes.items() if size < least}
    if len(names) < 2:
        raise ValueError(f"two groups need {least} samples each, got {sizes}: give more samples or another column")
    means = np.array([[side[cells == name].mean() for name in names] for side in (first, second)])
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, 2, len(names)))
    for place, name in enumerate(names):
        # A sample is one of four: right or wrong on each side. Drawing samples is drawing how many of each.
        kinds = np.bincount((2 * first[cells == name] + second[cells == name]).astype(int), minlength=4)
        counts = generator.multinomial(kinds.sum(), kinds / kinds.sum(), size=resamples)
        drawn[:, 0, place] = (counts[:, 2] + counts[:, 3]) / kinds.sum()
        drawn[:, 1, place] = (counts[:, 1] + counts[:, 3]) / kinds.sum()
    gaps, resampled = np.ptp(means, axis=1), np.ptp(drawn, axis=2)
    change = float(gaps[1] - gaps[0])
    ends = np.quantile(resampled[:, 1] - resampled[:, 0], [(1 - confidence) / 2, (1 + confidence) / 2])
    shown = {n: (sizes[n], float(means[0, i]), float(means[1, i])) for i, n in enumerate(names)}
    return Gap(
        float(gaps[0]), float(gaps[1]), change, 2 * change - float(ends[1]), 2 * change - float(ends[0]),
        names[int(means[1].argmax())], names[int(means[1].argmin())], shown, left_out,
    )  # fmt: skip
