from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models_images
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lepto.benchmarks.blame import holm, losing_slices
from lepto.benchmarks.profiles import RUNTIME, NodeTime, by_layer, by_operator
from lepto.compiler import Recipe, compile_model, evaluate
from lepto.compiler.context import Context
from lepto.compiler.layer_errors import grew_most, layer_errors
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.quantize_static import QuantizeStatic
from lepto.runtime import cli
from lepto.runtime.package import Package, write_package

MakePackage = Callable[..., Path]
EVAL = "models_images:digits_eval"


@pytest.fixture
def lepto(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: Any) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


class TestAlignment:
    def test_by_layer_and_by_operator(self) -> None:
        before = [
            NodeTime("a", "MatMul", "enc.0", 5.0),
            NodeTime("b", "Add", "enc.0", 1.0),
            NodeTime("c", "Gelu", "enc.1", 2.0),
        ]
        after = [
            NodeTime("x", "QMatMul", "enc.0", 9.0),
            NodeTime("z", "Gelu", "enc.1", 2.5),
            NodeTime("t", "Cast", "", 1.0),
        ]
        found = by_layer(before, after)
        assert [(item.part, item.change_us) for item in found] == [
            ("enc.0", 3.0), ("Cast nodes of no layer", 1.0), ("enc.1", 0.5)
        ]  # fmt: skip
        assert str(found[0]) == "enc.0 +3.0 µs (6.0 → 9.0): Add, MatMul → QMatMul"
        assert by_operator(before, after)[0].part == "QMatMul"
        assert sum(item.change_us for item in by_operator(before, after)) == pytest.approx(4.5)

    def test_fusions_move_work_between_layers_but_not_between_blocks(self) -> None:
        layers = "stem.2 enc.0.fc enc.0.norm enc.1.fc enc.2.fc", "stem.1 enc.0.fc enc.2.fc enc.2.act"
        before, after = ([NodeTime("", "Op", layer, 1.0) for layer in side.split()] for side in layers)
        found = {item.part: item.change_us for item in by_layer(before, after)}
        assert found == {"enc.0": -1.0, "stem": 0.0, "enc.1": -1.0, "enc.2": 1.0}

    def test_slices_that_lost_with_holms_correction(self) -> None:
        baseline = np.ones(40, bool)
        candidate = baseline.copy()
        candidate[:8] = False
        found = losing_slices({"who": ["a"] * 20 + ["b"] * 20, "all": ["x"] * 40}, baseline, candidate)
        assert [(item.value, item.broken, item.n) for item in found] == [("a", 8, 20), ("x", 8, 40)]
        assert found[0].p == pytest.approx(3 * 0.5**8)
        assert found[0].change == -0.4
        assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_time_that_was_added_is_found(lepto: Any, make_package: MakePackage, tmp_path: Path) -> None:
    one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", work=40)
    code, out, err = lepto("blame", one, two, "--runs", "60", "--json")
    assert code == 0, err
    found = json.loads(out)["latency"]
    assert found["operators"][0]["part"] == "MatMul"
    others = sum(abs(item["change_us"]) for item in found["operators"][1:-1])
    assert found["operators"][0]["change_us"] > others
    assert found["operators"][-1]["part"] == RUNTIME
    assert "42 MatMul" in err


def test_samples_and_slices_that_broke_are_named(
    lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path
) -> None:
    one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", swap=True)
    code, out, err = lepto("blame", one, two, "--eval", evaluation, "--runs", "20", "--json")
    assert code == 0, err
    found = json.loads(out)["accuracy"]
    assert (found["changed"], found["n"], len(found["samples"])) == (400, 600, 400)
    assert {item["value"] for item in found["slices"] if item["column"] == "label"} == {"order", "refund"}
    assert found["samples"][0] == {"row": 0, "text": "please order", "label": "order", "candidate": "refund"}
    assert found["worst_layer"]["tensor"] == "rows"  # the exchanged rows of the table
    assert "samples that broke" in err


def test_a_failed_gate_says_why(lepto: Any, make_package: MakePackage, tmp_path: Path, evaluation: Path) -> None:
    one, two = make_package(tmp_path / "one"), make_package(tmp_path / "two", work=60, swap=True)
    code, out, _ = lepto(
        "gate", one, two, "--eval", evaluation, "--checks", "accuracy,latency", "--wait", "0", "--json"
    )
    assert code == 1
    found = json.loads(out)["blame"]
    assert found["latency"]["operators"][0]["part"] == "MatMul"
    assert found["accuracy"]["changed"] == 400
    assert any("MatMul" in line for line in found["lines"])
    assert lepto("gate", one, one, "--checks", "bytes", "--json")[0] == 0


