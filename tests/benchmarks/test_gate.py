from __future__ import annotations

import numpy as np
import pytest

from lepto.benchmarks.gate import (
    Check,
    Limit,
    Plan,
    Verdict,
    as_document,
    judge_accuracy,
    judge_bytes,
    judge_latency,
    not_checked,
    overall,
)

FIVE = Limit.parse("5%")
PLAN = Plan()


def blocks(pairs: int, factor: float, seed: int, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of a machine with moods, noise in each block and an odd spike; the candidate is slower by the factor."""
    generator = np.random.default_rng(seed)
    mood = generator.lognormal(0, 0.2, (pairs, 1))
    pair = [mood * generator.lognormal(0, noise, (pairs, 1)) * generator.lognormal(0, 0.05, (pairs, 20)) for _ in "ab"]
    pair[0][generator.random(pair[0].shape) < 0.02] *= 3
    pair[1][generator.random(pair[1].shape) < 0.02] *= 3
    return 1e-3 * pair[0], 1e-3 * pair[1] * factor


def judged(factor: float, seed: int, noise: float = 0.02) -> Check:
    """All looks, as the command does it."""
    before, after = blocks(PLAN.looks[-1], factor, seed, noise)
    for look, pairs in enumerate(PLAN.looks):
        check = judge_latency("p50_ms", before[:pairs], after[:pairs], FIVE, PLAN, look)
        if check.verdict is not Verdict.INCONCLUSIVE:
            break
    return check


class TestLimit:
    @pytest.mark.parametrize(
        ("text", "value", "relative"), [("5%", 0.05, True), ("0.01", 0.01, False), ("0%", 0, True)]
    )
    def test_reads(self, text: str, value: float, relative: bool) -> None:
        limit = Limit.parse(text)
        assert limit.value == pytest.approx(value)
        assert limit.relative is relative
        assert str(limit) == text

    def test_relative_to_the_baseline(self) -> None:
        assert Limit.parse("1%").of(0.92) == pytest.approx(0.0092)
        assert Limit.parse("0.01").of(0.92) == 0.01

    @pytest.mark.parametrize("text", ["", "five", "-5%", "5 % of it", "nan", "1e400"])
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="a limit must be"):
            Limit.parse(text)


class TestPlan:
    def test_levels_add_up(self) -> None:
        assert sum(PLAN.alpha_at_looks) == pytest.approx(0.005)  # half for each of two quantiles
        assert sum(PLAN.beta_at_looks) == pytest.approx(0.05)

    @pytest.mark.parametrize("looks", [(5, 10), (12, 12), ()])
    def test_refuses_looks_that_cannot_decide(self, looks: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="look"):
            Plan(looks=looks)


class TestLatency:
    def test_equal_passes(self) -> None:
        verdicts = [judged(1.0, seed).verdict for seed in range(100)]
        assert verdicts.count(Verdict.REGRESSION) == 0
        assert verdicts.count(Verdict.PASS) >= 95

    def test_beyond_the_limit_is_a_regression(self) -> None:
        verdicts = [judged(1.10, seed).verdict for seed in range(50)]
        assert verdicts.count(Verdict.PASS) == 0
        assert verdicts.count(Verdict.REGRESSION) >= 49

    def test_at_the_limit_hardly_ever_passes(self) -> None:
        verdicts = [judged(1.05, seed).verdict for seed in range(100)]
        assert verdicts.count(Verdict.PASS) <= 8  # beta is 5 %
        assert verdicts.count(Verdict.REGRESSION) >= 85

    def test_faster_passes(self) -> None:
        check = judged(0.5, 0)
        assert check.verdict is Verdict.PASS
        assert check.message.startswith("p50_ms fell 5")

    def test_noise_is_inconclusive(self) -> None:
        check = judged(1.04, 3, noise=0.6)
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "48 pairs do not tell" in check.message

    def test_explains_itself(self) -> None:
        before = np.full((12, 20), 8.10e-3)
        check = judge_latency("p90_ms", before, before * 1.124, FIVE, PLAN, 0)
        assert check.verdict is Verdict.REGRESSION
        assert check.message == "p90_ms rose 12.4% (8.1 → 9.1; 95 %: +12.4% to +12.4%), limit 5%"
        assert str(check) == check.message

    def test_only_the_tail_gets_slower(self) -> None:
        before = np.tile(np.linspace(1e-3, 2e-3, 20), (12, 1))
        after = before.copy()
        after[:, 16:] *= 1.5
        assert judge_latency("p50_ms", before, after, FIVE, PLAN, 0).verdict is Verdict.PASS
        assert judge_latency("p90_ms", before, after, FIVE, PLAN, 0).verdict is Verdict.REGRESSION

    def test_undeclared_look_is_refused(self) -> None:
        with pytest.raises(ValueError, match="declared with 24 pairs, got 12"):
            judge_latency("p50_ms", np.ones((12, 3)), np.ones((12, 3)), FIVE, PLAN, 1)
        with pytest.raises(ValueError, match="must be relative"):
            judge_latency("p50_ms", np.ones((12, 3)), np.ones((12, 3)), Limit.parse("0.1"), PLAN, 0)


def predictions(
    n: int, both: int, only_baseline: int, only_candidate: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth = np.zeros(n, dtype=int)
    before, after = np.ones(n, dtype=int), np.ones(n, dtype=int)
    before[: both + only_baseline] = 0
    after[:both] = 0
    after[both + only_baseline : both + only_baseline + only_candidate] = 0
    return before, after, truth


class TestAccuracy:
    ONE = Limit.parse("1%")

    def test_same_answers_pass_with_enough_samples(self) -> None:
        check = judge_accuracy(*predictions(3080, 2837, 0, 0), self.ONE)
        assert check.verdict is Verdict.PASS
        assert "did not change" in check.message

    def test_same_answers_on_few_samples_never_pass(self) -> None:
        check = judge_accuracy(*predictions(50, 46, 0, 0), self.ONE)
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "insufficient data, about 292 samples are needed" in check.message

    def test_mlperfs_rule_on_the_point_estimate(self) -> None:
        # 99 % of 2,837 right answers is 2,808.63: 28 fewer are allowed, 29 are not.
        allowed = judge_accuracy(*predictions(3080, 2809, 28, 0), self.ONE)
        beyond = judge_accuracy(*predictions(3080, 2808, 29, 0), self.ONE)
        assert allowed.verdict is Verdict.INCONCLUSIVE
        assert beyond.verdict is Verdict.REGRESSION
        assert beyond.message.startswith("accuracy fell 0.94 points (92.11% → 91.17% on 3,080 samples")

    def test_small_loss_passes(self) -> None:
        check = judge_accuracy(*predictions(3080, 2820, 17, 12), self.ONE)
        assert check.verdict is Verdict.PASS
        assert check.low is not None
        assert check.low > -0.0092

    def test_flips_are_told_although_accuracy_holds(self) -> None:
        check = judge_accuracy(*predictions(3080, 2800, 30, 30), self.ONE)
        assert check.change == 0.0
        assert "1.9% of the answers changed" in check.message

    def test_limit_of_nothing_is_never_shown(self) -> None:
        check = judge_accuracy(*predictions(3080, 2837, 0, 0), Limit.parse("0%"))
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "no number of samples" in check.message

    def test_unpaired_is_refused(self) -> None:
        with pytest.raises(ValueError, match="one length"):
            judge_accuracy([1, 2], [1], [1, 2], self.ONE)


class TestBytesAndVerdict:
    def test_bytes(self) -> None:
        assert judge_bytes(100, 105, FIVE).verdict is Verdict.PASS
        grown = judge_bytes(1_000_000, 1_100_000, FIVE)
        assert grown.verdict is Verdict.REGRESSION
        assert grown.message == "bytes rose 10.0% (1,000,000 → 1,100,000), limit 5%"
        assert judge_bytes(100, 105, Limit.parse("4")).verdict is Verdict.REGRESSION

    def test_verdict_fails_closed(self) -> None:
        good, bad = judge_bytes(10, 10, FIVE), judge_bytes(10, 20, FIVE)
        open_ = not_checked("accuracy", "no labelled samples")
        assert overall([good]) is Verdict.PASS
        assert overall([good, open_]) is Verdict.INCONCLUSIVE
        assert overall([good, open_, bad]) is Verdict.REGRESSION
        assert overall([]) is Verdict.INCONCLUSIVE
        assert [verdict.exit_code for verdict in Verdict] == [0, 1, 3]

    def test_document(self) -> None:
        document = as_document([judge_bytes(10, 20, FIVE)])
        assert document["verdict"] == "regression"
        assert document["checks"][0]["limit"] == "5%"
