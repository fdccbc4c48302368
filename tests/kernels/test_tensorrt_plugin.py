"""Attention as TensorRT's ahead-of-time plugin: what TensorRT would be told, compiled, and launched by it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import onnx
import pytest
import torch
import triton
from fake_tensorrt import DataType, Registry, TensorDesc
from tolerance import assert_close

from lepto.kernels.attention.plugin import _attention_plugin_kernel
from lepto.kernels.attention.reference import reference, reference_varlen
from lepto.kernels.ship.onnx import Variant, attention_node, declare
from lepto.kernels.ship.plugin_specification import PluginSpecification
from lepto.kernels.ship.tensorrt_plugin import Kernel, operators, parameters, plugin_model, register, without_hidden

H, G, D = 4, 2, 16


def implement(registry: Registry, variant: Variant, descs: list[TensorDesc], tactic: int = 1, **values):
    """What TensorRT gets for a node: the kernel's specification, the launch and the whole numbers."""
    asked: list[PluginSpecification] = []

    def compile_(specification: PluginSpecification) -> Kernel:
        asked.append(specification)
        return Kernel("symbol", "ptx", 32 * specification.launch.num_warps, 1024)

    register([variant.op_type], "sm_89", compile_)
    function = registry.implemented[f"lepto::{variant.op_type}"]
    given = {"num_heads": H, "kv_num_heads": G, "scale": 0.25} | values
    out = function(*descs, *(given[name] for name in variant.attributes), (descs[0],), tactic)
    assert out[:2] == ("symbol", "ptx")
    return asked[0], out[2], [number.value for number in out[3]]


def interpret(specification: PluginSpecification, tensors: list[torch.Tensor], launch, numbers) -> torch.Tensor:
    """Launch as TensorRT would: inputs, whole numbers, output, in the kernel's own order."""
    out = torch.full_like(tensors[0], float("nan"))
    given = dict(zip([name for name, _ in specification.inputs], tensors, strict=True))
    given |= dict(zip(specification.extras, numbers, strict=True)) | {"Out": out}
    names = [name for name in _attention_plugin_kernel.arg_names if name not in specification.constants]
    _attention_plugin_kernel[(launch.grid_x.value,)](*(given.get(name) for name in names), **specification.constants)
    return out


def described(tensors: list[torch.Tensor]) -> list[TensorDesc]:
    """With only the widths known while the engine is built."""
    return [TensorDesc(tuple(x.shape), DataType.HALF, (-1,) * (x.ndim - 1) + (x.shape[-1],)) for x in tensors]


def split(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, D)).transpose(-2, -3)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    return Registry(monkeypatch)


MASKS = {
    "": None,
    "bool": [(3, 1, 1, 37), (1, 1, 19, 37), (1, H, 1, 1)],
    "float": [(3, H, 19, 37), (1, 1, 1, 37)],
}


@pytest.mark.parametrize(
    ("variant", "values", "shape"),
    [
        (Variant(grouped=True), {}, None),
        (Variant(causal=True, grouped=True), {}, None),
        (Variant(window=True, softcap=True, grouped=True), {"window_left": 5, "window_right": 9, "softcap": 4.0}, None),
        *[(Variant(mask, grouped=True), {}, shape) for mask in ("bool", "float") for shape in MASKS[mask]],
    ],
)
def test_what_tensorrt_would_launch_is_attention(registry, variant, values, shape):
    gen = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, n, heads * D, generator=gen).half() for n, heads in ((19, H), (37, G), (37, G))]
    bias = None
    if shape is not None:
        bias = torch.randn(shape, generator=gen)
        bias = bias > -0.7 if variant.mask == "bool" else bias.half()
        tensors.append(bias.to(torch.int8) if variant.mask == "bool" else bias)
    specification, launch, numbers = implement(registry, variant, described(tensors), **values)
    out = interpret(specification, tensors, launch, numbers)
    window = (values.get("window_left", -1), 0 if variant.causal else values.get("window_right", -1))
    options = {"scale": 0.25, "window": window, "softcap": values.get("softcap", 0.0), "bias": bias}
    qkv = [split(x, heads) for x, heads in zip(tensors, (H, G, G), strict=False)]
    exact, _ = reference(*qkv, dtype=torch.float64, **options)
    low, _ = reference(*qkv, **options)
    assert_close(split(out, H), exact, low)


