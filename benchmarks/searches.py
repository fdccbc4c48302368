"""``make bench-search``: the default search, untouched, on several data sets; the table is stored.

A set whose data or model is not at hand is skipped with the reason. What was stored of other sets stays.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lepto.benchmarks import images
from lepto.runtime.console import Output
from lepto.runtime.errors import LeptoError
from lepto.runtime.package import Package

_SHARED = Path(__file__).parents[2] / "shared"
_STORE = Path(__file__).parent / "baselines" / "searches.json"


def banking77(_work: Path) -> dict[str, Any]:
    """77 intents of bank customers; MiniLM-L6, trained; no development split of its own."""
    model, data = _SHARED / "models" / "minilm-banking77", _SHARED / "data" / "banking77"
    _need(model)
    train, test = data / "train.csv", data / "test.csv"
    return {"model": str(model), "train": str(train), "eval": str(test), "label_column": "category"}


def sentfin(work: Path) -> dict[str, Any]:
    """Polarity of financial headlines; MiniLM-L6, fine-tuned here first."""
    from lepto.benchmarks.training import Examples, Schedule, fine_tune
    from lepto.benchmarks.weights import find

    file = _SHARED / "data" / "sentfin" / "headlines_single_polarity.csv"
    _need(file)
    folder = work / "sentfin"
    folder.mkdir(parents=True, exist_ok=True)
    with file.open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    for split in ("train", "dev", "test"):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(("text", "label"))
            writer.writerows((row["text"], row["label"]) for row in rows if row["split"] == split)
    if not (folder / "model" / "config.json").is_file():
        chosen = {
            split: Examples(*zip(*((r["text"], r["label"]) for r in rows if r["split"] == split), strict=True))
            for split in ("train", "dev")
        }
        fine_tune(find().folder, chosen["train"], chosen["dev"], folder / "model", Schedule(epochs=3))
    data = {
        name: str(folder / f"{split}.csv") for name, split in (("train", "train"), ("dev", "dev"), ("eval", "test"))
    }
    return {"model": str(folder / "model"), **data}


def entities(work: Path) -> dict[str, Any]:
    """Entities in financial headlines and their polarity, a label at every word; MiniLM-L6, fine-tuned here first."""
    from lepto.benchmarks import tagging
    from lepto.benchmarks.weights import find

    _need(tagging.SENTFIN)
    folder = work / "entities"
    files = tagging.write(folder)
    tagging.fit(find().folder, tagging.rows()["train"], folder / "model")
    data = {"train": files["train"], "dev": files["dev"], "eval": files["test"]}
    columns = {"task": "token-classification", "text_column": "words", "label_column": "labels"}
    return {"model": str(folder / "model"), **{name: str(file) for name, file in data.items()}, **columns}


def distilbert(work: Path) -> dict[str, Any]:
    """77 intents again, by another encoder: DistilBERT's architecture on MiniLM-L6's weights, fine-tuned here first."""
    from lepto.benchmarks.training import Examples, Schedule, fine_tune
    from lepto.benchmarks.weights import as_distilbert, find

    data = _SHARED / "data" / "banking77"
    _need(data / "train.csv")
    folder = work / "distilbert"
    if not (folder / "model" / "config.json").is_file():
        with (data / "train.csv").open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        parts = [rows[1::20], [row for at, row in enumerate(rows) if at % 20 != 1]]
        dev, train = (Examples([r["text"] for r in part], [r["category"] for r in part]) for part in parts)
        weights = as_distilbert(find().folder, folder / "weights")
        fine_tune(weights, train, dev, folder / "model", Schedule(epochs=5))
    values = {"train": data / "train.csv", "eval": data / "test.csv"}
    return {"model": str(folder / "model"), **{k: str(v) for k, v in values.items()}, "label_column": "category"}


def shop_intents(work: Path) -> dict[str, Any]:
    """The project's own 18 intents, judged by texts of another kind; MiniLM-L6, trained here first; 3 % may be lost."""
    from lepto.benchmarks.workloads.shop_intents import workload

    folder = work / "shop_intents"
    if not (folder / "model" / "config.json").is_file():
        workload.train(folder / "model", output=Output(as_json=True))
    files = {
        "train": workload.data_file("train"),
        "dev": workload.data_file("dev"),
        "eval": workload.data_file("test"),
    }
    return {"model": str(folder / "model"), **{k: str(v) for k, v in files.items()}, "max_drop": "3%"}


