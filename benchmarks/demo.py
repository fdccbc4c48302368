"""The whole road on the embedded default: train, compile, gate, publish, serve, ask. ``make demo`` runs it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from lepto.benchmarks.workloads.shop_intents import workload as intents
from lepto.runtime.console import Output, size_text
from lepto.runtime.errors import LeptoError

if TYPE_CHECKING:
    from lepto.benchmarks.gate import Check
    from lepto.runtime.manifest import Manifest, Result, Source
    from lepto.runtime.package import Package
    from lepto.runtime.repository import Published

STEPS: Final = 5
PAGE: Final = Path("build/demo/report.html")
# Left out, the plan would be chosen by measurement: that also calibrates static quantization, for minutes.
PASSES: Final = ("fuse", "quantize-dynamic")
MAX_DROP: Final = "2%"
# The gate wants the confidence bound inside the limit, not the estimate; with some 900 sentences it lies a point lower.
GATE_DROP: Final = "3%"


def run(repository: Path, output: Output, *, threads: int = 2, seed: int = 0, page: Path = PAGE) -> dict[str, Any]:
    """Run the demo; whatever happens, only the published model and the report are left behind.

    Args:
        repository: The model repository to publish into.
        output: Where it tells what it does.
        threads: Of training and of the compiled model.
        seed: Of everything random.
        page: Where the report is written; one that is there is replaced.

    Returns:
        What was measured and answered.

    Raises:
        LeptoError: A step failed, or the gate did not let the package pass; nothing was published then.
    """
    from lepto.runtime.repository import publish
    from lepto.runtime.tritonserver import find_installation

    start = time.monotonic()
    find_installation()  # before minutes of work, not after them
    with tempfile.TemporaryDirectory(prefix="lepto-demo-") as folder:
        work = Path(folder)
        trained = train(work / "model", output, threads, seed)
        original, package = compile_both(trained.trained.folder, work, output, threads, seed)
        checks = _gate(original, package, output, seed)
        _step(output, 4, "publish")
        published = publish(package, repository)
        output.print(f"version {published.version} of {published.name} in {escape(str(repository))}")
        answers = _ask(published, package, repository, output)
        _summarise(package.manifest, output)
        _report(package, trained.trained.folder, checks, page, work, output)
        output.print(
            f"done in {time.monotonic() - start:.0f} s; serve it again with: "
            f"lepto serve --model-repository {escape(str(repository))}"
        )
        return {
            "model": published.name,
            "version": published.version,
            "repository": str(repository),
            "weights": trained.weights.source,
            "source": package.manifest.source.model_dump(mode="json"),
            "result": package.manifest.result.model_dump(mode="json"),
            "gate": [check.message for check in checks],
            "answers": answers,
            "report": str(page),
            "seconds": round(time.monotonic() - start, 1),
        }


def _step(output: Output, number: int, what: str) -> None:
    output.print(f"\n[bold]{number}/{STEPS} {what}[/]")


def train(folder: Path, output: Output, threads: int, seed: int) -> intents.Result:
    """The original, fine-tuned."""
    from dataclasses import replace

    _step(output, 1, f"fine-tune all-MiniLM-L6-v2 on {intents.NAME}")
    return intents.train(folder, replace(intents.SCHEDULE, seed=seed), threads=threads, output=output)


def compile_both(model: Path, work: Path, output: Output, threads: int, seed: int) -> tuple[Package, Package]:
    """The baseline of the gate, a plain export of the original, and the compiled package."""
    from lepto.compiler import Recipe, compile_model

    common: dict[str, Any] = {
        "model": str(model),
        "task": "text-classification",
        "train": str(intents.data_file("train")),
        "eval": str(intents.data_file("test")),
        "text_column": "text",
        "label_column": "label",
        "max_drop": MAX_DROP,
        "threads": threads,
        "seed": seed,
    }
    _step(output, 2, "compile: first a plain export to compare with, then the real thing")
    plain = Recipe(**common, name=f"{intents.NAME}-original", passes=())
    original = compile_model(plain, work / "original", console=output)
    light = Recipe(**common, name=intents.NAME, passes=PASSES)
    return original, compile_model(light, work / "package", console=output)


def _gate(original: Package, package: Package, output: Output, seed: int) -> tuple[Check, ...]:
    from lepto.benchmarks.gate import Verdict, print_checks, run_gate
    from lepto.benchmarks.gate_config import GateConfig, setting

    _step(output, 3, "gate: the package against the plain export")
    limits = {"accuracy": GATE_DROP, "latency": "5%", "bytes": "5%"}
    checks = {name: setting(name, limit) for name, limit in limits.items()}
    config = GateConfig(eval=str(intents.data_file("test")), seed=seed, checks=checks)
    result = run_gate(original.path, package.path, config, output)
    print_checks(output, result)
    if result.verdict is not Verdict.PASS:
        said = f"the gate says {result.verdict.value}: nothing was published. {advice(result.checks)}"
        raise LeptoError(said, exit_code=result.verdict.exit_code)
    return result.checks


def advice(checks: Sequence[Check]) -> str:
    """What a newcomer can do about a gate that did not pass."""
    from lepto.benchmarks.gate import Verdict, overall
    from lepto.runtime.measure import machine_load

    verdict = overall(checks)
    names = [check.name for check in checks if check.verdict is verdict]
    if verdict is Verdict.REGRESSION:
        return f"Your installation works; the package itself is worse in {', '.join(names)}: try another --seed"
    said = "Nothing is broken: the gate only lets pass what it can show. "
    if all(name.endswith("_ms") for name in names):
        load = machine_load()
        busy = "" if load.average_1min is None else f" (load {load.average_1min:.1f} on {load.cpus} CPUs)"
        return (
            f"{said}This machine is too busy to time {' and '.join(names)}{busy}: end other programs, and run the same "
            "command again; where it never gets quiet, time on another machine"
        )
    return f"{said}{', '.join(names)} could not be decided with these samples: run it again with another --seed"


def _ask(published: Published, package: Package, repository: Path, output: Output) -> list[dict[str, Any]]:
    """Serve the repository, send the sentences as strings, and compare with the package itself."""
    from lepto.runtime.client import TextClient
    from lepto.runtime.server import Server
    from lepto.runtime.text import TextClassifier

    _step(output, 5, "serve it with tritonserver and ask")
    texts = list(intents.SENTENCES)
    with Server(repository, http_port=0, grpc_port=0, metrics_port=0, say=_escaped(output)) as server:
        output.print(f"serving on http://{server.http_url}")
        with TextClient(server.http_url, published.name) as client:
            served = [found[0] for found in client.classify(texts)]
    here = [found[0] for found in TextClassifier(package).predict(texts)]
    different = [text for text, one, two in zip(texts, served, here, strict=True) if one.index != two.index]
    if different:
        raise LeptoError(f"the server answers {different[0]!r} otherwise than the package does", exit_code=1)
    output.table(
        "answers of the server, the same as the package's own",
        ["sentence", "label", "score"],
        [[text, one.label, f"{one.score:.4f}"] for text, one in zip(texts, served, strict=True)],
    )
    output.print("server stopped")
    return [{"text": text, "label": one.label, "score": one.score} for text, one in zip(texts, served, strict=True)]


def _report(package: Package, model: Path, checks: Sequence[Check], page: Path, work: Path, output: Output) -> None:
    """One page about the package: its passes, answers, slices, what changed and why, and the gate's verdict."""
    import json

    from lepto.benchmarks.gate import as_document
    from lepto.benchmarks.report.command import write_report
    from lepto.benchmarks.report.measured import Request

    verdict = work / "gate.json"
    verdict.write_text(json.dumps(as_document(checks), default=str), encoding="utf-8")
    request = Request(str(intents.data_file("test")), str(model), "text", "label", ("template",), 24)
    write_report([package.path, verdict], page, request, output)
    output.print(f"report: {escape(str(page))}")


