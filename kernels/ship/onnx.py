"""Attention in an ONNX file: nodes of domain ``lepto`` that carry their own meaning.

Each node has a model-local function whose body is standard operators (the ``Attention`` operator from opset 23 on,
written out before), so any runtime can run the file; one that has our kernels takes the node. A runtime's plugins have
a fixed number of inputs, so what a node takes stands in its name: ``Attention``, ``AttentionMask``, ``AttentionBias``,
``AttentionVarlen``, followed by ``Causal``, ``Window``, ``Capped`` and ``Grouped`` where they apply.

Padded: ``(Q [B, S_q, H * D], K [B, S_k, G * D], V, mask)``; mask is boolean (True takes part) or is added, and
broadcasts to ``[B, H, S_q, S_k]``. Packed: ``(Q [T, H * D], K [T, G * D], V, cu_seqlens [B + 1] int32, places [S]
int32)`` where ``places`` is 0, 1, …, S - 1 for an S that no sequence exceeds: its length is known without reading a
tensor; at least one token. Attributes: ``num_heads``, ``kv_num_heads``, ``scale``, ``window_left``, ``window_right``
(-1 for all), ``softcap``. A query that sees no key gets zeros. The last query stands at the last key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOMAIN = "lepto"
VERSION = 1
LOWEST_OPSET = 18
"""The reductions of the bodies take their axes as an input, which came with it."""
ATTENTION_OPSET = 23
"""The first with a standard ``Attention``."""

_MASKS = {"": "", "Mask": "bool", "Bias": "float", "Varlen": "packed"}


@dataclass(frozen=True, slots=True)
class Variant:
    """What a node takes and does.

    Attributes:
        mask: Empty, ``bool``, ``float`` or ``packed``.
        causal: No query sees a key after its place.
        window: Sees keys within ``window_left`` and ``window_right`` of its place alone.
        softcap: Scores become ``cap * tanh(score / cap)``.
        grouped: Key/value heads serve several query heads.
    """

    mask: str = ""
    causal: bool = False
    window: bool = False
    softcap: bool = False
    grouped: bool = False

    @property
    def op_type(self) -> str:
        """The operator's name."""
        flags = (("Causal", self.causal), ("Window", self.window), ("Capped", self.softcap), ("Grouped", self.grouped))
        kind = next(name for name, mask in _MASKS.items() if mask == self.mask)
        return f"Attention{kind}" + "".join(name for name, on in flags if on)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        extra = {"": (), "bool": ("mask",), "float": ("mask",), "packed": ("cu_seqlens", "places")}[self.mask]
        return ("Q", "K", "V", *extra)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes."""
        window = ("window_left", "window_right") if self.window else ()
        return ("num_heads", "kv_num_heads", "scale", *window, *(("softcap",) if self.softcap else ()))


def variant_of(op_type: str) -> Variant:
    """The variant of an operator's name.

    Raises:
        ValueError: No operator of domain ``lepto`` is called so.
    """
    for mask in _MASKS.values():
        for bits in range(16):
            variant = Variant(mask, *(bool(bits >> i & 1) for i in range(4)))
            if variant.op_type == op_type:
                return variant
    raise ValueError(
        f"the domain lepto has no operator {op_type!r}: names are Attention, AttentionMask, AttentionBias or "
        "AttentionVarlen, followed by Causal, Window, Capped and Grouped in this order"
    )


def attention_node(
    inputs: Sequence[str],
    output: str,
    *,
    num_heads: int,
    scale: float,
    mask: str = "",
    kv_num_heads: int | None = None,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    softcap: float = 0.0,
    name: str = "",
) -> onnx.NodeProto:
    """A node; `declare` adds its function to the model.

    Raises:
        ValueError: The number of inputs is not the variant's, or the heads do not divide.
    """
    kv_num_heads = num_heads if kv_num_heads is None else kv_num_heads
    if num_heads < 1 or kv_num_heads < 1 or num_heads % kv_num_heads:
        raise ValueError(f"num_heads must be a multiple of kv_num_heads, got {num_heads} and {kv_num_heads}")
    variant = Variant(mask, causal, window is not None, softcap > 0, num_heads != kv_num_heads)
    if len(inputs) != len(variant.inputs):
        raise ValueError(f"{variant.op_type} takes {', '.join(variant.inputs)}, got {len(inputs)} inputs")
    values: dict[str, Any] = {"num_heads": num_heads, "kv_num_heads": kv_num_heads, "scale": float(scale)}
    if window is not None:
        values |= {"window_left": window[0], "window_right": window[1]}
    if softcap > 0:
        values["softcap"] = float(softcap)
    return helper.make_node(variant.op_type, list(inputs), [output], name=name, domain=DOMAIN, **values)


def declare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with a function for each kind of ``lepto`` node in it, and the domain declared.

    Raises:
        ValueError: The model's opset is too low, or it has a node that the domain has not.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    used = sorted({node.op_type for node in result.graph.node if node.domain == DOMAIN})
    kept = [function for function in result.functions if function.domain != DOMAIN]
    del result.functions[:]
    result.functions.extend(kept)
    if not used:
        return result
    opset = next((entry.version for entry in result.opset_import if entry.domain in ("", "ai.onnx")), 0)
    result.functions.extend(attention_function(variant_of(op_type), opset) for op_type in used)
    if all(entry.domain != DOMAIN for entry in result.opset_import):
        result.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    result.ir_version = max(result.ir_version, 8)  # the first with model-local functions
    return result


def attention_function(variant: Variant, opset: int) -> onnx.FunctionProto:
    """The function whose body says in standard operators what the node computes.

    Args:
        variant: Of the node.
        opset: Of the model.

    Raises:
        ValueError: The opset is too low.
    """
    if opset < LOWEST_OPSET:
        raise ValueError(
            f"attention as a lepto node needs opset {LOWEST_OPSET} or later, the model has {opset}: convert it with "
            "onnx.version_converter"
        )
    body = _Body(opset)
    if variant.mask == "packed":
        _packed(body, variant)
    else:
        _padded(body, variant, "Q", "K", "V", "mask" if variant.mask else None, variant.mask, "Y")
    return helper.make_function(
        DOMAIN,
        variant.op_type,
        list(variant.inputs),
        ["Y"],
        body.nodes,
        [helper.make_opsetid("", opset)],
        list(variant.attributes),
    )


class _Body:
    """The nodes of a function, each value named once."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def integers(self, *values: int) -> str:
        return self("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: float, like: str) -> str:
        return self("CastLike", self("Constant", value=numpy_helper.from_array(np.array(value, np.float32))), like)

    def attribute(self, name: str, kind: str) -> str:
        """A scalar from an attribute of the node: int64 or float32."""
        made = helper.make_node("Constant", [], [f"v{len(self.nodes)}"])
        reference = made.attribute.add()
        reference.name, reference.ref_attr_name = f"value_{kind}", name
        reference.type = onnx.AttributeProto.INT if kind == "int" else onnx.AttributeProto.FLOAT
        self.nodes.append(made)
        return str(made.output[0])

    def size(self, value: str, axis: int) -> str:
        """One dimension, as int64 ``[1]``."""
        return self("Shape", value, start=axis, end=axis + 1)

    def referring(self, op_type: str, *inputs: str, **references: str) -> str:
        """A node whose attributes are the function's."""
        name = self(op_type, *inputs)
        for attribute, of in references.items():
            entry = self.nodes[-1].attribute.add()
            entry.name, entry.ref_attr_name, entry.type = attribute, of, onnx.AttributeProto.FLOAT
        return name


def _padded(body: _Body, variant: Variant, q: str, k: str, v: str, mask: str | None, kind: str, output: str) -> str:
    """``[B, S, H * D]`` in and out; ``mask`` is boolean or is added, by ``kind``."""
    heads = body("Reshape", body.attribute("num_heads", "int"), body.integers(1))
    kv_heads = body("Reshape", body.attribute("kv_num_heads", "int"), body.integers(1))
    q4, k4, v4 = (_split(body, x, h) for x, h in ((q, heads), (k, kv_heads), (v, kv_heads)))
    mask, kind = _places(body, variant, q4, k4, mask, kind)
    if body.opset >= ATTENTION_OPSET and not variant.softcap:
        # Where the standard puts the soft cap has changed with its versions.
        whole = []
        if mask is not None:  # the standard lets a mask broadcast, onnxruntime wants its rows and columns
            size = body("Concat", body.integers(1, 1), body.size(q4, 2), body.size(k4, 2), axis=0)
            whole = [body("Expand", mask, size)]
        out = body.referring("Attention", q4, k4, v4, *whole, scale="scale")
    else:
        out = _written_out(body, variant, q4, k4, v4, mask, kind)
    if mask is not None:
        out = body("Where", _seen(body, mask, kind), out, body.number(0.0, out))
    joined = body("Transpose", out, perm=[0, 2, 1, 3])
    return body("Reshape", joined, body.integers(0, 0, -1), output=output)


def _split(body: _Body, value: str, heads: str) -> str:
    shape = body("Concat", body.integers(0, 0), heads, body.integers(-1), axis=0)
    return body("Transpose", body("Reshape", value, shape), perm=[0, 2, 1, 3])


def _places(body: _Body, variant: Variant, q: str, k: str, mask: str | None, kind: str) -> tuple[str | None, str]:
    """The mask with the causal mask and the window in it."""
    if not variant.causal and not variant.window:
        return mask, kind
    zero, one = body("Constant", value_int=0), body("Constant", value_int=1)
    queries, keys = (body("Squeeze", body.size(x, 2)) for x in (q, k))
    rows = body("Add", body("Range", zero, queries, one), body("Sub", keys, queries))
    distance = body(
        "Sub", body("Unsqueeze", body("Range", zero, keys, one), body.integers(0)),
        body("Unsqueeze", rows, body.integers(1)),
    )  # fmt: skip
    counts = body("LessOrEqual", distance, zero) if variant.causal else None
    if variant.window:
        for side, sign in (("window_left", -1), ("window_right", 1)):
            limit = body.attribute(side, "int")
            away = body("Neg", distance) if sign < 0 else distance
            inside = body("Or", body("LessOrEqual", away, limit), body("Less", limit, zero))
            counts = inside if counts is None else body("And", counts, inside)
    assert counts is not None
    if mask is None:
        return counts, "bool"
    if kind == "bool":
        return body("And", mask, counts), kind
    return body("Where", counts, mask, body.number(float("-inf"), mask)), kind


def _written_out(body: _Body, variant: Variant, q: str, k: str, v: str, mask: str | None, kind: str) -> str:
    if variant.grouped:
        k, v = (_repeat(body, x, q) for x in (k, v))
    # Scaled before the product, which might overflow in float16.
    q = body("Mul", q, body("CastLike", body.attribute("scale", "float"), q))
    scores = body("MatMul", q, body("Transpose", k, perm=[0, 1, 3, 2]))
    if variant.softcap:
        cap = body("CastLike", body.attribute("softcap", "float"), scores)
        scores = body("Mul", body("Tanh", body("Div", scores, cap)), cap)
    if mask is not None and kind == "bool":
        scores = body("Where", mask, scores, body.number(float("-inf"), scores))
    elif mask is not None:
        scores = body("Add", scores, mask)
    return body("MatMul", body("Softmax", scores, axis=-1), v)


def _repeat(body: _Body, value: str, q: str) -> str:
    """``[B, G, S, D]`` to ``[B, H, S, D]``, each head as often as it serves queries."""
    wide = body("Unsqueeze", value, body.integers(2))
    group = body("Div", body.size(q, 1), body.size(value, 1))
    wide = body("Expand", wide, body("Concat", body.integers(1, 1), group, body.integers(1, 1), axis=0))
    shape = body("Concat", body.integers(0), body.size(q, 1), body.size(value, 2), body.size(value, 3), axis=0)
    return body("Reshape", wide, shape)


def _seen(body: _Body, mask: str, kind: str) -> str:
    """Whether a query sees any key: softmax over nothing is not a number."""
    if kind == "bool":
        number = body("Cast", mask, to=onnx.TensorProto.FLOAT)
        any_ = body("ReduceMax", number, body.integers(-1), keepdims=1)
        return body("Cast", any_, to=onnx.TensorProto.BOOL)
    largest = body("ReduceMax", body("Cast", mask, to=onnx.TensorProto.FLOAT), body.integers(-1), keepdims=1)
    return body("Greater", largest, body("Constant", value_float=float("-inf")))


def _packed(body: _Body, variant: Variant) -> None:
    """Pad, attend, and take the padding away: no result has a size that depends on values."""
    starts = body("Slice", "cu_seqlens", body.integers(0), body.integers(-1))
    ends = body("Slice", "cu_seqlens", body.integers(1), body.integers(2**31 - 1))
    at = body("Add", body("Unsqueeze", starts, body.integers(1)), body("Unsqueeze", "places", body.integers(0)))
    valid = body("Less", at, body("Unsqueeze", ends, body.integers(1)))  # [B, S]
    total = body("Cast", body.size("Q", 0), to=onnx.TensorProto.INT32)
    one = body("Cast", body.integers(1), to=onnx.TensorProto.INT32)
    index = body("Min", at, body("Sub", total, one))
    q, k, v = (body("Gather", x, index, axis=0) for x in ("Q", "K", "V"))
    # Causal masks and windows count places within a sequence, where queries and keys stand alike.
    out = _padded(body, variant, q, k, v, body("Unsqueeze", valid, body.integers(1, 2)), "bool", "padded_out")
    flat = body("Reshape", out, body("Concat", body.integers(-1), body.size(out, 2), axis=0))
    zero32, one32 = (body("Squeeze", body("Cast", body.integers(n), to=onnx.TensorProto.INT32)) for n in (0, 1))
    tokens = body("Range", zero32, body("Squeeze", total), one32)
    after = body(
        "GreaterOrEqual", body("Unsqueeze", tokens, body.integers(1)), body("Unsqueeze", ends, body.integers(0))
    )
    row = body("ReduceSum", body("Cast", after, to=onnx.TensorProto.INT32), body.integers(1), keepdims=0)  # [T]
    offset = body("Sub", tokens, body("Gather", "cu_seqlens", row))
    longest = body("Cast", body.size("places", 0), to=onnx.TensorProto.INT32)
    body("Gather", flat, body("Add", body("Mul", row, longest), offset), axis=0, output="Y")
