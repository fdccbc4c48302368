"""A package with everything a report shows, made without a compile."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lepto.runtime.evidence import Answers, Evidence
from lepto.runtime.manifest import Metric, PassRecord, Speedup
from lepto.runtime.package import open_package, write_package


def evidence(n: int = 120, classes: int = 3, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = (2.5 * np.eye(classes)[labels] + rng.normal(size=(n, classes))).astype(np.float32)
    return Evidence(
        data="0" * 64,
        rows=np.arange(n),
        labels=labels,
        source=Answers.of(logits),
        result=Answers.of(logits + rng.normal(scale=0.5, size=(n, classes)).astype(np.float32)),
        tokens=rng.integers(3, 16, n),
        source_seconds=rng.gamma(40, 1e-4, (8, 20)),
        result_seconds=rng.gamma(40, 1e-5, (8, 20)),
        layers=("encoder.0", "encoder.1", "classifier"),
        layer_error=np.array([0.01, 0.05, 0.02]),
    )


def candidate(shape: str, score: float, p50_ms: float, *, front: bool, epochs: float = 4.0) -> dict[str, object]:
    return {
        "shape": shape, "score": score, "epochs": epochs, "p50_ms": p50_ms, "p90_ms": 1.5 * p50_ms,
        "throughput": 900 / p50_ms, "bytes": int(4e6 * p50_ms), "front": front,
    }  # fmt: skip


def rich(base: Path, folder: Path, own: Evidence | None = None) -> Path:
    """The package again, with a search, passes, metrics and evidence."""
    package = open_package(base)
    manifest, (inputs, outputs) = package.manifest, package.probe()
    own = own or evidence()
    metric = Metric(name="accuracy", value=0.9, low=0.85, high=0.94, n=120)
    records = (
        PassRecord(pass_="fuse", kept=True, reason="parity", bytes=9_000_000, p50_ms=2.0, seconds=1.0),
        PassRecord(
            pass_="quantize-static", kept=False, reason="<slower>", bytes=2, p50_ms=2.5, seconds=1, metric=metric
        ),
        PassRecord(pass_="quantize-dynamic", kept=True, reason="faster", bytes=2, p50_ms=0.4, seconds=1, metric=metric),
    )
    search = {
        "seconds": 60.0, "objective": "latency", "reference": 0.93, "minimum": 0.91, "winner": "layers 0+2",
        "candidates": [
            candidate("layer 0", 0.88, 0.2, front=True), candidate("layers 0+2", 0.92, 0.4, front=True),
            candidate("layers 0+1", 0.90, 0.5, front=False),
            candidate("layers 0+1+2", 0.0, 0.6, front=False, epochs=0.0),
        ],
    }  # fmt: skip
    speedup = Speedup(value=10.0, low=9.0, high=11.0, against="PyTorch eager, 1 thread, batch 1")
    update = {
        "files": {},
        "passes": records,
        "source": manifest.source.model_copy(update={"metric": metric, "p50_ms": 4.0, "description": "a <toy>"}),
        "result": manifest.result.model_copy(
            update={"metric": metric, "p50_ms": 0.4, "speedup": speedup, "agreement": 0.95}
        ),
        "environment": {"cpu": "a CPU", "cpus": 2, "versions": {"lepto": "0"}, "search": search},
    }
    probe = {f"input/{n}": a for n, a in inputs.items()} | {f"output/{n}": a for n, a in outputs.items()}
    assert package.tokenizer_path is not None
    return write_package(
        folder, manifest=manifest.model_copy(update=update), model=package.model_path,
        tokenizer=package.tokenizer_path.read_text(), labels=package.labels, probe=probe, card="# t\n", evidence=own,
    ).path  # fmt: skip
