from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.benchmarks.attributions import attribute, image_features, text_features
from lepto.benchmarks.checks.check import Limit, Verdict
from lepto.benchmarks.checks.explanations import judge_explanations
from lepto.benchmarks.explanations import agreement, attributions, rank_correlation
from lepto.benchmarks.fairness import fairness_gap
from lepto.runtime import cli

MakePackage = Callable[..., Path]


def noisy(truth: np.ndarray, rng: np.random.Generator, scale: float = 0.3) -> list[np.ndarray]:
    return [truth + rng.normal(scale=scale, size=truth.size) for _ in range(2)]


class TestAgreement:
    def test_rank_correlation(self) -> None:
        assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
        assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
        assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
        with pytest.raises(ValueError, match="one length"):
            rank_correlation([1, 2], [1, 2, 3])

    def test_the_same_reasons_are_within_the_noise(self) -> None:
        rng = np.random.default_rng(0)
        truths = rng.normal(size=(80, 12))
        found = agreement([noisy(t, rng) for t in truths], [noisy(t, rng) for t in truths], resamples=500)
        assert found.noise < 1
        assert found.low <= 0 <= found.high
        assert abs(found.drop) < 0.03

    def test_other_reasons_are_not(self) -> None:
        rng = np.random.default_rng(0)
        truths = rng.normal(size=(80, 12))
        other = [t + rng.normal(scale=0.8, size=t.size) for t in truths]
        found = agreement([noisy(t, rng) for t in truths], [noisy(t, rng) for t in other], resamples=500)
        assert found.low > 0.1
        assert found.between < found.noise

    def test_what_cannot_be_ranked_is_left_out_and_nothing_is_refused(self) -> None:
        flat, steep = [np.zeros(3)] * 2, [np.arange(3.0)] * 2
        assert agreement([flat, steep, steep], [flat, steep, steep]).n == 2
        with pytest.raises(ValueError, match="only 1 of 2 samples"):
            agreement([flat, steep], [flat, steep])
        with pytest.raises(ValueError, match="two at least"):
            agreement([[np.arange(3.0)]], [[np.arange(3.0)]])


class TestAttributions:
    def score(self, texts: list[str]) -> np.ndarray:
        """The more often "refund", the likelier class 1; "not" speaks against it."""
        weight = np.array([2.0 * text.count("refund") - 1.0 * text.count("not") for text in texts])
        chance = 1 / (1 + np.exp(-weight))
        return np.stack([1 - chance, chance], axis=1).astype(np.float32)

    @pytest.mark.parametrize("method", ["ablation", "shapley"])
    def test_what_the_answer_hangs_on(self, method: str) -> None:
        features = text_features("I do not want a refund!")
        assert features.names == ("I", "do", "not", "want", "a", "refund", "!")
        weights = dict(zip(features.names, attribute(self.score, features, 1, method=method), strict=True))  # type: ignore[arg-type]
        assert max(weights, key=weights.__getitem__) == "refund"
        assert min(weights, key=weights.__getitem__) == "not"
        assert weights["want"] == pytest.approx(0)

    def test_shapley_values_add_up(self) -> None:
        features = text_features("not a refund")
        found = attribute(self.score, features, 1, method="shapley", permutations=10)
        whole = self.score(["not a refund"])[0, 1] - self.score([""])[0, 1]
        assert found.sum() == pytest.approx(whole, abs=1e-5)

    def test_seeds_differ_and_repeat(self) -> None:
        features = [text_features("not not a refund refund please")] * 2
        one = attributions(self.score, features, [1, 1], seeds=(0, 1), permutations=2)
        two = attributions(self.score, features, [1, 1], seeds=(0, 1), permutations=2)
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one[0][0], one[0][1])

    def test_patches_of_an_image(self) -> None:
        image = np.zeros((1, 1, 8, 8), np.float32)
        image[..., 2, 5] = 1.0
        features = image_features({"pixels": image})
        assert features is not None
        assert features.grid == (7, 7)

        def score(samples: dict[str, np.ndarray]) -> np.ndarray:
            peak = samples["pixels"].max(axis=(1, 2, 3))
            return np.stack([1 - peak, peak], axis=1).astype(np.float32)

        weights = attribute(score, features, 1)
        patch = int(weights.argmax())
        assert divmod(patch, 7) == (2 * 7 // 8, 5 * 7 // 8)
        assert (np.delete(weights, patch) == 0).all()
        np.testing.assert_array_equal(features.without(np.ones((1, 49), np.int64))["pixels"], image)
        assert image_features({"x": np.zeros((1, 5))}) is None


class TestFairness:
    def test_a_gap_that_opens(self) -> None:
        rng = np.random.default_rng(0)
        groups = ["a"] * 400 + ["b"] * 400 + ["c"] * 5
        right = rng.random(805) < 0.9
        worse = right & ~((np.arange(805) // 400 == 1) & (rng.random(805) < 0.2))
        found = fairness_gap(groups, right, worse, resamples=400)
        assert found.worst == "b"
        assert found.change > 0.1
        assert found.low > 0
        assert found.left_out == {"c": 5}
        assert found.groups["a"][1] == found.groups["a"][2]

    def test_the_same_answers_have_the_same_gap(self) -> None:
        right = np.random.default_rng(1).random(200) < 0.8
        found = fairness_gap(["a", "b"] * 100, right, right, resamples=200)
        assert (found.change, found.low, found.high) == (0, 0, 0)

    def test_too_few_are_refused(self) -> None:
        with pytest.raises(ValueError, match="two groups need 30 samples each"):
            fairness_gap(["a"] * 40 + ["b"] * 5, np.ones(45), np.ones(45))


class TestCheck:
    def test_the_verdict_follows_the_interval(self) -> None:
        rng = np.random.default_rng(0)
        truths = rng.normal(size=(80, 12))
        baseline, same = [noisy(t, rng) for t in truths], [noisy(t, rng) for t in truths]
        other = [noisy(t + rng.normal(size=t.size), rng) for t in truths]

        def judged(candidate: list[list[np.ndarray]]) -> Verdict:
            found = agreement(baseline, candidate, resamples=500)
            return judge_explanations(found, found, Limit.parse("0.1 rank")).verdict

        assert judged(same) is Verdict.PASS
        assert judged(other) is Verdict.REGRESSION
        few = agreement(baseline[:2], other[:2], resamples=500)
        assert judge_explanations(few, few, Limit.parse("0.5 rank")).verdict is not Verdict.PASS or few.high <= 0.5

    def test_in_the_gate(self, make_package: MakePackage, evaluation: Path, tmp_path: Path, capsys: Any) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        config = tmp_path / "gate.yaml"
        words = "please order now thanks"
        rows = [f"{label} {words},{label}" for label in ("order", "refund", "person")] * 8
        data = tmp_path / "long.csv"
        data.write_text("\n".join(["text,label", *rows]) + "\n")
        config.write_text("wait_s: 0\nchecks:\n  explanations:\n    limit: 0.3 rank\n    samples: 6\n")
        code = cli.run(["gate", str(one), str(two), "--config", str(config), "--eval", str(data), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        (check,) = json.loads(captured.out)["checks"]
        assert check["name"] == "explanations"
        assert check["n"] == 6
        # Nothing passes for lack of data.
        code = cli.run(["gate", str(one), str(two), "--config", str(config), "--eval", str(evaluation), "--json"])
        assert code == 3
        assert "insufficient data: 0 samples" in capsys.readouterr().out
