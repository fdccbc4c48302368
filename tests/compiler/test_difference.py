"""The change of a metric on the same samples: its bound, and how many samples would decide."""

from __future__ import annotations

import numpy as np
import pytest

from lepto.compiler.budget import Budget
from lepto.compiler.difference import difference
from lepto.compiler.metrics import Outcomes
from lepto.compiler.proportions import paired_difference
from lepto.compiler.recipe import allowed_drop
from lepto.runtime.manifest import Metric


def answers(right: np.ndarray) -> Outcomes:
    return Outcomes("accuracy", right.astype(np.float64), np.ones(len(right)), decided=True)


def tags(found: np.ndarray, predicted: np.ndarray, expected: np.ndarray) -> Outcomes:
    return Outcomes("f1", 2.0 * found, (predicted + expected).astype(np.float64))


def taggers(rows: int, share: float, seed: int = 0) -> tuple[Outcomes, Outcomes]:
    """A tagger that finds most of its entities, and one that loses a share of those; one to three in every row."""
    rng = np.random.default_rng(seed)
    expected = rng.integers(1, 4, size=rows)
    found = rng.binomial(expected, 0.9)
    return tags(found, expected, expected), tags(rng.binomial(found, 1 - share), expected, expected)


def metric(outcomes: Outcomes) -> Metric:
    return Metric(name=outcomes.name, value=outcomes.value, low=0, high=1, n=len(outcomes))


def test_shares_of_right_answers_have_tangos_bound() -> None:
    before = np.arange(1000) < 900
    after = before.copy()
    after[:30], after[900:925] = False, True
    found, known = difference(answers(before), answers(after)), paired_difference(before, after)
    assert (found.value, found.low, found.lost, found.won) == (known.value, known.low, 30, 25)
    assert found.changed == 0.055


def test_f1_is_compared_by_a_paired_bootstrap() -> None:
    source, result = taggers(2000, 0.01)
    found = difference(source, result)
    assert found.value == result.value - source.value
    assert found.low < found.value < 0
    assert found.lost is None
    # Rows are nearly independent: the bound is near that of a mean of their differences.
    each = (result.earned - source.earned) / source.possible.mean()
    assert found.low == pytest.approx(each.mean() - 1.645 * each.std() / np.sqrt(len(each)), abs=5e-4)
    assert difference(source, result) == found
    # Against rows that are not paired it would be several times as wide.
    assert found.value - found.low < 0.4 * (source.value - np.quantile(_resampled(source), 0.05))


def _resampled(outcomes: Outcomes) -> list[float]:
    rng, n = np.random.default_rng(1), len(outcomes)
    rows = (rng.integers(0, n, n) for _ in range(400))
    return [float(outcomes.earned[r].sum() / outcomes.possible[r].sum()) for r in rows]


def test_the_bound_holds_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = difference(*taggers(300, 0.05, seed))
        held += found.low <= -0.05 * 0.9
    assert 0.9 <= held / 200 <= 0.99


def test_the_number_that_would_decide_decides() -> None:
    source, result = taggers(300, 0.01)
    found = difference(source, result)
    allowed = 0.012
    assert found.low < -allowed
    enough = found.enough(allowed + found.value)
    assert enough is not None
    assert enough > 300
    times = -(-enough // 300)
    many = [Outcomes("f1", np.tile(o.earned, times), np.tile(o.possible, times)) for o in (source, result)]
    assert difference(*many).low > -allowed
    assert found.enough(0.001 + found.value) is None


def test_few_samples_that_agree_show_nothing() -> None:
    source, _ = taggers(20, 0.0)
    assert difference(source, source).low == 0
    budget = Budget(metric(source), 0.01, 0.95, source)
    assert not budget.keeps(metric(source), source)
    assert "insufficient data: 20 samples" in budget.said(metric(source), source)
    assert "insufficient data: 20 samples" in Budget(metric(source), 0.01, None, source).claim(source)[1]


def test_a_bound_on_f1_asks_for_more_than_a_point_estimate() -> None:
    source, result = taggers(1000, 0.01)
    drop = source.value - result.value
    loose, strict = (Budget(metric(source), drop + 0.001, level, source) for level in (None, 0.95))
    assert loose.keeps(metric(result), result)
    assert not strict.keeps(metric(result), result)
    assert "samples would decide" in strict.said(metric(result), result)
    assert "paired bootstrap" in loose.claim(result)[1]
    wide = Budget(metric(source), drop + 0.02, 0.95, source)
    assert wide.keeps(metric(result), result)
    assert wide.claim(result)[1].startswith("not worse than the source")


def test_outcomes_must_pair_up() -> None:
    source, _ = taggers(20, 0.0)
    other, _ = taggers(21, 0.0)
    with pytest.raises(ValueError, match="f1 of 20 samples and f1 of 21"):
        difference(source, other)


def test_the_drop_that_would_take_a_candidate_takes_it() -> None:
    source = Metric(name="accuracy", value=4326 / 4500, low=0.0, high=1.0, n=4500)
    for right in (4282, 4281, 4000, 4326):
        result = source.model_copy(update={"value": right / 4500})
        text = Budget(source, 0.01).would_take(result)
        least = float(text.removesuffix("%"))
        assert Budget(source, allowed_drop(text, source.value)).keeps(result)
        assert least == 0 or not Budget(source, allowed_drop(f"{least - 0.01:.2f}%", source.value)).keeps(result)
    assert Budget(source, 0.01).would_take(source.model_copy(update={"value": 4282 / 4500})) == "1.02%"
