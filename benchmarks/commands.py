"""The commands that measure: ``lepto bench``, ``lepto gate`` and ``lepto workload``."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepto.benchmarks.workloads.commands import workload
from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.checks.registry import Setting

__all__ = ["bench", "gate", "history", "workload"]


class Scenario(StrEnum):
    """MLPerf's scenarios."""

    single_stream = "single-stream"
    multi_stream = "multi-stream"
    offline = "offline"
    server = "server"


class Device(StrEnum):
    """Where packages are timed."""

    cpu = "cpu"
    cuda = "cuda"


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
    packages: Annotated[
        list[str],
        typer.Argument(
            metavar="PACKAGE|URL/MODEL...", help="Packages to compare, or one served model: HOST:PORT/NAME."
        ),
    ],
    scenario: Annotated[
        Scenario | None, typer.Option(help="One of MLPerf's, through its load generator; else interleaved blocks.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long a scenario runs; for server each trial.")] = 10.0,
    bound_ms: Annotated[float, typer.Option(min=0.001, help="For server: the 99th percentile to keep.")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, help="Requests on their way at once, for server and offline.")] = 4,
    evaluation: Evaluation = None,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Lengths to measure instead of samples, such as 8,16,64; from-data: those of --eval, as by default.",
        ),
    ] = None,
    blocks: Annotated[int, typer.Option(min=6, help="Interleaved blocks.")] = 24,
    threads: Threads = None,
    seed: Seed = 0,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Count the instructions of an inference, too, by valgrind.")
    ] = False,
    device: Annotated[Device, typer.Option(help="cuda also times packages on this machine's GPU.")] = Device.cpu,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="On a GPU: replay captured graphs, or launch kernels.")
    ] = True,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the results, for `lepto history` and as baselines.")
    ] = False,
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where results are kept.")] = Path(
        "benchmarks/baselines"
    ),
    as_json: AsJson = False,
) -> None:
    """Measure packages, or a model on a running Triton server: latency, throughput, CPU, memory, load time, size.

    Several packages are run in randomised interleaved blocks on the same inputs, each in its own process; each is
    compared with the first by the ratio of medians with its 95 % interval, and the first with itself, which shows the
    spread of this machine (A/A). Inputs are the --eval samples at their real lengths (the accuracy is then reported
    too), texts of given --lengths, or the probe that is stored in the package. Times are the model's; tokenization is
    done before. With --scenario, MLPerf's load generator asks one package or one served model.

    --instructions asks valgrind for a second opinion that noise does not reach; it takes a minute or more for each
    package. --device cuda adds times by the GPU's own events, with its clocks and temperature.

    Example:
        lepto bench out/fp32 out/int8 --eval test.csv --label-column category --store
        lepto bench out/int8 --scenario server --bound-ms 5
        lepto bench grpc://127.0.0.1:8001/intents --scenario single-stream --eval test.csv
    """
    from lepto.benchmarks import bench as benching
    from lepto.benchmarks.inputs import Inputs
    from lepto.runtime.console import Output

    if lengths == "from-data":
        if evaluation is None:
            raise LeptoError("--lengths from-data are those of the samples: give --eval")
        lengths = None
    if evaluation is not None and lengths is not None:
        raise LeptoError("--eval and --lengths both say what goes in: give one of them")
    inputs = Inputs(evaluation, text_column, label_column, None if lengths is None else _numbers("--lengths", lengths))
    output = Output(as_json=as_json)
    if scenario is None:
        how = benching.How(blocks, threads, seed, instructions, device.value, cuda_graph)
        document = benching.bench_pairs(packages, inputs, how, output)
    elif instructions or device is not Device.cpu:
        raise LeptoError("--instructions and --device are for packages side by side: leave --scenario out")
    elif len(packages) > 1:
        raise LeptoError(f"--scenario measures one package or one served model, got {len(packages)}; run it for each")
    else:
        load = benching.Load(scenario.value, seconds, bound_ms, workers)
        document = benching.bench_scenario(packages[0], inputs, load, threads, seed, output)
    if store:
        document["stored"] = [str(path) for path in benching.store_all(document, results)]
        output.print(f"stored: {', '.join(document['stored'])}")
    output.result(document)


