"""Pruning and distillation that a user asks for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepto.compiler import Recipe, compile_model
from lepto.compiler.passes.distill import Distill
from lepto.compiler.passes.prune import Prune
from lepto.runtime import TextClassifier
from lepto.runtime.errors import LeptoError
from lepto.runtime.verify import verify_package

from .conftest import Lepto, Toy

PLAN = (
    "trim-vocabulary", "prune(layers=1,heads=0.5,neurons=0.5)", "distill(epochs=6,hidden=0.5,relations=0.5)",
    "fuse", "quantize-dynamic|quantize-static",
)  # fmt: skip


def recipe(toy: Toy, **changes: Any) -> Recipe:
    values = {"model": str(toy.model), "train": str(toy.train), "eval": str(toy.eval), "threads": 1, "max_drop": "10%"}
    return Recipe(**(values | changes))


def test_a_plan_prunes_distils_and_quantizes(toy: Toy, own_cache: Path, tmp_path: Path) -> None:
    package = compile_model(recipe(toy, passes=PLAN), tmp_path / "out")
    manifest = package.manifest
    records = {record.pass_: record for record in manifest.passes}
    assert list(records)[:4] == ["trim-vocabulary", "prune", "distill", "export"]
    assert all(records[name].kept for name in ("prune", "distill"))
    assert "WordLevel" in records["trim-vocabulary"].reason
    assert records["prune"].options["layers"] == 1
    # What was cut answers worse until it is taught.
    assert records["prune"].metric is not None
    assert records["distill"].metric is not None
    assert records["distill"].metric.value >= records["prune"].metric.value
    assert "loss" in records["distill"].reason
    assert manifest.result.bytes < 0.7 * manifest.source.bytes
    assert all(check.ok for check in verify_package(package))
    assert TextClassifier(package)("please cancel it").label == "cancel order"
    again = compile_model(recipe(toy, passes=PLAN), tmp_path / "again")
    assert all(record.cached for record in again.manifest.passes if record.kept)
    assert again.manifest.result.digest == manifest.result.digest


def test_channels_by_name(own_cache: Path, tmp_path: Path) -> None:
    package = compile_model(
        Recipe(
            model="models_images:table", task="tabular-classification", train="models_images:table_train",
            eval="models_images:table_eval", threads=1, max_drop="10%",
            passes=("prune(channels=0.5)", "distill(epochs=10)"),
        ),
        tmp_path / "out",
    )  # fmt: skip
    records = {record.pass_: record for record in package.manifest.passes}
    assert "channels kept in" in records["prune"].reason
    assert package.manifest.result.bytes < package.manifest.source.bytes / 2


def test_what_was_pruned_and_not_taught_is_refused(toy: Toy, own_cache: Path, tmp_path: Path, lepto: Lepto) -> None:
    plan = "prune(layers=1,heads=0.25,neurons=0.1,width=0.5),fuse"
    ran = lepto("compile", *toy.flags(**{"max-drop": "0%"}), "--passes", plan, "-o", tmp_path / "out")
    assert ran.code == 1
    assert "no candidate keeps the budget: the closest is prune with accuracy" in ran.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("fuse,prune(layers=1)", "prune must come before fuse"),
        ("distill,prune(layers=1)", "prune must come before distill: what is cut is taught afterwards"),
        ("prune(layer=1)", "unknown option 'layer'; did you mean 'layers'?"),
        ("prune(heads=2)", r"heads must be in \(0, 1\], got 2"),
        ("distill(epochs=0)", "epochs must be above 0"),
    ],
)
def test_plans_that_cannot_be(plan: str, message: str, toy: Toy, tmp_path: Path, lepto: Lepto) -> None:
    import re

    ran = lepto("compile", *toy.flags(), "--passes", plan, "-o", tmp_path / "out")
    assert ran.code == 2
    assert re.search(message, " ".join(ran.err.split()))


def test_without_training_data_nothing_is_taught(toy: Toy, own_cache: Path, tmp_path: Path) -> None:
    package = compile_model(recipe(toy, train=None, passes=("prune(layers=1)", "distill", "fuse")), tmp_path / "out")
    left = {record.pass_: record.reason for record in package.manifest.passes if not record.kept}
    assert "give --train" in left["prune"]
    assert "give --train" in left["distill"]


def test_wrong_options_are_told() -> None:
    with pytest.raises(ValueError, match="layers must not be negative"):
        Prune(layers=-1)
    with pytest.raises(ValueError, match="hidden must not be negative"):
        Distill(hidden=-1)
    with pytest.raises(ValueError, match="copies"):
        Distill(copies=-2)


def test_an_onnx_file_is_not_taught(toy: Toy, own_cache: Path, tmp_path: Path) -> None:
    plain = compile_model(recipe(toy, passes=()), tmp_path / "plain")
    with pytest.raises(LeptoError):
        compile_model(recipe(toy, model=str(plain.path / "model.onnx"), passes=("prune(layers=1)",)), tmp_path / "out")
