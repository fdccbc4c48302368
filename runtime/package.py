"""The package format: a folder of allow-listed files whose manifest knows the digest of each.

========================  =====================================================================
``manifest.json``         the story of the model (:mod:`lepto.runtime.manifest`)
``model.onnx``            the model, in one file
``probe.npz``             stored inputs and outputs, arrays ``input/<name>`` and ``output/<name>``
``README.md``             the model card
``tokenizer.json``        only for text: the tokenizer, as written by ``tokenizers``
``labels.txt``            only for classification: one label a line, in the order of the scores
``build.json``            only for GPUs: how the TensorRT engine is built from ``model.onnx``
``build_engine.py``       only for GPUs: builds and checks it on the device, without Lepto
``engine.plan``           the engine, where it was built
``engine.json``           what the engine is for: runtime, version, GPU, profile, and how its check went
``evidence.npz``          optional: answers and times, sample by sample (:mod:`lepto.runtime.evidence`)
========================  =====================================================================

Writing is atomic: a package is there whole or not at all, also when the disk is full or the process is killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Manifest, Tensor
from lepto.runtime.onnxfile import check_single_file
from lepto.runtime.staging import replace_folder, staged_folder, sync_folder, write_durably

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lepto.runtime.evidence import Evidence

MANIFEST, MODEL, TOKENIZER, LABELS, PROBE, CARD, EVIDENCE = (
    "manifest.json",
    "model.onnx",
    "tokenizer.json",
    "labels.txt",
    "probe.npz",
    "README.md",
    "evidence.npz",
)
BUILD_SPEC, BUILD_SCRIPT, ENGINE, ENGINE_RECORD = "build.json", "build_engine.py", "engine.plan", "engine.json"
ENGINE_FILES = frozenset({BUILD_SPEC, BUILD_SCRIPT, ENGINE, ENGINE_RECORD})
ALLOWED_FILES = frozenset({MANIFEST, MODEL, TOKENIZER, LABELS, PROBE, CARD, EVIDENCE}) | ENGINE_FILES
"""Nothing else may be in a package: a server executes some names (``*.so``, ``model.py``) that it finds in a model."""

_MAX_MANIFEST_BYTES = 64 * 2**20

# NumPy is imported where arrays are made or read: half of what importing this module would cost.
Arrays: TypeAlias = "dict[str, NDArray[Any]]"


@dataclass(frozen=True, slots=True)
class Package:
    """An opened package; its files were checked when it was opened.

    Attributes:
        path: The folder.
        manifest: What is known about it.
        labels: The labels in the order of the scores, or None if the task has none.
    """

    path: Path
    manifest: Manifest
    labels: tuple[str, ...] | None

    @property
    def model_path(self) -> Path:
        """The ONNX model."""
        return self.path / MODEL

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer, or None if the package takes tensors."""
        return self.path / TOKENIZER if TOKENIZER in self.manifest.files else None

    def probe(self) -> tuple[Arrays, Arrays]:
        """The stored inputs and the outputs the model gave for them.

        Raises:
            LeptoError: ``probe.npz`` is broken or does not fit the manifest.
        """
        arrays = _arrays(self.path / PROBE)
        try:
            check_probe(arrays, self.manifest)
        except ValueError as error:
            raise LeptoError(f"{self.path / PROBE} does not fit the manifest: {error}") from error
        return _part(arrays, "input/"), _part(arrays, "output/")

    def evidence(self) -> Evidence | None:
        """What was measured sample by sample; None if the package was written without it.

        Raises:
            LeptoError: ``evidence.npz`` is broken.
        """
        if EVIDENCE not in self.manifest.files:
            return None
        from lepto.runtime.evidence import Evidence

        arrays = _arrays(self.path / EVIDENCE)
        try:
            return Evidence.from_arrays(arrays)
        except ValueError as error:
            raise LeptoError(f"{self.path / EVIDENCE} is broken: {error}; compile the package again") from error


