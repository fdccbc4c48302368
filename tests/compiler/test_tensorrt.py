"""Graphs for TensorRT, built for real by TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.tensorrt import Tensorrt
from lepto.compiler.tensorrt import engine as engines
from lepto.compiler.tensorrt.engine import EngineError, build_engine
from lepto.compiler.tensorrt.kit import build_spec
from lepto.compiler.tensorrt.profiles import Shapes, profile_of
from lepto.compiler.verify import parity, runner
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Tolerance
from lepto.runtime.package import open_package
from lepto.runtime.repository import publish
from lepto.runtime.targets import TARGETS
from lepto.runtime.verify import verify_package

from .conftest import Lepto, Toy

RNG = np.random.default_rng(0)


def graph(body: str, **weights: np.ndarray[Any, Any]) -> OnnxModel:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[batch,16] x) => (float[batch,n] y) {{ {body} }}'
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    return OnnxModel.from_proto(proto)


def mlp() -> OnnxModel:
    a, b = RNG.standard_normal((16, 32)) / 4, RNG.standard_normal((32, 8)) / 4
    return graph("h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", a=a, b=b)


def feeds(count: int = 16, scale: float = 1.0) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{"x": (scale * RNG.standard_normal((1, 16))).astype(np.float32)} for _ in range(count)]


def spec_of(model: OnnxModel, target: str = "rtx-ada", **options: Any) -> dict[str, Any]:
    step = Tensorrt(**options)
    profile = profile_of(model, feeds(2), batch=(1, step.batch, step.max_batch), percentile=95, limits={})
    return build_spec(model, TARGETS[target], profile, step, Tolerance(atol=0.1, rtol=0.1))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_prepared_graph_answers_alike_and_is_built(precision: Any) -> None:
    model, samples = mlp(), feeds()
    context = Context(calibration=samples)
    before = model.digest
    prepared = Tensorrt(precision=precision)(model, context)
    assert OnnxModel(model.data).digest == before
    proof = parity(runner(model, 1), runner(prepared, 1), samples)
    assert proof.max_rel < {"fp32": 1e-6, "fp16": 5e-3, "bf16": 3e-2, "int8": 0.1}[precision]
    assert {node.domain for node in prepared.proto().graph.node} == {""}
    kinds = {t.data_type for t in prepared.proto().graph.initializer if len(t.dims) == 2}
    types = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8"}
    assert kinds == {onnx.TensorProto.DataType.Value(types[precision])}
    assert prepared.operators()["QuantizeLinear"] == (2 if precision == "int8" else 0)
    pytest.importorskip("tensorrt_rtx")
    built = build_engine(prepared, spec_of(prepared, precision=precision), "tensorrt_rtx", limit_s=60)
    assert built.record["compute_capability"] == "8.9"
    assert built.record["bytes"] == len(built.plan) > 1000
    assert built.record["check"] is None


def test_what_overflows_stays_in_float32_and_is_told() -> None:
    large = graph(
        "h = MatMul(x, a) r = Relu(h) m = ReduceMean<keepdims=1>(r, axes) y = Sub(r, m)",
        a=np.eye(16) * 100,
        axes=np.array([1]),
    )
    proto = large.proto()
    next(t for t in proto.graph.initializer if t.name == "axes").CopyFrom(
        numpy_helper.from_array(np.array([1]), "axes")
    )
    large = OnnxModel.from_proto(proto)
    context = Context(calibration=feeds(scale=100.0))
    prepared = Tensorrt()(large, context)
    kept = {row[1]: row[2] for row in context.tables[0].rows}
    assert kept["ReduceMean"] == "the sum inside"
    assert "in fp32" in context.notes[0]
    sample = feeds(1, 100.0)
    assert np.isfinite(runner(prepared, 1)(sample[0])).all()
    assert parity(runner(large, 1), runner(prepared, 1), sample).max_rel < 1e-2
    small = Context(calibration=feeds())
    Tensorrt()(large, small)
    assert small.tables[0].rows == []
    asked = Context(calibration=feeds())
    node = next(n.name or "" for n in prepared.proto().graph.node if n.op_type == "Relu")
    Tensorrt(keep=(node,))(large, asked)
    assert [row[2] for row in asked.tables[0].rows] == ["asked for"]


def test_bf16_overflows_nowhere_and_leaves_out_what_has_no_such_form() -> None:
    large = graph("h = MatMul(x, a) r = Relu(h) y = Mul(r, r)", a=np.eye(16) * 300)
    sample = feeds(4, 100.0)
    assert np.abs(runner(large, 1)(sample[0])).max() > 1e8
    context = Context(calibration=sample)
    prepared = Tensorrt(precision="bf16")(large, context)
    assert context.tables[0].rows == []
    assert "bf16 holds what fp32 does" in context.notes[0]
    assert 1e-4 < parity(runner(large, 1), runner(prepared, 1), sample).max_rel < 3e-2
    some = graph("h = MatMul(x, a) s = HardSwish(h) y = Relu(s)", a=np.eye(16))
    context = Context(calibration=feeds())
    prepared = Tensorrt(precision="bf16")(some, context)
    assert [row[1:3] for row in context.tables[0].rows] == [["HardSwish", "has no bf16 form"]]
    assert parity(runner(some, 1), runner(prepared, 1), feeds(4)).max_rel < 3e-2


def test_an_epsilon_that_fp16_would_lose_keeps_its_node() -> None:
    context = Context(calibration=feeds())
    Tensorrt()(graph("s = Mul(x, x) y = Add(s, e)", e=np.array(1e-12)), context)
    assert [row[1] for row in context.tables[0].rows] == ["Add"]


def test_a_mask_of_minus_infinity_stays_finite() -> None:
    model = graph("s = Add(x, hide) y = Softmax(s)", hide=np.full(16, np.finfo(np.float32).min))
    prepared = Tensorrt()(model, Context(calibration=feeds()))
    assert np.isfinite(runner(prepared, 1)(feeds(1)[0])).all()


def test_an_operator_that_tensorrt_lacks_is_named() -> None:
    pytest.importorskip("tensorrt_rtx")
    proto = mlp().proto()
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("StringNormalizer", ["h"], ["r"], name="odd_one"))
    model = OnnxModel.from_proto(proto)
    with pytest.raises(EngineError, match=r"refuses the graph at node 'odd_one' \(StringNormalizer\)") as caught:
        build_engine(model, spec_of(mlp()), "tensorrt_rtx", limit_s=60)
    assert caught.value.node == "odd_one"
    assert "compile for a CPU" in str(caught.value)


def test_a_build_that_takes_too_long_is_ended() -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="took longer than"):
        build_engine(mlp(), spec_of(mlp()), "tensorrt_rtx", limit_s=0.1)


def test_a_crash_of_the_builder_names_the_first_node_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(model: OnnxModel, spec: Any, module: str, limit_s: float) -> Any:
        bad = any(node.op_type == "Relu" for node in model.proto().graph.node)
        return engines._Failed("crashed", "signal SIGSEGV", crashed=True) if bad else engines.Engine(b"", {})

    monkeypatch.setattr(engines, "_build", crash)
    model = Tensorrt(precision="fp32")(mlp(), Context(calibration=feeds()))
    with pytest.raises(EngineError, match=r"crashed at node 'Relu_r' \(Relu\): signal SIGSEGV"):
        build_engine(model, spec_of(model), "tensorrt_rtx")


def test_profiles_are_in_order() -> None:
    with pytest.raises(ValueError, match="minimum <= typical <= maximum"):
        Shapes((4,), (2,), (8,))
    with pytest.raises(ValueError, match="1 <= batch <= max_batch, got 64 and 8"):
        Tensorrt(batch=64, max_batch=8)
    model = mlp()
    spec = spec_of(model)
    spec["profile"]["x"]["min"] = [64, 16]
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="must have 1 <= min <= opt <= max"):
        build_engine(model, spec, "tensorrt_rtx", limit_s=60)


def test_other_runtimes_operators_and_missing_data_are_declined() -> None:
    with pytest.raises(Left, match="--train"):
        Tensorrt()(mlp(), Context())
    proto = mlp().proto()
    proto.graph.node[1].domain = "com.microsoft"
    with pytest.raises(Left, match=r"com\.microsoft::Relu"):
        Tensorrt()(OnnxModel.from_proto(proto), Context(calibration=feeds()))


def test_a_target_without_its_builder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert engines.find_builder(TARGETS["rtx-ada"]) == (
        "",
        "TensorRT for RTX is not installed: pip install 'lepto[rtx]'",
    )
    assert "comes with JetPack" in engines.find_builder(TARGETS["jetson-orin"])[1]


def test_a_kit_for_jetson_and_an_engine_for_rtx(toy: Toy, lepto: Lepto, tmp_path: Path) -> None:
    ran = lepto("compile", *toy.flags(target="jetson-orin"), "-o", tmp_path / "kit")
    assert ran.code == 0, ran.err
    assert "not built" in ran.out
    kit = open_package(tmp_path / "kit")
    assert {"build.json", "build_engine.py"} < set(kit.manifest.files)
    assert "engine.plan" not in kit.manifest.files
    spec = json.loads((tmp_path / "kit/build.json").read_text())
    assert spec["profile"]["input_ids"]["max"] == [32, 32]
    assert "--stronglyTyped" in spec["trtexec"]["JetPack 6"]
    assert "--stronglyTyped" not in spec["trtexec"]["JetPack 7.2"]
    assert "--saveEngine=../engine.plan" in spec["trtexec"]["JetPack 6"]  # a package takes no unknown files
    assert spec["trtexec"]["JetPack 6"] in (tmp_path / "kit/README.md").read_text()
    assert all(check.ok for check in verify_package(kit))
    with pytest.raises(LeptoError, match="build kit for jetson-orin and has no engine yet"):
        publish(kit, tmp_path / "repository")
    pytest.importorskip("tensorrt_rtx")
    script = [sys.executable, str(tmp_path / "kit/build_engine.py")]
    wrong = subprocess.run(
        [*script, "build", str(tmp_path / "kit"), "--output", str(tmp_path / "built")],
        capture_output=True,
        text=True,
        env={**os.environ, "LEPTO_TENSORRT": "tensorrt_rtx"},
        check=False,
    )
    assert wrong.returncode == 2
    assert "is built with tensorrt, not with tensorrt_rtx" in wrong.stderr
    ran = lepto("compile", *toy.flags(target="rtx-blackwell"), "-o", tmp_path / "rtx", "--json")
    assert ran.code == 0, ran.err
    package = open_package(tmp_path / "rtx")
    record = json.loads((tmp_path / "rtx/engine.json").read_text())
    assert record["compute_capability"] == "12.0"
    assert package.manifest.result.speedup is None
    assert all(check.ok for check in verify_package(package))
    tried = subprocess.run(
        [*script, "check", str(tmp_path / "rtx")],
        capture_output=True,
        text=True,
        env={**os.environ, "LEPTO_TENSORRT": "tensorrt_rtx"},
        check=False,
    )
    assert tried.returncode == 5
    assert "no GPU can be used here" in tried.stderr


def test_plans_that_do_not_fit_the_target(toy: Toy, lepto: Lepto, tmp_path: Path) -> None:
    for passes, target, said in (
        ("fuse", "l4", "must end in tensorrt"),
        ("tensorrt", "x86-64-v3", "tensorrt prepares a graph for a GPU"),
        ("fuse,tensorrt", "l4", "fuse writes what TensorRT does not read"),
        ("tensorrt(precision=bf16)", "t4", "bf16 needs a GPU of compute capability 8 or later, and t4 has 7.5"),
    ):
        ran = lepto("compile", *toy.flags(target=target, passes=passes), "-o", tmp_path / "out")
        assert ran.code == 2
        assert said in ran.err


def test_every_name_of_the_stubs_is_in_the_real_api() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    stubs = ast.parse((Path(__file__).parents[2] / "typings/tensorrt/__init__.pyi").read_text())
    missing = []
    for entry in stubs.body:
        if isinstance(entry, ast.FunctionDef) and not hasattr(rtx, entry.name):
            missing.append(entry.name)
        if isinstance(entry, ast.ClassDef):
            found = getattr(rtx, entry.name, None)
            names = [part.name for part in entry.body if isinstance(part, ast.FunctionDef)]
            names += [part.target.id for part in entry.body if isinstance(part, ast.AnnAssign)]  # type: ignore[union-attr]
            names += [part.targets[0].id for part in entry.body if isinstance(part, ast.Assign)]  # type: ignore[attr-defined]
            missing += [f"{entry.name}.{name}" for name in names if not hasattr(found, name)]
    assert not missing
