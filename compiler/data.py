"""Labelled samples: read from files, a hub or a function, checked, and given a content digest."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.compiler.files import READERS, SUFFIXES, Row, file_rows, no_column
from lepto.compiler.tagged import read_row
from lepto.compiler.words import Words
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

_HUB_TIMEOUT_S = 5.0

NO_LABEL = -100
"""The label of a sample, or of a token, that has none: torch's own default for cross-entropy."""


@dataclass(frozen=True)
class Samples:
    """Samples of one split.

    Attributes:
        inputs: N texts, N rows of words, or the model's inputs as arrays ``[N, ...]`` by name.
        labels: [N] indices into the model's labels, ``NO_LABEL`` where a training sample has none; for rows of words
            [N] objects, each the indices of its words; for vectors [N, W] those to come close to, W = 0 where only the
            source can say them.
        origin: Where they came from, for messages.
        names: The model's labels, where the metric depends on what they say.
    """

    inputs: tuple[str | Words, ...] | Mapping[str, npt.NDArray[np.generic]]
    labels: npt.NDArray[Any]
    origin: str
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Sha256 over the samples themselves, wherever they came from."""
        rows = self.labels if self.labels.dtype == object else [self.labels]  # objects have no bytes of their own
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(row).tobytes() for row in rows))
        if isinstance(self.inputs, Mapping):
            for name in sorted(self.inputs):
                array = np.ascontiguousarray(self.inputs[name])
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
        else:
            for text in self.inputs:
                if not isinstance(text, str):
                    digest.update(f"{len(text)} words".encode())
                for part in (text,) if isinstance(text, str) else text:
                    raw = part.encode()
                    digest.update(len(raw).to_bytes(8, "little"))
                    digest.update(raw)
        return digest.hexdigest()

    @property
    def one_label(self) -> bool:
        """Whether all samples, or all their words, have one label, which shows nothing and teaches nothing."""
        if self.labels.ndim != 1:
            return False
        return len(np.unique(np.concatenate(self.labels) if self.labels.dtype == object else self.labels)) < 2


def load_samples(
    reference: str,
    *,
    text_column: str,
    label_column: str,
    labels: Sequence[str] | None,
    split: str,
    task: str = TEXT_CLASSIFICATION,
) -> Samples:
    """Read one split.

    Args:
        reference: A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file, a ``datasets`` id (``name``,
            ``name:config``), or ``package.module:factory``. A factory returns the rows as mappings, or for models that
            take no text ``(inputs, labels)``: arrays ``[N, ...]`` by input name, and ``[N]`` label indices. Rows of
            words can also stand in a ``.conll`` file.
        text_column: The column of the text; for token classification a list of words, or a text with spaces between.
        label_column: The column of the label: its name, or for integers its index; for token classification as many
            as words; not read for feature extraction.
        labels: The model's labels in the order of its outputs; None for models that name none.
        split: Which split of a ``datasets`` id is read.
        task: The model's.

    Raises:
        LeptoError: The data cannot be read, has no rows, lacks a column, or has a label that the model does not know.
    """
    rows = read_rows(reference, (text_column, label_column), split=split)
    if isinstance(rows, tuple):
        if task == FEATURE_EXTRACTION:
            raise LeptoError(f"{reference}: vectors are judged on texts only: give rows with {text_column!r}")
        return _arrays(reference, *rows, labels)
    texts: list[str | Words] = []
    indices: list[Any] = []
    lookup = _Labels(labels, label_column)
    needed = (text_column,) if task == FEATURE_EXTRACTION else (text_column, label_column)
    for where, row in rows:
        for column in needed:
            if column not in row or row[column] is None:
                no_column(reference, where, column, row)
        try:
            if task == TOKEN_CLASSIFICATION:
                words, own = read_row(row, text_column, label_column, lookup)
                texts.append(words)
                indices.append(own)
                continue
            text = row[text_column]
            if not isinstance(text, str):
                raise ValueError(f"column {text_column!r} must be text, got {type(text).__name__}")
            texts.append(text)
            indices.append([] if task == FEATURE_EXTRACTION else lookup(row[label_column]))
        except ValueError as error:
            raise LeptoError(f"{reference}, {where}: {error}") from None
    if task == TOKEN_CLASSIFICATION:
        objects = np.empty(len(indices), dtype=object)
        objects[:] = indices
        return Samples(tuple(texts), objects, reference, None if labels is None else tuple(labels))
    dtype = np.float32 if task == FEATURE_EXTRACTION else np.int64
    return Samples(tuple(texts), np.array(indices, dtype=dtype), reference)


def read_column(reference: str, column: str, *, split: str) -> list[Any]:
    """The values of one more column of the same data, in the order of :func:`load_samples`.

    Raises:
        LeptoError: There is no such column.
    """
    rows = read_rows(reference, (column,), split=split)
    if isinstance(rows, tuple):
        raise LeptoError(f"{reference} gives arrays, which have no column {column!r}: give rows as mappings")
    for where, row in rows:
        if column not in row:
            no_column(reference, where, column, row)
    return [row[column] for _, row in rows]


def read_rows(
    reference: str, columns: Sequence[str], *, split: str
) -> list[Row] | tuple[Mapping[str, npt.NDArray[np.generic]], Any]:
    """The rows of a file, a ``datasets`` id or a factory, each with where it stands.

    Args:
        reference: As :func:`load_samples` takes it.
        columns: Those that are wanted.
        split: Which split of a ``datasets`` id is read.

    Returns:
        The rows, at least one; or the pair ``(inputs, labels)`` of a factory that makes arrays, as it is.

    Raises:
        LeptoError: The data cannot be read, or has no rows.
    """
    path = Path(reference)
    rows: list[Row]
    if path.suffix.lower() in SUFFIXES or path.exists():
        rows = list(file_rows(path, columns))
    elif ":" in reference and _is_module(reference):
        made = call_factory(reference, "data")
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Mapping):
            return {name: np.asarray(array) for name, array in made[0].items()}, made[1]
        rows = list(_factory_rows(reference, made))
    else:
        rows = list(_dataset_rows(reference, split))
    if not rows:
        raise LeptoError(f"{reference} has no rows: give a file with a header line and at least one sample")
    return rows


class _Labels:
    """From a cell of the label column to the index of the model's output."""

    def __init__(self, labels: Sequence[str] | None, column: str) -> None:
        self.labels = labels
        self.column = column
        self.index = {label: position for position, label in enumerate(labels or ())}

    def __call__(self, value: Any) -> int:
        if isinstance(value, str) and value in self.index:
            return self.index[value]
        number = _integer(value)
        if number is not None and 0 <= number < (len(self.labels) if self.labels else number + 1):
            return number
        if self.labels is None:
            raise ValueError(f"column {self.column!r} has {value!r}, but the model has no label names: give indices")
        import difflib

        near = difflib.get_close_matches(str(value), self.labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(map(repr, self.labels[:5])) + (", …" if len(self.labels) > 5 else "")
        raise ValueError(
            f"column {self.column!r} has the label {value!r}, which the model does not know{hint} "
            f"(it knows {len(self.labels)}: {shown})"
        )


def _integer(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | np.integer):
        return int(value)
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None


def _factory_rows(reference: str, made: Any) -> Iterator[Row]:
    if not isinstance(made, Iterable) or isinstance(made, str | bytes | Mapping):
        raise LeptoError(
            f"the data factory {reference} must return rows as mappings, or (inputs, labels) with arrays by input "
            f"name; got {type(made).__name__}"
        )
    for number, row in enumerate(made, 1):
        if not isinstance(row, Mapping):
            raise LeptoError(f"the data factory {reference}, row {number}: must be a mapping, got {type(row).__name__}")
        yield f"row {number}", row


def _dataset_rows(reference: str, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise LeptoError(
            f"{reference!r} is no file here, and data sets need the package datasets, which cannot be used here: "
            f"{first_line(error)}. Give a {READERS} file or package.module:factory"
        ) from error

    name, _, config = reference.partition(":")
    unreachable = _why_no_hub()
    try:
        with _offline() if unreachable else contextlib.nullcontext():
            loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # datasets raises many kinds, none of its own base class
        if unreachable:
            raise LeptoError(
                f"{reference!r} is no file here, and as a data set it is not in the local cache, and the Hugging Face "
                f"hub cannot be reached ({unreachable}). Give a {READERS} file or package.module:factory, or go online"
            ) from error
        raise LeptoError(
            f"{reference!r} is no file here and could not be loaded as a data set (split {split!r}): "
            f"{first_line(error)}. Give a {READERS} file, a datasets id, or package.module:factory"
        ) from error
    features = loaded.features
    for number, row in enumerate(loaded, 1):
        yield f"row {number}", {key: _named(features[key], value, datasets.ClassLabel) for key, value in row.items()}


def _why_no_hub() -> str:
    """Why the hub cannot be reached, empty if it can: one short question; datasets would ask for half a minute."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # the errors of its client's transport have no lasting base class
        return first_line(error)
    return ""


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let datasets look into its cache only; both libraries read their switch when they are imported."""
    import datasets
    from huggingface_hub import constants

    switches: tuple[Any, ...] = (datasets.config, constants)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _named(feature: Any, value: Any, class_label: type) -> Any:
    """A label, or each of a list of labels, by its name: the model may number them otherwise."""
    if isinstance(value, list):
        inner = getattr(feature, "feature", None)
        return [_named(inner, item, class_label) for item in value]
    return feature.int2str(value) if isinstance(feature, class_label) and value >= 0 else value  # type: ignore[attr-defined]  # a type alone


def _arrays(
    reference: str, inputs: Mapping[str, npt.NDArray[np.generic]], labels: Any, names: Sequence[str] | None
) -> Samples:
    indices = np.asarray(labels)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer) or not len(indices):
        raise LeptoError(
            f"{reference}: labels must be [N] integers with N > 0, got {indices.dtype} {list(indices.shape)}"
        )
    for name, array in inputs.items():
        if not array.ndim or len(array) != len(indices):
            raise LeptoError(f"{reference}: input {name!r} has shape {list(array.shape)} for {len(indices)} labels")
    wrong = indices[(indices < 0) | (indices >= len(names))] if names is not None else indices[indices < 0]
    if len(wrong):
        known = f"which has {len(names)} labels" if names is not None else "labels count from 0"
        raise LeptoError(f"{reference}: label {int(wrong[0])} is unknown to the model, {known}")
    return Samples(inputs, indices.astype(np.int64), reference)


def _is_module(reference: str) -> bool:
    module, _, function = reference.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def call_factory(reference: str, what: str) -> Any:
    """Import ``package.module:factory`` (the current folder counts) and call it.

    Raises:
        LeptoError: There is no such module or function, or it failed.
    """
    module_name, _, function_name = reference.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, function_name)
    except Exception as error:  # a module can raise anything while it is imported
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise LeptoError(f"the {what} factory {reference} could not be imported: {kind}{error}") from error
    finally:
        sys.path.remove("")
    try:
        return factory()
    except Exception as error:
        raise LeptoError(f"the {what} factory {reference} failed: {type(error).__name__}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
