from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lepto.benchmarks import evidence, instructions
from lepto.benchmarks.checks.check import Limit, Verdict
from lepto.benchmarks.checks.instructions import judge_instructions
from lepto.benchmarks.instructions import Instructions, count, read_count
from lepto.runtime import cli
from lepto.runtime.errors import LeptoError

MakePackage = Callable[..., Path]
FIVE = Limit.parse("5%")
LOG = "==7== Events    : Ir\n==7== Collected : 1234567\n==7== \n"


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def counted(per_inference: float) -> Instructions:
    return Instructions(per_inference, 8, 10**9, 10**9 + int(8 * per_inference), "valgrind-3")


class TestCount:
    @pytest.mark.skipif(shutil.which("valgrind") is None, reason="no valgrind here: apt-get install valgrind")
    def test_start_up_cancels(self) -> None:
        # Not Python: its start alone takes valgrind half a minute.
        def loops(start: int) -> Callable[[int], Sequence[str]]:
            program = "i=0; while [ $i -lt $1 ]; do i=$((i + 1)); done; j=0; while [ $j -lt $2 ]; do j=$((j + 1)); done"
            return lambda times: ["sh", "-c", program, "sh", str(start), str(times)]

        seen: list[tuple[int, int]] = []
        short = count(loops(10), 200, progress=lambda done, of: seen.append((done, of)))
        long = count(loops(3000), 200)
        assert seen[-1] == (2, 2)
        assert long.once > 2 * short.once
        assert long.per_inference == pytest.approx(short.per_inference, rel=0.02)
        with pytest.raises(LeptoError, match="no more instructions than"):
            count(lambda times: ["true"], 5)
        with pytest.raises(LeptoError, match=r"the program failed under valgrind \(exit code 3\): no such thing"):
            count(lambda times: ["sh", "-c", "echo no such thing >&2; exit 3"], 5)

    def test_without_valgrind_it_says_how_to_get_it(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make_package(tmp_path / "one")
        monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
        code, _, err = lepto("bench", one, "--instructions")
        assert code == 2
        assert "apt-get install valgrind" in err
        code, out, _ = lepto("gate", one, one, "--checks", "instructions", "--wait", 0)
        assert code == 3
        assert "instructions not checked: instructions are counted by valgrind" in out
        code, _, err = lepto("bench", one, "--instructions", "--scenario", "offline")
        assert code == 2
        assert "leave --scenario out" in err

    def test_what_valgrind_says(self) -> None:
        assert read_count(LOG, 0, "x") == 1234567
        with pytest.raises(LeptoError, match=r"x runs an instruction that valgrind does not know \(AVX-512"):
            read_count("==7== Process terminating with signal 4 (SIGILL): Illegal opcode\n" + LOG, -4, "x")
        with pytest.raises(LeptoError, match="x failed under valgrind"):
            read_count("", 0, "x")
        with pytest.raises(LeptoError, match="cannot be used"):
            read_count("the model cannot be used\n" + LOG, 1, "x")

    def test_the_counted_program_runs_a_model_so_often(self, make_package: MakePackage, tmp_path: Path) -> None:
        import numpy as np

        from lepto.benchmarks.counted import main

        package = make_package(tmp_path / "one")
        feed = {"input_ids": np.array([[2, 4, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
        np.savez(tmp_path / "feeds.npz", **{f"0/{name}": array for name, array in feed.items()})
        main(str(package / "model.onnx"), str(tmp_path / "feeds.npz"), 3)
        np.savez(tmp_path / "feeds.npz", **{"0/nobody": feed["input_ids"]})
        with pytest.raises(Exception, match=r"(?i)invalid|missing"):
            main(str(package / "model.onnx"), str(tmp_path / "feeds.npz"), 1)
        assert "lepto" not in Path(sys.modules[main.__module__].__file__ or "").read_text().split('"""')[2]


class TestJudge:
    def test_growth(self) -> None:
        assert judge_instructions(counted(1e6), counted(1.02e6), FIVE).verdict is Verdict.PASS
        worse = judge_instructions(counted(1e6), counted(1.2e6), FIVE)
        assert worse.verdict is Verdict.REGRESSION
        assert worse.message.startswith("instructions rose 20.0% (1,000,000 → 1,200,000 for an inference")
        assert worse.p is None
        assert judge_instructions(counted(1e6), counted(5e5), FIVE).verdict is Verdict.PASS

    def test_at_the_limit_a_count_does_not_tell(self) -> None:
        check = judge_instructions(counted(1e6), counted(1.0505e6), FIVE)
        assert check.verdict is Verdict.INCONCLUSIVE
        assert "closer to the limit than a count can tell" in check.message

    def test_the_gate_counts_both_sides_on_the_same_inputs(
        self, lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def counts(package: Any, feeds: Any, *, runs: int, progress: Any) -> Instructions:
            asked.append((package.manifest.result.bytes, [feed["input_ids"].tolist() for feed in feeds], runs))
            progress(2, 2)
            return counted(float(package.manifest.result.bytes))

        monkeypatch.setattr(evidence, "count_package", counts)
        monkeypatch.setattr("lepto.benchmarks.checks.registry.find_valgrind", lambda: ("valgrind", "3"))
        one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", padding=400_000)
        code, out, _ = lepto("gate", one, two, "--checks", "instructions", "--eval", evaluation, "--wait", 0)
        assert code == 1
        assert "instructions rose" in out
        assert asked[0][1:] == asked[1][1:]
        assert asked[0][2] == len(asked[0][1]) == instructions.RUNS