class TestImages:
    """A real network: what was compiled, and what a report and a blame say of it."""

    @pytest.fixture(scope="class")
    def packages(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
        """The plain export, and the same in 8 bits, whether or not that is faster here."""
        folder = tmp_path_factory.mktemp("images")
        train = "models_images:digits_train"
        recipe = Recipe(model="models_images:resnet", train=train, eval=EVAL, threads=1, passes=())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LEPTO_CACHE", str(folder / "cache"))
            patch.setattr(evaluate, "BLOCKS", 6)
            patch.setattr(evaluate, "PER_BLOCK", 6)
            plain = compile_model(recipe, folder / "plain")
        pixels = models_images.digits_train()[0]["pixels"]
        context = Context(calibration=[{"pixels": pixels[i : i + 1]} for i in range(64)])
        # Seven-bit weights: the products of eight-bit ones saturate on CPUs without VNNI.
        small = QuantizeStatic(method="min-max", reduce_range=True)(OnnxModel(plain.model_path.read_bytes()), context)
        return plain, rewritten(plain, small.data, folder / "int8")

    def test_a_compile_keeps_its_evidence(self, packages: tuple[Package, Package]) -> None:
        stored = packages[0].evidence()
        assert stored is not None
        assert stored.judged
        assert stored.labels is not None
        assert stored.result is not None
        metric = packages[0].manifest.result.metric
        assert metric is not None
        assert (stored.result.decisions == stored.labels).mean() == pytest.approx(metric.value)
        assert stored.result_seconds is not None
        assert stored.result_seconds.shape == (6, 6)

    def test_eight_bits_cost_a_little_at_every_layer(self, packages: tuple[Package, Package]) -> None:
        plain, small = (OnnxModel(package.model_path.read_bytes()) for package in packages)
        pixels = models_images.digits_train()[0]["pixels"]
        feeds = [{"pixels": pixels[i : i + 1]} for i in range(8)]
        found = layer_errors(plain, small, feeds, 1)
        assert len(found) >= 5
        assert all(0 < item.error < 0.2 for item in found), found
        assert all(item.error == 0 for item in layer_errors(plain, plain, feeds, 1))
        worst = grew_most(found)
        assert worst is not None
        assert worst.grew == max(item.grew for item in found)

    def test_a_scale_that_was_doubled_is_found_at_its_layer(
        self, packages: tuple[Package, Package], lepto: Any, tmp_path: Path
    ) -> None:
        broken, layer = _with_doubled_scale(packages[1], tmp_path / "broken")
        code, out, err = lepto("blame", packages[1].path, broken, "--eval", EVAL, "--runs", "20", "--json")
        assert code == 0, err
        assert json.loads(out)["accuracy"]["worst_layer"]["layer"] == layer, err

    def test_layers_are_told_through_the_rewriting(self, packages: tuple[Package, Package], lepto: Any) -> None:
        code, out, err = lepto("blame", packages[0].path, packages[1].path, "--runs", "40", "--json")
        assert code == 0, err
        found = json.loads(out)["latency"]
        named = {item["part"] for item in found["layers"] if item["baseline_us"] and item["candidate_us"]}
        assert {"stem", "blocks.0", "blocks.1", "blocks.2", "head"} <= named
        of_layers = sum(item["candidate_us"] for item in found["layers"])
        assert of_layers == pytest.approx(found["candidate_us"], rel=1e-6)

    def test_a_report_shows_the_images_that_changed(
        self, packages: tuple[Package, Package], lepto: Any, tmp_path: Path
    ) -> None:
        broken, _ = _with_doubled_scale(packages[1], tmp_path / "broken")
        code, out, err = lepto(
            "report", broken, "-o", tmp_path / "r.html", "--eval", EVAL, "--source", "models_images:resnet",
            "--flips", "3", "--json",
        )  # fmt: skip
        assert code == 0, err
        document = json.loads(out)["packages"][0]
        assert document["answers"].startswith("measured now")
        assert document["flips"] > 3
        assert document["accuracy"]["source"] > document["accuracy"]["result"]
        page = (tmp_path / "r.html").read_text()
        assert page.count("tinted by what the answer hangs on") == 6


def _with_doubled_scale(package: Package, folder: Path) -> tuple[Path, str]:
    """The package again, with the scale of one convolution's weights doubled; and the layer that has them."""
    proto = onnx.load(package.model_path)
    reads = {node.input[1]: node for node in proto.graph.node if node.op_type == "Conv"}
    scales = {t.name: t for t in proto.graph.initializer}
    weights = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in reads]
    node = weights[len(weights) // 2]
    layer = next(p.value for p in reads[node.output[0]].metadata_props if p.key == "layer")
    scale = scales[node.input[1]]
    scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))
    return rewritten(package, proto.SerializeToString(), folder).path, layer


def rewritten(package: Package, data: bytes, folder: Path) -> Package:
    """The package with another graph, as an older release wrote it: without evidence."""
    manifest = package.manifest
    result = manifest.result.model_copy(update={"digest": hashlib.sha256(data).hexdigest(), "bytes": len(data)})
    inputs, outputs = package.probe()
    probe = {f"input/{n}": a for n, a in inputs.items()} | {f"output/{n}": a for n, a in outputs.items()}
    return write_package(
        folder, manifest=manifest.model_copy(update={"files": {}, "result": result}), model=data, tokenizer=None,
        labels=package.labels, probe=probe, card="# rewritten\n",
    )  # fmt: skip
