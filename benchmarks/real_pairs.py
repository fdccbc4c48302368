"""``make prove-pairs``: the gate's verdicts on real pairs of packages, each of which is known beforehand.

The original, exported as it is, beside its compiled package; a package beside itself; the 8-bit package beside one in
which the scale of one layer's weights is doubled; and a package beside itself with a tenth of its time added.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import onnx
import typer
from onnx import numpy_helper

from lepto.benchmarks import scenarios
from lepto.benchmarks.checks.check import Verdict
from lepto.benchmarks.gate import run_gate
from lepto.benchmarks.gate_config import GateConfig, setting
from lepto.compiler.data import load_samples
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import MODEL, Package, open_package, write_package
from lepto.runtime.session import onnxruntime_session

_STORE = Path(__file__).parent / "baselines" / "real-pairs.json"
SLOWER: Final = 0.10
_SAMPLES: Final = 200
LIMITS: Final = {"accuracy": "3%", "flip-rate": "5 points", "latency": "5%", "bytes": "5%"}


@dataclass(frozen=True)
class Pair:
    """Two sides and the verdict that is right.

    Attributes:
        what: For people.
        baseline: In production.
        candidate: To replace it.
        expected: The right verdict.
        blamed: What the gate must name as the reason; empty where it need not say any.
        slow: Added to every run of the candidate, as a share of its time.
    """

    what: str
    baseline: Package
    candidate: Package
    expected: Verdict
    blamed: str = ""
    slow: float = 0.0


def real_pairs(
    original: Annotated[Path | None, typer.Option(help="A package of the plain export.")] = None,
    package: Annotated[Path | None, typer.Option(help="Its 8-bit package.")] = None,
    eval_: Annotated[str | None, typer.Option("--eval", help="Labelled samples.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Ask the gate about pairs whose verdict is known; exit 1 if it is wrong about one.

    Without packages the workload's model is trained and compiled first.

    Example: python -m lepto.benchmarks.real_pairs --original plain --package int8 --eval test.csv
    """
    given = (original, package, eval_)
    if any(one is None for one in given) and any(one is not None for one in given):
        raise LeptoError("give all of --original, --package and --eval, or none of them")
    output = Output(as_json=as_json)
    with tempfile.TemporaryDirectory(prefix="lepto-pairs-") as folder:
        work = Path(folder)
        if original is None or package is None or eval_ is None:
            from lepto.benchmarks import demo
            from lepto.benchmarks.workloads.shop_intents import workload as intents

            trained = demo.train(work / "model", output, 2, seed)
            first, second = demo.compile_both(trained.trained.folder, work, output, 2, seed)
            eval_ = str(intents.data_file("test"))
        else:
            first, second = open_package(original), open_package(package)
        config = GateConfig(
            eval=eval_, text_column=text_column, label_column=label_column, seed=seed,
            checks={name: setting(name, limit) for name, limit in LIMITS.items()},
        )  # fmt: skip
        samples = load_samples(
            eval_, split="test", text_column=text_column, label_column=label_column, labels=second.labels
        )
        feeds = scenarios.feeds_from_samples(second, samples)[:_SAMPLES]
        rows = [_judge(pair, config, output) for pair in pairs(first, second, feeds, work)]
    from lepto.benchmarks.independent import versions
    from lepto.compiler.compile import environment

    document = {"limits": LIMITS, "pairs": rows, "environment": environment(versions())}
    output.table(
        "verdicts on real pairs",
        ["pair", "right", "said", "seconds", "why"],
        [[row["pair"], row["expected"], row["verdict"], f"{row['seconds']:.1f}", row["why"][:100]] for row in rows],
    )
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    output.print(f"stored in {store}")
    output.result(document)
    if not all(row["right"] for row in rows):
        raise typer.Exit(1)


