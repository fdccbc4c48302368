"""The commands that look: ``lepto doctor`` and ``lepto verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.runtime.console import Output
    from lepto.runtime.doctor import Diagnosis, Verdict
    from lepto.runtime.verify import Check

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")]

_GIB = 2**30


def doctor(as_json: AsJson = False) -> None:
    """Show this machine and what can be built, run and served on it.

    Every "no" has its reason, and what is missing comes with the way to get it.

    Example:
        lepto doctor
        lepto doctor --json
    """
    from lepto.runtime.console import Output
    from lepto.runtime.doctor import diagnose

    output = Output(as_json=as_json)
    diagnosis = diagnose()
    _print_diagnosis(output, diagnosis)
    output.result(
        {
            "machine": asdict(diagnosis.machine) | {"load": asdict(diagnosis.load)},
            "versions": diagnosis.versions,
            "targets": [asdict(report.target) | _verdicts(report) for report in diagnosis.targets],
            "missing": [asdict(missing) for missing in diagnosis.missing],
        }
    )


def verify(
    package: Annotated[Path, typer.Argument(help="The package's folder.", metavar="PACKAGE", show_default=False)],
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; by default the manifest's.")] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", help="Labelled texts (.csv, .tsv, .jsonl) to re-run the manifest's metric on."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text in the --eval file.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label in the --eval file.")] = "label",
    as_json: AsJson = False,
) -> None:
    """Check a package: its files, that it runs, and what its manifest claims.

    Compares every file with its digest, loads the model, repeats the stored probe within the manifest's tolerance and
    classifies texts. With --eval the metric is measured again on the file that the package was compiled with. Exits
    with 0 if every check passed, with 1 if one failed, with 2 if PACKAGE is no package.

    Example:
        lepto verify out/intents
        lepto verify out/intents --eval test.csv --label-column category
    """
    from lepto.runtime.console import Output
    from lepto.runtime.package import open_package
    from lepto.runtime.verify import Evaluation, verify_package

    output = Output(as_json=as_json)
    opened = open_package(package, check_digests=False)
    output.settings(
        "verify",
        {
            "package": package,
            "name": opened.manifest.name,
            "task": opened.manifest.task,
            "target": opened.manifest.target,
            "threads": threads or opened.manifest.threads,
            "eval": evaluation,
        }
        | ({"text-column": text_column, "label-column": label_column} if evaluation is not None else {}),
    )
    checks = verify_package(
        opened,
        threads=threads,
        evaluation=None if evaluation is None else Evaluation(evaluation, text_column, label_column),
    )
    failed = [check.name for check in checks if not check.ok]
    _print_checks(output, checks)
    output.result({"package": str(package), "ok": not failed, "checks": [asdict(check) for check in checks]})
    if failed:
        raise LeptoError(f"{package} failed {len(failed)} of {len(checks)} checks: {', '.join(failed)}", exit_code=1)


def _print_checks(output: Output, checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "[green]ok    [/green]" if check.ok else "[red]FAILED[/red]"
        output.print(f"{mark}  {escape(check.name):<{width}}  {escape(check.detail)}")
    if all(check.ok for check in checks):
        output.print(f"all {len(checks)} checks passed")


def _print_diagnosis(output: Output, diagnosis: Diagnosis) -> None:
    machine, load = diagnosis.machine, diagnosis.load
    output.settings(
        "this machine",
        {
            "system": machine.system,
            "cpu": f"{machine.cpu} ({machine.architecture})",
            "cpus": f"{machine.cpus} usable of {machine.cpus_online}",
            "load": "unknown" if load.average_1min is None else f"{load.average_1min:.2f} over the last minute",
            "runs code for": ", ".join(machine.isa_levels) or "unknown",
            "instructions": ", ".join(machine.instruction_sets) or "unknown",
            "memory": f"{machine.memory_bytes / _GIB:.1f} GiB",
            "gpu": ", ".join(f"{gpu.name} ({gpu.compute_capability}, driver {gpu.driver})" for gpu in machine.gpus)
            or "none",
        },
    )
    output.print()
    output.settings("versions", {name: version or "not installed" for name, version in diagnosis.versions.items()})
    output.print()
    output.table(
        "targets",
        ["target", "build", "run", "serve", "what it is"],
        [
            [report.target.name, *map(_word, (report.build, report.run, report.serve)), report.target.description]
            for report in diagnosis.targets
        ],
    )
    _print_reasons(output, diagnosis)
    if diagnosis.missing:
        output.print("\nmissing")
        for missing in diagnosis.missing:
            output.print(escape(f"  {missing.what} (needed for {missing.why}): {missing.how}"))


def _print_reasons(output: Output, diagnosis: Diagnosis) -> None:
    """Every reason once, with the targets that it holds for."""
    reasons: dict[str, list[str]] = {}
    for report in diagnosis.targets:
        for what in ("build", "run", "serve"):
            verdict: Verdict = getattr(report, what)
            if verdict.reason:
                cannot = what if verdict.ok else f"cannot {what}"
                reasons.setdefault(f"{cannot}: {verdict.reason}", []).append(report.target.name)
    if reasons:
        output.print("\nwhy not, or not quite")
        for reason, names in reasons.items():
            output.print(escape(f"  {', '.join(names)}: {reason}"))


def _word(verdict: Verdict) -> str:
    return ("in its place" if verdict.reason else "yes") if verdict.ok else "no"


def _verdicts(report: Any) -> dict[str, Any]:
    return {what: asdict(getattr(report, what)) for what in ("build", "run", "serve")}
