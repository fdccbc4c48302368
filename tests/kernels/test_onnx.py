"""The function bodies of domain lepto, run by onnxruntime on a CPU, against the kernels' reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from lepto.kernels.attention import attention, attention_varlen
from lepto.kernels.ship.onnx import DOMAIN, Variant, attention_function, attention_node, declare, variant_of

H, G, D = 4, 2, 16
KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("float16"): TensorProto.FLOAT16}
KINDS |= {np.dtype("bool"): TensorProto.BOOL, np.dtype("int32"): TensorProto.INT32}


def model_of(node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, KINDS[array.dtype], [f"{name}_{i}" for i in range(array.ndim)])
        for name, array in feeds.items()
    ]
    output = helper.make_tensor_value_info("out", KINDS[feeds["q"].dtype], [f"out_{i}" for i in range(feeds["q"].ndim)])
    graph = helper.make_graph([node], "g", inputs, [output])
    imports = [helper.make_opsetid("", opset)]
    model = declare(helper.make_model(graph, opset_imports=imports, ir_version=10))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(node: onnx.NodeProto, feeds: dict[str, np.ndarray], opset: int) -> np.ndarray:
    data = model_of(node, feeds, opset).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(["out"], feeds)[0]


def flat(x: torch.Tensor) -> np.ndarray:
    return x.transpose(1, 2).flatten(2).numpy()


@pytest.mark.parametrize("opset", [18, 22, 23])
@pytest.mark.parametrize(
    ("options", "kv_heads", "rows", "keys"),
    [
        ({}, H, 7, 11),
        ({}, G, 7, 11),
        ({"causal": True}, H, 7, 11),
        ({"causal": True}, G, 11, 7),
        ({"window": (3, 2)}, H, 11, 11),
        ({"window": (3, -1), "causal": True}, H, 11, 11),
        ({"softcap": 5.0}, H, 7, 11),
        ({"mask": "bool"}, H, 7, 11),
        ({"mask": "bool", "causal": True}, H, 11, 11),
        ({"mask": "float", "causal": True, "softcap": 5.0}, G, 11, 11),
    ],
)
def test_padded(options, kv_heads, rows, keys, opset):
    gen = torch.Generator().manual_seed(0)
    shapes = ((2, H, rows, D), (2, kv_heads, keys, D), (2, kv_heads, keys, D))
    qkv = [torch.randn(shape, generator=gen) for shape in shapes]
    options = dict(options)
    kind = options.pop("mask", "")
    feeds = dict(zip("qkv", map(flat, qkv), strict=True))
    bias = None
    if kind == "bool":
        bias = torch.rand(2, 1, rows, keys, generator=gen) > 0.4
        bias[0, :, 2] = False  # a query that sees nothing
    elif kind == "float":
        bias = torch.randn(2, H, rows, keys, generator=gen)
        bias[1, :, 3] = float("-inf")
    if bias is not None:
        feeds["mask"] = bias.numpy()
    node = attention_node(list(feeds), "out", num_heads=H, kv_num_heads=kv_heads, scale=0.3, mask=kind, **options)
    expected = attention(*qkv, scale=0.3, bias=bias, implementation="reference", **options)
    out = run(node, feeds, opset)
    np.testing.assert_allclose(out, flat(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize(
    ("lengths", "options"),
    [([9, 1, 0, 5], {}), ([9, 1, 0, 5], {"causal": True}), ([4, 9], {"window": (2, 1)}), ([3], {"softcap": 4.0})],
)
def test_packed(lengths, options, opset):
    gen = torch.Generator().manual_seed(0)
    total = sum(lengths)
    qkv = [torch.randn(total, heads, D, generator=gen) for heads in (H, G, G)]
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    feeds = {name: x.flatten(1).numpy() for name, x in zip("qkv", qkv, strict=True)}
    feeds |= {"cu": cu.numpy(), "places": np.arange(max(lengths) + 2, dtype=np.int32)}
    node = attention_node(list(feeds), "out", num_heads=H, kv_num_heads=G, scale=0.25, mask="packed", **options)
    expected = attention_varlen(*qkv, cu, max_seqlen_q=9, scale=0.25, implementation="reference", **options)
    np.testing.assert_allclose(run(node, feeds, opset), expected.flatten(1).numpy(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("opset", [18, 23])
def test_float16_is_the_kernel_within_its_rounding(opset):
    qkv = [torch.randn(2, H, 9, D, generator=torch.Generator().manual_seed(i)).half() for i in range(3)]
    feeds = dict(zip("qkv", map(flat, qkv), strict=True))
    out = run(attention_node(list(feeds), "out", num_heads=H, scale=0.25), feeds, opset)
    np.testing.assert_allclose(out, flat(attention(*qkv)), atol=4e-3, rtol=4e-3)


def test_a_node_of_opset_23_is_the_standard_attention():
    assert [n.op_type for n in attention_function(Variant("bool"), 23).node].count("Attention") == 1
    assert [n.op_type for n in attention_function(Variant("bool"), 22).node].count("Attention") == 0


def test_a_name_says_what_a_node_takes():
    variant = Variant("packed", causal=True, grouped=True)
    assert variant.op_type == "AttentionVarlenCausalGrouped"
    assert variant_of(variant.op_type) == variant
    assert variant.inputs == ("Q", "K", "V", "cu_seqlens", "places")


def test_declare_leaves_its_input_alone_and_is_the_same_twice():
    feeds = {name: np.zeros((1, 3, 32), np.float32) for name in "qkv"}
    model = model_of(attention_node(list(feeds), "out", num_heads=2, scale=0.25), feeds, 18)
    assert declare(model).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    model.graph.node[0].op_type = "AttentionGrouped"
    before = model.SerializeToString()
    assert [f.name for f in declare(model).functions] == ["AttentionGrouped"]
    assert model.SerializeToString() == before
    assert [entry.domain for entry in model.opset_import].count(DOMAIN) == 1


def test_bad_input():
    with pytest.raises(ValueError, match="AttentionMask takes Q, K, V, mask, got 3 inputs"):
        attention_node(["q", "k", "v"], "y", num_heads=2, scale=1.0, mask="bool")
    with pytest.raises(ValueError, match="num_heads must be a multiple of kv_num_heads, got 3 and 2"):
        attention_node(["q", "k", "v"], "y", num_heads=3, kv_num_heads=2, scale=1.0)
    with pytest.raises(ValueError, match="needs opset 18 or later, the model has 17"):
        attention_function(Variant(), 17)
    with pytest.raises(ValueError, match="the domain lepto has no operator 'AttentionFast'"):
        variant_of("AttentionFast")
