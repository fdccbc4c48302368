"""What a peer is given and what it gives back; runs in the environment of a peer."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PEER_FILE = "peer.json"
_COMPONENTS = (
    *("nncf", "numpy", "olive-ai", "onnx", "onnxruntime", "onnxscript", "openvino", "optimum", "optimum-onnx"),
    *("tokenizers", "torch", "transformers"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is given. Evaluation data is no part of it.

    Attributes:
        source: Folder of the trained model, as ``save_pretrained()`` wrote it.
        texts: Training texts for calibration.
        max_length: Tokens that a text is cut at.
        output: Empty folder for the models.
    """

    source: Path
    texts: tuple[str, ...]
    max_length: int
    output: Path


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run what a peer made.

    Attributes:
        name: What tells it from the peer's other variants.
        kind: What loads it: ``onnx`` or ``openvino``.
        files: The model's files; the first one is loaded, all of them count as its size.
        options: For the runtime.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Production:
    """What a peer made.

    Attributes:
        recipe: What was done, in words.
        variants: At least one.
        notes: What did not work, with the tool's own message.
    """

    recipe: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()


def run(produce: Callable[[Job], Production], arguments: list[str] | None = None) -> None:
    """The command line of a producer: make the models and write ``peer.json`` beside them."""
    parser = argparse.ArgumentParser(description=produce.__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--texts", type=Path, required=True, help="JSON list of training texts, for calibration")
    parser.add_argument("--max-length", type=int, required=True, help="tokens that a text is cut at")
    parser.add_argument("--output", type=Path, required=True, help="empty folder for the models")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    texts = tuple(json.loads(given.texts.read_text(encoding="utf-8")))
    start = time.monotonic()
    made = produce(Job(given.source, texts, given.max_length, given.output))
    seconds = time.monotonic() - start
    write(given.output, made, seconds)


def write(folder: Path, made: Production, seconds: float) -> None:
    """Write ``peer.json``.

    Raises:
        ValueError: There is no variant.
        FileNotFoundError: A variant's file is not in the folder.
    """
    if not made.variants:
        raise ValueError(f"nothing was made: {'; '.join(made.notes) or 'the producer does not say why'}")
    document: dict[str, Any] = {
        "recipe": made.recipe,
        "notes": list(made.notes),
        "seconds": round(seconds, 1),
        "versions": versions(),
        "variants": [
            {**asdict(variant), "bytes": sum((folder / name).stat().st_size for name in variant.files)}
            for variant in made.variants
        ],
    }
    (folder / PEER_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of the components that are installed here."""
    found = {}
    for name in _COMPONENTS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fusion_type(model_type: str) -> str:
    """What the transformer optimizer of ONNX Runtime calls an architecture.

    Raises:
        ValueError: It knows none of that kind.
    """
    if model_type in ("bert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta", "camembert"):
        return "bert"
    raise ValueError(f"onnxruntime.transformers has no fusions for encoders of type {model_type!r}")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