def _summarise(manifest: Manifest, output: Output) -> None:
    source, result = manifest.source, manifest.result
    before, after, speed = source.metric, result.metric, result.speedup
    assert before is not None  # it was compiled with evaluation data
    assert after is not None
    assert speed is not None
    faster = f"{speed.value:.1f} x faster ({speed.low:.1f} to {speed.high:.1f})"
    drop = f"{100 * (after.value - before.value):+.2f} points"
    output.print()
    output.table(
        f"package and original ({speed.against}, measured in pairs)",
        ["", "original", "package", "change"],
        [
            ["size", *(size_text(size) for size in (source.bytes, result.bytes)), _times(source, result)],
            ["p50", _ms(source.p50_ms), _ms(result.p50_ms), faster],
            ["accuracy", f"{before.value:.2%}", f"{after.value:.2%}", drop],
        ],
    )


def _times(source: Source, result: Result) -> str:
    return f"{source.bytes / result.bytes:.1f} x smaller"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _escaped(output: Output) -> Callable[[str], None]:
    return lambda line: output.print(escape(line))


def main() -> None:
    """``python -m lepto.benchmarks.demo`` is ``lepto workload demo``."""
    from lepto.runtime.cli import main as lepto

    lepto(["workload", "demo", *sys.argv[1:]])


if __name__ == "__main__":
    main()
