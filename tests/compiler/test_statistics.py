from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepto.compiler.statistics import (
    bootstrap_interval,
    hodges_lehmann,
    log_ratios,
    pairs_needed,
    ratio_interval,
    spend_alpha,
    wilcoxon_greater,
)


class TestRatio:
    def test_constant_factor_is_found_exactly(self) -> None:
        baseline = np.random.default_rng(1).lognormal(0, 0.3, (10, 7))
        ratio = ratio_interval(baseline, baseline / 2.5)
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.5, 2.5, 2.5))
        assert ratio.n == 10

    def test_deterministic_and_reciprocal(self) -> None:
        generator = np.random.default_rng(2)
        a, b = generator.lognormal(0, 0.05, (12, 9)), generator.lognormal(0.1, 0.05, (12, 9))
        there, back = ratio_interval(a, b), ratio_interval(b, a)
        assert there == ratio_interval(a, b)
        assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx((there.value, there.low, there.high))

    def test_covers_under_drift_and_spikes(self) -> None:
        generator = np.random.default_rng(3)
        covered = 0
        for _ in range(300):
            mood = generator.lognormal(0, 0.3, (10, 1))  # the machine gets slower and faster: both feel it
            a = mood * generator.lognormal(0, 0.03, (10, 9))
            b = mood * generator.lognormal(0, 0.03, (10, 9)) / 1.2
            b[generator.random((10, 9)) < 0.05] *= 1.5
            ratio = ratio_interval(a, b)
            covered += ratio.low <= 1.2 <= ratio.high
        assert covered / 300 > 0.91

    def test_other_quantile(self) -> None:
        a = np.tile(np.linspace(1, 2, 21), (6, 1))
        b = a.copy()
        b[:, 18:] *= 2
        assert ratio_interval(a, b).value == pytest.approx(1.0)
        assert ratio_interval(a, b, quantile=0.9).value == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (np.ones((6, 3)), np.ones((5, 3)), "must be paired"),
            (np.ones((5, 3)), np.ones((5, 3)), "at least 6 pairs"),
            (np.ones((6, 3)), np.zeros((6, 3)), "positive finite"),
            (np.ones(6), np.ones(6), "per_block"),
            (np.full((6, 3), np.nan), np.ones((6, 3)), "positive finite"),
        ],
    )
    def test_refuses(self, a: np.ndarray, b: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ratio_interval(a, b)

    def test_log_ratios_sign(self) -> None:
        assert log_ratios([[2.0]], [[1.0]])[0] == pytest.approx(math.log(2))


class TestHodgesLehmann:
    def test_known_values(self) -> None:
        # Hollander & Wolfe, Hamilton depression scale (as in R's ?wilcox.test): V = 40 of 45, p = 0.01953 one-sided.
        x = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
        y = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
        centre, low, high = hodges_lehmann(x - y, 0.95)
        assert centre == pytest.approx(0.46, abs=1e-9)
        assert (low, high) == pytest.approx((0.010, 0.786), abs=1e-9)
        assert wilcoxon_greater(x - y) == pytest.approx(0.01953, abs=5e-6)

    @pytest.mark.parametrize(("confidence", "n"), [(0.95, 6), (0.9, 5), (0.99, 8), (0.5, 2)])
    def test_pairs_needed(self, confidence: float, n: int) -> None:
        assert pairs_needed(confidence) == n
        hodges_lehmann(np.arange(n, dtype=float), confidence)

    @settings(max_examples=50)
    @given(st.lists(st.floats(-10, 10), min_size=6, max_size=60), st.floats(-5, 5))
    def test_moves_with_the_data(self, values: list[float], shift: float) -> None:
        here = hodges_lehmann(values)
        there = hodges_lehmann(np.array(values) + shift)
        assert there == pytest.approx([v + shift for v in here], abs=1e-9)
        assert here[1] <= here[0] <= here[2]

    def test_many_pairs_do_not_overflow(self) -> None:
        _, low, high = hodges_lehmann(np.random.default_rng(0).normal(0, 1, 1200))
        assert -0.1 < low < high < 0.1


class TestWilcoxon:
    def test_all_equal_is_no_evidence(self) -> None:
        assert wilcoxon_greater(np.zeros(9)) == 1.0
        assert wilcoxon_greater(np.full(9, 0.3), shift=0.3) == 1.0

    def test_smallest_p(self) -> None:
        assert wilcoxon_greater(np.arange(1.0, 13.0)) == pytest.approx(2.0**-12)
        assert wilcoxon_greater(-np.arange(1.0, 13.0)) == 1.0

    def test_false_alarms_and_power(self) -> None:
        # The design of the gate: sd 3 %, 5 % of the pairs with a spike of sd 20 %, alpha 1 %.
        generator = np.random.default_rng(5)
        noise = generator.normal(0, 0.03, (400, 20)) + (generator.random((400, 20)) < 0.05) * generator.normal(
            0, 0.2, (400, 20)
        )
        alarms = np.mean([wilcoxon_greater(row) < 0.01 for row in noise])
        found = np.mean([wilcoxon_greater(row + 0.05) < 0.01 for row in noise])
        assert alarms < 0.03
        assert found > 0.95


class TestSpendAlpha:
    def test_adds_up(self) -> None:
        assert spend_alpha((12, 24, 48), 0.01) == pytest.approx((0.0025, 0.0025, 0.005))

    @pytest.mark.parametrize("looks", [(), (0, 3), (5, 5), (6, 3)])
    def test_refuses(self, looks: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="rising"):
            spend_alpha(looks, 0.01)


class TestBootstrap:
    def test_mean_agrees_with_theory_and_repeats(self) -> None:
        x = np.random.default_rng(0).normal(3.0, 1.0, 400)
        low, high = bootstrap_interval(np.mean, x)
        assert (low, high) == pytest.approx((x.mean() - 0.098, x.mean() + 0.098), abs=0.02)
        assert bootstrap_interval(np.mean, x) == (low, high)
        assert bootstrap_interval(np.mean, x, seed=1) != (low, high)

    def test_columns_stay_paired(self) -> None:
        x = np.arange(50.0)
        assert bootstrap_interval(lambda a, b: float(np.abs(a - b).max()), x, x) == (0.0, 0.0)

    def test_undefined_metric_is_refused(self) -> None:
        with pytest.raises(ValueError, match="defined for only 0"):
            bootstrap_interval(lambda a: math.nan, np.ones(3))
        with pytest.raises(ValueError, match="common length"):
            bootstrap_interval(np.mean, np.ones(3), np.ones(4))
