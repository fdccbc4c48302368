"""Rows of files: CSV, TSV, JSON lines, Parquet and CoNLL."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lepto.compiler.tagged import conll_rows
from lepto.runtime.errors import LeptoError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".conll")
READERS = ".csv, .tsv, .jsonl, .parquet, .conll"

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, such as ``line 7``, and its cells by column."""


def file_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, each with where it stands.

    Args:
        path: The file; its suffix says what it is.
        columns: Those that are wanted; of a wide Parquet file no others are read.

    Raises:
        LeptoError: The file is missing, empty, broken or of an unknown kind.
    """
    if not path.exists():
        raise LeptoError(f"data file {path} does not exist")
    if not path.is_file():
        raise LeptoError(f"data file {path} is no file; one of {READERS} is read")
    if path.stat().st_size == 0:
        raise LeptoError(f"{path} is empty: it needs a header line and at least one sample")
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            yield from _delimited(path, "\t" if kind == ".tsv" else ",")
        elif kind in (".jsonl", ".json"):
            yield from _json_lines(path)
        elif kind == ".parquet":
            yield from _parquet(path, columns)
        elif kind == ".conll":
            yield from conll_rows(path, columns)
        else:
            raise LeptoError(f"{path}: unknown kind of file {kind or 'without suffix'!r}; read are {READERS}")
    except UnicodeDecodeError as error:
        raise LeptoError(f"{path} is not UTF-8 (byte {error.start:,}): save it as UTF-8") from error


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            names = reader.fieldnames or []
            if twice := [name for name in names if names.count(name) > 1]:
                raise LeptoError(f"{path}: the header names the column {twice[0]!r} twice")
            for row in reader:
                where = f"line {reader.line_num}"
                if None in row:
                    raise LeptoError(
                        f"{path}, {where}: more cells than the header has columns: "
                        f"quote a text that contains {delimiter!r}"
                    )
                yield where, row
        except csv.Error as error:
            raise LeptoError(f"{path}, line {reader.line_num}: {error}") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise LeptoError(f"{path}, line {number}: no JSON object on one line: {error.msg}") from error
            if not isinstance(row, dict):
                raise LeptoError(f"{path}, line {number}: must be a JSON object, got {type(row).__name__}")
            yield f"line {number}", row


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:  # an installed pyarrow, too, refuses a numpy that is too old for it
        raise LeptoError(f"{path}: Parquet files need pyarrow, which cannot be used here: {error}") from error

    parquet: Any = pyarrow.parquet  # only some releases are typed
    try:
        names = parquet.read_schema(path).names
        table = parquet.read_table(path, columns=[name for name in names if name in columns] or None)
    except pyarrow.ArrowInvalid as error:
        raise LeptoError(f"{path} is no whole Parquet file: {error}") from error
    others = {name: None for name in names if name not in columns}
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", {**row, **others}


def no_column(reference: str, where: str, column: str, row: Mapping[str, Any]) -> NoReturn:
    """Say that a column is missing, or has no value in a row.

    Raises:
        LeptoError: Always.
    """
    import difflib

    if column in row:
        raise LeptoError(f"{reference}, {where}: column {column!r} has no value")
    near = difflib.get_close_matches(column, [name for name in row if name], n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    have = ", ".join(repr(name) for name in row)
    raise LeptoError(
        f"{reference} has no column {column!r}{hint} It has {have}: name it with --text-column or --label-column"
    )
