"""``make bench-ablation``: what each pass of a search bought, on one model and its data; the table is stored.

The shape is the one that the search chose (its result comes from the cache). From there every row leaves out or adds
one thing: accuracy on the evaluation data, and the median latency of all rows side by side in one run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

_SHARED = Path(__file__).parents[2] / "shared"
_STORE = Path(__file__).parent / "baselines" / "ablation.json"
_SECONDS = 1800.0
"""The default search's time: it decides how many samples the source is asked about."""


def ablation(
    model: Annotated[str, typer.Option(help="The source model.")] = str(_SHARED / "models" / "minilm-banking77"),
    train: Annotated[str, typer.Option(help="Training data.")] = str(_SHARED / "data" / "banking77" / "train.csv"),
    eval_: Annotated[str, typer.Option("--eval", help="Evaluation data.")] = str(
        _SHARED / "data" / "banking77" / "test.csv"
    ),
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "category",
    shape: Annotated[str | None, typer.Option(help="The student's shape, as a search names it.")] = None,
    epochs: Annotated[float, typer.Option(help="How long every student is taught.")] = 4.0,
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Measure what every pass bought, one added after the other.

    Example: python -m lepto.benchmarks.ablation --model ./my-model --train train.csv --eval test.csv
    """
    for path in (train, eval_):
        if not Path(path).is_file():
            raise LeptoError(f"{path} does not exist: name the model and the data with --model, --train and --eval")
    output = Output(as_json=as_json)
    output.settings("ablation", {"model": model, "epochs": epochs, "shape": shape, "store": store})
    document = _measure(model, train, eval_, text_column, label_column, shape, epochs, output)
    columns = ["what", "accuracy", "p50", "x eager", "bytes"]
    rows = [
        [
            row["what"],
            "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}",
            f"{row['p50_ms']:.3f} ms",
            f"{document['rows'][0]['p50_ms'] / row['p50_ms']:.1f}",
            f"{row['bytes'] / 1e6:.2f} MB",
        ]
        for row in document["rows"]
    ]
    output.table(f"ablation, {document['shape']}", columns, rows)
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(document, indent=2) + "\n")
    output.print(f"stored in {store}")
    output.result(document)


def _measure(
    model: str, train: str, eval_: str, text: str, label: str, shape: str | None, epochs: float, output: Output
) -> dict[str, Any]:
    import importlib.metadata

    from lepto.compiler.cache import Cache
    from lepto.compiler.compile import environment
    from lepto.compiler.context import Context
    from lepto.compiler.costs import quick_int8
    from lepto.compiler.data import load_samples
    from lepto.compiler.derived import copy_module, derive
    from lepto.compiler.encoder import Encoder
    from lepto.compiler.export.again import Exporter
    from lepto.compiler.export.onnx import export_onnx
    from lepto.compiler.groundwork import Groundwork
    from lepto.compiler.model import OnnxModel
    from lepto.compiler.passes.fuse import Fuse
    from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic
    from lepto.compiler.passes.quantize_static import QuantizeStatic
    from lepto.compiler.setting import Setting
    from lepto.compiler.source import Source, open_source
    from lepto.compiler.training.guide import Guide
    from lepto.compiler.training.loop import Schedule
    from lepto.compiler.training.loop import train as teach
    from lepto.compiler.verify import encode, logits_in_batches, logits_one_by_one, runner
    from lepto.runtime.machine import this_machine
    from lepto.runtime.measure import interleave

    source = open_source(model)
    read: dict[str, Any] = {"text_column": text, "label_column": label, "labels": source.labels}
    samples = load_samples(train, split="train", **read)
    evaluation = load_samples(eval_, split="test", **read)
    machine = this_machine()
    versions = {name: importlib.metadata.version(name) for name in ("lepto", "torch", "transformers", "onnxruntime")}
    setting = Setting(
        source,
        threads=2,
        seed=0,
        cache=Cache(),
        versions=versions,
        machine=f"{machine.cpu}, {machine.cpus} CPUs",
        seconds=_SECONDS,
    )
    # The parts of a search; its decisions are none of this, so that the evaluation data steers nothing.
    ground = Groundwork(setting, samples)
    base, lesson, _ = ground.base()
    cutter = ground.cutter(base, lesson)
    shapes = {str(one): one for one in cutter.shapes()}
    if shape is not None and shape not in shapes:
        raise LeptoError(f"no shape {shape!r}; there are: {'; '.join(shapes)}")
    chosen = shapes[shape] if shape is not None else list(shapes.values())[len(shapes) // 3]
    cut = cutter.cut(chosen)

    models: dict[str, tuple[OnnxModel, Source]] = {}
    scores: dict[str, float] = {}

    def score(what: str, of: Source) -> None:
        logits = logits_in_batches(of.runner(2), evaluation, of.text, lambda _: None)
        scores[what] = float((logits.argmax(1) == evaluation.labels).mean())
        output.print(f"{what}: {scores[what]:.4f}")

    def taught(what: str, schedule: Schedule, *, augmented: bool = True, guided: bool = False) -> Source:
        module = copy_module(cut)
        guide = None
        if guided:
            teacher, student = Encoder.of(copy_module(source)), Encoder.of(module)
            assert teacher is not None
            assert student is not None
            guide = Guide(teacher, student, [lesson.original, *lesson.augmented], hidden=1.0, relations=1.0)
        # Without copies an epoch has half the samples: as many steps all the same.
        pools = lesson.student[1:] if augmented else ()
        longer = schedule if augmented else dataclasses.replace(schedule, epochs=2 * schedule.epochs)
        teach(module, lesson.path, lesson.student[0], pools, longer, guide=guide, name=what)
        made = derive(cut, module)
        score(what, made)
        return made

    eager = export_onnx(source, threads=2).model
    fused = Fuse()(eager, Context(threads=2, layers=source.layers))
    models["export"] = (eager, source)
    models["+ fuse"] = (fused, source)
    models["+ dynamic int8"] = (QuantizeDynamic()(fused, Context(threads=2)), source)
    models["fuse, trimmed vocabulary, dynamic int8"] = (quick_int8(base, export=Exporter(2), reduce_range=False), base)
    constants = Context(threads=2, layers=cut.layers, constant_inputs={"token_type_ids": 0})
    schedule = Schedule(epochs=epochs, learning_rate=1e-3)
    students = {
        "pruned, not taught": cut,
        "pruned, taught by labels alone": taught(
            "labels alone", dataclasses.replace(schedule, logits=0.0, features=0.0, labels=1.0), augmented=False
        ),
        "pruned, distilled, no augmented copies": taught("no copies", schedule, augmented=False),
        "pruned, distilled": taught("distilled", schedule),
        "pruned, distilled, hidden states and relations too": taught("guided", schedule, guided=True),
    }
    score("pruned, not taught", cut)
    for what, student in students.items():
        models[f"{what}, fused float"] = (Fuse()(export_onnx(student, threads=2).model, constants), student)
    best = students["pruned, distilled"]
    fused = models["pruned, distilled, fused float"][0]
    models["pruned, distilled, dynamic int8"] = (QuantizeDynamic()(fused, constants), best)
    calibrated = dataclasses.replace(constants, calibration=encode(samples.inputs, best.text))
    models["pruned, distilled, static int8"] = (QuantizeStatic()(fused, calibrated), best)

    texts = evaluation.inputs
    feeds = {id(of): encode(texts, of.text) for _, of in models.values()}
    runs: dict[str, Any] = {}
    root_run, root_feeds = source.runner(2), encode(texts, source.text)
    runs["PyTorch eager"] = lambda i: root_run(root_feeds[i])
    for what, (made, of) in models.items():
        run = runner(made, 2)
        scores[what] = float(
            (logits_one_by_one(run, feeds[id(of)], lambda _: None).argmax(1) == evaluation.labels).mean()
        )
        output.print(f"{what}: {scores[what]:.4f}, {made.bytes / 1e6:.2f} MB")
        own = feeds[id(of)]
        runs[what] = lambda i, run=run, own=own: run(own[i])
    score("PyTorch eager", source)
    seconds = interleave(runs, list(range(len(root_feeds))), blocks=24, per_block=20, warmup=5, seed=0)
    sizes = {what: made.bytes for what, (made, _) in models.items()} | {"PyTorch eager": source.bytes}
    return {
        "shape": str(chosen),
        "epochs": epochs,
        "rows": [
            {
                "what": what,
                "accuracy": scores[what],
                "p50_ms": float(np.median(times)) * 1e3,
                "bytes": sizes[what],
            }
            for what, times in seconds.items()
        ],
        "environment": environment(
            {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "transformers")}
        ),
    }


if __name__ == "__main__":
    typer.run(ablation)
