"""``lepto report``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.report.content import Section
    from lepto.benchmarks.report.measured import Known, Request
    from lepto.runtime.console import Output


def report(
    packages: Annotated[
        list[Path], typer.Argument(metavar="PACKAGE|RESULTS...", help="Packages, and results of gate or bench --json.")
    ],
    out: Annotated[Path, typer.Option("-o", "--output", help="The page.")] = Path("report.html"),
    evaluation: Annotated[
        str | None, typer.Option("--eval", metavar="DATA", help="Labelled samples, to show texts and attributions.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The source model, to ask it too.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text in the --eval data.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label in the --eval data.")] = "label",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", metavar="COLUMN", help="Part the samples by this column, too.")
    ] = None,
    most: Annotated[int, typer.Option("--flips", min=0, help="How many changed answers are shown.")] = 24,
    force: Annotated[bool, typer.Option("--force", help="Replace the page.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")
    ] = False,
) -> None:
    """Write one page about packages: the search's candidates, what each pass bought, latency, answers, slices, layers.

    The page is one file that works offline, in light and dark, on a phone and on paper. It shows what the package
    stores; with --eval and --source it also shows the samples whose answers changed and the words or patches that they
    hang on, and measures what an older package does not store. The source is loaded only if it is named.

    Example:
        lepto report out/package -o report.html
        lepto report out/package gate.json --eval test.csv --label-column intent --source ./my-model --slice channel
    """
    from lepto.benchmarks.report.measured import Request
    from lepto.runtime.console import Output

    output = Output(as_json=as_json)
    if out.exists() and not force:
        raise LeptoError(f"{out} exists: choose another file with -o, or replace it with --force")
    if slices and evaluation is None:
        raise LeptoError("--slice names a column of the --eval data: give it too")
    request = Request(evaluation, source, text_column, label_column, tuple(slices or ()), most)
    output.settings(
        "report",
        {
            "packages and results": ", ".join(map(str, packages)),
            "eval": evaluation,
            "source": source,
            "slices": ", ".join(["label", *(slices or ())]),
            "output": out,
        },
    )
    document = write_report(packages, out, request, output)
    size = out.stat().st_size / 1e6
    output.print(f"[bold green]{escape(str(out))}[/bold green]: {len(document['figures'])} figures, {size:.1f} MB")
    output.result(document)


def write_report(paths: Sequence[Path], out: Path, request: Request, output: Output) -> dict[str, Any]:
    """Write the page; see :func:`report`.

    Returns:
        The page's path, its figures, and its numbers.
    """
    import datetime
    from importlib.metadata import version

    from lepto.benchmarks.report.content import package_sections, results_section, summary
    from lepto.benchmarks.report.page import render
    from lepto.runtime.staging import write_durably

    opened = [_open(path) for path in paths]
    known: list[Known] = []
    parts: list[tuple[str, list[Section]]] = []
    results: list[Section] = []
    for path, content in zip(paths, opened, strict=True):
        if isinstance(content, Mapping):
            results.append(results_section(path.name, content))
            continue
        one = _know(content, request, output)
        known.append(one)
        parts.append((content.manifest.name, package_sections(one)))
    if len(parts) == 1:
        sections = parts[0][1]
        parts = [("", [*sections[:1], *results, *sections[1:]])]
    elif results:
        parts.append(("Results" if parts else "", results))
    names = [one.package.manifest.name for one in known] or [path.stem for path in paths]
    title = names[0] if len(names) == 1 else " · ".join(names)
    lead = ""
    if len(known) == 1:
        manifest = known[0].package.manifest
        lead = f"{manifest.task}, compiled for {manifest.target} on {manifest.environment.get('cpu', 'an unknown CPU')}"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page, figures = render(title, lead, parts, f"Written by lepto {version('lepto')}, {now}")
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write_durably(stage, page.encode())
        stage.replace(out)
    finally:
        stage.unlink(missing_ok=True)
    return {"report": str(out), "figures": figures, "packages": [summary(one) for one in known]}


def _open(path: Path) -> Any:
    from lepto.runtime.package import open_package

    if path.is_file():
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LeptoError(
                f"{path} is no result: {error}; give a package, or what gate or bench --json wrote"
            ) from error
        if not isinstance(document, dict):
            raise LeptoError(f"{path} is no result: a JSON object is expected, got {type(document).__name__}")
        return document
    return open_package(path)


def _know(package: Any, request: Request, output: Output) -> Known:
    from lepto.benchmarks.report.measured import know

    with output.progress() as progress:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(escape(what), total=total)
            progress.update(tasks[what], completed=done, total=total)

        return know(package, request, tell)