def history(
    name: Annotated[str, typer.Argument(help="The package's name.")],
    metric: Annotated[
        str, typer.Option(help="What is drawn: p50_ms, p90_ms, throughput, accuracy, bytes, …")
    ] = "p50_ms",
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where results are kept.")] = Path(
        "benchmarks/baselines"
    ),
    as_json: AsJson = False,
) -> None:
    """Draw the trend of stored results, with the points at which the level changed.

    Times are drawn for each hardware by itself; accuracy and bytes for all together. A trend is no gate: it shows what
    crept in over many changes.

    Example:
        lepto history intents
        lepto history intents --metric accuracy
    """
    from lepto.benchmarks.results import FACTS, TIMES, change_points, draw, read_history
    from lepto.runtime.console import Output

    if metric not in (*TIMES, *FACTS):
        raise LeptoError(f"--metric must be one of {', '.join((*TIMES, *FACTS))}, got {metric!r}")
    output = Output(as_json=as_json)
    stored = [one for one in read_history(name, results) if metric in one.values]
    if not stored:
        raise LeptoError(f"no stored result of {name!r} has {metric}: choose another --metric")
    groups: dict[str, list[Any]] = {}
    for one in stored:
        groups.setdefault("any hardware" if metric in FACTS else one.hardware, []).append(one)
    series = []
    for hardware, own in groups.items():
        values = [one.values[metric] for one in own]
        changes = change_points(values)
        output.print(f"{metric} of {name}, {len(own)} results, {hardware}")
        for line in draw(values, changes):
            output.print(line)
        for place in changes:
            before, after = values[place - 1], values[place]
            output.print(f"  changed at {own[place].when}: {before:.4g} → {after:.4g} ({after / before - 1:+.1%})")
        series.append(
            {
                "hardware": hardware,
                "values": values,
                "when": [one.when for one in own],
                "changes": [own[place].when for place in changes],
            }
        )
    output.result({"name": name, "metric": metric, "series": series})


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
    also: Annotated[
        list[str] | None, typer.Option(metavar="FORMAT:FILE", help="Write another format too; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a candidate against a baseline, in one run on one machine.

    Exits with 0 if every check passes, 1 on a regression, 2 on wrong usage or broken input, 3 if the data do not tell.
    Nothing passes by being left out: without --eval the accuracy is not checked and the gate is inconclusive, unless
    --checks or the gate file says that it is not wanted. Times are measured in randomised interleaved pairs on the same
    inputs, each side in its own process, and judged at declared looks; too few samples for a limit never pass.

    Checks: accuracy, worst-slice, flip-rate, kl, calibration, fairness, explanations, latency, throughput, load-time,
    memory, instructions, bytes.

    Example:
        lepto gate out/production out/candidate --eval test.csv --label-column category
        lepto gate model_repository/intents/3 out/candidate --config gate.yaml --format markdown
    """
    from lepto.benchmarks.formats import markdown, render
    from lepto.benchmarks.gate import Verdict, print_checks, run_gate
    from lepto.benchmarks.gate_config import GateConfig, read_config
    from lepto.runtime.console import Output

    how = Format.json if as_json else format_
    others = [_also(one) for one in also or ()]
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
    for kind, path in others:
        write_file(path, render(result, kind))
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


def _also(text: str) -> tuple[Format, Path]:
    kind, _, path = text.partition(":")
    kinds = [one.value for one in Format if one is not Format.text]
    if kind not in kinds or not path:
        raise LeptoError(f"--also must be FORMAT:FILE with one of {', '.join(kinds)}, got {text!r}")
    return Format(kind), Path(path)


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


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise LeptoError(f"{option} must be whole numbers with commas, such as 8,16,64, got {text!r}") from None
