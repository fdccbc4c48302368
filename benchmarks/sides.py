"""What is compared: a package, a version in a model repository, or a stored result."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lepto.runtime.errors import LeptoError
from lepto.runtime.package import LABELS, MANIFEST, MODEL, TOKENIZER, Package, file_digest, open_package
from lepto.runtime.published import Published, get_model
from lepto.runtime.triton_config import MODEL_SUFFIX, TOKENIZER_SUFFIX

RESULT_SCHEMA: Final = "lepto.result/1"


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: As it was given.
        package: What can be run; None for a stored result.
        stored: What was stored; None for what can be run.
    """

    name: str
    package: Package | None
    stored: StoredResult | None = None

    @property
    def task(self) -> str:
        """The task."""
        return self.package.manifest.task if self.package else _some(self.stored).task

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of the scores."""
        return self.package.labels if self.package else _some(self.stored).labels

    @property
    def bytes(self) -> int:
        """Size of the model."""
        return self.package.model_path.stat().st_size if self.package else _some(self.stored).bytes


@dataclass(frozen=True)
class StoredResult:
    """What may be stored of a package, since it is the same on every machine.

    Attributes:
        path: The file.
        name: The package's name.
        task: Its task.
        labels: Its labels.
        bytes: Size of its model.
        data_digest: Digest of the samples that it was asked.
        classes: [N] what it answered, for rows of words [N] rows of labels; None if it was asked nothing.
        hardware: CPU that it ran on.
    """

    path: Path
    name: str
    task: str
    labels: tuple[str, ...] | None
    bytes: int
    data_digest: str | None
    classes: npt.NDArray[Any] | None
    hardware: str


def _some(stored: StoredResult | None) -> StoredResult:
    assert stored is not None
    return stored


@contextmanager
def open_sides(*references: str | Path) -> Iterator[list[Side]]:
    """Open what is to be compared.

    Args:
        references: For each side a package's folder, ``REPOSITORY/MODEL/VERSION``, or the file of a stored result.

    Raises:
        LeptoError: One is none of these, or broken.
    """
    with ExitStack() as stack:
        yield [_open(str(reference), stack) for reference in references]


def _open(reference: str, stack: ExitStack) -> Side:
    path = Path(reference)
    if path.is_file():
        return Side(reference, None, read_result(path))
    if not (path / "model.onnx").exists() or not (path / "probe.npz").exists():
        published = _published(path)
        if published is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lepto-gate-")))
            return Side(reference, package_of(published[0], published[1], folder))
    return Side(reference, open_package(path))


def _published(path: Path) -> tuple[Published, int] | None:
    """``DIR/MODEL/VERSION`` or ``DIR/MODEL`` (the version in production)."""
    for name, version in ((path.parent, path.name), (path, "")):
        if (version and not version.isdigit()) or not (name / "config.pbtxt").exists():
            continue
        model = get_model(name.parent, name.name)
        number = int(version) if version else model.version
        if number not in model.versions:
            raise LeptoError(
                f"{name.name!r} has no version {number} in {name.parent}; there are "
                f"{', '.join(map(str, model.versions))}"
            )
        return model, number
    return None


def package_of(model: Published, version: int, folder: Path) -> Package:
    """A published version as a package without a probe, put together in ``folder``.

    Raises:
        LeptoError: A file is missing or is not what was published.
    """
    manifest = model.manifest(version)
    root = model.folder.parent
    places = {MODEL: root / (model.name + MODEL_SUFFIX if model.text else model.name) / str(version) / MODEL}
    if model.text:
        places[TOKENIZER] = root / (model.name + TOKENIZER_SUFFIX) / str(version) / TOKENIZER
    for name, place in places.items():
        try:
            shutil.copyfile(place, folder / name)
        except OSError as error:
            raise LeptoError(f"cannot read {place}: {error.strerror}; publish the package again") from error
        if file_digest(folder / name) != manifest.files[name]:
            raise LeptoError(f"{place} is not the file that was published (its SHA-256 differs); publish it again")
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    labels = model.labels() if LABELS in manifest.files else None
    return Package(path=folder, manifest=manifest, labels=labels)


def result_document(
    side: Side, *, data_digest: str | None, classes: Sequence[Any] | None, **more: Any
) -> dict[str, Any]:
    """What is stored of a side that can be run."""
    assert side.package is not None
    from lepto.runtime.machine import this_machine

    return {
        "schema": RESULT_SCHEMA,
        "name": side.package.manifest.name,
        "task": side.task,
        "labels": None if side.labels is None else list(side.labels),
        "bytes": side.bytes,
        "model_digest": side.package.manifest.result.digest,
        "data_digest": data_digest,
        "classes": None if classes is None else [np.asarray(one, np.int64).tolist() for one in classes],
        "hardware": this_machine().cpu,
        **more,
    }


def read_result(path: Path) -> StoredResult:
    """Read a stored result.

    Raises:
        LeptoError: The file is broken or something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != RESULT_SCHEMA:
            raise ValueError(f"its schema is not {RESULT_SCHEMA!r}")
        classes = document["classes"]
        return StoredResult(
            path,
            str(document["name"]),
            str(document["task"]),
            None if document["labels"] is None else tuple(map(str, document["labels"])),
            int(document["bytes"]),
            document["data_digest"],
            None if classes is None else _classes(classes),
            str(document["hardware"]),
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise LeptoError(
            f"{path} is no stored result of lepto ({error}): write one with `lepto bench PACKAGE --store`"
        ) from error


def _classes(found: Any) -> npt.NDArray[Any]:
    """``[N]`` integers, or ``[N]`` rows of integers."""
    if not any(isinstance(one, list) for one in found):
        return np.array(found, dtype=np.int64)
    rows = np.empty(len(found), dtype=object)
    rows[:] = [np.array(one, dtype=np.int64) for one in found]
    return rows


def check_comparable(baseline: Side, candidate: Side) -> None:
    """Refuse sides that do not answer the same question.

    Raises:
        LeptoError: Task, labels or inputs differ.
    """
    from lepto.benchmarks import scenarios

    if baseline.package and candidate.package:
        scenarios.check_comparable(baseline.package, candidate.package)
        return
    if baseline.task != candidate.task:
        raise LeptoError(
            f"{baseline.name} is for task {baseline.task!r}, {candidate.name} for {candidate.task!r}: "
            "they cannot be compared; name a baseline of the same task"
        )
    if baseline.labels != candidate.labels:
        raise LeptoError(
            f"{baseline.name} and {candidate.name} differ in their labels: they cannot be compared; store the baseline "
            "again with `lepto bench PACKAGE --store`"
        )
