"""The commands that measure: ``lepto bench``, ``lepto gate`` and ``lepto workload``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepto.benchmarks.workloads.commands import workload
from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.checks.registry import Setting
    from lepto.benchmarks.scenarios import Feed, Latency, Subject
    from lepto.compiler.data import Samples
    from lepto.runtime.console import Output

__all__ = ["bench", "gate", "workload"]


class Format(StrEnum):
    """How a gate's result is written."""

    text = "text"
    json = "json"
    junit = "junit"
    markdown = "markdown"
    github = "github"


AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout; the rest goes to stderr.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Intra-op threads; by default the first package's.")]
Evaluation = Annotated[
    str | None,
    typer.Option("--eval", metavar="DATA", help="Labelled samples: a file, a datasets id, or package.module:factory."),
]
TextColumn = Annotated[str, typer.Option(help="Column of the text in the --eval data.")]
LabelColumn = Annotated[str, typer.Option(help="Column of the label in the --eval data.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the order in which inputs and packages are run.")]


def bench(
    packages: Annotated[list[Path], typer.Argument(metavar="PACKAGE...", help="One package, or several to compare.")],
    evaluation: Evaluation = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    lengths: Annotated[
        str | None, typer.Option(metavar="TOKENS", help="Lengths to measure instead of samples, such as 8,16,64.")
    ] = None,
    blocks: Annotated[int, typer.Option(min=6, help="Interleaved blocks.")] = 20,
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure packages at batch 1: latency, throughput, size, load time.

    Several packages are run in interleaved blocks on the same inputs; each is compared with the first by the ratio of
    medians with its 95 % interval. Inputs are the --eval samples at their real lengths (the accuracy is then reported
    too), texts of given --lengths, or the probe that is stored in the package. Times are the model's; tokenization is
    done before.

    Example:
        lepto bench out/fp32 out/int8 --eval test.csv --label-column category
        lepto bench out/int8 --lengths 8,16,64 --threads 2
    """
    from lepto.benchmarks import scenarios
    from lepto.benchmarks.comparison import bar, feeds_for, read_samples
    from lepto.compiler.proportions import wilson_interval
    from lepto.compiler.statistics import ratio_interval
    from lepto.runtime.console import Output
    from lepto.runtime.measure import machine_load

    if evaluation is not None and lengths is not None:
        raise LeptoError("--eval and --lengths both say what goes in: give one of them")
    output = Output(as_json=as_json)
    subjects = scenarios.load(packages, threads)
    first = subjects[0]
    for other in subjects[1:]:
        scenarios.check_comparable(first.package, other.package)
    load = machine_load()
    output.settings(
        "bench",
        {
            "packages": ", ".join(map(str, packages)),
            "inputs": evaluation or (f"lengths {lengths}" if lengths else "the stored probe of the first package"),
            "threads": first.session.threads,
            "blocks": blocks,
            "seed": seed,
            "load": "unknown" if load.average_1min is None else f"{load.average_1min:.2f} on {load.cpus} CPUs",
        },
    )
    samples = read_samples(first, evaluation, text_column, label_column)
    feeds = feeds_for(subjects, samples, None if lengths is None else _numbers("--lengths", lengths))
    with bar(output, "measuring", blocks) as progress:
        runs = scenarios.per_block(subjects, feeds)
        seconds = scenarios.measure(subjects, feeds, blocks=blocks, runs=runs, seed=seed, progress=progress)
    rows, document = [], []
    for i, subject in enumerate(subjects):
        latency = scenarios.Latency.of(seconds[i])
        ratio = ratio_interval(seconds[0], seconds[i]) if i else None
        right = _right(output, subject, feeds[i], samples)
        low, high = (None, None) if right is None else wilson_interval(int(right.sum()), right.size)
        document.append(
            {
                "package": str(subject.package.path),
                "name": subject.name,
                **asdict(latency),
                "bytes": subject.bytes,
                "load_ms": subject.load_ms,
                "speedup": None if ratio is None else asdict(ratio) | {"against": first.name},
                "accuracy": None if right is None else {"value": float(right.mean()), "low": low, "high": high},
            }
        )
        speedup = "1" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        rows.append([*_row(subject, latency), speedup, "-" if right is None else f"{right.mean():.2%}"])
    columns = ["package", "p50 ms", "p90 ms", "p99 ms", "samples/s", "MB", "load ms"]
    output.table(
        f"batch 1, {first.session.threads} threads, {blocks} blocks of {runs} runs",
        [*columns, f"times as fast as {first.name} (95 %)", "accuracy"],
        rows,
    )
    output.result(
        {"threads": first.session.threads, "blocks": blocks, "runs": runs, "seed": seed, "load": asdict(load)}
        | {"packages": document}
    )


def gate(
    baseline: Annotated[str, typer.Argument(help="What is in production: a package, DIR/MODEL/VERSION, or a result.")],
    candidate: Annotated[str, typer.Argument(help="What is to replace it; the same kinds.")],
    config: Annotated[
        Path | None, typer.Option(metavar="GATE.YAML", help="What is judged, with limits; options here come first.")
    ] = None,
    evaluation: Evaluation = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text in the --eval data.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label in the --eval data.")] = None,
    checks: Annotated[str | None, typer.Option(help="What is judged: names with commas; see below.")] = None,
    max_slowdown: Annotated[str | None, typer.Option(help="How much p50 and p90 may rise, such as 3%.")] = None,
    max_drop: Annotated[
        str | None, typer.Option(help="How much accuracy may fall: 1% of the baseline's, or 0.5 points.")
    ] = None,
    max_growth: Annotated[str | None, typer.Option(help="How much model.onnx may grow: 5%, or 2 MB.")] = None,
    looks: Annotated[
        str | None, typer.Option(metavar="PAIRS", help="After how many pairs of blocks times are judged.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a quieter machine.")
    ] = None,
    threads: Threads = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all random orders.")] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="What stdout gets; people's output then goes to stderr.")
    ] = Format.text,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the --format there instead.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a candidate against a baseline, in one run on one machine.

    Exits with 0 if every check passes, 1 on a regression, 2 on wrong usage or broken input, 3 if the data do not tell.
    Nothing passes by being left out: without --eval the accuracy is not checked and the gate is inconclusive, unless
    --checks or the gate file says that it is not wanted. Times are measured in randomised interleaved pairs on the same
    inputs, each side in its own process, and judged at declared looks; too few samples for a limit never pass.

    Checks: accuracy, worst-slice, flip-rate, kl, calibration, fairness, explanations, latency, throughput, load-time,
    memory, bytes.

    Example:
        lepto gate out/production out/candidate --eval test.csv --label-column category
        lepto gate model_repository/intents/3 out/candidate --config gate.yaml --format markdown
    """
    from lepto.benchmarks.formats import markdown, render
    from lepto.benchmarks.gate import Verdict, print_checks, run_gate
    from lepto.benchmarks.gate_config import GateConfig, read_config
    from lepto.runtime.console import Output

    how = Format.json if as_json else format_
    output = Output(as_json=how is not Format.text and destination is None)
    base = read_config(config) if config is not None else GateConfig()
    given = {
        "eval": evaluation, "text_column": text_column, "label_column": label_column, "threads": threads,
        "seed": seed, "wait_s": wait, "looks": None if looks is None else tuple(_numbers("--looks", looks)),
        "checks": _checks(base.checks, checks, max_slowdown, max_drop, max_growth),
    }  # fmt: skip
    chosen = base.model_copy(update={key: value for key, value in given.items() if value is not None})
    try:
        plan = chosen.plan()
    except ValueError as error:
        raise LeptoError(f"--looks {','.join(map(str, chosen.looks))}: {error}") from None
    limits = {
        name: ", ".join(f"{key} {limit}" for key, limit in one.limits.items()) for name, one in chosen.checks.items()
    }
    output.settings(
        "gate",
        {
            "baseline": baseline,
            "candidate": candidate,
            "checks": "; ".join(f"{name}: {limit}" for name, limit in limits.items()),
            "eval": chosen.eval,
            "looks": f"after {', '.join(map(str, plan.looks))} pairs; alpha {plan.alpha:g}, beta {plan.beta:g}",
            "threads": chosen.threads or "(the baseline's)",
            "seed": chosen.seed,
        },
    )
    result = run_gate(baseline, candidate, chosen, output)
    print_checks(output, result)
    if how is not Format.text:
        text = render(result, how)
        if destination is not None:
            write_file(destination, text)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if how is Format.github and summary:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(markdown(result))
    if result.verdict is not Verdict.PASS:
        bad = [check.message for check in result.checks if check.verdict is result.verdict]
        raise LeptoError(f"{result.verdict.value}: {'; '.join(bad)}", exit_code=result.verdict.exit_code)


def write_file(path: Path, text: str) -> None:
    """Write a result.

    Raises:
        LeptoError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LeptoError(f"cannot write {path}: {error.strerror}") from error


def _checks(
    base: dict[str, Setting], names: str | None, slowdown: str | None, drop: str | None, growth: str | None
) -> dict[str, Setting]:
    from lepto.benchmarks.gate_config import setting

    found = dict(base)
    if names is not None:
        wanted = [part.strip() for part in names.split(",") if part.strip()]
        if not wanted:
            raise LeptoError(f"--checks must name a check, got {names!r}: see `lepto gate --help`")
        try:
            found = {name: base.get(name) or setting(name, None) for name in wanted}
        except KeyError as error:
            raise LeptoError(f"--checks: {error.args[0]}") from None
    options = {
        "--max-slowdown": ("latency", slowdown),
        "--max-drop": ("accuracy", drop),
        "--max-growth": ("bytes", growth),
    }
    for option, (name, text) in options.items():
        if text is None:
            continue
        try:
            made = setting(name, text)
        except ValueError as error:
            raise LeptoError(f"{option}: {error}") from None
        if name in found:
            found[name] = made
        elif names is not None:
            raise LeptoError(f"{option} is given, but --checks leaves {name} out")
    return found


def _right(output: Output, subject: Subject, feeds: Sequence[Feed], samples: Samples | None) -> Any:
    from lepto.benchmarks import scenarios
    from lepto.benchmarks.comparison import bar

    if samples is None:
        return None
    with bar(output, f"answers of {subject.name}", len(feeds)) as progress:
        return scenarios.predict(subject, feeds, progress) == samples.labels


def _row(subject: Subject, latency: Latency) -> list[str]:
    times = [f"{value:.3f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
    return [subject.name, *times, f"{latency.throughput:,.0f}", f"{subject.bytes / 1e6:.2f}", f"{subject.load_ms:.0f}"]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LeptoError(f"{option} must be whole numbers with commas, such as 8,16,64, got {text!r}") from None
