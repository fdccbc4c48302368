from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lepto.compiler.proportions import (
    mcnemar_worse,
    paired_difference,
    paired_difference_lower_bound,
    samples_needed,
    wilson_interval,
)


@st.composite
def paired_counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 5000))
    n10 = draw(st.integers(0, n))
    return n10, draw(st.integers(0, n - n10)), n


class TestWilson:
    def test_known_values(self) -> None:
        # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
        assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
        assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
        assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)

    @given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_holds_the_rate_inside_zero_and_one(self, counts: tuple[int, int]) -> None:
        successes, n = counts
        low, high = wilson_interval(successes, n)
        assert 0.0 <= low <= successes / n <= high <= 1.0
        assert low < high

    @given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_mirrors(self, counts: tuple[int, int]) -> None:
        successes, n = counts
        low, high = wilson_interval(successes, n)
        assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    def test_agrees_with_scipy(self) -> None:
        expected = stats.binomtest(2837, 3080).proportion_ci(0.95, method="wilson")
        assert wilson_interval(2837, 3080) == pytest.approx((expected.low, expected.high))

    @pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
    def test_refuses(self, successes: int, n: int, confidence: float) -> None:
        with pytest.raises(ValueError, match="must be"):
            wilson_interval(successes, n, confidence)


class TestPairedDifference:
    def test_tangos_own_example(self) -> None:
        # The counts of Tango's 1998 crossover trial of contact lens disinfection; the equation is solved here by
        # brute force over a grid.
        result = paired_difference_lower_bound(n10=2, n01=12, n=44, confidence=0.975)
        solved = [d / 1e5 for d in range(-20_000, 22_000) if _score(12, 2, 44, d / 1e5) >= stats.norm.ppf(0.975)]
        assert result.low == pytest.approx(max(solved), abs=2e-5)
        assert result.value == pytest.approx(10 / 44)

    def test_no_discordant_pair_still_has_a_bound(self) -> None:
        z = stats.norm.ppf(0.95)
        result = paired_difference_lower_bound(0, 0, 300)
        assert result.value == 0.0
        assert result.low == pytest.approx(-(z**2) / (300 + z**2), rel=1e-6)
        assert result.p_worse == 1.0

    @given(paired_counts())
    def test_bound_is_below_the_estimate_and_in_range(self, counts: tuple[int, int, int]) -> None:
        result = paired_difference_lower_bound(*counts)
        assert -1.0 <= result.low <= result.value <= 1.0
        assert 0.0 <= result.p_worse <= 1.0

    @given(paired_counts())
    def test_more_confidence_is_a_lower_bound(self, counts: tuple[int, int, int]) -> None:
        assert (
            paired_difference_lower_bound(*counts, 0.99).low <= paired_difference_lower_bound(*counts, 0.9).low + 1e-9
        )

    @given(st.integers(0, 60), st.integers(0, 60), st.integers(200, 2000))
    def test_one_more_loss_lowers_the_bound(self, n10: int, n01: int, n: int) -> None:
        worse = paired_difference_lower_bound(n10 + 1, n01, n)
        assert worse.low < paired_difference_lower_bound(n10, n01, n).low

    def test_covers(self) -> None:
        generator = np.random.default_rng(0)
        for only_baseline, only_candidate, n in [(0.02, 0.02, 400), (0.004, 0.002, 500), (0.06, 0.03, 300)]:
            draws = generator.multinomial(n, [only_baseline, only_candidate, 1 - only_baseline - only_candidate], 800)
            covered = [
                paired_difference_lower_bound(int(a), int(b), n).low <= only_candidate - only_baseline
                for a, b, _ in draws
            ]
            assert np.mean(covered) > 0.93  # 0.95 less three standard errors of 800 draws

    def test_exact_test_below_25_discordant_pairs(self) -> None:
        assert paired_difference_lower_bound(9, 1, 500).p_worse == pytest.approx(11 / 1024)
        assert mcnemar_worse(9, 1) == pytest.approx(11 / 1024)
        assert mcnemar_worse(0, 0) == 1.0
        many = paired_difference_lower_bound(30, 10, 500)
        assert many.p_worse == pytest.approx(stats.norm.sf(20 / math.sqrt(40)), rel=1e-6)

    def test_from_predictions(self) -> None:
        result = paired_difference([True, True, False, False], [True, False, True, True])
        assert (result.n10, result.n01, result.n) == (1, 2, 4)
        assert result.discordant_rate == 0.75

    def test_refuses_unpaired(self) -> None:
        with pytest.raises(ValueError, match="one length"):
            paired_difference([True], [True, False])
        with pytest.raises(ValueError, match="at least 1"):
            paired_difference([], [])
        with pytest.raises(ValueError, match="nor exceed n=3"):
            paired_difference_lower_bound(2, 2, 3)


def _score(b: int, c: int, n: int, difference: float) -> float:
    """Tango's equation, written down a second time from the paper (b: only the candidate right)."""
    big_b = -b - c + (2 * n - b + c) * difference
    p21 = (math.sqrt(big_b**2 + 8 * n * c * difference * (1 - difference)) - big_b) / (4 * n)
    return (b - c - n * difference) / math.sqrt(n * (2 * p21 + difference * (1 - difference)))


class TestSamplesNeeded:
    @pytest.mark.parametrize(("rate", "expected"), [(0.02, 1237), (0.05, 3092), (0.10, 6183)])
    def test_known_values(self, rate: float, expected: int) -> None:
        assert samples_needed(rate, 0.01) == pytest.approx(expected, abs=1)

    def test_full_agreement_still_needs_samples(self) -> None:
        n = samples_needed(0.0, 0.01)
        assert paired_difference_lower_bound(0, 0, n).low > -0.01 - 1e-6
        assert paired_difference_lower_bound(0, 0, n - 10).low < -0.01

    @pytest.mark.parametrize(("rate", "margin"), [(-0.1, 0.01), (0.1, 0.0), (1.1, 0.01)])
    def test_refuses(self, rate: float, margin: float) -> None:
        with pytest.raises(ValueError, match="must be"):
            samples_needed(rate, margin)
