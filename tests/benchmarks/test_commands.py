from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepto.runtime import cli

MakePackage = Callable[..., Path]


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; its exit code, stdout and stderr."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


LATENCY = (
    "--checks",
    "latency,bytes",
    "--max-slowdown",
    "300%",
    "--wait",
    "0",
)  # tiny models on a busy machine are noisy


class TestGate:
    def test_the_same_package_passes(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        code, out, err = lepto("gate", one, two, "--eval", evaluation, "--max-slowdown", "300%", "--wait", 0, "--json")
        document = json.loads(out)
        assert code == 0, err
        assert document["verdict"] == "pass"
        assert [check["name"] for check in document["checks"]] == ["accuracy", "p50_ms", "p90_ms", "bytes"]
        assert document["checks"][0]["n"] == 600
        assert "gate: pass" in err

    def test_more_checks_and_formats(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        config = tmp_path / "gate.yaml"
        config.write_text(
            f"eval: {evaluation}\nwait_s: 0\nlooks: [12]\nchecks:\n  accuracy: {{limit: 1%, rule: mlperf}}\n"
            "  worst-slice: {limit: 5 points, by: [label, length]}\n  flip-rate: 2 points\n  kl: 0.05 nats\n"
            "  calibration: 2 points\n  throughput: 300%\n  load-time: 300%\n  memory: 300%\n  bytes: 5%\n"
        )
        code, out, err = lepto("gate", one, two, "--config", config, "--format", "markdown")
        assert code == 0, err
        assert out.startswith("### ✅ Gate: pass")
        for name in ("worst_slice", "flip_rate", "kl", "ece", "throughput", "load_ms", "memory_mb"):
            assert f"| ✅ | {name} |" in out
        target = tmp_path / "ci" / "gate.xml"
        swapped = make_package(tmp_path / "swapped", swap=True)
        code, out, err = lepto(
            "gate", one, swapped, "--config", config, "--checks", "accuracy,worst-slice,flip-rate,kl,calibration",
            "--format", "junit", "-o", target,
        )  # fmt: skip
        assert code == 1
        assert 'failures="5"' in target.read_text()

    def test_a_published_version_against_a_package(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", swap=True)
        repository = tmp_path / "repository"
        assert lepto("publish", one, "--model-repository", repository)[0] == 0
        options = ("--eval", evaluation, "--checks", "accuracy,bytes,flip-rate")
        assert lepto("gate", repository / "t" / "1", one, *options)[0] == 0
        assert lepto("gate", repository / "t", two, *options)[0] == 1
        code, _, err = lepto("gate", repository / "t" / "9", one, *options)
        assert code == 2
        assert "'t' has no version 9" in err
        timed = ("--checks", "latency", "--max-slowdown", "300%", "--wait", 0)
        assert lepto("gate", repository / "t" / "1", one, *timed)[0] == 0

    def test_a_candidate_that_answers_nan(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", nan=True)
        code, _, err = lepto("gate", one, two, "--eval", evaluation, "--checks", "accuracy,bytes")
        assert code == 1
        assert "answers NaN or infinity for sample 2" in err
        code, _, err = lepto("gate", two, one, "--eval", evaluation, "--checks", "accuracy")
        assert code == 2
        assert "the baseline" in err

    def test_data_that_changed(self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path) -> None:
        one = make_package(tmp_path / "one")
        config = tmp_path / "gate.yaml"
        config.write_text(f"eval: {evaluation}\ndigest: '{'0' * 64}'\nchecks:\n  accuracy: 1%\n")
        code, _, err = lepto("gate", one, one, "--config", config)
        assert code == 2
        assert "eval.csv has changed" in err

    def test_slower_is_a_regression(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", work=40)
        code, out, err = lepto("gate", one, two, "--checks", "latency", "--wait", 0)
        assert code == 1
        assert "p50_ms rose" in out
        assert err.startswith("error: regression: p50_ms rose")

    def test_bigger_is_a_regression(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", padding=500_000)
        code, _, err = lepto("gate", one, two, "--checks", "bytes")
        assert code == 1
        assert "bytes rose" in err
        assert "limit 5%" in err

    def test_wrong_answers_are_a_regression(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", swap=True)
        code, _, err = lepto("gate", one, two, "--eval", evaluation, "--checks", "accuracy")
        assert code == 1
        assert "accuracy fell 66.67 points (100.00% → 33.33% on 600 samples" in err

    def test_without_samples_nothing_passes(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        code, _, err = lepto("gate", one, two, "--checks", "accuracy,bytes")
        assert code == 3
        assert "accuracy not checked: no labelled samples" in err
        assert lepto("gate", one, two, "--checks", "bytes")[0] == 0

    def test_too_few_samples_are_inconclusive(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        few = tmp_path / "few.csv"
        few.write_text("".join(evaluation.read_text().splitlines(keepends=True)[:31]))
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        code, _, err = lepto("gate", one, two, "--eval", few, "--checks", "accuracy")
        assert code == 3
        assert "insufficient data" in err

    def test_other_labels_are_refused(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        two = make_package(tmp_path / "two", labels=("order", "person", "refund"))
        code, _, err = lepto("gate", one, two, *LATENCY)
        assert code == 2
        assert "number 1 is 'refund' in one and 'person' in the other" in err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--checks", "latancy"], "--checks: unknown check 'latancy': did you mean 'latency'?"),
            (["--checks", ""], "--checks must name a check"),
            (["--max-slowdown", "0.05"], "--max-slowdown: the limit '0.05' has no unit"),
            (["--max-slowdown", "5 ms"], "does not fit here"),
            (["--max-drop", "five"], "--max-drop: a limit must be"),
            (["--max-drop", "1"], "has no unit"),
            (["--max-drop", "100%"], "below 100%"),
            (["--checks", "bytes", "--max-drop", "1%"], "--checks leaves accuracy out"),
            (["--config", "nowhere.yaml"], "cannot read the gate file"),
            (["--looks", "3,5"], "the first look must have at least"),
            (["--looks", "12,x"], "--looks must be whole numbers"),
            (["--eval", "nowhere.csv"], "nowhere.csv does not exist"),
            (["--threads", "0"], "--threads"),
        ],
    )
    def test_wrong_usage(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, options: list[str], message: str
    ) -> None:
        one = make_package(tmp_path / "one")
        code, _, err = lepto("gate", one, one, *options)
        assert code == 2
        assert message in err
        assert "Traceback" not in err

    def test_broken_input(self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        code, _, err = lepto("gate", one, two, "--eval", evaluation, "--label-column", "category")
        assert code == 2
        assert "'category'" in err
        (two / "model.onnx").write_bytes(b"\0" * 100)
        code, _, err = lepto("gate", one, two, *LATENCY)
        assert code == 2
        assert "model.onnx was changed" in err
        assert lepto("gate", one, tmp_path / "none", *LATENCY)[0] == 2


class TestBench:
    def test_one_package_on_its_probe(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        code, out, err = lepto("bench", make_package(tmp_path / "one"), "--blocks", "6", "--json")
        assert code == 0, err
        (row,) = json.loads(out)["packages"]
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["throughput"] > 0
        assert row["load_ms"] > 0
        assert row["bytes"] == (tmp_path / "one" / "model.onnx").stat().st_size
        assert row["speedup"] is None
        assert row["accuracy"] is None
        assert row["memory_bytes"] > 0
        assert row["first_request_ms"] > 0
        assert row["cpu_ms"] > 0

    def test_several_are_compared_with_the_first(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        slow, fast = make_package(tmp_path / "slow", work=60), make_package(tmp_path / "fast")
        code, out, err = lepto("bench", slow, fast, "--blocks", "6", "--eval", evaluation, "--json")
        assert code == 0, err
        first, second = json.loads(out)["packages"]
        assert first["speedup"] is None
        assert second["speedup"]["value"] > 1
        assert second["speedup"]["low"] <= second["speedup"]["value"] <= second["speedup"]["high"]
        assert second["accuracy"] == 1.0
        assert second["accuracy_interval"][0] < 1.0

    def test_lengths(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        assert lepto("bench", one, "--blocks", "6", "--lengths", "1,8,16")[0] == 0
        code, _, err = lepto("bench", one, "--blocks", "6", "--lengths", "17")
        assert code == 2
        assert "a length must be in [1, 16]" in err

    def test_two_kinds_of_input_are_refused(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        code, _, err = lepto("bench", tmp_path / "none", "--lengths", "from-data")
        assert code == 2
        assert "give --eval" in err
        code, _, err = lepto("bench", make_package(tmp_path / "one"), "--eval", "x.csv", "--lengths", "8")
        assert code == 2
        assert "give one of them" in err


class TestWorkload:
    def test_list(self, lepto: Any) -> None:
        code, out, _ = lepto("workload", "list", "--json")
        assert code == 0
        assert "18 intents" in json.loads(out)["workloads"]["shop_intents"]

    def test_data(self, lepto: Any, tmp_path: Path) -> None:
        code, out, _ = lepto("workload", "data", "shop_intents", "-o", tmp_path / "data", "--json")
        assert code == 0
        assert [Path(file).name for file in json.loads(out)["files"]] == ["train.csv", "dev.csv", "test.csv"]
        code, _, err = lepto("workload", "data", "shop_intents", "-o", tmp_path / "data")
        assert code == 2
        assert "exists" in err

    def test_unknown(self, lepto: Any, tmp_path: Path) -> None:
        code, _, err = lepto("workload", "data", "shop_intent", "-o", tmp_path / "data")
        assert code == 2
        assert "shop_intent" in err

    @pytest.mark.parametrize("command", [["bench"], ["gate"], ["workload", "train"], ["workload", "demo"]])
    def test_help_has_an_example(self, lepto: Any, command: list[str]) -> None:
        code, out, _ = lepto(*command, "--help")
        assert code == 0
        assert f"lepto {' '.join(command)}" in out.partition("Example")[2]
