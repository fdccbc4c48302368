from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lepto.compiler.context import Context, Left, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.passes.quantize_dynamic import dynamic_int8
from lepto.compiler.verify import runner

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'
RNG = np.random.default_rng(0)


def build(signature: str, body: str, values: str = "", **weights: tuple[int, ...] | np.ndarray) -> OnnxModel:
    proto = onnx.parser.parse_model(f"{HEAD} g {signature} {'<' + values + '>' if values else ''} {{ {body} }}")
    for name, weight in weights.items():
        array = weight if isinstance(weight, np.ndarray) else RNG.standard_normal(weight).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return OnnxModel.from_proto(onnx.shape_inference.infer_shapes(proto))


def check(model: OnnxModel, feeds: dict[str, np.ndarray], **expected: int) -> OnnxModel:
    """Fuse; the outputs stay, the operators stand there, the input is untouched, and there is nothing left to fuse."""
    digest = model.digest
    context = Context()
    fused = Fuse()(model, context)
    assert OnnxModel(model.data).digest == digest
    found = fused.operators()
    assert {name: found[name] for name in expected} == expected
    np.testing.assert_allclose(runner(fused, 1)(feeds), runner(model, 1)(feeds), rtol=1e-4, atol=1e-5)
    with pytest.raises(Left):
        Fuse()(fused, Context())
    return fused


def declined(model: OnnxModel, said: str) -> None:
    with pytest.raises(Left, match=said):
        Fuse()(model, Context())


GELU = {"r": np.array(2**0.5, np.float32), "one": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
X3 = RNG.standard_normal((2, 5, 8)).astype(np.float32)


@pytest.mark.parametrize(
    "end", ["m = Mul(x, e1)  y = Mul(m, half)", "m = Mul(half, e1)  y = Mul(x, m)", "m = Mul(x, half)  y = Mul(m, e1)"]
)
def test_gelu(end: str) -> None:
    body = f"d = Div(x, r)  e = Erf(d)  e1 = Add(e, one)  {end}"
    check(build("(float[B,S,8] x) => (float[B,S,8] y)", body, **GELU), {"x": X3}, Gelu=1, Erf=0)


def test_gelu_takes_the_bias_only_where_nobody_else_reads_the_sum() -> None:
    body = "s = Add(x, b)  d = Div(s, r)  e = Erf(d)  e1 = Add(e, one)  m = Mul(s, e1)  z = Mul(m, half)"
    alone = build("(float[B,S,8] x) => (float[B,S,8] z)", body, b=(8,), **GELU)
    check(alone, {"x": X3}, BiasGelu=1, Erf=0)
    read = build("(float[B,S,8] x) => (float[B,S,8] y)", f"{body} y = Add(z, s)", b=(8,), **GELU)
    check(read, {"x": X3}, BiasGelu=0, Gelu=1)


@pytest.mark.parametrize(("name", "value"), [("r", 2.0), ("one", 2.0), ("half", 0.25)])
def test_what_only_looks_like_gelu_is_left(name: str, value: float) -> None:
    body = "d = Div(x, r)  e = Erf(d)  e1 = Add(e, one)  m = Mul(x, e1)  y = Mul(m, half)"
    constants = GELU | {name: np.array(value, np.float32)}
    declined(build("(float[B,S,8] x) => (float[B,S,8] y)", body, **constants), "it is no GELU")


NORM = "y = LayerNormalization <axis = -1, epsilon = 1e-5> (s, gamma, beta)"
NORM_WEIGHTS = {"w": (8, 8), "b": (8,), "gamma": (8,), "beta": (8,)}


def test_a_residual_after_a_linear_layer() -> None:
    model = build(
        "(float[B,S,8] x) => (float[B,S,8] y)",
        f"p = MatMul(x, w)  q = Add(p, b)  s = Add(q, x)  {NORM}",
        **NORM_WEIGHTS,
    )
    check(model, {"x": X3 + 3}, SkipSimplifiedLayerNormalization=1, LayerNormalization=0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (f"p = MatMul(x, w)  q = Add(p, b)  s = Add(q, x)  {NORM}  z = Add(y, s)", "no sum that it alone reads"),
        (f"s = Add(x, x)  {NORM}  z = Identity(y)", "neither operand can be centred"),
        (f"p = MatMul(x, w)  q = Add(p, b)  s = Add(q, x)  {NORM}  z = Add(y, q)", "neither operand can be centred"),
        (f"s = Relu(x)  {NORM}  z = Identity(y)", "no sum that it alone reads"),
        (f"p = MatMul(x, w)  q = Add(p, b)  s = Add(q, b)  {NORM}  z = Identity(y)", "are broadcast to"),
    ],
)
def test_a_normalization_that_others_depend_on_is_left(body: str, said: str) -> None:
    declined(build("(float[B,S,8] x) => (float[B,S,8] z)", body, **NORM_WEIGHTS), said)


