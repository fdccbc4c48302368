from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lepto.compiler import Recipe, compile_model, pipeline
from lepto.compiler.context import Context, Left
from lepto.compiler.evaluate import Evaluator, Timing
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.passes.quantize_dynamic import QuantizeDynamic
from lepto.compiler.statistics import ratio_interval
from lepto.runtime import Session, TextClassifier
from lepto.runtime.errors import LeptoError
from lepto.runtime.verify import verify_package

from .conftest import LABELS, Toy, toy_rows


def recipe(toy: Toy, **changes: Any) -> Recipe:
    values = {
        "model": toy.model,
        "train": toy.train,
        "eval": toy.eval,
        "threads": 1,
        "max_drop": "10%",
        "search_budget": "0",
    }
    return Recipe(**{k: v if isinstance(v, int | tuple | None) else str(v) for k, v in (values | changes).items()})


def nothing_left(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.is_dir() and path.name.startswith((".", "lepto-"))]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of torch's exporter."""
    calls: list[int] = []
    real = torch.onnx.export

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", count)
    return calls


def test_the_package_tells_its_story_and_answers_like_the_source(toy: Toy, tmp_path: Path) -> None:
    package = compile_model(recipe(toy, passes=("fuse", "quantize-dynamic")), tmp_path / "toy")
    document = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    assert {"schema", "name", "task", "target", "recipe", "source", "passes", "result", "environment", "files"} <= {
        *document
    }
    assert {"digest", "parameters", "bytes", "metric"} <= {*document["source"]}
    assert {"digest", "bytes", "metric", "agreement", "p50_ms", "speedup"} <= {*document["result"]}
    assert {*document["result"]["metric"]} == {"name", "value", "low", "high", "n"} == {*document["source"]["metric"]}
    assert {"value", "low", "high", "against"} <= {*document["result"]["speedup"]}
    for record in document["passes"]:
        assert {"pass", "options", "kept", "reason", "metric", "p50_ms", "bytes", "seconds"} <= {*record}
    assert [record["pass"] for record in document["passes"]] == ["export", "fuse", "quantize-dynamic"]
    assert {*document["files"]} == {
        "model.onnx",
        "tokenizer.json",
        "labels.txt",
        "probe.npz",
        "evidence.npz",
        "README.md",
    }
    assert document["source"]["metric"]["n"] == 60
    assert document["source"]["metric"]["value"] > 0.9
    assert document["name"] == "toy"
    assert package.labels == LABELS
    checks = verify_package(package)
    assert all(check.ok for check in checks), [check for check in checks if not check.ok]
    rows = toy_rows()[:60]
    predictions = TextClassifier(package).predict([text for text, _ in rows])
    right = sum(best.label == label for (best,), (_, label) in zip(predictions, rows, strict=True))
    assert right / 60 == pytest.approx(document["result"]["metric"]["value"])
    assert TextClassifier(package)("").label in LABELS


def test_a_second_compile_finds_every_step_and_does_no_work(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exports: list[int]
) -> None:
    from lepto.compiler import evaluate

    asked = recipe(toy, passes=("fuse", "quantize-dynamic"))
    first = compile_model(asked, tmp_path / "one")
    exports.clear()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this was to be found in the cache")

    for name in ("interleave", "logits_one_by_one", "module_outputs", "parity"):
        monkeypatch.setattr(evaluate, name, never)
    monkeypatch.setattr(torch.nn.Module, "__call__", never)
    monkeypatch.setattr(Fuse, "__call__", never)
    monkeypatch.setattr(QuantizeDynamic, "__call__", never)
    second = compile_model(asked, tmp_path / "two")
    assert exports == []
    assert second.manifest.result == first.manifest.result
    assert all(record.cached for record in second.manifest.passes)
    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("broken")])
