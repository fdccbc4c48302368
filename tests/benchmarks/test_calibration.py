from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepto.benchmarks.calibration import calibration_change, calibration_error, reliability


def test_a_model_that_is_right_as_often_as_it_says() -> None:
    sure = np.repeat([0.55, 0.85], [100, 100])
    right = np.concatenate([np.arange(100) < 55, np.arange(100) < 85])
    found = reliability(sure, right)
    assert found.ece == pytest.approx(0.0, abs=1e-12)
    assert found.count.tolist() == [100, 100]
    np.testing.assert_allclose(found.accuracy, [0.55, 0.85])


def test_the_definition_of_guo_et_al() -> None:
    # Two bins of ten: |0.9 - 1.0| * 2/4 + |0.6 - 0.5| * 2/4
    assert calibration_error([0.9, 0.9, 0.6, 0.6], [1, 1, 1, 0], bins=10) == pytest.approx(0.1)
    assert calibration_error([1.0, 1.0], [0, 0]) == 1.0  # the last bin holds 1


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_both_ways_to_compute_agree(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure, right = rng.random(n), rng.random(n) < 0.7
    found = reliability(sure, right)
    assert found.ece == pytest.approx(calibration_error(sure, right), abs=1e-12)
    assert 0 <= found.ece <= 1
    assert found.count.sum() == n
    assert ((found.low <= found.accuracy) & (found.accuracy <= found.high)).all()


def test_the_change_has_an_interval_that_tells_overconfidence_from_none() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 2000)
    right = rng.random(2000) < sure
    same, low, high = calibration_change((sure, right), (sure, right), resamples=300)
    assert same == 0
    assert low <= 0 <= high
    worse, low, _ = calibration_change((sure, right), (np.minimum(1.0, sure + 0.1), right), resamples=300)
    assert worse > 0.04
    assert low > 0.02


@pytest.mark.parametrize(
    ("sure", "right"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([float("nan")], [1]), ([-0.1], [0])]
)
def test_what_is_no_probability_is_refused(sure: list[float], right: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one length|must be in"):
        calibration_error(sure, right)
