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


LATENCY = ("--checks", "latency,bytes", "--max-slowdown", "300%")  # tiny models on a busy machine are noisy


class TestGate:
    def test_the_same_package_passes(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
    ) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two")
        code, out, err = lepto("gate", one, two, "--eval", evaluation, "--max-slowdown", "300%", "--json")
        document = json.loads(out)
        assert code == 0, err
        assert document["verdict"] == "pass"
        assert [check["name"] for check in document["checks"]] == ["accuracy", "p50_ms", "p90_ms", "bytes"]
        assert document["checks"][0]["n"] == 600
        assert "gate: pass" in err

    def test_slower_is_a_regression(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", work=40)
        code, out, err = lepto("gate", one, two, "--checks", "latency")
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
            (["--checks", "speed"], "--checks must name some of accuracy, latency, bytes"),
            (["--checks", ""], "--checks must name some of"),
            (["--max-slowdown", "0.05"], "--max-slowdown must be a share"),
            (["--max-drop", "five"], "--max-drop: a limit must be"),
            (["--max-drop", "1"], "did you leave out a %?"),
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
        assert second["accuracy"]["value"] == 1.0
        assert second["accuracy"]["low"] < 1.0

    def test_lengths(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
        one = make_package(tmp_path / "one")
        assert lepto("bench", one, "--blocks", "6", "--lengths", "1,8,16")[0] == 0
        code, _, err = lepto("bench", one, "--blocks", "6", "--lengths", "17")
        assert code == 2
        assert "a length must be in [1, 16]" in err

    def test_two_kinds_of_input_are_refused(self, lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
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
