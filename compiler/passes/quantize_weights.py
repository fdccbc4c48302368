"""Weights in blocks of 4 or 8 bits, activations quantized row by row: ``com.microsoft::MatMulNBits``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import onnx
import onnx_ir as ir

from lepto.compiler.context import Context, Left
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.fusions import graph as g
from lepto.compiler.passes.quantize_dynamic import check_names, kept_in_float, quiet

Rows = Literal["one", "all"]

_INT8_ARITHMETIC = 4
"""The operator's ``accuracy_level`` that quantizes activations to 8 bits; without it the kernel computes in float."""


@dataclass(frozen=True, slots=True)
class QuantizeWeights:
    """Give products weights in few bits with a scale for each block of inputs, and no zero points.

    One node does what the 8-bit passes need two for, takes the bias with it, and quantizes each row of the activations
    by itself, so that rows of a batch do not touch each other. Measured on Zen 4 (two threads, ONNX Runtime 1.32):
    384 x 768 with one row takes 19 µs with 4 bits in blocks of 128 and 21 µs with dynamic 8 bits; with 15 rows it takes
    87 and 47 µs. It is therefore for products of one row: by default only they are changed, and the 8-bit passes, which
    come after it, take the rest.

    Attributes:
        bits: 4 or 8.
        block_size: Inputs that share a scale, a power of two of at least 16.
        rows: ``one``: products that have one row for each sample; ``all``: every product, where bytes matter more.
        exclude: Names of nodes that stay in float.
    """

    name: ClassVar[str] = "quantize-weights"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()

    bits: Literal[4, 8] = 4
    block_size: int = 128
    rows: Rows = "one"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        if self.bits not in (4, 8):
            raise ValueError(f"bits must be 4 or 8, got {self.bits}")
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two of at least 16, got {self.block_size}")
        if self.rows not in get_args(Rows):
            raise ValueError(f"rows must be one of {', '.join(get_args(Rows))}, got {self.rows!r}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the quantized model.

        Raises:
            Left: No product fits; with ``rows="one"`` also where all have many rows.
            LeptoError: A name in ``exclude`` is unknown.
        """
        loaded = model.ir()
        products = [node for node in loaded.graph if _is_product(node)]
        check_names(model, self.exclude, [_name(node) for node in products])
        if not products:
            raise Left("nothing to quantize: the graph has no MatMul or Gemm with constant weights")
        chosen = [
            node for node in products if _name(node) not in self.exclude and (self.rows == "all" or _has_one_row(node))
        ]
        if not chosen:
            raise Left(
                f"none of the {len(products)} products is known to have one row for each sample, and with more rows "
                "dynamic int8 is about twice as fast as MatMulNBits (384 x 768, 15 rows: 47 against 87 µs)"
                + kept_in_float(self.exclude)
            )
        names = [_plain(loaded.graph, node) for node in chosen]
        before, after, made = _quantize(OnnxModel.from_ir(g.finish(loaded)), names, self.bits, self.block_size)
        context.expect(
            made.operators()["MatMulNBits"] - model.operators()["MatMulNBits"] == len(names),
            f"{len(names)} products were to be quantized, {made.operators()['MatMulNBits']} MatMulNBits are there",
        )
        context.note(
            f"{len(names)} of {len(products)} products: weights {before / 1e6:.2f} → {after / 1e6:.2f} MB, {self.bits} "
            f"bits in blocks of {self.block_size}{kept_in_float(self.exclude)}"
        )
        return made


def _quantize(model: OnnxModel, names: list[str], bits: int, block_size: int) -> tuple[int, int, OnnxModel]:
    """Run ONNX Runtime's quantizer on these products; bytes of their weights before and after, and the model."""
    with quiet():  # its import makes the root logger talk, so the work needs another one
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    with quiet():
        proto = model.proto()
        quantizer = MatMulNBitsQuantizer(
            proto,
            bits=bits,
            block_size=block_size,
            is_symmetric=True,
            accuracy_level=_INT8_ARITHMETIC,
            nodes_to_exclude=[node.name for node in proto.graph.node if node.name not in names],
        )
        quantizer.process()
        quantized = OnnxModel.from_proto(quantizer.model.model)
    loaded = quantized.ir()
    after = 0
    for node in [node for node in loaded.graph if node.op_type == "MatMulNBits"]:
        after += sum(array.nbytes for value in node.inputs[1:3] if (array := g.constant(value)) is not None)
        _take_bias(loaded.graph, node)
    result = OnnxModel.from_ir(g.finish(loaded))
    removed = _weight_bytes(model.proto()) - _weight_bytes(quantized.proto())
    return removed + after, after, result


def _weight_bytes(proto: onnx.ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer)


def _take_bias(graph: ir.Graph, product: ir.Node) -> None:
    """Give the product the bias that is added to it."""
    add = g.only_user(product.outputs[0])
    if add is None or add.op_type != "Add" or add.domain != "":
        return
    bias = g.other(add, product.outputs[0])
    array = g.constant(bias)
    if array is None or array.shape != (product.attributes["N"].as_int(),):
        return
    attributes = {name: attribute.as_int() for name, attribute in product.attributes.items()}
    made = g.insert(
        graph,
        add,
        "MatMulNBits",
        [*product.inputs[:3], None, None, bias],
        domain=g.MICROSOFT,
        attributes=dict(attributes),
        like=add.outputs[0],
    )
    g.replace(add.outputs[0], made)


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _is_product(node: ir.Node) -> bool:
    """A MatMul, or a Gemm that is one with a bias, with constant float weights."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain != "" or g.constant(node.inputs[0]) is not None:
        return False
    weight = g.constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return False
    if node.op_type == "MatMul":
        return True
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return all(factor == 1 for factor in factors) and not transposed


def _has_one_row(node: ir.Node) -> bool:
    """Whether the product's input ``[B, ..., K]`` has one row for each sample, as far as its shape is known."""
    x = node.inputs[0]
    if x is None or x.shape is None or len(x.shape) < 2:
        return False
    return all(size == 1 for size in list(x.shape)[1:-1])


def _plain(graph: ir.Graph, node: ir.Node) -> str:
    """The node's name, after a Gemm was written as MatMul and Add."""
    name = _name(node)
    if node.op_type == "MatMul":
        node.name = name
        return name
    weight, out = node.inputs[1], node.outputs[0]
    array = g.constant(weight)
    assert array is not None
    if "transB" in node.attributes and node.attributes["transB"].as_int():
        weight = g.add_initializer(graph, f"{weight.name}.transposed", array.T)  # type: ignore[union-attr]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    made = g.insert(graph, node, "MatMul", [node.inputs[0], weight], like=out)
    product = made.producer()
    assert product is not None
    product.name = f"{name}_MatMul"
    if bias is not None:
        made = g.insert(graph, node, "Add", [made, bias], like=out)
    g.replace(out, made)
    return product.name