@pytest.mark.parametrize("causal", [False, True])
def test_what_tensorrt_would_launch_for_packed_tokens_is_attention(registry, causal):
    gen = torch.Generator().manual_seed(1)
    cu = torch.tensor([0, 37, 37, 38, 61], dtype=torch.int32)
    tensors = [torch.randn(61, heads * D, generator=gen).half() for heads in (H, G, G)]
    tensors += [cu, torch.arange(41, dtype=torch.int32)]
    variant = Variant("packed", causal=causal, grouped=True)
    specification, launch, numbers = implement(registry, variant, described(tensors))
    assert launch.grid_x.value == H * 4 * triton.cdiv(41, specification.launch.block_m)
    out = interpret(specification, tensors, launch, numbers)
    qkv = [x.unflatten(-1, (heads, D)) for x, heads in zip(tensors, (H, G, G), strict=False)]
    window = (-1, 0 if causal else -1)
    exact, _ = reference_varlen(*qkv, cu, cu, scale=0.25, window=window, dtype=torch.float64)
    low, _ = reference_varlen(*qkv, cu, cu, scale=0.25, window=window)
    assert_close(out.unflatten(-1, (H, D)), exact, low)


def test_tensorrt_is_told_types_shapes_and_two_launches_to_time(registry):
    variant = Variant("packed", causal=True)
    register([variant.op_type], "sm_87")
    name = "lepto::AttentionVarlenCausal"
    q = TensorDesc((61, 64), DataType.HALF)
    assert registry.registered[name](q, q, q, q, q, num_heads=4, kv_num_heads=4, scale=0.25) is q
    assert [*inspect.signature(registry.registered[name]).parameters] == [
        "Q", "K", "V", "cu_seqlens", "places", "num_heads", "kv_num_heads", "scale",
    ]  # fmt: skip
    assert [*inspect.signature(registry.implemented[name]).parameters][-2:] == ["outputs", "tactic"]
    (combination,) = registry.autotuned[name]()
    assert combination.io_types == ["FP16|BF16"] * 3 + ["INT32", "INT32", "FP16|BF16"]
    assert (combination.layouts, combination.tactics) == ("LINEAR", [1, 2])
    long, short = (implement(registry, Variant(), [TensorDesc((1, 9, 64), DataType.BF16)] * 3, t)[0] for t in (1, 2))
    assert (long.dtype, long.launch.block_m, short.launch.block_m) == ("bfloat16", 128, 64)


def test_what_cannot_be_is_refused(registry):
    half = [TensorDesc((2, 9, 64), DataType.HALF)] * 3
    with pytest.raises(TypeError, match="lepto::Attention runs in float16 or bfloat16, Q is "):
        implement(registry, Variant(), [TensorDesc((2, 9, 64), DataType.FLOAT)] * 3)
    with pytest.raises(ValueError, match="last dimension of Q must be known and a multiple of num_heads=4, got -1"):
        implement(registry, Variant(), [TensorDesc((2, 9, 64), DataType.HALF, (-1, -1, -1))] * 3)
    with pytest.raises(ValueError, match="mask must have 4 dimensions, it has 2"):
        implement(registry, Variant("bool"), [*half, TensorDesc((9, 9), DataType.HALF)])
    with pytest.raises(ValueError, match="the domain lepto has no operator 'Flash'"):
        register(["Flash"], "sm_89")
    with pytest.raises(ValueError, match="the architecture is sm_75: Triton emits no tensor-core instruction"):
        register(["Attention"], "sm_75")
    del sys.modules["tensorrt.plugin"].aot_impl
    with pytest.raises(ImportError, match=r"need TensorRT 10.10 or later, this is 11.0"):
        register(["Attention"], "sm_89")


def test_without_tensorrt_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ImportError, match=r"need TensorRT's Python package, 10.10 or later .* comes with JetPack"):
        register(["Attention"], "sm_89")


def test_the_model_for_the_plugins_has_nodes_that_ask_for_them_and_no_functions():
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["b", "s", 64])
    node = attention_node(["x", "x", "x"], "y", num_heads=4, scale=0.25)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["b", "s", 64])
    imports = [onnx.helper.make_opsetid("", 20)]
    model = declare(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]), opset_imports=imports))
    before = model.SerializeToString(deterministic=True)
    made = plugin_model(model)
    assert model.SerializeToString(deterministic=True) == before
    assert (len(model.functions), len(made.functions)) == (1, 0)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in made.graph.node[0].attribute}
    assert (attributes["aot"], attributes["plugin_namespace"], made.graph.node[0].domain) == (1, b"lepto", "lepto")
    assert operators(made) == ["Attention"]
    assert plugin_model(made).SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    model.graph.node[0].domain = ""
    with pytest.raises(ValueError, match="no node of domain lepto: apply the pass attention first"):
        plugin_model(model)


PTX = ".version 8.0\n.visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u32 k_param_1,\n\t.param .u64 k_param_2,\n\t.param .u64 k_param_3\n)\n{{ ld.param.u64 %rd1, [k_param_{}]; }}"  # noqa: E501 - a text