def test_a_normalization_over_images_is_left() -> None:
    body = f"p = MatMul(x, w)  q = Add(p, b)  s = Add(q, x)  {NORM}"
    declined(build("(float[B,3,S,8] x) => (float[B,3,S,8] y)", body, **NORM_WEIGHTS), "it has 4 axes")


def attention(*, mask: str = "padding", cross: bool = False, scaled: str = "div") -> OnnxModel:
    """One self-attention of 2 heads over [B, S, 8], as exporters write it."""
    other = "m" if cross else "x"
    lines = []
    for name, source in (("q", "x"), ("k", other), ("v", other)):
        lines.append(f"{name}0 = MatMul({source}, w{name})  {name}1 = Add({name}0, b{name})")
        lines.append(f"{name}2 = Reshape({name}1, split)")
        perm = "0, 2, 3, 1" if name == "k" else "0, 2, 1, 3"
        lines.append(f"{name}3 = Transpose <perm = [{perm}]> ({name}2)")
    lines.append("scores = MatMul(q3, k3)")
    lines.append("scaled = Div(scores, two)" if scaled == "div" else "scaled = Mul(scores, factor)")
    if mask == "padding":
        lines.append("f = Cast <to = 1> (attention_mask)  f4 = Unsqueeze(f, axes)  n = Sub(onef, f4)")
        lines.append("added = Mul(n, low)  masked = Add(scaled, added)")
    elif mask == "bias":
        lines.append("f = Cast <to = 1> (attention_mask)  f4 = Unsqueeze(f, axes)  n = Sub(onef, f4)")
        lines.append("added = Neg(n)  masked = Add(scaled, added)")
    elif mask == "causal":
        lines.append("masked = Add(scaled, triangle)")
    last = "masked" if mask else "scaled"
    lines.append(f"p = Softmax <axis = -1> ({last})  c = MatMul(p, v3)  t = Transpose <perm = [0, 2, 1, 3]> (c)")
    lines.append("y = Reshape(t, join)")
    inputs = "float[B,S,8] x" + (", float[B,S,8] m" if cross else "") + (", int64[B,S] attention_mask" if mask else "")
    return build(
        f"({inputs}) => (float[B,S,8] y)",
        "  ".join(lines),
        **{f"w{n}": (8, 8) for n in "qkv"},
        **{f"b{n}": (8,) for n in "qkv"},
        split=np.array([0, 0, 2, 4]),
        join=np.array([0, 0, 8]),
        two=np.array(2, np.float32),
        factor=np.array(0.3, np.float32),
        axes=np.array([1, 2]),
        onef=np.array(1, np.float32),
        low=np.array(np.finfo(np.float32).min, np.float32),
        triangle=np.triu(np.full((1, 1, 5, 5), -1e9, np.float32), 1),
    )


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("scaled", ["div", "mul"])
def test_self_attention_with_padding(scaled: str) -> None:
    check(attention(scaled=scaled), {"x": X3, "attention_mask": MASK}, Attention=1, Softmax=0)


@pytest.mark.parametrize("mask", ["padding", ""])
def test_attention_for_the_one_row_that_is_read_projects_no_other(mask: str) -> None:
    proto = attention(mask=mask, scaled="mul").proto()
    proto.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal((8, 8)).astype(np.float32), "wo"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["y", "wo"], ["o"]))
    proto.graph.node.append(onnx.helper.make_node("Gather", ["o", "first"], ["z"], axis=1))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["B", 8]))
    model = OnnxModel.from_proto(onnx.shape_inference.infer_shapes(proto))
    feeds = {"x": X3, "attention_mask": MASK} if mask else {"x": X3}
    fused = check(model, feeds, Attention=0, FusedMatMul=4)
    small = dynamic_int8(fused, per_channel=True, reduce_range=True)  # holds on every CPU
    assert [t.data_type for t in small.proto().graph.initializer if len(t.dims) == 3 and t.dims[0] == 2].count(
        onnx.TensorProto.INT8
    ) == 2
    exact = runner(fused, 1)(feeds)
    assert np.abs(runner(small, 1)(feeds) - exact).max() < 0.05 * np.abs(exact).max()


