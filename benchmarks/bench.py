"""``lepto bench``: packages in interleaved blocks, or one target under MLPerf's load."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lepto.benchmarks import scenarios, words
from lepto.benchmarks.comparison import bar
from lepto.benchmarks.inputs import Inputs
from lepto.benchmarks.instructions import find_valgrind
from lepto.benchmarks.loadgen import TRIALS, Result, run_scenario
from lepto.benchmarks.more import counted, on_gpu
from lepto.benchmarks.results import store
from lepto.benchmarks.sides import Side, open_sides, result_document
from lepto.benchmarks.targets import InProcess, Served, Url, parse_url, server_versions
from lepto.benchmarks.workers import Feed, Pairs, Subject, others_busy, spread
from lepto.compiler.data import Samples
from lepto.compiler.metrics import metric
from lepto.compiler.statistics import log_ratios, ratio_interval
from lepto.compiler.words import word_outputs
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import package_versions, this_machine
from lepto.runtime.manifest import Metric
from lepto.runtime.measure import machine_load
from lepto.runtime.package import Package
from lepto.runtime.session import Session

VERSIONS: Final = ("lepto", "onnxruntime", "numpy", "tokenizers", "tritonclient", "mlcommons-loadgen")


@dataclass(frozen=True)
class Load:
    """A scenario and its settings."""

    scenario: str
    seconds: float
    bound_ms: float
    workers: int


@dataclass(frozen=True)
class How:
    """How packages are measured side by side.

    Attributes:
        blocks: Interleaved blocks.
        threads: Intra-op threads; by default the first package's.
        seed: Of all random orders.
        instructions: Whether instructions are counted, too.
        device: ``cpu`` or ``cuda``.
        graph: On a GPU, whether runs are replays of captured graphs.
    """

    blocks: int
    threads: int | None
    seed: int
    instructions: bool = False
    device: str = "cpu"
    graph: bool = True


def bench_pairs(references: Sequence[str], inputs: Inputs, how: How, output: Output) -> dict[str, Any]:
    """Measure packages side by side; the first is measured twice, which gives the A/A spread.

    Raises:
        LeptoError: A package or what is to be measured of it is not there, or cannot be measured on this machine.
    """
    blocks, seed = how.blocks, how.seed
    if how.instructions:
        find_valgrind()  # said before anything is measured
    if how.device == "cuda":
        from lepto.benchmarks import gpu

        gpu.find_gpu()
    served = [reference for reference in references if parse_url(reference) and not Path(reference).exists()]
    if served:
        raise LeptoError(f"{served[0]} is a served model: measure it with --scenario single-stream, for example")
    with open_sides(*references) as sides:
        packages = [_package(side) for side in sides]
        for other in packages[1:]:
            scenarios.check_comparable(packages[0], other)
        threads = how.threads or packages[0].manifest.threads
        environment = _environment()
        output.settings(
            "bench",
            {
                "packages": ", ".join(references), "inputs": inputs, "threads": threads, "blocks": blocks, "seed": seed,
                "device": how.device,
                "load": f"{environment['load']['average_1min']} on {environment['load']['cpus']} CPUs",
            },
        )  # fmt: skip
        samples = inputs.samples(packages[0].labels, packages[0].manifest.task)
        feeds = inputs.feeds(packages, samples)
        chosen = spread(feeds[0])
        subjects = [
            Subject(package, [own[i] for i in chosen], threads) for package, own in zip(packages, feeds, strict=True)
        ]
        pairs = Pairs([*subjects, subjects[0]], seed=seed)
        with bar(output, "measuring", blocks) as progress:
            pairs.measure(blocks, progress)
        documents = [_row(i, sides, packages, feeds, pairs, samples, threads, output) for i in range(len(packages))]
        more: dict[str, Any] = {}
        if how.instructions:
            counted(documents, packages, feeds, output)
        if how.device == "cuda":
            more["gpu"] = on_gpu(documents, packages, [[own[i] for i in chosen] for own in feeds], how, output)
        same = log_ratios(pairs.seconds[0], pairs.seconds[-1])
        aa = {**asdict(ratio_interval(pairs.seconds[0], pairs.seconds[-1])), "sd_of_a_pair": float(same.std(ddof=1))}
    _table(documents, threads, blocks, pairs.runs or 0, output)
    output.print(
        f"A/A: the first beside itself is {aa['value']:.3f} times as fast ({aa['low']:.3f} to {aa['high']:.3f}); one "
        f"pair of blocks varies by {aa['sd_of_a_pair']:.1%}"
    )
    return {
        "threads": threads, "blocks": blocks, "runs": pairs.runs, "seed": seed, "aa": aa, **environment,
        **more, "packages": documents,
    }  # fmt: skip


def _package(side: Side) -> Package:
    if side.package is None:
        raise LeptoError(f"{side.name} is a stored result: give a package, or compare with `lepto gate`")
    return side.package


def _row(
    i: int,
    sides: Sequence[Side],
    packages: Sequence[Package],
    feeds: Sequence[Sequence[Feed]],
    pairs: Pairs,
    samples: Samples | None,
    threads: int,
    output: Output,
) -> dict[str, Any]:
    seconds, package = pairs.seconds[i], packages[i]
    classes, measured = _answers(package, feeds[i], samples, threads, output)
    name = None if measured is None else measured.name
    loaded = pairs.loaded[i]
    ratio = ratio_interval(pairs.seconds[0], seconds) if i else None
    names = [package.manifest.name for package in packages]
    return result_document(
        sides[i],
        data_digest=None if samples is None else samples.digest,
        classes=classes,
        package=sides[i].name,
        shown=names[i] if names.count(names[i]) == 1 else sides[i].name,
        **asdict(scenarios.Latency.of(seconds)),
        cpu_ms=1e3 * pairs.cpu_s[i],
        load_ms=1e3 * float(np.median([one.load_s for one in loaded])),
        first_request_ms=1e3 * float(np.median([one.seconds - one.load_s for one in loaded])),
        memory_bytes=int(np.median([one.memory_bytes for one in loaded])),
        speedup=None if ratio is None else asdict(ratio) | {"against": names[0]},
        metric=None if measured is None else measured.model_dump(),
        accuracy=measured.value if measured is not None and name == "accuracy" else None,
        accuracy_interval=[measured.low, measured.high] if measured is not None and name == "accuracy" else None,
        f1=measured.value if measured is not None and name == "f1" else None,
    )


def _answers(
    package: Package, feeds: Sequence[Feed], samples: Samples | None, threads: int, output: Output
) -> tuple[list[Any] | None, Metric | None]:
    """What the package answers, a class or a row of labels for each sample, and the metric that it makes."""
    if samples is None or samples.labels.ndim != 1:
        return None, None
    session = Session(package, threads=threads)
    try:
        return _asked(package, session, feeds, samples, output)
    except ValueError as error:
        raise LeptoError(f"{package.path}: {error}; run `lepto verify` on it") from error


def _asked(
    package: Package, session: Session, feeds: Sequence[Feed], samples: Samples, output: Output
) -> tuple[list[Any], Metric]:
    with bar(output, f"answers of {package.manifest.name}", len(feeds)) as progress:
        if words.has_words(samples):
            rows = words.ask(session, feeds, places := words.first_places(package, samples), progress)
            everywhere = [list(range(len(own))) for own in places]
            return [words.decide(row) for row in rows], metric(word_outputs(rows, everywhere), samples)
        name = scenarios.scores_output(session)
        found = []
        for i, feed in enumerate(feeds):
            found.append(session.run(feed)[name][0])
            progress(i + 1, len(feeds))
    outputs = np.stack(found)
    return [int(row.argmax()) for row in found], metric(outputs, samples)


def _table(documents: Sequence[dict[str, Any]], threads: int, blocks: int, runs: int, output: Output) -> None:
    rows = []
    for one in documents:
        speedup = one["speedup"]
        rows.append(
            [
                one["shown"],
                *(f"{one[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
                f"{one['throughput']:,.0f}",
                f"{one['cpu_ms']:.3f}",
                f"{one['bytes'] / 1e6:.2f}",
                f"{one['memory_bytes'] / 1e6:.1f}",
                f"{one['load_ms']:.0f}",
                f"{one['first_request_ms']:.1f}",
                "1" if speedup is None else f"{speedup['value']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})",
                _metric(one["metric"]),
            ]
        )
    columns = ["package", "p50 ms", "p90 ms", "p99 ms", "samples/s", "CPU ms", "MB", "memory MB", "load ms", "first ms"]
    output.table(
        f"batch 1, {threads} threads, {blocks} blocks of {runs} runs",
        [*columns, f"times as fast as {documents[0]['shown']} (95 %)", "metric"],
        rows,
    )


def bench_scenario(
    reference: str, inputs: Inputs, load: Load, threads: int | None, seed: int, output: Output
) -> dict[str, Any]:
    """Run one of MLPerf's scenarios against a package or a served model."""
    url = None if Path(reference).exists() else parse_url(reference)
    environment = _environment()
    about = load.seconds * (TRIALS if load.scenario == "server" else 1)
    output.settings(
        "bench",
        {
            "target": reference, "scenario": load.scenario, "inputs": inputs, "threads": threads or "(the package's)",
            "seconds": f"{load.seconds:g} (about {about:.0f} in all)",
            "bound": f"{load.bound_ms:g} ms" if load.scenario == "server" else None,
            "workers": load.workers, "seed": seed,
            "load": f"{environment['load']['average_1min']} on {environment['load']['cpus']} CPUs",
        },
    )  # fmt: skip
    if url is not None:
        found, facts = _served(url, inputs, load, seed, output)
    else:
        found, facts = _in_process(reference, inputs, load, threads, seed, output)
    output.table(
        f"{load.scenario}: {facts['name']}",
        ["metric", "value", "p50 ms", "p90 ms", "p99 ms", "samples/s", "CPU ms", "samples", "valid"],
        [
            [
                found.metric,
                f"{found.value:,.4g}",
                *(_number(one) for one in (found.p50_ms, found.p90_ms, found.p99_ms)),
                f"{found.throughput:,.1f}", f"{found.cpu_ms:.3f}", f"{found.queries:,}", "yes" if found.valid else "no",
            ]
        ],
    )  # fmt: skip
    if not found.valid:
        output.print("[yellow]the load generator calls this run too short to be valid: raise --seconds[/]")
    measured = {key: _plain(value) for key, value in asdict(found).items()}
    return {**facts, **environment, **measured, "seed": seed, "workers": load.workers}


