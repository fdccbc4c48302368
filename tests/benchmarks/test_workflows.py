"""The workflows under ``benchmarks/ci/``: their own steps; all of them in a fresh clone is ``make bench-ci``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lepto.benchmarks.workflows import _GH, FOLDER, Step, Workflow, expand, read_github, read_workflows, run_steps
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

MakePackage = Callable[..., Path]


def test_steps_are_run_as_a_build_server_runs_them(tmp_path: Path) -> None:
    steps = (
        Step("one", 'test "$A$B" = 12 && echo 1 > one.txt', variables={"B": "2"}),
        Step("two", "false | cat"),
        Step("three", "echo 3 > three.txt"),
        Step("four", "echo 4 > four.txt", always=True),
        Step("upload", uses="actions/upload-artifact", always=True, files=("f*.txt", "gate.*")),
    )
    found = run_steps(Workflow("x", {"A": "1"}, steps), tmp_path, {"PATH": os.environ["PATH"]}, Output(as_json=True))
    assert [one["code"] for one in found] == [0, 1, None, 0, 1]
    assert found[-1]["said"] == "no file gate.*"
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["four.txt", "one.txt"]
    allowed = Workflow("x", {}, (Step("three", "exit 3"), Step("next", "true")), (3,))
    found = run_steps(allowed, tmp_path, {"PATH": os.environ["PATH"]}, Output(as_json=True))
    assert [one["code"] for one in found] == [3, 0]


def test_what_is_not_known_is_refused() -> None:
    assert expand("a ${{ github.event.number }} b") == "a 7 b"
    with pytest.raises(LeptoError, match="is not known here"):
        expand("${{ secrets.KEY }}")
    job = {"env": {}, "jobs": {"gate": {"steps": [{"uses": "someone/something@v1"}]}}}
    with pytest.raises(LeptoError, match="someone/something"):
        read_github(job)
    job["jobs"]["gate"]["steps"] = [{"run": "true", "if": "failure()"}]
    with pytest.raises(LeptoError, match="condition"):
        read_github(job)


def test_both_install_gate_and_keep_what_it_says() -> None:
    for workflow in read_workflows():
        scripts = [step.script for step in workflow.steps]
        assert 'pip install "$LEPTO"' in scripts
        assert any(script.startswith("lepto gate ") for script in scripts)
        assert workflow.steps[-1].always
        assert workflow.variables["LEPTO"] == "lepto[compile]"
    assert read_workflows()[1].allowed == (3,)


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_the_very_steps_run(make_package: MakePackage, tmp_path: Path, evaluation: Path, name: str) -> None:
    (workflow,) = [one for one in read_workflows() if one.name == name]
    installed = [
        step for step in workflow.steps if "setup-python" not in step.uses and "pip install" not in step.script
    ]
    (tmp_path / "gate.yaml").write_text(
        (FOLDER / "gate.yaml").read_text().replace("data/test.csv", str(evaluation)).replace("60 ", "0 ")
        .replace("p50: 5%", "p50: 300%").replace("p90: 10%", "p90: 300%")
    )  # fmt: skip
    (tmp_path / "pyproject.toml").write_text("")  # what was checked out
    (tmp_path / ".bin").mkdir()
    (tmp_path / ".bin" / "gh").write_text(_GH)
    (tmp_path / ".bin" / "gh").chmod(0o755)
    one, worse = make_package(tmp_path / "one"), make_package(tmp_path / "worse", swap=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for candidate, code in ((one, 0), (worse, 1)):
        variables = {**workflow.variables, "BASELINE": str(one), "CANDIDATE": str(candidate)}
        own = dataclasses.replace(workflow, variables=variables, steps=tuple(installed))
        done = run_steps(own, tmp_path, environment, Output(as_json=True))
        gated: list[dict[str, Any]] = [step for step in done if step["step"] in ("gate", "script 1")]
        assert [step["code"] for step in gated] == [code], done
        assert all(step["code"] == 0 for step in done if step not in gated), done
        assert (tmp_path / "gate.md").read_text().startswith("### ")
        assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == ("pass" if code == 0 else "regression")
        assert "<testsuites>" in (tmp_path / "gate.xml").read_text()
        assert ("::error" in gated[0]["said"]) == (name == "github" and code == 1)