def open_package(path: str | Path, *, check_digests: bool = True) -> Package:
    """Open a package and check its files.

    Args:
        path: The folder.
        check_digests: Compare every file with its digest in the manifest.

    Raises:
        LeptoError: The folder is no package, a file is missing, unknown, a link or changed, or the manifest is broken.
    """
    path = Path(path)
    if not path.exists():
        raise LeptoError(f"no package at {path}: there is no such folder; `lepto compile … -o {path}` writes one")
    if not path.is_dir():
        raise LeptoError(f"no package at {path}: a package is a folder, this is a file")
    if not (path / MANIFEST).exists():
        raise LeptoError(f"no package at {path}: the folder has no {MANIFEST}; `lepto compile … -o DIR` writes one")
    present = _check_names(path)
    manifest = _read_manifest(path / MANIFEST)
    expected = {MANIFEST, *manifest.files}
    if missing := sorted(expected - present):
        raise LeptoError(f"the package {path} is incomplete: {', '.join(missing)} missing; copy or compile it again")
    if unlisted := sorted(present - expected):
        raise LeptoError(f"the package {path} has {', '.join(unlisted)}, which its manifest does not list; remove it")
    if check_digests:
        for name, digest in sorted(manifest.files.items()):
            found = file_digest(path / name)
            if found != digest:
                raise LeptoError(
                    f"{path / name} was changed after the package was written: its SHA-256 is {found[:12]}…, "
                    f"the manifest says {digest[:12]}…; copy or compile the package again"
                )
    labels = _read_labels(path / LABELS, manifest) if LABELS in manifest.files else None
    return Package(path=path, manifest=manifest, labels=labels)