def _served(url: Url, inputs: Inputs, load: Load, seed: int, output: Output) -> tuple[Result, dict[str, Any]]:
    if inputs.lengths is not None:
        raise LeptoError("--lengths are of tokens, and a server takes texts: give --eval")
    target = Served(url, inputs.unlabelled(), max(load.workers, 8))
    try:
        found = _run(target, load, seed, output)
    finally:
        target.close()
    return found, {"name": url.model, "target": target.name, **server_versions(url)}


def _in_process(
    reference: str, inputs: Inputs, load: Load, threads: int | None, seed: int, output: Output
) -> tuple[Result, dict[str, Any]]:
    with open_sides(reference) as sides:
        package = _package(sides[0])
        samples = inputs.samples(package.labels, package.manifest.task)
        (feeds,) = inputs.feeds([package], samples)
        target = InProcess(package, feeds, threads or package.manifest.threads)
        found = _run(target, load, seed, output)
        facts = result_document(
            sides[0], data_digest=None if samples is None else samples.digest, classes=None, target=reference
        )
    return found, {
        **facts, "load_ms": 1e3 * target.load_s, "first_request_ms": 1e3 * target.first_s,
        "threads": threads or package.manifest.threads,
    }  # fmt: skip


def _run(target: InProcess | Served, load: Load, seed: int, output: Output) -> Result:
    with bar(output, f"{load.scenario}: {target.name}", 100) as progress:
        return run_scenario(
            target,
            load.scenario,
            seconds=load.seconds,
            bound_ms=load.bound_ms,
            workers=load.workers,
            seed=seed,
            advance=lambda share: progress(round(100 * share), 100),
        )


def store_all(document: dict[str, Any], folder: Path) -> list[Path]:
    """Store what was measured of each package."""
    common: dict[str, Any] = {
        key: document[key] for key in ("versions", "hardware", "load", "others_busy", "aa", "gpu") if key in document
    }
    if "packages" in document:
        return [store({**one, **common}, folder) for one in document["packages"]]
    return [store({**document, "schema": "lepto.scenario/1"}, folder / "scenarios")]


def _environment() -> dict[str, Any]:
    machine = this_machine()
    return {
        "hardware": machine.cpu,
        "cpus": machine.cpus,
        "versions": package_versions(VERSIONS),
        "load": asdict(machine_load()),
        "others_busy": others_busy(0.3),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _metric(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['name']} {found['value']:.2%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
