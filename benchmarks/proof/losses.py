"""Accuracy losses of a known size: the right share of a real model's predictions is flipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.benchmarks.checks.accuracy import RULES, judge_accuracy
from lepto.benchmarks.checks.check import Limit

LIMIT: Final = Limit.parse("1%")


@dataclass(frozen=True, slots=True)
class Losses:
    """Verdicts on one loss by one rule.

    Attributes:
        loss_points: The true loss, in points.
        churn_points: Predictions that changed besides, as many for the better as for the worse.
        rule: Of the accuracy check.
        samples: N.
        verdicts: How often each was said.
    """

    loss_points: float
    churn_points: float
    rule: str
    samples: int
    verdicts: dict[str, int]


def prove(predictions: npt.NDArray[np.int64], truth: npt.NDArray[np.int64], trials: int, seed: int) -> list[Losses]:
    """Judge flipped copies of real predictions.

    Each trial draws the samples anew (with replacement), so that the loss is that of the population and not of the
    sample, then flips each right prediction with the chance that makes the expected loss the wanted one.

    Args:
        predictions: ``[N]`` of a real model.
        truth: ``[N]``.
        trials: For each loss and rule.
        seed: Of the generator.
    """
    generator = np.random.default_rng(seed)
    found = []
    for samples in (3000, 10_000):
        for churn in (0.0, 0.02):
            for loss in (0.0, 0.01, 0.02):
                pairs = [_flipped(predictions, truth, loss, churn, samples, generator) for _ in range(trials)]
                for rule in RULES:
                    verdicts = [judge_accuracy(*pair, LIMIT, rule=rule).verdict.value for pair in pairs]
                    counts = {verdict: verdicts.count(verdict) for verdict in ("pass", "regression", "inconclusive")}
                    found.append(Losses(100 * loss, 100 * churn, rule, samples, counts))
    return found


def _flipped(
    predictions: npt.NDArray[Any], truth: npt.NDArray[Any], loss: float, churn: float, samples: int, generator: Any
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rows = generator.integers(0, len(truth), samples)
    before, right = predictions[rows], truth[rows]
    accuracy = float(np.mean(predictions == truth))
    drawn, hit = generator.random(samples), before == right
    worse = hit & (drawn < (loss + churn / 2) / accuracy)
    better = ~hit & (drawn < churn / 2 / (1 - accuracy))
    after = before.copy()
    after[worse] = (before[worse] + 1) % (int(truth.max()) + 1)
    after[better] = right[better]
    return before, after, right
