"""Answers that changed although the accuracy held (arXiv 2407.09141): flip rate and KL divergence from the source."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.check import Check, Limit, by_interval
from lepto.compiler.proportions import wilson_interval
from lepto.compiler.statistics import bootstrap_interval

# A divergence has no upper end: below this a few samples that differ much would not be seen.
LEAST: Final = 100


def judge_flips(
    source: npt.NDArray[Any], candidate: npt.NDArray[Any], limit: Limit, *, alpha: float, beta: float
) -> Check:
    """Judge the share of samples that the candidate decides otherwise than the source.

    Args:
        source: ``[N]`` predicted classes.
        candidate: ``[N]`` predicted classes.
        limit: In points, or a share (of all samples; the same).
        alpha: Level of the lower bound, beyond which it is a regression.
        beta: Level of the upper bound, within which it passes.
    """
    flipped = source != candidate
    count, n = int(flipped.sum()), int(flipped.size)
    low, high = wilson_interval(count, n, 1 - 2 * alpha)[0], wilson_interval(count, n, 1 - 2 * beta)[1]
    rate = count / n
    story = f"flip_rate {rate:.2%} of {n:,} samples ({low:.2%} to {high:.2%}), limit {limit}"
    return by_interval(
        "flip_rate", rate, low, high, limit, limit.value, story, baseline=0.0, candidate=rate, n=n,
        rule="Wilson's interval",
    )  # fmt: skip


def judge_divergence(
    source: npt.NDArray[Any],
    candidate: npt.NDArray[Any],
    limit: Limit,
    *,
    alpha: float,
    beta: float,
    groups: npt.NDArray[np.int64] | None = None,
) -> Check:
    """Judge the mean KL divergence of the candidate's probabilities from the source's, in nats.

    Args:
        source: ``[N, C]`` logits.
        candidate: ``[N, C]`` logits.
        limit: In nats.
        alpha: Level of the lower bound.
        beta: Level of the upper bound.
        groups: ``[N]`` the row that a word belongs to: then the mean over rows of the mean over their words is judged,
            and resamples are of rows.
    """
    p, q = log_softmax(source), log_softmax(candidate)
    each = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    if groups is not None:
        each = np.bincount(groups, weights=each) / np.bincount(groups)
    low = bootstrap_interval(np.mean, each, confidence=1 - 2 * alpha)[0]
    high = bootstrap_interval(np.mean, each, confidence=1 - 2 * beta)[1]
    value = float(each.mean())
    story = f"kl {value:.4g} nats on {each.size:,} samples ({low:.4g} to {high:.4g}), limit {limit}"
    return by_interval(
        "kl", value, low, high, limit, limit.value, story, baseline=0.0, candidate=value, n=int(each.size), least=LEAST,
        rule="bootstrap interval of the mean KL(source, candidate)",
    )  # fmt: skip


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``[N, C]`` logarithms of probabilities."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result
