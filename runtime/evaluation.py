"""Re-run a text classifier's metric on labelled texts; the standard library reads the files."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepto.runtime.errors import LeptoError
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
        label = row[label_column]
        if label not in known:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise LeptoError(f"{path}, row {number}: the package has no label {label!r}{hint}")
        texts.append(row[text_column])
        indices.append(known[label])
    if not texts:
        raise LeptoError(f"{path} has no rows: give a file with a header and labelled texts")
    return texts, indices


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
