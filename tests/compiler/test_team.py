"""Two processes under a real torchrun: they compile what one does, once, and an error ends both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lepto.compiler import Recipe, compile_model
from lepto.compiler.training.team import Team
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import open_package

HERE = Path(__file__).parent
LIMIT_S = 150
PASSES = "distill(epochs=3),quantization-aware(activations=dynamic),fuse"


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # unset, torchrun warns and sets it
    return subprocess.run(
        [*launcher, *command], cwd=HERE, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def request(output: Path, passes: str, *more: str) -> list[str]:
    flags = {
        "model": "factories:mlp", "train": "factories:mlp_data", "eval": "factories:mlp_data", "threads": "1",
        "max-drop": "20%", "passes": passes, "output": str(output),
    }  # fmt: skip
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return ["-m", "lepto.runtime.cli", "compile", *given, *more]


@pytest.fixture(scope="module")
def checks() -> dict[str, Any]:
    ran = torchrun("team_checks.py")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)  # once: the second process says nothing
    assert found["size"] == 2
    return found


@pytest.mark.parametrize("student", ["small", "guided"])
def test_two_processes_take_the_steps_of_one(checks: dict[str, Any], student: str) -> None:
    # Six steps, of which two have three samples alone: one of the processes has none of them.
    found = checks[student]
    assert found["gradients"] < 1e-5
    assert found["losses"] < 1e-5
    assert found["state"] < 1e-4
    assert found["unused"] == (2 if student == "small" else 0)


def test_what_is_observed_on_the_way_is_of_all_samples(checks: dict[str, Any]) -> None:
    assert checks["ranges"] < 0.05
    assert checks["statistics"] < 0.005  # those of one process alone are 0.04 off


def test_the_teacher_answers_in_parts_what_it_answers_alone(checks: dict[str, Any]) -> None:
    assert checks["answers"] < 1e-5


def test_an_error_in_one_process_is_told_once_and_the_team_lives_on(checks: dict[str, Any]) -> None:
    said = ["ValueError: on purpose", "MemoryError: out of memory", "OddError: no copy"]
    here, there = checks["failures"][:3], checks["failures"][3:]
    assert here == [f"{text} []" for text in said]
    note = "['in process 1 of 2']"
    assert there == [f"{said[0]} {note}", f"{said[1]} {note}", f"LeptoError: {said[2]} {note}"]


def test_shares_make_up_a_batch_and_are_never_a_single_sample() -> None:
    for size in (1, 2, 3, 8):
        for count in range(1, 40):
            rows = list(range(count))
            shares = [Team(size, rank).share(rows) for rank in range(size)]
            assert sorted(row for share in shares for row in share) == rows
            assert all(len(share) != 1 for share in shares) or count == 1
            assert len(shares[0]) >= len(shares[-1])


def test_one_package_near_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "cache-2"))
    ran = torchrun(*request(tmp_path / "two", PASSES, "--json"))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["package"] == str(tmp_path / "two")
    assert ran.stderr.count("lepto compile") == 1
    assert "processes   2" in ran.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()].count("two") == 1
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "cache-1"))
    asked = Recipe(
        model="factories:mlp", train="factories:mlp_data", eval="factories:mlp_data", threads=1, max_drop="20%",
        passes=("distill(epochs=3)", "quantization-aware(activations=dynamic)", "fuse"),
    )  # fmt: skip
    one, two = compile_model(asked, tmp_path / "one"), open_package(tmp_path / "two")
    for name in ("distill", "quantization-aware"):
        metrics = [record.metric for p in (one, two) for record in p.manifest.passes if record.pass_ == name]
        assert abs(metrics[0].value - metrics[1].value) <= 2 / 80
    weights = [_taught(tmp_path / cache) for cache in ("cache-1", "cache-2")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=5e-3, rtol=0.0)


def _taught(cache: Path) -> dict[str, torch.Tensor]:
    """What the last teaching left."""
    from safetensors.torch import load_file

    last = max(cache.glob("source-pass-*/weights.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    return load_file(last)


def test_an_error_in_the_middle_ends_all_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "cache"))
    ran = torchrun(*request(tmp_path / "out", "distill(learning_rate=1e30),fuse"))
    assert ran.returncode != 0
    assert ran.stderr.count("the loss became") == 1
    assert ran.stderr.count("error:") == 1
    assert ran.stdout.count("lepto compile") == 1
    assert not (tmp_path / "out").exists()


def test_a_process_that_dies_ends_the_others() -> None:
    ran = torchrun("team_checks.py", "leave")
    assert ran.returncode != 0
    assert "exitcode  : 7" in ran.stderr


def test_a_process_alone_in_a_team_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lepto.compiler import prepare

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LeptoError, match=r"within lepto\.compiler\.training\.team\.joined"):
        prepare.prepare(Recipe(model="nowhere"))
    monkeypatch.setattr(prepare, "current", lambda: Team(2, 0))
    with pytest.raises(LeptoError, match="--workers 2: under torchrun its 2 processes"):
        prepare.prepare(Recipe(model="nowhere", workers="2"))
    with pytest.raises(LeptoError, match="nowhere"):
        prepare.prepare(Recipe(model="nowhere"))
