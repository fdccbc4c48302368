"""``make bench``: the one compile command on a real model, timed, and its result stored with versions and hardware.

The compile starts with an empty cache, so that its time is that of a first run; its speed-up comes from its own
interleaved comparison with PyTorch eager, and a second, independent comparison repeats it in other blocks.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError

_SHARED = Path(__file__).parents[2] / "shared"
_STORE = Path(__file__).parent / "baselines" / "road.json"


def road(
    model: Annotated[str, typer.Option(help="The source model.")] = str(_SHARED / "models" / "minilm-banking77"),
    train: Annotated[str, typer.Option(help="Training data.")] = str(_SHARED / "data" / "banking77" / "train.csv"),
    eval_: Annotated[str, typer.Option("--eval", help="Evaluation data.")] = str(
        _SHARED / "data" / "banking77" / "test.csv"
    ),
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "category",
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Compile a real model twice, with dynamic int8 and with the plan chosen by measurement, and store what came out.

    Example: python -m lepto.benchmarks.road --model ./my-model --train train.csv --eval test.csv --label-column label
    """
    for path in (train, eval_):
        if not Path(path).is_file():
            raise LeptoError(f"{path} does not exist: name the model and the data with --model, --train and --eval")
    output = Output(as_json=as_json)
    output.settings("road", {"model": model, "train": train, "eval": eval_, "store": store})
    common = {
        "model": model,
        "train": train,
        "eval": eval_,
        "text_column": text_column,
        "label_column": label_column,
        "threads": 2,
    }
    runs = {
        "fuse,quantize-dynamic": _measure({**common, "passes": "fuse,quantize-dynamic"}, output),
        "chosen by measurement": _measure({**common, "search_budget": "0"}, output),
    }
    rows = [
        [
            name,
            f"{run['compile_seconds']:.0f} s",
            f"{run['source_metric']:.2%} → {run['metric']:.2%}",
            f"{run['package_bytes'] / 1e6:.1f} MB",
            f"{run['p50_ms']:.2f} ms",
            f"{run['speedup']['value']:.2f} ({run['speedup']['low']:.2f}-{run['speedup']['high']:.2f})",
            f"{run['again']['value']:.2f} ({run['again']['low']:.2f}-{run['again']['high']:.2f})",
        ]
        for name, run in runs.items()
    ]
    columns = ["passes", "compile", "accuracy", "package", "p50", "x eager", "x eager, again"]
    output.table("batch 1, 2 threads, real lengths", columns, rows)
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(json.dumps(runs, indent=2) + "\n")
    output.print(f"stored in {store}")
    output.result(runs)


def _measure(values: dict[str, Any], output: Output) -> dict[str, Any]:
    from lepto.compiler.cache import Cache
    from lepto.compiler.compile import compile_model
    from lepto.compiler.data import load_samples
    from lepto.compiler.recipe import make_recipe
    from lepto.compiler.source import open_source
    from lepto.compiler.statistics import ratio_interval
    from lepto.compiler.verify import encode
    from lepto.runtime.measure import interleave, machine_load
    from lepto.runtime.session import Session

    with tempfile.TemporaryDirectory(prefix="lepto-") as folder:
        recipe = make_recipe(values)
        load = machine_load()
        start = time.monotonic()
        package = compile_model(recipe, Path(folder) / "package", console=output, cache=Cache(Path(folder) / "cache"))
        seconds = time.monotonic() - start
        source, session = open_source(recipe.model), Session(package)
        samples = load_samples(
            str(recipe.eval),
            text_column=recipe.text_column,
            label_column=recipe.label_column,
            labels=source.labels,
            split="test",
            task=source.task,
        )
        feeds = encode(samples.inputs, source.text)
        runners: dict[str, Any] = {"eager": source.runner(recipe.threads), "package": session.run}
        times = interleave(runners, feeds, blocks=24, per_block=40, warmup=10, seed=1)
        again = ratio_interval(times["eager"], times["package"])
        manifest = package.manifest
        result = manifest.result
        assert result.speedup is not None
        return {
            "compile_seconds": round(seconds, 1),
            "source_metric": None if manifest.source.metric is None else manifest.source.metric.value,
            "metric": None if result.metric is None else result.metric.value,
            "model_bytes": result.bytes,
            "package_bytes": sum(file.stat().st_size for file in package.path.iterdir()),
            "source_p50_ms": manifest.source.p50_ms,
            "p50_ms": result.p50_ms,
            "speedup": result.speedup.model_dump(),
            "again": {"value": again.value, "low": again.low, "high": again.high, "against": result.speedup.against},
            "batch_invariant": result.batch_invariant,
            "agreement": result.agreement,
            "passes": [record.model_dump(by_alias=True, mode="json") for record in manifest.passes],
            "load_before": str(load),
            "environment": manifest.environment,
        }


if __name__ == "__main__":
    typer.run(road)
