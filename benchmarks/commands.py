"""The commands that measure: ``lepto bench``, ``lepto gate`` and ``lepto workload``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepto.benchmarks.workloads.commands import workload
from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.gate import Limit, Plan
    from lepto.benchmarks.scenarios import Feed, Latency, Subject
    from lepto.compiler.data import Samples
    from lepto.runtime.console import Output

__all__ = ["bench", "gate", "workload"]

CHECKS = ("accuracy", "latency", "bytes")  # in this order

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
    baseline: Annotated[Path, typer.Argument(help="The package in production.")],
    candidate: Annotated[Path, typer.Argument(help="The package that is to replace it.")],
    evaluation: Evaluation = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    checks: Annotated[str, typer.Option(help=f"What is judged, of {', '.join(CHECKS)}.")] = ",".join(CHECKS),
    max_slowdown: Annotated[str, typer.Option(help="How much p50 and p90 may rise, such as 5%.")] = "5%",
    max_drop: Annotated[
        str, typer.Option(help="How much accuracy may fall: 1% of the baseline's, or 0.01 absolute.")
    ] = "1%",
    max_growth: Annotated[str, typer.Option(help="How much model.onnx may grow: 5%, or a number of bytes.")] = "5%",
    looks: Annotated[
        str, typer.Option(metavar="PAIRS", help="After how many pairs of blocks latency is judged.")
    ] = "12,24,48",
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge a candidate against a baseline: accuracy, latency and size, in one run on one machine.

    Exits with 0 if every check passes, 1 on a regression, 2 on wrong usage or broken input, 3 if the data do not tell.
    Nothing passes by being left out: without --eval the accuracy is not checked and the gate is inconclusive, unless
    --checks latency,bytes says that it is not wanted. Latency is measured in randomised interleaved pairs on the same
    inputs and judged at declared looks; too few samples for the accuracy's limit never pass.

    Example:
        lepto gate out/production out/candidate --eval test.csv --label-column category
        lepto gate out/production out/candidate --checks latency,bytes --max-slowdown 3%
    """
    from lepto.benchmarks import scenarios
    from lepto.benchmarks.comparison import compare, feeds_for, print_checks, read_samples
    from lepto.benchmarks.gate import Verdict, as_document, overall
    from lepto.runtime.console import Output
    from lepto.runtime.measure import machine_load

    wanted = _wanted(checks)
    plan = _plan(looks)
    limits = _limits(accuracy=max_drop, latency=max_slowdown, bytes=max_growth)
    output = Output(as_json=as_json)
    subjects = scenarios.load([baseline, candidate], threads)
    scenarios.check_comparable(subjects[0].package, subjects[1].package)
    load = machine_load()
    settings = {
        "baseline": baseline,
        "candidate": candidate,
        "checks": ", ".join(f"{name} (limit {limits[name]})" for name in wanted),
        "eval": evaluation,
        "looks": f"after {', '.join(map(str, plan.looks))} pairs; alpha {plan.alpha:g}, beta {plan.beta:g}",
        "threads": subjects[0].session.threads,
        "seed": seed,
        "load": "unknown" if load.average_1min is None else f"{load.average_1min:.2f} on {load.cpus} CPUs",
    }
    output.settings("gate", settings)
    samples = read_samples(subjects[0], evaluation, text_column, label_column)
    found = compare(output, subjects, feeds_for(subjects, samples), samples, wanted, limits, plan, seed)
    verdict = overall(found)
    print_checks(output, found)
    output.result({"baseline": str(baseline), "candidate": str(candidate), "seed": seed, **as_document(found)})
    if verdict is not Verdict.PASS:
        bad = [check.message for check in found if check.verdict is verdict]
        raise LeptoError(f"{verdict.value}: {'; '.join(bad)}", exit_code=verdict.exit_code)


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


def _wanted(text: str) -> list[str]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown or not wanted:
        raise LeptoError(f"--checks must name some of {', '.join(CHECKS)}, got {text!r}")
    return [name for name in CHECKS if name in wanted]


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LeptoError(f"{option} must be whole numbers with commas, such as 8,16,64, got {text!r}") from None


def _plan(looks: str) -> Plan:
    from lepto.benchmarks.gate import Plan

    try:
        return Plan(looks=tuple(_numbers("--looks", looks)))
    except ValueError as error:
        raise LeptoError(f"--looks {looks}: {error}") from None


def _limits(**texts: str) -> dict[str, Limit]:
    from lepto.benchmarks.gate import Limit

    limits = {}
    options = {"accuracy": "--max-drop", "latency": "--max-slowdown", "bytes": "--max-growth"}
    for name, text in texts.items():
        try:
            limits[name] = Limit.parse(text)
        except ValueError as error:
            raise LeptoError(f"{options[name]}: {error}") from None
    if not limits["latency"].relative:
        raise LeptoError(
            f"--max-slowdown must be a share such as 5%, got {texts['latency']!r}: times are judged in pairs"
        )
    if limits["accuracy"].value >= 1:
        raise LeptoError(f"--max-drop must be below 1 (100%), got {texts['accuracy']!r}: did you leave out a %?")
    return limits
