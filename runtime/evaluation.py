"""Re-run a classifier's metric on labelled texts or words; the standard library reads the files."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError
from lepto.runtime.spans import f1, span_counts
from lepto.runtime.tagging import TokenClassifier
from lepto.runtime.text import TextClassifier

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_labelled_texts(
    path: str | Path, *, text_column: str, label_column: str, labels: Sequence[str]
) -> tuple[list[str], list[int]]:
    """Read texts and the indices of their labels from a CSV, TSV or JSONL file.

    Args:
        path: The file; its suffix tells the format.
        text_column: Column (or key) of the text.
        label_column: Column (or key) of the label.
        labels: The labels that the package knows.

    Raises:
        LeptoError: The file is missing, empty or broken, lacks a column, or has a label that the package does not know.
    """
    path = Path(path)
    known = {label: index for index, label in enumerate(labels)}
    texts, indices = [], []
    for number, row in _rows(path):
        for column in (text_column, label_column):
            if not isinstance(row.get(column), str):
                raise LeptoError(
                    f"{path}, row {number}: no text in the column {column!r}; "
                    f"there are {', '.join(repr(name) for name in row if name is not None)}"
                )
        texts.append(row[text_column])
        indices.append(_index(path, number, row[label_column], known))
    if not texts:
        raise LeptoError(f"{path} has no rows: give a file with a header and labelled texts")
    return texts, indices


def read_tagged_words(
    path: str | Path, *, text_column: str, label_column: str, labels: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """Read rows of words and of their labels: lists in JSONL, cells with spaces between in CSV and TSV.

    Args:
        path: The file; its suffix tells the format.
        text_column: Column (or key) of the words.
        label_column: Column (or key) of the labels: names, or indices into ``labels``.
        labels: The labels that the package knows.

    Raises:
        LeptoError: The file is missing, empty or broken, lacks a column, has rows of unequal length, or has a label
            that the package does not know.
    """
    path = Path(path)
    known: dict[Any, int] = {label: index for index, label in enumerate(labels)}
    known |= {index: index for index in range(len(labels))}
    rows, tags = [], []
    for number, row in _rows(path):
        cells = [_list(path, number, row, column) for column in (text_column, label_column)]
        if len(cells[0]) != len(cells[1]):
            raise LeptoError(f"{path}, row {number}: {len(cells[0])} words but {len(cells[1])} labels")
        rows.append([str(word) for word in cells[0]])
        tags.append([labels[_index(path, number, tag, known)] for tag in cells[1]])
    if not rows:
        raise LeptoError(f"{path} has no rows: give a file with words and their labels")
    return rows, tags


def word_metric(
    classifier: TokenClassifier, rows: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], name: str
) -> float:
    """The metric ``f1`` (exact entities) or ``accuracy`` (words) of a token classifier; each row is run by itself."""
    answers = [[tag.label for tag in row] for row in classifier.tag(rows)]
    if name == "f1":
        counts = [span_counts(*pair) for pair in zip(tags, answers, strict=True)]
        return f1(*(sum(column) for column in zip(*counts, strict=True)))
    right = sum(a == b for row, answer in zip(tags, answers, strict=True) for a, b in zip(row, answer, strict=True))
    return right / sum(map(len, tags))


def _index(path: Path, number: int, label: Any, known: Mapping[Any, int]) -> int:
    if isinstance(label, bool) or label not in known:
        near = difflib.get_close_matches(str(label), [name for name in known if isinstance(name, str)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LeptoError(f"{path}, row {number}: the package has no label {label!r}{hint}")
    return known[label]


def _list(path: Path, number: int, row: Mapping[Any, Any], column: str) -> list[Any]:
    cell = row.get(column)
    cell = cell.split() if isinstance(cell, str) else cell
    if not isinstance(cell, list) or not all(isinstance(item, str | int) for item in cell):
        there = ", ".join(repr(name) for name in row if name is not None)
        raise LeptoError(f"{path}, row {number}: no list in the column {column!r}; there are {there}")
    return cell


def accuracy(classifier: TextClassifier, texts: Sequence[str], indices: Sequence[int]) -> float:
    """Fraction of texts whose best label is the given one; each text is run by itself."""
    scores = classifier.scores(texts)
    return int((scores.argmax(axis=1) == indices).sum()) / len(texts)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[Any, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS and suffix not in (".jsonl", ".ndjson"):
        raise LeptoError(f"{path}: the format is told by the suffix, which must be .csv, .tsv or .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix in _DELIMITERS:
                yield from enumerate(csv.DictReader(file, delimiter=_DELIMITERS[suffix], strict=True), start=1)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise LeptoError(f"{path}, line {number}: every line must be a JSON object, got {row!r}")
                    yield number, row
    except FileNotFoundError as error:
        raise LeptoError(f"there is no file {path}") from error
    except (csv.Error, ValueError) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise LeptoError(f"{path} cannot be read as {suffix[1:].upper()}: {error}") from error
