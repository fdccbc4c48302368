from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.benchmarks.checks.accuracy import MLPERF, NON_INFERIORITY
from lepto.benchmarks.checks.check import Limit, Verdict
from lepto.benchmarks.checks.entities import judge_words
from lepto.benchmarks.words import decide, label_masks, row_ids
from lepto.runtime import cli

MakePackage = Callable[..., Path]
NAMES = ("O", "B-a", "I-a", "B-b", "I-b")
ONE = Limit.parse("1%")
CHECKS = (
    "text_column: words\nlabel_column: labels\nwait_s: 0\nlooks: [12]\nchecks:\n  accuracy: {limit: 2%}\n"
    "  worst-slice: {limit: 10 points, by: [label, length, country], least: 50}\n  flip-rate: 5 points\n"
    "  kl: 0.05 nats\n  calibration: 2 points\n  fairness: {limit: 10 points, by: country}\n  bytes: 5%\n"
)


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def rows(n: int, wrong: float, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Right labels of rows with one entity of two words, and answers of which a share misses its second word."""
    generator = np.random.default_rng(seed)
    truth = [np.array([0, 1, 2, 0] if i % 2 else [3, 4, 0]) for i in range(n)]
    answers = [row.copy() for row in truth]
    for row in np.flatnonzero(generator.random(n) < wrong):
        answers[row][np.flatnonzero(answers[row])[-1]] = 0
    return truth, answers


class TestJudge:
    def test_equal_answers_pass_only_with_enough_rows(self) -> None:
        truth, _ = rows(400, 0.0)
        assert judge_words(truth, truth, truth, NAMES, ONE).verdict is Verdict.PASS
        few = judge_words(truth[:50], truth[:50], truth[:50], NAMES, ONE)
        assert few.verdict is Verdict.INCONCLUSIVE
        assert "insufficient data, about 268 rows are needed" in few.message
        assert judge_words(truth[:50], truth[:50], truth[:50], NAMES, ONE, rule=MLPERF).verdict is Verdict.INCONCLUSIVE

    def test_lost_entities_are_a_regression_by_f1(self) -> None:
        truth, worse = rows(2000, 0.05)
        check = judge_words(truth, truth, worse, NAMES, ONE)
        assert check.verdict is Verdict.REGRESSION
        assert check.name == "f1"
        assert check.message.startswith("f1 fell")
        assert "on 2,000 rows with 2,000 entities" in check.message
        assert check.baseline == 1.0
        assert check.low is not None
        assert check.change is not None
        assert check.low < check.change < -0.03
        assert check.p is not None
        assert check.p <= 1e-3
        better = judge_words(truth, worse, truth, NAMES, ONE)
        assert better.verdict is Verdict.PASS
        assert better.p == 1.0

    def test_both_wrong_in_as_many_rows_is_no_regression(self) -> None:
        verdicts = []
        for seed in range(20):
            truth, first = rows(1000, 0.05, 2 * seed)
            second = rows(1000, 0.05, 2 * seed + 1)[1]
            verdicts.append(judge_words(truth, first, second, NAMES, ONE, seed=seed).verdict)
        assert verdicts.count(Verdict.REGRESSION) <= 1
        assert Verdict.INCONCLUSIVE in verdicts

    def test_other_labels_are_judged_by_words(self) -> None:
        truth, worse = rows(2000, 0.1)
        check = judge_words(truth, truth, worse, ("a", "b", "c", "d", "e"), ONE, rule=NON_INFERIORITY)
        assert check.name == "word_accuracy"
        assert check.candidate == pytest.approx(
            1 - sum((a != b).sum() for a, b in zip(truth, worse, strict=True)) / 7000
        )

    def test_without_entities_nothing_is_shown(self) -> None:
        truth = [np.zeros(3, np.int64)] * 500
        assert judge_words(truth, truth, truth, NAMES, ONE).verdict is Verdict.INCONCLUSIVE
        with pytest.raises(ValueError, match="rows must pair up"):
            judge_words(truth, truth[:3], truth, NAMES, ONE)


class TestRows:
    def test_numbers_of_rows(self) -> None:
        same = row_ids([np.array([0, 1]), np.array([0, 1]), np.array([0, 1, 0]), np.array([1, 0])])
        assert same[0] == same[1]
        assert len(set(same.tolist())) == 3
        assert (same >= 0).all()

    def test_a_word_that_is_not_seen_has_no_answer(self) -> None:
        assert decide(np.array([[0.0, 2.0], [0.0, 0.0], [-1.0, -2.0]])).tolist() == [1, -1, 0]

    def test_kinds_of_entities_part_the_rows(self) -> None:
        masks = label_masks([np.array([0, 1, 2]), np.array([3, 1]), np.array([0])], NAMES)
        assert {name: mask.tolist() for name, mask in masks.items()} == {
            "label=a": [True, True, False], "label=b": [False, True, False],
        }  # fmt: skip


class TestCommands:
    def test_gate(self, lepto: Any, make_tagger: MakePackage, tmp_path: Path, tagged: Path) -> None:
        one, bad = make_tagger(tmp_path / "one"), make_tagger(tmp_path / "bad", swap=True)
        config = tmp_path / "gate.yaml"
        config.write_text(f"eval: {tagged}\n{CHECKS}")
        code, out, err = lepto("gate", one, one, "--config", config, "--json")
        assert code == 0, err
        checks = {check["name"]: check for check in json.loads(out)["checks"]}
        assert list(checks) == ["f1", "worst_slice", "flip_rate", "kl", "ece", "fairness", "bytes"]
        assert checks["f1"]["baseline"] == 1.0
        assert "a row is right if all its words are" in checks["worst_slice"]["rule"]
        assert "1,250 words" in checks["ece"]["message"]
        code, out, err = lepto("gate", one, bad, "--config", config, "--json")
        assert code == 1
        document = json.loads(out)
        verdicts = {check["name"]: check["verdict"] for check in document["checks"]}
        assert verdicts["f1"] == verdicts["worst_slice"] == verdicts["flip_rate"] == verdicts["kl"] == "regression"
        lines = "\n".join(document["blame"]["lines"])
        assert "500 of 1,250 answers changed" in lines
        assert "'order (in: please order refund)': B-thing → I-thing" in lines
        code, _, err = lepto("gate", one, one, "--config", config, "--checks", "explanations")
        assert code == 3
        assert "these packages label words" in err

    def test_bench_stores_and_the_gate_reads(
        self, lepto: Any, make_tagger: MakePackage, tmp_path: Path, tagged: Path
    ) -> None:
        one, bad = make_tagger(tmp_path / "one"), make_tagger(tmp_path / "bad", swap=True)
        data = ("--eval", tagged, "--text-column", "words", "--label-column", "labels")
        code, out, err = lepto(
            "bench", one, "--blocks", 6, *data, "--store", "--results", tmp_path / "results", "--json"
        )  # fmt: skip
        assert code == 0, err
        document = json.loads(out)
        (row,) = document["packages"]
        assert row["metric"]["name"] == "f1"
        assert row["f1"] == 1.0
        assert row["accuracy"] is None
        (stored,) = document["stored"]
        assert lepto("gate", stored, one, *data, "--checks", "accuracy,bytes")[0] == 0
        assert lepto("gate", stored, bad, *data, "--checks", "accuracy,bytes")[0] == 1
        assert lepto("history", "tags", "--metric", "f1", "--results", tmp_path / "results")[0] == 0

    def test_blame(self, lepto: Any, make_tagger: MakePackage, tmp_path: Path, tagged: Path) -> None:
        one, bad = make_tagger(tmp_path / "one"), make_tagger(tmp_path / "bad", swap=True)
        data = ("--eval", tagged, "--text-column", "words", "--label-column", "labels")
        code, out, err = lepto("blame", one, bad, *data, "--slice", "country", "--runs", 20, "--json")
        assert code == 0, err
        found = json.loads(out)["accuracy"]
        assert (found["changed"], found["n"]) == (500, 1250)
        assert {"label", "country", "length"} >= {item["column"] for item in found["slices"]} >= {"label", "country"}

    def test_words_are_needed(self, lepto: Any, make_tagger: MakePackage, tmp_path: Path, evaluation: Path) -> None:
        one = make_tagger(tmp_path / "one")
        code, _, err = lepto("gate", one, one, "--eval", evaluation, "--checks", "accuracy")
        assert code == 2
        assert "2 words in 'text' but 1 labels in 'label'" in err
