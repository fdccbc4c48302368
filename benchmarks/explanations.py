"""Whether a candidate answers for the same reasons: rank correlation of attributions against the noise of seeds.

Sampled attributions differ from seed to seed. Two runs of one model with different seeds correlate only so far; how
much less two models correlate is what the candidate changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]  # it ships no types

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How alike two models' attributions rank the features, over N samples.

    Attributes:
        between: Mean rank correlation of baseline and candidate, of different seeds.
        noise: Mean rank correlation of a model with itself, of different seeds: what "the same reasons" gives.
        drop: ``noise - between``; above 0 is a change of reasons.
        low: Lower end of its 95 % bootstrap interval over samples.
        high: Upper end.
        n: Samples that could be ranked.
        samples: ``[n]`` drop of each.
    """

    between: float
    noise: float
    drop: float
    low: float
    high: float
    n: int
    samples: Floats


def rank_correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's rank correlation of two attributions ``[F]``, in [-1, 1]; NaN where one ranks nothing.

    Raises:
        ValueError: The vectors differ in length.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"attributions must be two vectors of one length, got {a.shape} and {b.shape}")
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def agreement(
    baseline: Sequence[Sequence[npt.ArrayLike]],
    candidate: Sequence[Sequence[npt.ArrayLike]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare attributions, of each sample for R seeds; seeds of one place must be the same on both sides.

    A pair of one seed shares its random orders and would look more alike than two seeds of one model do: only pairs of
    different seeds are compared, between models and within one.

    Args:
        baseline: For each of N samples R attributions ``[F]``, R at least 2.
        candidate: The same of the candidate, to the same class.
        confidence: Level of the interval of the drop.
        resamples: Bootstrap resamples over the samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: The sides differ, there are fewer than two seeds, or fewer than two samples could be ranked.
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"both sides need the same samples, got {len(baseline)} and {len(candidate)}")
    between, noise = [], []
    for place, (before, after) in enumerate(zip(baseline, candidate, strict=True)):
        if len(before) < 2 or len(before) != len(after):
            raise ValueError(
                f"sample {place} needs the same seeds on both sides, two at least: {len(before)}, {len(after)}"
            )
        pairs = list(itertools.permutations(range(len(before)), 2))
        across = [rank_correlation(before[i], after[j]) for i, j in pairs]
        within = [rank_correlation(side[i], side[j]) for side in (before, after) for i, j in pairs if i < j]
        if np.isfinite(across).all() and np.isfinite(within).all():
            between.append(float(np.mean(across)))
            noise.append(float(np.mean(within)))
    if len(between) < 2:
        raise ValueError(f"only {len(between)} of {len(baseline)} samples have features to rank: give more samples")
    drops = np.array(noise) - np.array(between)
    rows = np.random.default_rng(seed).integers(0, drops.size, size=(resamples, drops.size))
    low, high = np.quantile(drops[rows].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Agreement(
        float(np.mean(between)), float(np.mean(noise)), float(drops.mean()), float(low), float(high), drops.size, drops
    )


def attributions(
    score: Any,
    features: Sequence[Any],
    targets: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1),
    permutations: int = 25,
) -> list[list[Floats]]:
    """Shapley values of each sample for each seed; see :func:`lepto.benchmarks.attributions.attribute`.

    Args:
        score: The model.
        features: Of N samples.
        targets: ``[N]`` classes, the same for both models that are compared: the baseline's answers.
        seeds: Of the sampled orders.
        permutations: Orders of each.
    """
    from lepto.benchmarks.attributions import attribute

    return [
        [attribute(score, own, target, method="shapley", permutations=permutations, seed=seed) for seed in seeds]
        for own, target in zip(features, targets, strict=True)
    ]
