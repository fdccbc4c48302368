"""What a search cannot work with is told, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lepto.compiler import halving, teaching

from .conftest import LABELS, Lepto, Toy, toy_rows, write_csv

pytestmark = pytest.mark.usefixtures("short_search")


def plain(text: str) -> str:
    return " ".join(text.split())


def test_without_training_data_what_needs_none_is_done(toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto) -> None:
    ran = lepto(
        "compile", "-m", toy.model, "--eval", toy.eval, "--threads", "1", "--max-drop", "10%", "-o", tmp_path / "o"
    )
    assert ran.code == 0, ran.err
    said = plain(ran.out)
    assert "no training data (--train): no smaller model is searched for, since nothing can be taught" in said
    passes = [record["pass"] for record in json.loads((tmp_path / "o" / "manifest.json").read_text())["passes"]]
    assert "fuse" in passes
    assert not {"prune", "distill"} & {*passes}


def test_a_source_worse_than_chance_does_not_teach(toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto) -> None:
    turned = {label: LABELS[(i + 1) % len(LABELS)] for i, label in enumerate(LABELS)}
    wrong = write_csv(tmp_path / "wrong.csv", [(text, turned[label]) for text, label in toy_rows()[:60]])
    ran = lepto("compile", *toy.flags(eval=str(wrong)), "-o", tmp_path / "out")
    assert ran.code == 2
    assert "the source itself is worse than chance on the evaluation data" in plain(ran.err)
    assert "is the order of labels another?" in plain(ran.err)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_no_number_is_named(toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto) -> None:
    shutil.copytree(toy.model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    weights[name] = weights[name].copy()
    weights[name][3, 5] = np.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    ran = lepto("compile", *toy.flags(model=str(tmp_path / "broken")), "-o", tmp_path / "out")
    assert ran.code == 2
    assert name in plain(ran.err)
    assert "not finite" in plain(ran.err)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_names_the_step(toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto) -> None:
    plan = "distill(epochs=2,learning_rate=1e30),fuse"
    ran = lepto("compile", *toy.flags(), "--passes", plan, "-o", tmp_path / "out")
    assert ran.code != 0
    assert "the loss became" in plain(ran.err)
    assert "in step" in plain(ran.err)
    assert "learning rate 1e+30" in plain(ran.err)
    assert not (tmp_path / "out").exists()


def test_where_memory_runs_out_batches_get_smaller(
    toy: Toy, own_cache: Path, tmp_path: Path, known_costs: None, monkeypatch: pytest.MonkeyPatch, lepto: Lepto
) -> None:
    sizes: list[int] = []
    real = teaching.train

    def scarce(module: Any, path: Any, original: Any, augmented: Any, schedule: Any, **options: Any) -> Any:
        sizes.append(schedule.batch_size)
        if schedule.batch_size > 26:  # as torch says it
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory")
        return real(module, path, original, augmented, schedule, **options)

    monkeypatch.setattr(teaching, "train", scarce)
    monkeypatch.setattr(halving, "RUNGS", halving.RUNGS[:1])
    monkeypatch.setattr(teaching.Teaching, "pace", lambda *_: 0.001)
    flags = [flag for flag in toy.flags() if flag not in ("--search-budget", "0")]
    ran = lepto("compile", *flags, "-o", tmp_path / "out")
    assert ran.code == 0, ran.err
    first, second, third = sizes[:3]
    assert first > second > third
    assert third <= 26
    for size in (second, third):
        assert f"memory ran out: batches of {size}" in plain(ran.out)
    assert "search" in json.loads((tmp_path / "out" / "manifest.json").read_text())["environment"]
