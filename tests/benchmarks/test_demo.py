from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lepto.benchmarks import demo
from lepto.benchmarks.gate import Check, Verdict
from lepto.benchmarks.workloads.shop_intents import workload
from lepto.runtime import cli, tritonserver
from lepto.runtime.errors import LeptoError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (LeptoError("no weights"), 2), (OSError(28, "No space left"), 2)]
)
def test_leaves_nothing_behind(
    error: BaseException, code: int, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, *_: Any, **__: Any) -> None:
        folder.mkdir()
        (folder / "half").write_text("half a model")
        raise error

    monkeypatch.setattr(tritonserver, "find_installation", lambda: None)
    monkeypatch.setattr(workload, "train", train)
    assert cli.run(["workload", "demo", "--model-repository", str(tmp_path / "repository")]) == code
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "repository").exists()


def test_without_a_server_it_says_so_before_it_trains(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise LeptoError("there is no tritonserver here")

    monkeypatch.setattr(tritonserver, "find_installation", missing)
    monkeypatch.setattr(workload, "train", lambda *_, **__: pytest.fail("trained although nothing can be served"))
    assert cli.run(["workload", "demo", "--model-repository", str(tmp_path / "repository")]) == 2
    assert "no tritonserver" in capsys.readouterr().err


def check(name: str, verdict: Verdict) -> Check:
    return Check(name, verdict, f"{name} {verdict.value}")


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (
            [check("accuracy", Verdict.PASS), check("p90_ms", Verdict.INCONCLUSIVE)],
            r"Nothing is broken.*too busy to time p90_ms \(load .* end other programs, and run the same command again",
        ),
        ([check("accuracy", Verdict.INCONCLUSIVE)], "accuracy could not be decided .* another --seed"),
        ([check("bytes", Verdict.REGRESSION), check("p50_ms", Verdict.INCONCLUSIVE)], "worse in bytes: try another"),
    ],
)
def test_a_gate_that_does_not_pass_says_what_a_newcomer_can_do(checks: list[Check], said: str) -> None:
    assert re.search(said, demo.advice(checks))


def test_module_runs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(cli, "main", called.append)
    monkeypatch.setattr("sys.argv", ["demo", "--seed", "3"])
    demo.main()
    assert called == [["workload", "demo", "--seed", "3"]]
