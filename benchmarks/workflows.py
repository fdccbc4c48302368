"""``make bench-ci``: the workflows under ``ci/`` do what they say, by running their very steps in a fresh clone.

The repository is cloned; a package stands where the workflow's variables say that baseline and candidate are; then the
steps are run as they are written, in a new environment of Python and with nothing of this one. What stands in for the
build server: ``actions/checkout`` is the clone, ``actions/setup-python`` a virtual environment, an upload looks for its
files, and ``gh`` is a program that checks what it is asked to post. Only ``LEPTO`` is set, to the clone itself.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from ruamel.yaml import YAML

from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = Path(__file__).parent / "ci"
STEP_TIMEOUT_S: Final = 3600.0
EXPRESSIONS: Final = {"github.token": "a-token", "github.event.number": "7"}
_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
_GH: Final = """#!/bin/sh
test "$1 $2" = "pr comment" || { echo "gh: unknown command $1 $2" >&2; exit 1; }
test -n "$GH_TOKEN" || { echo "gh: no GH_TOKEN" >&2; exit 1; }
case "$3" in *[!0-9]*|"") echo "gh: no number of a pull request: $3" >&2; exit 1;; esac
test "$4" = "--body-file" && test -s "$5" || { echo "gh: no body" >&2; exit 1; }
grep -q "^### " "$5"
"""


@dataclass(frozen=True)
class Step:
    """One step of a workflow.

    Attributes:
        name: As it is shown.
        script: What the shell runs; empty where ``uses`` says what is done.
        uses: The action.
        always: Whether it is run after a failure, too.
        variables: Its own environment.
        files: Patterns of files that it takes from the folder.
    """

    name: str
    script: str = ""
    uses: str = ""
    always: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workflow:
    """A workflow's one job.

    Attributes:
        name: Of its file.
        variables: The environment of all steps.
        steps: In their order.
        allowed: Exit codes besides 0 that are no failure of the pipeline.
    """

    name: str
    variables: Mapping[str, str]
    steps: tuple[Step, ...]
    allowed: tuple[int, ...] = ()


def read_github(document: Mapping[str, Any]) -> Workflow:
    """The job of a workflow of GitHub Actions.

    Raises:
        LeptoError: It uses what nothing here stands in for.
    """
    (job,) = document["jobs"].values()
    steps = []
    for step in job["steps"]:
        uses = str(step.get("uses", "")).partition("@")[0]
        if uses not in ("", "actions/checkout", "actions/setup-python", "actions/upload-artifact"):
            raise LeptoError(f"nothing here stands in for the action {uses!r}: run that step on GitHub")
        condition = str(step.get("if", ""))
        if condition not in ("", "always()"):
            raise LeptoError(f"the condition {condition!r} is not known here")
        steps.append(
            Step(
                str(step.get("name", uses)),
                expand(str(step.get("run", ""))),
                uses,
                condition == "always()",
                {key: expand(str(value)) for key, value in step.get("env", {}).items()},
                (str(step["with"]["path"]),) if uses == "actions/upload-artifact" else (),
            )
        )
    return Workflow("github", {key: str(value) for key, value in document["env"].items()}, tuple(steps))


def read_gitlab(document: Mapping[str, Any]) -> Workflow:
    """The one job of a file for GitLab."""
    (job,) = document.values()
    steps = [Step("setup", uses="actions/setup-python")]
    steps += [Step(f"before_script {i}", line) for i, line in enumerate(job["before_script"], 1)]
    steps += [Step(f"script {i}", line) for i, line in enumerate(job["script"], 1)]
    artifacts = job["artifacts"]
    files = (*artifacts["paths"], artifacts["reports"]["junit"])
    steps.append(Step("artifacts", uses="actions/upload-artifact", always=artifacts["when"] == "always", files=files))
    variables = {key: str(value) for key, value in job["variables"].items()}
    return Workflow("gitlab", variables, tuple(steps), tuple(job["allow_failure"]["exit_codes"]))


def read_workflows() -> tuple[Workflow, Workflow]:
    """Both files under ``ci/``."""
    yaml = YAML(typ="safe")
    return (
        read_github(yaml.load((FOLDER / "github.yml").read_text(encoding="utf-8"))),
        read_gitlab(yaml.load((FOLDER / "gitlab.yml").read_text(encoding="utf-8"))),
    )


def expand(text: str) -> str:
    """Put in what GitHub puts in for ``${{ … }}``.

    Raises:
        LeptoError: An expression is not known here.
    """

    def found(match: re.Match[str]) -> str:
        if match[1] not in EXPRESSIONS:
            raise LeptoError(f"the expression {match[0]} is not known here")
        return EXPRESSIONS[match[1]]

    return _EXPRESSION.sub(found, text)


def run_steps(
    workflow: Workflow, folder: Path, environment: Mapping[str, str], output: Output, lepto: str | None = None
) -> list[dict[str, Any]]:
    """Run the steps of a workflow as a build server does: after a failure only those that are always run.

    Args:
        workflow: The workflow.
        folder: The checked-out repository.
        environment: Of the build server; the workflow's and the steps' variables come on top.
        output: Told each step.
        lepto: What is installed instead of a release.

    Returns:
        For each step its name, exit code, seconds and the end of what it said; code None for one that was left out.
    """
    base = {**environment, **workflow.variables, **({} if lepto is None else {"LEPTO": lepto}), "CI": "true"}
    base["PATH"] = f"{folder / '.bin'}:{environment['PATH']}"
    done: list[dict[str, Any]] = []
    failed = False
    for step in workflow.steps:
        if failed and not step.always:
            done.append({"step": step.name, "code": None, "seconds": 0.0, "said": ""})
            continue
        start = time.monotonic()
        if step.uses == "actions/setup-python":
            code, said = _shell(f'"{sys.executable}" -m venv .python', folder, {**environment})
            base["PATH"] = f"{folder / '.python' / 'bin'}:{base['PATH']}"
        elif step.uses == "actions/upload-artifact":
            missing = [pattern for pattern in step.files if not list(folder.glob(pattern))]
            code, said = int(bool(missing)), f"no file {', '.join(missing)}" if missing else ""
        elif step.uses:
            code, said = int(not (folder / "pyproject.toml").is_file()), "the clone"
        else:
            code, said = _shell(step.script, folder, {**base, **step.variables})
        failed = failed or (code != 0 and code not in workflow.allowed)
        done.append({"step": step.name, "code": code, "seconds": round(time.monotonic() - start, 1), "said": said})
        output.print(f"{workflow.name}, {step.name}: exit code {code}, {done[-1]['seconds']:.0f} s")
    return done


def _shell(script: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    ran = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=dict(environment), capture_output=True,
        text=True, timeout=STEP_TIMEOUT_S,
    )  # fmt: skip
    return ran.returncode, (ran.stdout + ran.stderr)[-20_000:]


def clone(folder: Path) -> str:
    """Clone what is committed here; returns the commit.

    Raises:
        LeptoError: This is no clone of a repository.
    """
    ran = subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], capture_output=True, text=True
    )
    if ran.returncode != 0:
        raise LeptoError(f"{ROOT} cannot be cloned: {ran.stderr.strip()}")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return head.stdout.strip()


def prepare(folder: Path, workflow: Workflow, package: Path, data: Path, text_column: str, label_column: str) -> None:
    """Put baseline, candidate, gate file and data where the workflow says that they are; and ``gh``."""
    from lepto.runtime.repository import publish

    baseline = folder / workflow.variables["BASELINE"]
    publish(package, baseline.parent, name=baseline.name)
    shutil.copytree(package, folder / workflow.variables["CANDIDATE"])
    shutil.copyfile(folder / "benchmarks" / "ci" / "gate.yaml", folder / workflow.variables["CONFIG"])
    (folder / "data").mkdir()
    with data.open(newline="", encoding="utf-8") as source, (folder / "data" / "test.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows([row[text_column], row[label_column]] for row in csv.DictReader(source))
    (folder / ".bin").mkdir()
    (folder / ".bin" / "gh").write_text(_GH)
    (folder / ".bin" / "gh").chmod(0o755)


def workflows(
    package: Annotated[Path, typer.Argument(help="A package that takes text: baseline and candidate.")],
    data: Annotated[Path, typer.Option(help="A CSV file of its evaluation data.")],
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    lepto: Annotated[str, typer.Option(help="What the workflows install.")] = ".[compile]",
    only: Annotated[str | None, typer.Option(help="One of them: github or gitlab.")] = None,
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = (
        Path(__file__).parent / "baselines" / "workflows.json"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Run the steps of both workflows in fresh clones; exit 1 if one fails, 3 if a gate is inconclusive.

    Example: python -m lepto.benchmarks.workflows out/package --data test.csv
    """
    output = Output(as_json=as_json)
    # Nothing of this environment: a build server has its own.
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "PIP_INDEX_URL", "PIP_CONFIG_FILE")
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    own = str(Path(sys.prefix) / "bin")
    environment["PATH"] = ":".join(part for part in os.environ["PATH"].split(":") if part != own)
    document: dict[str, Any] = {}
    bad: list[str] = []
    codes: set[int | None] = set()
    document.update(json.loads(store.read_text()) if only and store.is_file() else {})
    for workflow in (one for one in read_workflows() if only in (None, one.name)):
        with tempfile.TemporaryDirectory(prefix="lepto-workflow-") as temporary:
            folder = Path(temporary) / "clone"
            commit = clone(folder)
            prepare(folder, workflow, package, data, text_column, label_column)
            steps = run_steps(workflow, folder, environment, output, lepto)
            verdict = folder / "gate.json"
            failed = [step for step in steps if step["code"] != 0 and step["code"] not in workflow.allowed]
            bad += [f"{workflow.name}, {one['step']}: {one['said'].strip()[-600:] or 'left out'}" for one in failed]
            codes |= {one["code"] for one in failed}
            document[workflow.name] = {
                "commit": commit,
                "steps": [{key: step[key] for key in ("step", "code", "seconds")} for step in steps],
                "verdict": json.loads(verdict.read_text())["verdict"] if verdict.is_file() else None,
            }
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(document, indent=2) + "\n")
    output.print(f"stored in {store}")
    output.result(document)
    if bad:
        # 3 is the gate's own: the steps did what they say, and the machine is too busy to tell.
        output.print(escape("\n".join(bad)))
        raise typer.Exit(3 if codes == {3} else 1)


if __name__ == "__main__":
    typer.run(workflows)