def test_shifts_go_through_attention_for_one_query_into_the_bias_after_it() -> None:
    """What remains of two shifts and the values' bias is nothing: no sum with a constant stands between the nodes."""
    proto = attention(scaled="mul").proto()
    del proto.graph.input[0]
    proto.graph.input.insert(0, onnx.helper.make_tensor_value_info("i", onnx.TensorProto.FLOAT, ["B", "S", 8]))
    first = "h0 = MatMul(i, w)  h1 = Add(h0, b)  h2 = Add(h1, i)  x = LayerNormalization <axis = -1> (h2, gamma, beta)"
    last = (
        "h3 = MatMul(y, wo)  h4 = Add(h3, bo)  h5 = Add(h4, x)  h6 = LayerNormalization <axis = -1> (h5, gamma, beta)"
        "  h7 = Gather <axis = 1> (h6, first)  z = Gemm <transB = 1> (h7, wc, bc)"
    )
    weights = NORM_WEIGHTS | {"wo": (8, 8), "bo": (8,), "wc": (3, 8), "bc": (3,), "first": np.array(0)}
    before = build("(float[B,S,8] i) => (float[B,S,8] x)", first, **weights).proto()
    after = build("(float[B,S,8] y, float[B,S,8] x) => (float[B,3] z)", last).proto()
    for node in reversed(before.graph.node):
        proto.graph.node.insert(0, node)
    proto.graph.node.extend(after.graph.node)
    proto.graph.initializer.extend(before.graph.initializer)
    del proto.graph.output[:]
    proto.graph.output.extend(after.graph.output)
    del proto.graph.value_info[:]
    model = OnnxModel.from_proto(onnx.shape_inference.infer_shapes(proto))
    # A bias for each product: the first, the query's and the one after attention. The mask is no sum any more.
    fused = check(model, {"i": X3, "attention_mask": MASK}, FusedMatMul=4, Add=3, Where=1, Mul=0, Gemm=1)
    assert fused.operators()["SkipSimplifiedLayerNormalization"] == 2


def test_self_attention_without_a_mask() -> None:
    check(attention(mask=""), {"x": X3}, Attention=1, Softmax=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": "causal"}, "more than padding of keys"),
        ({"mask": "bias"}, "adds a bias instead of hiding keys"),
        ({"cross": True}, "cross-attention"),
    ],
)
def test_other_attention_is_left_with_a_reason(options: dict[str, object], said: str) -> None:
    declined(attention(**options), said)  # type: ignore[arg-type]


@pytest.mark.parametrize("op_type", ["Reshape", "Identity"])
def test_attention_whose_probabilities_take_a_detour_is_told(op_type: str) -> None:
    """DeBERTa reshapes them before the product: no attention may be left without a word."""
    proto = attention().proto()
    product = next(node for node in proto.graph.node if node.input[0] == "p")
    extra = ["p_shape"] if op_type == "Reshape" else []
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1, 5]), "p_shape"))
    product.input[0] = "p2"
    place = [*proto.graph.node].index(product)
    nodes = [*proto.graph.node]
    nodes.insert(place, onnx.helper.make_node(op_type, ["p", *extra], ["p2"]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    declined(OnnxModel.from_proto(proto), "0 x attention, 1 left")


def test_probabilities_of_a_head_are_no_attention() -> None:
    model = build("(float[B,8] x) => (float[B,3] y)", "l = MatMul(x, w)  y = Softmax <axis = -1> (l)", w=(8, 3))
    with pytest.raises(Left) as caught:
        Fuse()(model, Context())
    assert "left" not in str(caught.value)


def test_a_mask_that_cannot_be_run_alone_is_left() -> None:
    proto = attention().proto()
    proto.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    declined(OnnxModel.from_proto(proto), "could not be run by itself")


def test_fewer_attentions_than_the_model_has_layers_is_a_broken_promise() -> None:
    with pytest.raises(PassError, match="the model has 2 layers, but only 1 were fused"):
        Fuse()(attention(), Context(layers=2))
    assert Fuse()(attention(), Context(layers=1)).operators()["Attention"] == 1