def test_what_triton_appends_is_taken_off_where_no_one_reads_it():
    assert [p.split()[-1] for p in parameters(without_hidden(PTX.format(0), 2))] == ["k_param_0", "k_param_1"]
    with pytest.raises(RuntimeError, match="reads k_param_3, which only Triton's own runtime could pass"):
        without_hidden(PTX.format(3), 2)
    with pytest.raises(RuntimeError, match="must take 3 arguments and 2 of Triton's own, this one takes 4"):
        without_hidden(PTX.format(0), 3)


COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import triton
from lepto.kernels.ship.plugin_specification import PluginSpecification
from lepto.kernels.ship.tensorrt_plugin import compile_plugin, parameters
tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
for line in sys.stdin:
    specification = PluginSpecification(**json.loads(line))
    kernel = compile_plugin(specification)
    target = next(x.split()[1] for x in kernel.ptx.splitlines() if x.startswith(".target")).rstrip(",")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "k.ptx").write_text(kernel.ptx)
        tool = tools / ("ptxas-blackwell" if target.startswith("sm_10") else "ptxas")
        done = subprocess.run([tool, "-v", "-arch", target, Path(folder) / "k.ptx", "-o", Path(folder) / "k.cubin"],
            capture_output=True, text=True)
    print(json.dumps({"types": [p.split()[1] for p in parameters(kernel.ptx)], "threads": kernel.threads,
        "shared": kernel.shared_bytes, "said": done.stderr, "rc": done.returncode, "target": target,
        "core": [i for i in ("mma.sync", "wgmma", "tcgen05") if i in kernel.ptx],
        "version": next(x for x in kernel.ptx.splitlines() if x.startswith(".version")), "entry": kernel.symbol}))
"""
QUICK = [
    PluginSpecification("sm_87", 32, 12, 12, 0.18, "bool"),
    PluginSpecification("sm_90", 64, 12, 12, 0.125, "packed"),
]
ALL = [
    PluginSpecification(architecture, head_dim, 8, 4, 0.1, mask, dtype, window_right=right, short=short)
    for architecture in ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100")
    for head_dim, dtype in ((32, "float16"), (64, "float16"), (128, "bfloat16"))
    for mask, right, short in (("", 0, False), ("bool", -1, False), ("float", -1, True), ("packed", -1, True))
]


def compiled(specifications: list[PluginSpecification]) -> list[dict]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    lines = "\n".join(json.dumps({f: getattr(s, f) for f in s.__dataclass_fields__}) for s in specifications)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], input=lines, env=env, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(specification: PluginSpecification, found: dict) -> None:
    names = [name for name, _ in specification.inputs]
    assert found["types"] == [".u64"] * len(names) + [".u32"] * len(specification.extras) + [".u64"]
    assert found["rc"] == 0, f"{specification.name}: a driver could not read the PTX: {found['said']}"
    assert "0 bytes spill stores" in found["said"], found["said"]
    assert found["shared"] <= 48 * 1024
    assert found["threads"] == 32 * specification.launch.num_warps
    assert found["core"], specification.name
    assert found["version"] == (".version 8.6" if specification.architecture == "sm_100" else ".version 8.0")
    assert found["target"].startswith(specification.architecture)


def test_the_ptx_takes_inputs_numbers_and_output_and_an_assembler_reads_it():
    for specification, found in zip(QUICK, compiled(QUICK), strict=True):
        judge(specification, found)


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_ptx_of_every_architecture():
    for specification, found in zip(ALL, compiled(ALL), strict=True):
        judge(specification, found)


def test_nvidias_own_registry_takes_every_plugin():
    """With TensorRT's real ``tensorrt.plugin``, where it is installed."""
    trt = pytest.importorskip("tensorrt")
    pytest.importorskip("tensorrt.plugin")
    op_types = [Variant(mask, causal, *(False,) * 3).op_type for mask in MASKS | {"packed": 0} for causal in (0, 1)]
    register(op_types, "sm_89")
    found = trt.get_plugin_registry()
    for op_type in op_types:
        creator = found.get_creator(op_type, "1", "lepto")
        assert creator is not None
        assert [field.name for field in creator.field_names] == list(Variant().attributes)


def test_interpreting_and_a_head_dim_of_17_are_refused():
    from lepto.kernels.ship.tensorrt_plugin import compile_plugin

    with pytest.raises(ValueError, match="head_dim must be a multiple of 8 from 16 to 256, got 17"):
        compile_plugin(PluginSpecification("sm_89", 17, 4, 4, 0.25))
    with pytest.raises(RuntimeError, match="nothing can be compiled while Triton interprets: unset TRITON_INTERPRET"):
        compile_plugin(PluginSpecification("sm_89", 16, 4, 4, 0.25))
