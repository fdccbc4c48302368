"""Rows of words with a label for each, checked: lists, cells with spaces between, and files in CoNLL's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lepto.compiler.words import Words
from lepto.runtime.errors import LeptoError


def read_row(
    row: Mapping[str, Any], text_column: str, label_column: str, lookup: Callable[[Any], int]
) -> tuple[Words, npt.NDArray[np.int64]]:
    """The words of one row and the indices of their labels.

    Args:
        row: The cells by column: lists, or texts with white space between.
        text_column: The column of the words.
        label_column: The column of the labels.
        lookup: From a label to its index; raises ValueError for one that is unknown.

    Raises:
        ValueError: A cell is no list, a word is no text, the lengths differ, or a label is unknown; the message names
            column and value.
    """
    words, tags = read_words_of(row, text_column), _cells(row, label_column)
    if len(words) != len(tags):
        raise ValueError(
            f"{len(words)} words in {text_column!r} but {len(tags)} labels in {label_column!r}: {_shown(words)} and "
            f"{_shown(tags)}"
        )
    indices = []
    for word, tag in zip(words, tags, strict=True):
        try:
            indices.append(lookup(tag))
        except ValueError as error:
            raise ValueError(f"word {word!r}: {error}") from None
    return words, np.array(indices, dtype=np.int64)


def read_words_of(row: Mapping[str, Any], text_column: str) -> Words:
    """The words of one row.

    Raises:
        ValueError: The cell is no list, is empty, or a word is no text.
    """
    words = _cells(row, text_column)
    if not words:
        raise ValueError(f"column {text_column!r} has no words")
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"column {text_column!r}: word {place} must be text, got {word!r}")
    return tuple(words)


def _cells(row: Mapping[str, Any], column: str) -> list[Any]:
    cell = row[column]
    if isinstance(cell, str):
        return cell.split()
    if isinstance(cell, np.ndarray):
        return list(cell.tolist())
    if not isinstance(cell, Sequence) or isinstance(cell, bytes):
        raise ValueError(f"column {column!r} must hold a list, or a text with spaces between, got {cell!r}")
    return list(cell)


def _shown(values: Sequence[Any]) -> str:
    text = " ".join(map(str, values[:8]))
    return repr(text + " …" if len(values) > 8 else text)


def conll_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Sentences of a file in CoNLL's columns: a word first and its label last in a line, blank lines between sentences.

    Raises:
        LeptoError: A line has no label.
    """
    words: list[str] = []
    tags: list[str] = []
    start = 0
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate([*file, ""], 1):
            parts = line.split()
            if not parts or parts[0] == "-DOCSTART-":
                if words:
                    yield f"line {start}", {columns[0]: words, columns[-1]: tags}
                words, tags = [], []
                continue
            if len(parts) < 2:
                raise LeptoError(f"{path}, line {number}: a word and its label are expected, got {line.strip()!r}")
            start = start if words else number
            words.append(parts[0])
            tags.append(parts[-1])
