from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepto.compiler.data import Samples, load_samples
from lepto.runtime.errors import LeptoError

from .conftest import LABELS, write_csv

ROWS = [("where is it,\nmy order?", LABELS[0]), ('say "stop"', LABELS[1]), ("", LABELS[2]), ("again", LABELS[0])]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def load(path: object, **changes: Any) -> Samples:
    options = {"text_column": "text", "label_column": "label", "labels": LABELS, "split": "test"} | changes
    return load_samples(str(path), **options)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_samples(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        write_csv(path, ROWS)
        assert '"where is it,\nmy order?"' in path.read_text()
    elif kind == "tsv":
        path.write_text("\ufefftext\tlabel\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}"\t{n}\n' for t, n in ROWS))
    elif kind == "jsonl":
        path.write_text("\n\n".join(json.dumps({"text": t, "label": n, "other": 1}) for t, n in ROWS))
    else:
        pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
        parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
        columns = {"text": [t for t, _ in ROWS], "label": [n for _, n in ROWS], "other": [1, 2, 3, 4]}
        parquet.write_table(pyarrow.table(columns), path)
    samples = load(path)
    assert samples.inputs == tuple(text for text, _ in ROWS)
    assert samples.labels.tolist() == [0, 1, 2, 0]
    assert samples.digest == load(write_csv(tmp_path / "same.csv", ROWS)).digest


def test_labels_are_names_or_indices_and_a_name_comes_first(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "d.csv", [("a", "2"), ("b", "0")])
    assert load(path).labels.tolist() == [2, 0]
    assert load(path, labels=("0", "1", "2")[::-1]).labels.tolist() == [0, 2]
    assert load(path, labels=None).labels.tolist() == [2, 0]


def test_the_digest_is_of_the_samples(tmp_path: Path) -> None:
    one = load(write_csv(tmp_path / "1.csv", ROWS)).digest
    assert load(write_csv(tmp_path / "2.csv", [*ROWS[:-1], ("again", LABELS[1])])).digest != one
    assert load(write_csv(tmp_path / "3.csv", [*ROWS[:-1], ("gain", LABELS[0])])).digest != one


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("text,label\n", "has no rows"),
        ("body,category\nx,y\n", r"has no column 'text'.* It has 'body', 'category'"),
        ("texts,label\nx,cancel order\n", r"no column 'text'; did you mean 'texts'\?"),
        ("text,label\nx,cancel ordr\n", r"line 2: .*label 'cancel ordr', which the model does not know; did you mean"),
        ("text,label\nx,3\n", r"the label '3', which the model does not know"),
        ("text,label\nx,-1\n", r"the label '-1'"),
        ("text,label\nx\n", r"line 2: column 'label' has no value"),
        ("text,label\nx,\n", "the label ''"),
        ("text,label\na,b,cancel order\n", "more cells than the header"),
        ("text,text,label\na,b,cancel order\n", "names the column 'text' twice"),
        ('text,label\n"never closed,cancel order\n', "unexpected end of data"),
    ],
)
def test_a_csv_that_does_not_fit_says_where(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content)
    with pytest.raises(LeptoError, match=said):
        load(path)


def test_other_broken_files(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,cancel order\n".encode("latin-1"))
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": 1}\n{"text": ')
    (tmp_path / "b.jsonl").write_text("[1]\n")
    (tmp_path / "c.jsonl").write_text('{"text": 5, "label": 1}\n')
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "e.xlsx").write_bytes(b"PK")
    for name, said in {
        "latin.csv": "not UTF-8",
        "a.jsonl": "line 2: no JSON object",
        "b.jsonl": "line 1: must be a JSON object",
        "c.jsonl": "must be text, got int",
        "d.parquet": "no whole Parquet file|Parquet files need pyarrow",
        "e.xlsx": r"unknown kind of file '\.xlsx'",
        "none.csv": "does not exist",
    }.items():
        with pytest.raises(LeptoError, match=said):
            load(tmp_path / name)


def test_a_factory_gives_rows_or_arrays() -> None:
    assert load("factories:rows").labels.tolist() == [1, 0]
    arrays = load("factories:mlp_data", labels=None)
    assert isinstance(arrays.inputs, dict)
    assert len(arrays) == 80
    assert arrays.digest == load("factories:mlp_data", labels=None).digest
    with pytest.raises(LeptoError, match="unknown to the model, which has 2 labels"):
        load("factories:mlp_data", labels=("a", "b"))


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("factories:fails", "failed: ZeroDivisionError: on purpose"),
        ("factories:numbers", "row 1: must be a mapping, got int"),
        ("factories:mlp", "must return rows|must be a mapping|labels must be"),
        ("factories:none", "could not be imported"),
        ("no_such_module:rows", "could not be imported"),
    ],
)
def test_a_factory_that_does_not_work_is_named(factory: str, said: str) -> None:
    with pytest.raises(LeptoError, match=said) as caught:
        load(factory)
    assert factory in str(caught.value)


def test_a_data_set_id_without_a_network_is_one_quick_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", exc_type=ImportError)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    before = datasets.config.HF_HUB_OFFLINE
    start = time.monotonic()
    with pytest.raises(LeptoError, match=r"not in the local cache, and the Hugging Face hub cannot be reached \(.+\)"):
        load("nobody/no-such-data-set")
    assert time.monotonic() - start < 10
    assert capfd.readouterr() == ("", "")
    assert datasets.config.HF_HUB_OFFLINE == constants.HF_HUB_OFFLINE == before


def test_labels_of_arrays_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    import factories

    monkeypatch.setattr(factories, "rows", lambda: ({"x": np.zeros((2, 3))}, np.array([0, -1])))
    with pytest.raises(LeptoError, match="label -1"):
        load("factories:rows", labels=None)