def write_package(
    folder: str | Path,
    *,
    manifest: Manifest,
    model: bytes | Path,
    tokenizer: str | None,
    labels: Sequence[str] | None,
    probe: Mapping[str, NDArray[Any]],
    card: str,
    evidence: Evidence | None = None,
    force: bool = False,
    extra: Mapping[str, bytes] | None = None,
) -> Package:
    """Write a package, whole or not at all.

    Args:
        folder: Where; must not exist unless ``force``.
        manifest: The manifest with ``files`` empty: the digests are filled in here.
        model: The ONNX model, its bytes or its file.
        tokenizer: The text of ``tokenizer.json``; given if and only if the manifest has preprocessing.
        labels: The labels in the order of the scores; needed for text classification.
        probe: Arrays ``input/<name>`` and ``output/<name>``, as many rows as you like (one at least).
        card: The text of ``README.md``.
        evidence: What was measured sample by sample, if it is to be kept.
        extra: Files of a GPU's package by name: the kit that builds its engine, and the engine.
        force: Replace a package that is there. It is only let go when the new one is complete.

    Raises:
        ValueError: The parts do not fit together.
        LeptoError: The folder exists, or holds something that is no package.
        OSError: The disk is full or the place is not writable; nothing was changed.
    """
    folder = Path(folder)
    content = _contents(manifest, model, tokenizer, labels, probe, card)
    if unknown := sorted(set(extra or ()) - ENGINE_FILES):
        raise ValueError(f"extra files may be {', '.join(sorted(ENGINE_FILES))}, got {', '.join(unknown)}")
    content |= dict(extra or {})
    if evidence is not None:
        content[EVIDENCE] = evidence.to_bytes()
    _check_destination(folder, force=force)
    with staged_folder(folder) as stage:
        for name, data in content.items():
            write_durably(stage / name, data)
        write_probe(stage / PROBE, probe)
        files = {name: file_digest(stage / name) for name in sorted({*content, PROBE})}
        complete = manifest.model_copy(update={"files": files})
        write_durably(stage / MANIFEST, complete.to_json().encode())
        open_package(stage)
        replace_folder(stage, folder, force=force)
    sync_folder(folder.parent)
    return open_package(folder, check_digests=False)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_probe(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> None:
    """Check that a probe has every tensor of the manifest, with its dtype and shape and one batch size.

    Raises:
        ValueError: It has not; the message names the array.
    """
    tensors = {f"input/{t.name}": t for t in manifest.inputs} | {f"output/{t.name}": t for t in manifest.outputs}
    if arrays.keys() != tensors.keys():
        missing, unknown = sorted(tensors.keys() - arrays.keys()), sorted(arrays.keys() - tensors.keys())
        raise ValueError(f"the probe must have one array for each tensor: missing {missing}, unknown {unknown}")
    check_tensors({name: (tensors[name], array) for name, array in arrays.items()})


def check_tensors(pairs: Mapping[str, tuple[Tensor, NDArray[Any]]]) -> None:
    """Check arrays against the tensors they stand for: dtype, rank, fixed dimensions, and one size for each axis name.

    Raises:
        ValueError: One does not fit; the message names it.
    """
    axes: dict[str, tuple[int, str]] = {}
    for name, (tensor, array) in pairs.items():
        if array.dtype != tensor.dtype:
            raise ValueError(f"{name} must be {tensor.dtype}, got {array.dtype}")
        if array.ndim != len(tensor.shape):
            raise ValueError(f"{name} must have {len(tensor.shape)} dimensions {_show(tensor)}, got {array.shape}")
        for index, (axis, size) in enumerate(zip(tensor.shape, array.shape, strict=True)):
            if isinstance(axis, int):
                if size != axis:
                    raise ValueError(
                        f"{name} must have the shape {_show(tensor)}: dimension {index} is {axis}, got {size}"
                    )
            elif size == 0:
                raise ValueError(f"{name} is empty: its axis {axis!r} must be at least 1, got shape {array.shape}")
            elif axes.setdefault(axis, (size, name))[0] != size:
                known, other = axes[axis]
                raise ValueError(f"axis {axis!r} must be the same everywhere: {other} has {known}, {name} has {size}")


def check_labels(labels: Sequence[str]) -> None:
    """Check that labels can be told apart and written one a line.

    Raises:
        ValueError: A label is empty, has a line break or another control character, or stands twice.
    """
    seen: set[str] = set()
    for index, label in enumerate(labels):
        if not label.strip() or any(ord(char) < 32 or ord(char) == 127 for char in label):
            raise ValueError(f"a label must be visible text in one line, got {label!r} at index {index}")
        if label in seen:
            raise ValueError(f"labels must differ, {label!r} stands twice (again at index {index})")
        seen.add(label)


def _contents(
    manifest: Manifest,
    model: bytes | Path,
    tokenizer: str | None,
    labels: Sequence[str] | None,
    probe: Mapping[str, NDArray[Any]],
    card: str,
) -> dict[str, bytes]:
    """Everything but the probe and the manifest, checked, as the bytes to write."""
    if manifest.files:
        raise ValueError(
            f"manifest.files is filled in by write_package and must be empty, got {sorted(manifest.files)}"
        )
    data = model if isinstance(model, bytes) else model.read_bytes()
    check_single_file(data, name=MODEL)
    digest = hashlib.sha256(data).hexdigest()
    if (manifest.result.digest, manifest.result.bytes) != (digest, len(data)):
        raise ValueError(
            f"manifest.result must describe the model: digest {digest} and bytes {len(data)}, "
            f"got {manifest.result.digest} and {manifest.result.bytes}"
        )
    if (tokenizer is None) != (manifest.preprocessing is None):
        raise ValueError("a tokenizer and manifest.preprocessing come together: give both or neither")
    content = {MODEL: data, CARD: card.encode()}
    if tokenizer is not None:
        try:
            json.loads(tokenizer)
        except ValueError as error:
            raise ValueError(f"tokenizer must be the text of a {TOKENIZER}: {error}") from error
        content[TOKENIZER] = tokenizer.encode()
    if labels is not None:
        check_labels(labels)
        content[LABELS] = "".join(f"{label}\n" for label in labels).encode()
    _check_label_count(None if labels is None else len(labels), manifest)
    for name, array in probe.items():
        if array.dtype.hasobject:
            raise ValueError(f"probe array {name!r} holds Python objects; only numbers can be stored")
    check_probe(probe, manifest)
    return content


def _check_label_count(count: int | None, manifest: Manifest) -> None:
    if manifest.label_count is not None and count != manifest.label_count:
        raise ValueError(f"the model has {manifest.label_count} scores but there are {count or 'no'} labels")


def _check_destination(folder: Path, *, force: bool) -> None:
    if folder.is_symlink():
        raise LeptoError(f"{folder} is a symbolic link: name the folder itself")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise LeptoError(f"{folder} is a file; choose another folder for the package")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        if not force:
            raise LeptoError(f"{folder} exists (it is empty): choose another folder, or --force to use it")
    elif not force:
        raise LeptoError(f"{folder} exists: choose another folder, or --force to replace it")
    # --force is for replacing a package; with a mistyped path it must not delete anything else.
    elif MANIFEST not in names or names - ALLOWED_FILES:
        raise LeptoError(f"{folder} is no package (it holds {', '.join(sorted(names)[:3])}…) and is not replaced")


def write_probe(path: Path, probe: Mapping[str, NDArray[Any]]) -> None:
    """Write a probe; equal arrays give equal bytes."""
    import numpy as np

    arrays: dict[str, Any] = {name: np.ascontiguousarray(probe[name]) for name in sorted(probe)}
    buffer = io.BytesIO()  # a zip file that meets a full disk complains again when it is collected
    np.savez_compressed(buffer, **arrays)
    write_durably(path, buffer.getvalue())


def _arrays(path: Path) -> Arrays:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise LeptoError(f"{path} is broken: {error}; compile the package again") from error


def _check_names(path: Path) -> set[str]:
    names = set()
    for entry in path.iterdir():
        if entry.name not in ALLOWED_FILES:
            raise LeptoError(
                f"the package {path} holds {entry.name!r}: remove it; "
                f"only {', '.join(sorted(ALLOWED_FILES))} may be in a package"
            )
        if not stat.S_ISREG(entry.lstat().st_mode):
            raise LeptoError(f"{entry} must be a regular file, not a link or a folder; copy the file itself there")
        names.add(entry.name)
    return names


def _read_manifest(path: Path) -> Manifest:
    size = path.stat().st_size
    if size > _MAX_MANIFEST_BYTES:
        raise LeptoError(f"{path} has {size} bytes, more than any manifest ({_MAX_MANIFEST_BYTES})")
    try:
        manifest = Manifest.from_json(path.read_bytes())
    except ValueError as error:
        raise LeptoError(f"{path} is broken:\n{_indent(str(error).splitlines())}") from error
    required = {MODEL, PROBE, CARD}
    if manifest.preprocessing is not None:
        required.add(TOKENIZER)
    if manifest.label_count is not None:
        required.add(LABELS)
    listed = set(manifest.files)
    if listed - (ALLOWED_FILES - {MANIFEST}) or required - listed:
        raise LeptoError(
            f"{path} is broken: files must list {', '.join(sorted(required))} and nothing unknown, "
            f"got {', '.join(sorted(listed)) or 'nothing'}"
        )
    return manifest


def _read_labels(path: Path, manifest: Manifest) -> tuple[str, ...]:
    try:
        labels = tuple(path.read_bytes().decode().removesuffix("\n").split("\n"))
        check_labels(labels)
        _check_label_count(len(labels), manifest)
    except ValueError as error:
        raise LeptoError(f"{path} is broken: {error}") from error
    return labels


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _show(tensor: Tensor) -> str:
    return "[" + ", ".join(map(str, tensor.shape)) + "]"


def _indent(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
