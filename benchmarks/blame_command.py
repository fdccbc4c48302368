"""``lepto blame``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.blame import AccuracyBlame, LatencyBlame
    from lepto.runtime.console import Output


_DETAILED = 3


def blame(
    baseline: Annotated[Path, typer.Argument(help="The package in production.")],
    candidate: Annotated[Path, typer.Argument(help="The package that is to replace it.")],
    evaluation: Annotated[
        str | None, typer.Option("--eval", metavar="DATA", help="Labelled samples; without them only time is blamed.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text in the --eval data.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label in the --eval data.")] = "label",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", metavar="COLUMN", help="Part the samples by this column, too.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many layers, operators, slices and samples are shown.")] = 8,
    runs: Annotated[int, typer.Option(min=20, help="Profiled runs of each package.")] = 200,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads; by default the baseline's.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")
    ] = False,
) -> None:
    """Say why one package is slower or less accurate than another.

    Time: onnxruntime's profiles of both, taken in turns on the same inputs, aligned by layer and by operator. Answers:
    the slices and samples that broke, and the layer at which the error grew most. This explains a verdict of the gate
    and is none: it exits with 0 whatever it finds.

    Example:
        lepto blame out/production out/candidate
        lepto blame out/production out/candidate --eval test.csv --label-column intent --slice channel
    """
    import numpy as np

    from lepto.benchmarks import scenarios
    from lepto.benchmarks.blame import blame_accuracy, blame_latency
    from lepto.benchmarks.comparison import bar, feeds_for, read_samples
    from lepto.benchmarks.report.measured import read_columns
    from lepto.benchmarks.report.quality import length_slices
    from lepto.benchmarks.words import ask, decide, first_places, has_words
    from lepto.runtime.console import Output

    if slices and evaluation is None:
        raise LeptoError("--slice names a column of the --eval data: give it too")
    output = Output(as_json=as_json)
    subjects = scenarios.load([baseline, candidate], threads)
    scenarios.check_comparable(subjects[0].package, subjects[1].package)
    count = subjects[0].session.threads
    output.settings(
        "blame",
        {
            "baseline": baseline,
            "candidate": candidate,
            "eval": evaluation,
            "slices": ", ".join(slices or ()) or None,
            "runs": runs,
            "threads": count,
        },
    )
    samples = read_samples(subjects[0], evaluation, text_column, label_column)
    feeds = feeds_for(subjects, samples)
    pair = feeds[0], feeds[1]
    packages = subjects[0].package, subjects[1].package
    with bar(output, "profiling both in turns", runs) as progress:
        time = blame_latency(*packages, pair, threads=count, runs=runs, progress=progress)
    _show_time(output, time, top)
    document: dict[str, Any] = {"latency": time.to_json(), "accuracy": None}
    if samples is not None:
        words = has_words(samples)
        answers = []
        for subject, own in zip(subjects, feeds, strict=True):
            with bar(output, f"answers of {subject.name}", len(own)) as progress:
                if words:
                    rows = ask(subject.session, own, first_places(subject.package, samples), progress)
                    answers.append(np.concatenate([decide(row) for row in rows]))
                else:
                    answers.append(scenarios.predict(subject, own, progress))
        columns: dict[str, Sequence[str]] = dict(read_columns(evaluation, slices)) if slices and evaluation else {}
        if "input_ids" in feeds[0][0]:
            columns["length"] = length_slices(_lengths(feeds[0]))
        texts = (
            [row if isinstance(row, str) else "" for row in samples.inputs] if isinstance(samples.inputs, tuple) else ()
        )
        labels = samples.labels
        if words:  # word by word, each with what its row says
            sizes = [len(row) for row in labels]
            labels = np.concatenate(list(labels))
            texts = [f"{word} (in: {' '.join(row)})" for row in samples.inputs for word in row]
            columns = {name: np.repeat(np.array(cells), sizes).tolist() for name, cells in columns.items()}
        found = blame_accuracy(
            *packages, pair, labels, (answers[0], answers[1]), texts=texts, columns=columns, threads=count
        )
        _show_answers(output, found, top)
        document["accuracy"] = found.to_json()
    output.result(document)


def _lengths(feeds: Sequence[Any]) -> Any:
    import numpy as np

    return np.array([feed["input_ids"].shape[1] for feed in feeds], np.int64)


def _show_time(output: Output, found: LatencyBlame, top: int) -> None:
    output.print(escape(found.lines(0)[0]))
    for what, items in (("layer", found.layers), ("operator", found.operators)):
        rows = [
            [item.part, f"{item.change_us:+.1f}", f"{item.baseline_us:.1f}", f"{item.candidate_us:.1f}"]
            for item in items[:top]
        ]
        output.table(f"time by {what}", [what, "change, µs", "baseline, µs", "candidate, µs"], rows)
    for item in found.layers[: min(top, _DETAILED)]:
        output.print(escape(str(item)))


def _show_answers(output: Output, found: AccuracyBlame, top: int) -> None:
    for line in found.lines(0):
        output.print(escape(line))
    if found.slices:
        rows = [
            [item.column, item.value, f"{100 * item.change:+.2f}", f"{item.n:,}", f"{item.broken}", f"{item.repaired}",
             f"{item.p:.2g}"]
            for item in found.slices[:top]
        ]  # fmt: skip
        output.table("slices that lost", ["column", "value", "points", "n", "broke", "repaired", "p (Holm)"], rows)
    if found.samples:
        rows = [[str(item.row), item.text, item.label, item.candidate] for item in found.samples[:top]]
        output.table("samples that broke", ["sample", "text", "right", "candidate"], rows)
    grown = sorted(found.layers, key=lambda item: -item.grew)[:top]
    if grown:
        rows = [[item.layer, f"{item.error:.3g}", f"{item.grew:+.3g}"] for item in grown]
        output.table("where the error grew", ["layer", "relative error", "grew by"], rows)