def pairs(original: Package, package: Package, feeds: Sequence[scenarios.Feed], work: Path) -> list[Pair]:
    """The four pairs.

    Args:
        original: The plain export.
        package: The same model with 8-bit weights.
        feeds: Samples, to find a layer to break.
        work: Where the broken package is written.
    """
    broken, node = break_a_layer(package, feeds, work / "broken")
    return [
        Pair("the original, its compiled package", original, package, Verdict.PASS),
        Pair("a package, itself", package, package, Verdict.PASS),
        Pair("int8, int8 with one layer's scale doubled", package, broken, Verdict.REGRESSION, node),
        Pair(f"a package, itself and {SLOWER:.0%} slower", package, package, Verdict.REGRESSION, "", SLOWER),
    ]


def break_a_layer(package: Package, feeds: Sequence[scenarios.Feed], folder: Path) -> tuple[Package, str]:
    """A copy of an 8-bit package in which the weights of one layer are twice what they were.

    The layer is the one whose break changes most answers: a network shrugs others off, and the gate is right to.

    Args:
        package: With dense layers of 8-bit weights.
        feeds: Samples to find the layer with.
        folder: Where the copy is written.

    Returns:
        The package, and the node's name.

    Raises:
        LeptoError: It has no dense layer with 8-bit weights.
    """
    model = onnx.load(package.path / MODEL)
    values = {one.name: one for one in model.graph.initializer}
    # onnxruntime's quantizer names a weight's parts after it.
    found = [
        (node.name, values[scale])
        for node in model.graph.node
        if node.op_type == "MatMulInteger" and (scale := node.input[1].removesuffix("_quantized") + "_scale") in values
    ]
    if not found:
        raise LeptoError(f"{package.path} has no dense layer with 8-bit weights: compile it with quantize-dynamic")

    def answers() -> list[int]:
        session = onnxruntime_session(model.SerializeToString(), threads=2)
        return [int(session.run(["logits"], dict(feed))[0][0].argmax()) for feed in feeds]

    right, changed = answers(), []
    for _, scale in found:
        whole = scale.SerializeToString()
        scale.CopyFrom(numpy_helper.from_array(np.asarray(2 * numpy_helper.to_array(scale)), scale.name))
        changed.append(sum(a != b for a, b in zip(answers(), right, strict=True)))
        scale.ParseFromString(whole)
    node, scale = found[int(np.argmax(changed))]
    scale.CopyFrom(numpy_helper.from_array(np.asarray(2 * numpy_helper.to_array(scale)), scale.name))
    data = model.SerializeToString()
    inputs, outputs = package.probe()
    made = onnxruntime_session(data, threads=1).run(list(outputs), dict(inputs))
    result = package.manifest.result.model_copy(
        update={"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data), "metric": None, "agreement": None}
    )
    written = write_package(
        folder,
        manifest=package.manifest.model_copy(update={"result": result, "files": {}}),
        model=data,
        tokenizer=None if package.tokenizer_path is None else package.tokenizer_path.read_text(encoding="utf-8"),
        labels=package.labels,
        probe={
            **{f"input/{name}": array for name, array in inputs.items()},
            **{f"output/{name}": array for name, array in zip(outputs, made, strict=True)},
        },
        card="# broken on purpose\n",
    )
    return written, node


def _judge(pair: Pair, config: GateConfig, output: Output) -> dict[str, Any]:
    output.print(f"\n[bold]{pair.what}[/]")
    result = run_gate(pair.baseline.path, pair.candidate.path, config, output, slow=pair.slow)
    lines = list(result.blame)
    named = not pair.blamed or any(pair.blamed in line for line in lines)
    for check in result.checks:
        output.print(f"{check.verdict.value}: {check.message}")
    why = next((check.message for check in result.checks if check.verdict is result.verdict), "")
    return {
        "pair": pair.what,
        "expected": pair.expected.value,
        "verdict": result.verdict.value,
        "right": result.verdict is pair.expected and named,
        "named": pair.blamed if named else f"{pair.blamed} was not named",
        "seconds": round(result.seconds, 1),
        "why": why,
        "checks": [check.message for check in result.checks],
        "blame": lines,
    }


if __name__ == "__main__":
    typer.run(real_pairs)
