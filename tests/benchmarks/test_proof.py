from __future__ import annotations

import random

import numpy as np

from lepto.benchmarks.proof import losses
from lepto.benchmarks.proof.timing import replay


def recorded(pairs: int = 400, sd: float = 0.02) -> np.ndarray:
    generator = np.random.default_rng(0)
    mood = generator.lognormal(0, 0.1, (pairs, 1, 1))
    return 1e-3 * mood * generator.lognormal(0, sd, (pairs, 2, 2)) * np.array([1.0, 1.2])


def test_replay_tells_slow_from_equal() -> None:
    order = random.Random(1)
    series = [recorded()]
    equal = [replay(series, 0.0, order).verdict for _ in range(40)]
    slow = [replay(series, 0.10, order) for _ in range(20)]
    assert equal.count("regression") == 0
    assert equal.count("pass") >= 38
    assert [one.verdict for one in slow] == ["regression"] * 20
    assert not slow[0].live


def test_replay_keeps_a_lasting_difference() -> None:
    # A proof that shuffled the sides of each pair would hide it.
    biased = recorded()
    biased[:, 1] *= 1.10
    verdicts = {replay([biased], 0.0, random.Random(seed)).verdict for seed in range(12)}
    assert "regression" in verdicts


def test_losses_have_the_size_that_was_asked_for() -> None:
    truth = np.arange(5000) % 7
    predictions = np.where(np.arange(5000) % 10 < 9, truth, (truth + 1) % 7)  # 90 % right
    for loss, churn in ((0.0, 0.0), (0.02, 0.0), (0.01, 0.04)):
        change, moved = [], []
        for seed in range(20):
            before, after, right = losses._flipped(predictions, truth, loss, churn, 5000, np.random.default_rng(seed))
            change.append(np.mean(after == right) - np.mean(before == right))
            moved.append(np.mean((after == right) != (before == right)))
        assert np.mean(change) == np.clip(np.mean(change), -loss - 0.002, -loss + 0.002)
        assert abs(np.mean(moved) - loss - churn) < 0.003


def test_losses_are_found_and_equals_are_not() -> None:
    truth = np.arange(5000) % 7
    predictions = np.where(np.arange(5000) % 10 < 9, truth, (truth + 1) % 7)
    found = losses.prove(predictions, truth, 20, 0)
    assert len(found) == 2 * 2 * 3 * 2
    pure = {
        (one.loss_points, one.rule): one.verdicts for one in found if not one.churn_points and one.samples == 10_000
    }
    assert pure[0.0, "non-inferiority"]["pass"] == 20
    assert pure[2.0, "non-inferiority"]["regression"] == 20
    assert pure[2.0, "mlperf"]["regression"] == 20
