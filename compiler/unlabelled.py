"""Training inputs that nobody has labelled: the source answers them, and students learn from its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lepto.compiler.data import NO_LABEL, Samples, read_rows
from lepto.compiler.files import no_column
from lepto.compiler.split import take
from lepto.compiler.tagged import read_words_of
from lepto.compiler.words import Words
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import FEATURE_EXTRACTION, TOKEN_CLASSIFICATION


def load_unlabelled(reference: str, *, text_column: str, task: str) -> Samples:
    """Read inputs; labels that stand beside them are not looked at.

    Args:
        reference: As :func:`lepto.compiler.data.load_samples` takes it; a factory of arrays returns
            ``(inputs, None)``.
        text_column: The column of the text, or of the words.
        task: The model's.

    Returns:
        Samples with the label ``NO_LABEL``.

    Raises:
        LeptoError: The data cannot be read, has no rows, or lacks the column.
    """
    rows = read_rows(reference, (text_column, ""), split="train")
    if isinstance(rows, tuple):
        arrays = rows[0]
        counts = {len(array) if array.ndim else 0 for array in arrays.values()}
        if len(counts) != 1 or counts == {0}:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise LeptoError(f"{reference}: inputs must be [N, ...] with one N > 0, got {shapes or 'none'}")
        return Samples(arrays, np.full(counts.pop(), NO_LABEL, np.int64), reference)
    inputs: list[str | Words] = []
    for where, row in rows:
        if row.get(text_column) is None:
            no_column(reference, where, text_column, row)
        try:
            if task == TOKEN_CLASSIFICATION:
                inputs.append(read_words_of(row, text_column))
                continue
            if not isinstance(row[text_column], str):
                raise ValueError(f"column {text_column!r} must be text, got {type(row[text_column]).__name__}")
            inputs.append(row[text_column])
        except ValueError as error:
            raise LeptoError(f"{reference}, {where}: {error}") from None
    if task == FEATURE_EXTRACTION:
        return Samples(tuple(inputs), np.zeros((len(inputs), 0), np.float32), reference)
    if task != TOKEN_CLASSIFICATION:
        return Samples(tuple(inputs), np.full(len(inputs), NO_LABEL, np.int64), reference)
    labels = np.empty(len(inputs), dtype=object)
    labels[:] = [np.full(len(words), NO_LABEL, np.int64) for words in inputs]
    return Samples(tuple(inputs), labels, reference)


def apart_from(samples: Samples, held: Sequence[Samples | None]) -> Samples | None:
    """The inputs that are none of the development or evaluation data; None where none is left.

    Who has seen the questions of an examination is not examined by it, even without the answers.
    """
    taken = {key for other in held if other is not None for key in _keys(other)}
    rows = [row for row, key in enumerate(_keys(samples)) if key not in taken]
    if len(rows) == len(samples):
        return samples
    return dataclasses.replace(take(samples, np.array(rows, np.int64), ""), origin=samples.origin) if rows else None


def joined(train: Samples, more: Samples | None) -> Samples:
    """Training samples with unlabelled ones behind them.

    Raises:
        LeptoError: Arrays of the two do not fit together.
    """
    if more is None:
        return train
    labels = np.concatenate([train.labels, more.labels])
    origin = f"{train.origin} and {more.origin}"
    if isinstance(train.inputs, Mapping) and isinstance(more.inputs, Mapping):
        try:
            arrays = {name: np.concatenate([array, more.inputs[name]]) for name, array in train.inputs.items()}
        except (KeyError, ValueError) as error:
            raise LeptoError(f"{more.origin} does not fit to {train.origin}: {error}") from error
        return Samples(arrays, labels, origin, train.names)
    if isinstance(train.inputs, tuple) and isinstance(more.inputs, tuple):
        return Samples(train.inputs + more.inputs, labels, origin, train.names)
    raise LeptoError(f"{more.origin} and {train.origin} must both hold texts, or both arrays")


def _keys(samples: Samples) -> list[object]:
    """What tells samples apart: the text, the words, or the bytes of all arrays."""
    inputs = samples.inputs
    if isinstance(inputs, tuple):
        return list(inputs)
    names = sorted(inputs)
    return [
        b"".join(np.ascontiguousarray(inputs[name][row]).tobytes() for name in names) for row in range(len(samples))
    ]