def test_an_interrupted_compile_resumes_at_its_pass(
    toy: Toy, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, exports: list[int], stop: BaseException
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise stop

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    asked = recipe(toy, passes=("fuse", "quantize-dynamic"))
    with monkeypatch.context() as patch:
        patch.setattr("lepto.compiler.passes.quantize_dynamic.quantize_dynamic", interrupt)
        with pytest.raises(type(stop)):
            compile_model(asked, tmp_path / "out")
    assert exports == [1]
    assert not (tmp_path / "out").exists()
    assert nothing_left(own_cache)
    assert list(temporary.iterdir()) == []
    package = compile_model(asked, tmp_path / "out")
    assert exports == [1]
    assert [record.cached for record in package.manifest.passes] == [True, True, False]


def test_a_full_disk_in_the_cache_or_in_the_package_loses_nothing(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(recipe(toy, passes=("fuse",)), tmp_path / "out")
    before = (tmp_path / "out/manifest.json").read_bytes()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lepto.runtime.staging.sync_file", full)
        with pytest.raises(OSError, match="No space left"):
            compile_model(recipe(toy, passes=("fuse",)), tmp_path / "out", force=True)
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    monkeypatch.setenv("LEPTO_CACHE", str(tmp_path / "fresh"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            compile_model(recipe(toy, passes=()), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert nothing_left(tmp_path)


def test_without_passes_the_better_quantization_is_taken_by_measurement(toy: Toy, tmp_path: Path) -> None:
    package = compile_model(recipe(toy), tmp_path / "out")
    records = {record.pass_: record for record in package.manifest.passes}
    assert records["fuse"].kept
    kept = [name for name in ("quantize-dynamic", "quantize-static") if records[name].kept]
    tables = [] if kept else ["quantize-embeddings"]  # where both are slower
    assert [*records] == ["export", "fuse", "quantize-dynamic", "quantize-static", *tables]
    assert len(kept) <= 1
    for name in ("quantize-dynamic", "quantize-static"):
        assert records[name].metric is not None
        assert "x as fast as" in records[name].reason
    counts = OnnxModel(package.model_path.read_bytes()).operators()
    assert counts["SkipSimplifiedLayerNormalization"] == 5
    # The last of the two layers attends from the one row that the head reads.
    assert counts["Attention"] + counts["QAttention"] == 1
    assert counts["FusedMatMul"] == 4
    assert all(check.ok for check in verify_package(package))


def test_without_data_only_the_function_is_kept(toy: Toy, tmp_path: Path) -> None:
    package = compile_model(recipe(toy, train=None, eval=None), tmp_path / "out")
    assert [record.pass_ for record in package.manifest.passes] == ["export", "fuse"]
    assert package.manifest.result.metric is None
    assert all(check.ok for check in verify_package(package))


@dataclasses.dataclass(frozen=True)
class Damage:
    """Zeroes or shifts weights, and says it had kept the function."""

    name: ClassVar[str] = "fuse"
    preserves_function: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()
    part: str = "layer.1"
    factor: float = 3.0

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        proto = model.proto()
        for tensor in proto.graph.initializer:
            if self.part in tensor.name and "bias" in tensor.name and "LayerNorm" not in tensor.name:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + self.factor, tensor.name))
        return OnnxModel.from_proto(proto)


def test_a_broken_promise_stops_the_compile_and_names_the_layer(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepto.compiler.passes.fuse.Fuse", Damage)
    with pytest.raises(LeptoError, match=r"fuse must not change the function, but did.*encoder\.layer\.1") as caught:
        compile_model(recipe(toy, passes=("fuse",)), tmp_path / "out")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert nothing_left(toy.cache)


class DamagingQuantizer(QuantizeDynamic):
    """Answers always the same label."""

    name: ClassVar[str] = "quantize-damaged"  # its results must not be taken for the real ones

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        proto = model.proto()
        for tensor in proto.graph.initializer:
            if tensor.name == "classifier.bias":
                tensor.CopyFrom(numpy_helper.from_array(np.array([99, 0, 0], dtype=np.float32), tensor.name))
        return OnnxModel.from_proto(proto)


def test_a_budget_that_no_candidate_meets_ends_without_a_package(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepto.compiler.passes.quantize_dynamic.QuantizeDynamic", DamagingQuantizer)
    with pytest.raises(LeptoError, match=r"the closest is quantize-damaged with accuracy 0\.\d+ \[0\.") as caught:
        compile_model(recipe(toy, passes=("fuse", "quantize-dynamic"), max_drop="0%"), tmp_path / "out")
    assert caught.value.exit_code == 1
    assert "No package was written" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_chosen_plan_leaves_a_candidate_over_the_budget_out(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepto.compiler.passes.quantize_dynamic.QuantizeDynamic", DamagingQuantizer)
    package = compile_model(recipe(toy, train=None), tmp_path / "out")
    record, tables = package.manifest.passes[-2:]
    assert not record.kept
    assert "over the budget" in record.reason
    assert (tables.pass_, tables.kept) == ("quantize-embeddings", False)
    assert "smallest_bytes is 1000000" in tables.reason
    assert package.manifest.result.metric is not None
    assert package.manifest.source.metric is not None
    assert package.manifest.result.metric.value == package.manifest.source.metric.value


def test_a_pass_that_declines_is_left_out_with_its_reason(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Declines(Fuse):
        name: ClassVar[str] = "declines"

        def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
            raise Left("nothing to do here")

    monkeypatch.setattr("lepto.compiler.passes.fuse.Fuse", Declines)
    package = compile_model(recipe(toy, eval=None, train=None), tmp_path / "out")
    assert package.manifest.passes[-1].reason == "nothing to do here"
    assert not package.manifest.passes[-1].kept


def test_where_plain_quantization_is_over_the_budget_the_worst_layer_stays_in_float(tmp_path: Path) -> None:
    asked = Recipe(
        model="factories:loud",
        train="factories:loud_train",
        eval="factories:loud_eval",
        threads=1,
        max_drop="5%",
        search_budget="0",
    )
    records = {record.pass_: record for record in compile_model(asked, tmp_path / "out").manifest.passes}
    tables = [] if records["mixed-precision"].kept else ["quantize-embeddings"]  # where it is slower
    assert [*records] == ["export", "fuse", "quantize-dynamic", "quantize-static", "mixed-precision", *tables]
    for name in ("quantize-dynamic", "quantize-static"):
        assert "over the budget" in records[name].reason
    mixed = records["mixed-precision"]
    assert "1 of 3 nodes in float" in mixed.reason
    assert "(b) " in mixed.reason
    assert "(200 training samples)" in mixed.reason
    assert mixed.options["max_drop"] == "5%"
    assert mixed.metric is not None
    assert mixed.metric.value >= 0.95


def test_what_prepares_a_quantization_is_kept_with_it_or_not_at_all(toy: Toy, tmp_path: Path) -> None:
    asked = recipe(toy, passes=("fuse", "smooth(residuals=yes)"))
    records = {record.pass_: record for record in compile_model(asked, tmp_path / "one").manifest.passes}
    assert not records["smooth"].kept
    assert "4 multiplied back" in records["smooth"].reason
    assert records["smooth"].reason.endswith("no pass that it prepares was kept")
    asked = recipe(toy, passes=("fuse", "smooth(residuals=yes)", "quantize-static(method=entropy,samples=50)"))
    package = compile_model(asked, tmp_path / "two")
    records = {record.pass_: record for record in package.manifest.passes}
    assert "50 calibration samples, entropy" in records["quantize-static"].reason
    assert records["quantize-static"].options["method"] == "entropy"
    assert records["smooth"].kept == records["quantize-static"].kept
    assert package.manifest.recipe["passes"] == [
        "fuse",
        "smooth(residuals=yes)",
        "quantize-static(method=entropy,samples=50)",
    ]


def test_a_pass_that_looks_at_training_data_is_done_again_for_other_data(toy: Toy, tmp_path: Path) -> None:
    passes = ("fuse", "smooth", "mixed-precision(max_drop=50%)")
    first = compile_model(recipe(toy, passes=passes), tmp_path / "one").manifest
    again = compile_model(recipe(toy, passes=passes), tmp_path / "two").manifest
    assert [record.cached for record in again.passes] == [True] * 4
    assert first.passes[-1].reason.startswith("plain quantization keeps the budget: metric ")
    changed = tmp_path / "train.csv"
    lines = toy.train.read_text().splitlines()
    changed.write_text("\n".join(lines[:100]) + "\n")
    other = compile_model(recipe(toy, passes=passes, train=changed), tmp_path / "three").manifest
    assert [record.cached for record in other.passes] == [True, True, False, False]
    words, label = lines[1].rsplit(",", 1)
    changed.write_text(
        "\n".join([lines[0], f"{words},{'get refund' if label != 'get refund' else 'track order'}", *lines[2:]])
    )
    relabelled = compile_model(recipe(toy, passes=passes, train=changed), tmp_path / "four").manifest
    assert [record.cached for record in relabelled.passes] == [True, True, True, False]


def timing(ratio: float, noise: float = 0.001) -> Timing:
    rng = np.random.default_rng(0)
    candidate = 1e-3 * (1 + noise * rng.standard_normal((24, 20)))
    baseline = ratio * 1e-3 * (1 + noise * rng.standard_normal((24, 20)))
    return Timing(ratio, 1.0, ratio_interval(baseline, candidate))


@pytest.mark.parametrize(
    ("ratio", "bytes_", "preserves", "bytes_first", "kept", "said"),
    [
        (1.5, 100, False, False, True, "1.50 x as fast"),
        (0.5, 10, False, False, False, "slower than its input"),
        (0.5, 10, True, False, False, "slower than its input"),
        (1.0, 100, True, False, True, "the same function, not slower"),
        (1.0, 89, False, False, True, "11% smaller"),
        (1.0, 95, False, False, False, "not shown to be faster"),
        (0.5, 10, False, True, True, "slower, but 90% smaller, and bytes come first"),
        (0.5, 95, False, True, False, "slower than its input"),
    ],
)
def test_a_pass_must_earn_its_place(
    ratio: float, bytes_: int, preserves: bool, bytes_first: bool, kept: bool, said: str
) -> None:
    noise = 0.2 if ratio == 1.0 else 0.001
    found, reason = pipeline.earned(timing(ratio, noise), 100, bytes_, preserves, bytes_first=bytes_first)
    assert (found, said in reason) == (kept, True), reason


@pytest.mark.parametrize(
    ("objective", "left_out"),
    [("latency", ["quantize-dynamic", "quantize-static"]), ("size", []), ("throughput", ["quantize-static"])],
)
def test_what_a_slower_int8_is_worth_depends_on_the_objective(
    objective: str, left_out: list[str], toy: Toy, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 bits are twice as slow for one sample, and in batches only those with fixed ranges are."""

    def compare(
        self: Evaluator, baseline: OnnxModel | None, candidate: OnnxModel, label: str, *, batches: bool = False
    ) -> tuple[Timing, bool]:
        fast = not label.startswith("quantize") or label == "quantize-embeddings" or (batches and "static" not in label)
        return timing(1.5 if fast else 0.5), False

    monkeypatch.setattr(Evaluator, "compare", compare)
    monkeypatch.setattr("lepto.compiler.compile._TABLES", "quantize-embeddings(per_row=false,smallest_bytes=0)")
    made = compile_model(recipe(toy, objective=objective), tmp_path / "out").manifest
    slower = [record.pass_ for record in made.passes if "slower than its input" in record.reason]
    assert slower == left_out
    # The tables alone where neither of them is kept.
    tables = [(record.kept, record.bytes) for record in made.passes if record.pass_ == "quantize-embeddings"]
    assert tables == ([(True, made.result.bytes)] if objective == "latency" else [])
    assert made.result.bytes < next(record.bytes for record in made.passes if record.pass_ == "fuse")


def test_for_throughput_batches_are_timed_and_kept_in_the_cache(toy: Toy, own_cache: Path, tmp_path: Path) -> None:
    asked = recipe(toy, objective="throughput")
    first = compile_model(asked, tmp_path / "first").manifest
    timed = {record.pass_: record.reason for record in first.passes if record.pass_ in ("fuse", "quantize-dynamic")}
    assert len(timed) == 2
    assert all("in batches of 32 " in reason for reason in timed.values()), timed
    again = compile_model(asked, tmp_path / "again").manifest
    assert all(record.cached for record in again.passes)
    assert again.result.digest == first.result.digest


def test_a_budget_compares_points_and_counts_ties_as_kept() -> None:
    from lepto.runtime.manifest import Metric

    source = Metric(name="accuracy", value=0.9, low=0.8, high=1.0, n=10)
    budget = pipeline.Budget(source, 0.1)
    assert budget.keeps(source.model_copy(update={"value": 0.8}))
    assert not budget.keeps(source.model_copy(update={"value": 0.7999}))


def test_the_model_takes_any_batch_and_length(toy: Toy, tmp_path: Path) -> None:
    package = compile_model(recipe(toy, passes=("fuse",)), tmp_path / "out")
    session = Session(package, threads=1)
    for batch, length in ((1, 1), (3, 7), (5, 32)):
        ids = np.full((batch, length), 5, dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        outputs = session.run({tensor.name: feeds[tensor.name] for tensor in package.manifest.inputs})
        assert outputs["logits"].shape == outputs["scores"].shape == (batch, 3)
        np.testing.assert_allclose(outputs["scores"].sum(axis=1), 1, rtol=1e-5)
    graph = onnx.load(package.model_path).graph
    assert all(value.type.tensor_type.shape.dim[0].dim_param == "batch" for value in (*graph.input, *graph.output))
