from __future__ import annotations

import numpy as np
import pytest

from lepto.benchmarks.checks.accuracy import MLPERF, judge_accuracy
from lepto.benchmarks.checks.calibration import expected_calibration_error, judge_calibration
from lepto.benchmarks.checks.check import Check, Limit, Verdict, corrected, holm, not_checked, overall
from lepto.benchmarks.checks.fairness import judge_fairness
from lepto.benchmarks.checks.flips import judge_divergence, judge_flips
from lepto.benchmarks.checks.pairs import Plan, judge_blocks
from lepto.benchmarks.checks.size import judge_bytes
from lepto.benchmarks.checks.slices import by_length, by_value, judge_slices
from lepto.benchmarks.gate import as_document

FIVE = Limit.parse("5%")
PLAN = Plan()
LAST = len(PLAN.looks) - 1


def blocks(pairs: int, factor: float, seed: int, noise: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of a machine with moods, noise in each block and an odd spike; the candidate is slower by the factor."""
    generator = np.random.default_rng(seed)
    mood = generator.lognormal(0, 0.2, (pairs, 1))
    spike = 1 + (generator.random((2, pairs, 1)) < 0.05) * generator.normal(0, 0.2, (2, pairs, 1)).clip(-0.5, 0.5)
    wobble = generator.lognormal(0, noise, (2, pairs, 1))
    runs = generator.lognormal(0, 0.05, (2, pairs, 20))
    both = 1e-3 * mood * spike * wobble * runs
    return both[0], both[1] * factor


def judged(factor: float, seed: int, limit: Limit = FIVE, noise: float = 0.03) -> Check:
    """As the gate does it: look until it is decided."""
    before, after = blocks(PLAN.looks[-1], factor, seed, noise)
    for look, pairs in enumerate(PLAN.looks):
        check = judge_blocks("p50_ms", before[:pairs], after[:pairs], limit, PLAN, look, 0.5)
        if check.verdict is not Verdict.INCONCLUSIVE:
            break
    return check


class TestLimit:
    @pytest.mark.parametrize(
        ("text", "value", "unit", "shown"),
        [
            ("5%", 0.05, "%", "5%"),
            ("1 point", 0.01, "points", "1 points"),
            ("0.5 points", 0.005, "points", "0.5 points"),
            ("20 ms", 20.0, "ms", "20 ms"),
            ("2 s", 2000.0, "ms", "2000 ms"),
            ("4MB", 4e6, "bytes", "4,000,000 bytes"),
            (".01 nats", 0.01, "nats", "0.01 nats"),
        ],
    )
    def test_parse(self, text: str, value: float, unit: str, shown: str) -> None:
        limit = Limit.parse(text)
        assert (limit.value, limit.unit) == (pytest.approx(value), unit)
        assert str(limit) == shown

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0.05", "has no unit"),
            (5, "has no unit"),
            ("five", "must be a number with its unit"),
            ("", "must be a number with its unit"),
            ("5 parsecs", "unknown unit 'parsecs'"),
            ("-5%", "must not be negative"),
            ("5 ms", "does not fit here"),
        ],
    )
    def test_refuses(self, text: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Limit.parse(text, ("%", "points"))


class TestPlan:
    def test_levels_add_up(self) -> None:
        assert PLAN.alpha_at_a_look * len(PLAN.looks) * PLAN.checks == pytest.approx(PLAN.alpha)
        assert PLAN.beta_at_a_look * len(PLAN.looks) == pytest.approx(PLAN.beta)

    @pytest.mark.parametrize("looks", [(5, 50), (12, 12), (), (0, 5), (7,)])
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
        assert check.message.startswith("p50_ms fell ")

    def test_noise_is_inconclusive(self) -> None:
        check = judged(1.04, 3, noise=0.6)
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "96 pairs do not tell" in check.message

    def test_explains_itself(self) -> None:
        before = np.full((12, 20), 8.10e-3)
        check = judge_blocks("p90_ms", before, before * 1.124, FIVE, PLAN, 0, 0.9)
        assert check.verdict is Verdict.REGRESSION
        assert check.message == "p90_ms rose 12.4% (8.1 → 9.1; 95 %: +12.4% to +12.4% worse), limit 5%"
        assert str(check) == check.message
        assert "Wilcoxon" in check.rule

    def test_only_the_tail_gets_slower(self) -> None:
        before = np.tile(np.linspace(1e-3, 2e-3, 20), (12, 1))
        after = before.copy()
        after[:, 16:] *= 1.5
        assert judge_blocks("p50_ms", before, after, FIVE, PLAN, 0, 0.5).verdict is Verdict.PASS
        assert judge_blocks("p90_ms", before, after, FIVE, PLAN, 0, 0.9).verdict is Verdict.REGRESSION

    def test_undeclared_look_is_refused(self) -> None:
        with pytest.raises(ValueError, match="declared with 24 pairs, got 12"):
            judge_blocks("p50_ms", np.ones((12, 3)), np.ones((12, 3)), FIVE, PLAN, 1, 0.5)
        with pytest.raises(ValueError, match="must be relative"):
            judge_blocks("p50_ms", np.ones((12, 3)), np.ones((12, 3)), Limit.parse("1 ms"), PLAN, 0, 0.5)


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
        assert check.rule == "non-inferiority by Tango's interval, exact McNemar test"

    def test_same_answers_on_few_samples_never_pass(self) -> None:
        for rule in ("non-inferiority", MLPERF):
            check = judge_accuracy(*predictions(50, 46, 0, 0), self.ONE, rule=rule)
            assert check.verdict is Verdict.INCONCLUSIVE
            assert "insufficient data, about 292 samples are needed" in check.message

    def test_mlperfs_rule_on_the_point_estimate(self) -> None:
        # 99 % of 2,837 right answers is 2,808.63: 28 fewer are allowed, 29 are not.
        allowed = judge_accuracy(*predictions(3080, 2809, 28, 0), self.ONE, rule=MLPERF)
        beyond = judge_accuracy(*predictions(3080, 2808, 29, 0), self.ONE, rule=MLPERF)
        assert allowed.verdict is Verdict.PASS
        assert "the bound does not show it" in allowed.message
        assert beyond.verdict is Verdict.REGRESSION
        assert beyond.rule == "MLPerf: point estimate"
        assert beyond.message.startswith("accuracy fell 0.94 points (92.11% → 91.17% on 3,080 samples")

    def test_by_bound(self) -> None:
        small = judge_accuracy(*predictions(3080, 2820, 17, 12), self.ONE)
        assert small.verdict is Verdict.PASS
        assert small.low is not None
        assert small.low > -0.0092
        surely = judge_accuracy(*predictions(3080, 2808, 29, 0), self.ONE)
        assert surely.verdict is Verdict.REGRESSION
        assert "surely worse" in surely.message
        noisy = judge_accuracy(*predictions(3080, 2700, 137, 113), self.ONE)
        assert noisy.verdict is Verdict.INCONCLUSIVE
        assert noisy.details["samples_that_would_decide"] > 3080

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
        with pytest.raises(ValueError, match="rule must be"):
            judge_accuracy([1, 2], [1, 2], [1, 2], self.ONE, rule="feeling")


class TestSlices:
    def test_the_worst_is_found_among_many(self) -> None:
        generator = np.random.default_rng(0)
        groups = np.repeat(np.arange(10), 400)
        right = generator.random(4000) < 0.9
        worse = right & ~((groups == 7) & (generator.random(4000) < 0.2))
        check = judge_slices(by_value("g", groups), right, worse, Limit.parse("5 points"), alpha=0.01, beta=0.05)
        assert check.verdict is Verdict.REGRESSION
        assert "worst_slice g=7" in check.message
        same = judge_slices(by_value("g", groups), right, right, Limit.parse("5 points"), alpha=0.01, beta=0.05)
        assert same.verdict is Verdict.PASS

    def test_small_slices_are_insufficient_unless_left_out_on_purpose(self) -> None:
        groups = np.array(["big"] * 400 + ["small"] * 5)
        right = np.ones(405, dtype=bool)
        limit = Limit.parse("5 points")
        check = judge_slices(by_value("g", groups), right, right, limit, alpha=0.01, beta=0.05)
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "insufficient data in 1 of them (such as g=small with 5)" in check.message
        told = judge_slices(by_value("g", groups), right, right, limit, alpha=0.01, beta=0.05, least=50)
        assert told.verdict is Verdict.PASS
        assert told.details["slices"][1]["verdict"] == "too small, told only"
        none = judge_slices(by_value("g", groups), right, right, limit, alpha=0.01, beta=0.05, least=5000)
        assert none.verdict is Verdict.INCONCLUSIVE

    def test_lengths_cover_every_sample_once(self) -> None:
        for lengths in ([3, 3, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 5, 5, 9], [1, 1, 2, 2]):
            masks = by_length(lengths)
            assert np.array_equal(np.sum(list(masks.values()), axis=0), np.ones(len(lengths)))


class TestAnswers:
    def test_flip_rate(self) -> None:
        source = np.zeros(2000, dtype=int)
        some = source.copy()
        some[:20] = 1
        two = Limit.parse("2 points")
        assert judge_flips(source, some, two, alpha=0.01, beta=0.05).verdict is Verdict.PASS
        some[:120] = 1
        assert judge_flips(source, some, two, alpha=0.01, beta=0.05).verdict is Verdict.REGRESSION
        assert judge_flips(source[:30], source[:30], two, alpha=0.01, beta=0.05).verdict is Verdict.INCONCLUSIVE

    def test_divergence(self) -> None:
        logits = np.random.default_rng(0).normal(0, 3, (400, 5))
        limit = Limit.parse("0.05 nats")
        same = judge_divergence(logits, logits + 7.0, limit, alpha=0.01, beta=0.05)
        assert same.verdict is Verdict.PASS
        assert same.candidate == pytest.approx(0.0, abs=1e-9)
        assert judge_divergence(logits, -logits, limit, alpha=0.01, beta=0.05).verdict is Verdict.REGRESSION

    def test_few_samples_pass_nothing_although_none_differs(self) -> None:
        logits = np.random.default_rng(0).normal(0, 3, (90, 5))
        kl = judge_divergence(logits, logits, Limit.parse("0.05 nats"), alpha=0.01, beta=0.05)
        assert kl.verdict is Verdict.INCONCLUSIVE
        assert "insufficient data, at least 100 samples are needed" in kl.message
        scores, truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), logits.argmax(axis=1)
        ece = judge_calibration(scores, scores, truth, Limit.parse("2 points"), alpha=0.01, beta=0.05)
        assert ece.verdict is Verdict.INCONCLUSIVE
        assert "at least 149 samples" in ece.message

    def test_calibration(self) -> None:
        assert expected_calibration_error(np.array([0.9] * 10), np.array([1] * 9 + [0])) == pytest.approx(0.0)
        assert expected_calibration_error(np.array([0.9] * 10), np.zeros(10)) == pytest.approx(0.9)
        generator = np.random.default_rng(1)
        chance = generator.uniform(0.5, 1, 3000)
        truth = (generator.random(3000) > chance).astype(int)  # class 0 with the stated chance
        calibrated = np.stack([chance, 1 - chance], axis=1)
        sure = np.stack([np.full(3000, 0.999), np.full(3000, 0.001)], axis=1)
        two = Limit.parse("2 points")
        assert judge_calibration(calibrated, calibrated, truth, two, alpha=0.01, beta=0.05).verdict is Verdict.PASS
        worse = judge_calibration(calibrated, sure, truth, two, alpha=0.01, beta=0.05)
        assert worse.verdict is Verdict.REGRESSION
        assert "ece rose" in worse.message

    def test_fairness(self) -> None:
        generator = np.random.default_rng(2)
        groups = np.array(["a", "b"] * 1500)
        right = generator.random(3000) < 0.9
        unfair = right & ~((groups == "b") & (generator.random(3000) < 0.15))
        limit = Limit.parse("3 points")
        assert judge_fairness("g", groups, right, right, limit, alpha=0.01, beta=0.05).verdict is Verdict.PASS
        found = judge_fairness("g", groups, right, unfair, limit, alpha=0.01, beta=0.05)
        assert found.verdict is Verdict.REGRESSION
        assert [group["name"] for group in found.details["groups"]] == ["a", "b"]
        one = judge_fairness("g", ["a"] * 3000, right, right, limit, alpha=0.01, beta=0.05)
        assert one.verdict is Verdict.INCONCLUSIVE


class TestTogether:
    def test_bytes(self) -> None:
        assert judge_bytes(100, 105, FIVE).verdict is Verdict.PASS
        grown = judge_bytes(1_000_000, 1_100_000, FIVE)
        assert grown.verdict is Verdict.REGRESSION
        assert grown.message == "bytes rose 10.0% (1,000,000 → 1,100,000), limit 5%"
        assert judge_bytes(100, 105, Limit.parse("4 B")).verdict is Verdict.REGRESSION

    def test_holm(self) -> None:
        # Holm's own example of the step-down: 0.01, 0.04, 0.03, 0.005 -> 0.03, 0.06, 0.06, 0.02
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([]) == []

    def test_chance_among_many_checks_is_no_regression(self) -> None:
        lucky = Check("a", Verdict.REGRESSION, "a", p=0.004)
        others = [Check(str(i), Verdict.PASS, "", p=0.5) for i in range(9)]
        assert corrected([lucky], 0.01)[0].verdict is Verdict.REGRESSION
        found = corrected([lucky, *others], 0.01)
        assert found[0].verdict is Verdict.INCONCLUSIVE
        assert "Holm" in found[0].message
        exact = Check("bytes", Verdict.REGRESSION, "no chance in it")
        assert corrected([exact, *others], 0.01)[0] == exact

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