def digits(work: Path) -> dict[str, Any]:
    """Scikit-learn's digits; a residual network, trained here first."""
    images.fit(10, images.digits("train"), epochs=15, file=work / "digits.safetensors")
    return _images("digits", work)


def pneumonia(work: Path) -> dict[str, Any]:
    """Chest X-rays; a residual network, trained here first."""
    _need(images.PNEUMONIA)
    images.fit(2, images.pneumonia("train"), epochs=5, file=work / "pneumonia.safetensors")
    return _images("pneumonia", work)


SETS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "banking77": banking77,
    "sentfin": sentfin,
    "entities": entities,
    "distilbert": distilbert,
    "shop_intents": shop_intents,
    "digits": digits,
    "pneumonia": pneumonia,
}


def searches(
    only: Annotated[str, typer.Option(help=f"Which sets, with commas, of {', '.join(SETS)}.")] = ",".join(SETS),
    work: Annotated[Path, typer.Option(help="Where models and packages lie.")] = Path("build/searches"),
    store: Annotated[Path, typer.Option(help="Where the result is written.")] = _STORE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Compile each set's model with nothing but the defaults, and store what came out.

    Example: python -m lepto.benchmarks.searches --only digits,sentfin
    """
    output = Output(as_json=as_json)
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in SETS:
            raise LeptoError(f"--only must be some of {', '.join(SETS)}, got {name!r}")
    document = json.loads(store.read_text()) if store.is_file() else {}
    os.environ[images.WORK] = str(work)
    for name in names:
        try:
            values = SETS[name](work)
        except LeptoError as error:
            output.print(f"[yellow]{name} skipped[/yellow]: {error}")
            continue
        document[name] = _search(name, values, work, output)
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(document, indent=2) + "\n")
    columns = ["set", "source", "result", "bound", "x eager", "bytes", "winner", "minutes"]
    rows = [[name, *_row(document[name])] for name in SETS if name in document]
    output.table("default searches", columns, rows)
    output.print(f"stored in {store}")
    output.result(document)


def _row(found: dict[str, Any]) -> list[str]:
    speedup = found["speedup"]
    return [
        f"{found['source']['value']:.2%}",
        f"{found['result']['value']:.2%}",
        f"{found['difference']['low_95_one_sided']:+.2%}" if found["difference"] else "-",
        f"{speedup['value']:.1f} ({speedup['low']:.1f}-{speedup['high']:.1f})",
        f"{found['source_bytes'] / 1e6:.2f} → {found['bytes'] / 1e6:.2f} MB",
        found["search"]["winner"] if found["search"] else "none: the source itself",
        f"{found['seconds'] / 60:.0f}",
    ]


def _search(name: str, values: dict[str, Any], work: Path, output: Output) -> dict[str, Any]:
    from lepto.compiler.compile import compile_model
    from lepto.compiler.recipe import make_recipe
    from lepto.runtime.measure import machine_load

    load, start = machine_load(), time.monotonic()
    package = compile_model(make_recipe({**values, "threads": 2}), work / name / "package", force=True, console=output)
    return _document(package, round(time.monotonic() - start, 1), str(load))


def _document(package: Package, seconds: float, load: str) -> dict[str, Any]:
    manifest = package.manifest
    metrics = {"source": manifest.source.metric, "result": manifest.result.metric}
    return {
        **{key: None if metric is None else metric.model_dump() for key, metric in metrics.items()},
        "difference": manifest.environment.get("paired_difference"),
        "speedup": None if manifest.result.speedup is None else manifest.result.speedup.model_dump(),
        "p50_ms": [manifest.source.p50_ms, manifest.result.p50_ms],
        "source_bytes": manifest.source.bytes,
        "bytes": manifest.result.bytes,
        "package_bytes": sum(file.stat().st_size for file in package.path.iterdir()),
        "search": manifest.environment.get("search"),
        "passes": [record.model_dump(by_alias=True, mode="json") for record in manifest.passes],
        "seconds": seconds,
        "load_before": load,
        "environment": {k: v for k, v in manifest.environment.items() if k != "search"},
    }


def _need(path: Path) -> None:
    if not path.exists():
        raise LeptoError(f"{path.name} is not at hand")


def _images(name: str, work: Path) -> dict[str, Any]:
    module = "lepto.benchmarks.images"
    return {
        "model": f"{module}:{name}_model",
        "task": "image-classification",
        "train": f"{module}:{name}_train",
        "dev": f"{module}:{name}_dev",
        "eval": f"{module}:{name}_eval",
    }


if __name__ == "__main__":
    typer.run(searches)
