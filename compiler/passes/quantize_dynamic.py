"""Dynamic int8 quantization by ONNX Runtime's own quantizer."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from lepto.compiler.context import Context, Left, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import running_operators

_QUANTIZED = ("MatMul", "Gemm", "Attention", "Gather")


@dataclass(frozen=True, slots=True)
class QuantizeDynamic:
    """Weights to int8 ahead of time, activations to uint8 while running, one scale and zero point per tensor.

    U8 activations and S8 weights are what ONNX Runtime's CPU kernels are written for. The embedding tables are
    quantized too (one scale per table) and dequantized after the lookup.

    Attributes:
        granularity: One weight scale per output channel or one per tensor.
        reduce_range: Seven-bit weights, for AVX2 and AVX-512 without VNNI, where U8S8 products saturate in 16 bits.
    """

    name: ClassVar[str] = "quantize-dynamic"
    preserves_function: ClassVar[bool] = False

    granularity: Literal["per-channel", "per-tensor"] = "per-channel"
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.granularity not in ("per-channel", "per-tensor"):
            raise ValueError(f"granularity must be per-channel or per-tensor, got {self.granularity!r}")

    def __call__(self, model: OnnxModel, context: Context) -> OnnxModel:
        """Return the quantized model.

        Raises:
            Left: The graph has no weight that can be quantized.
            PassError: A quantized product is not run by an integer kernel.
        """
        result = dynamic_int8(model, per_channel=self.granularity == "per-channel", reduce_range=self.reduce_range)
        context.note(check_integer_kernels(result))
        return result


def dynamic_int8(model: OnnxModel, *, per_channel: bool, reduce_range: bool) -> OnnxModel:
    """Run ONNX Runtime's dynamic quantizer on a model held in memory."""
    counts = model.operators()
    # The standard Attention (opset 23) must be left out: the quantizer makes an invalid node of it.
    fused = any(n.op_type == "Attention" and n.domain == "com.microsoft" for n in model.proto().graph.node)
    types = [op for op in _QUANTIZED if counts[op] and (op != "Attention" or fused)]
    if not types:
        raise Left("nothing to quantize: the graph has no MatMul, Gemm, Attention or Gather")
    with tempfile.TemporaryDirectory(prefix="lepto-") as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.data)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=types,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={
                "MatMulConstBOnly": True,
                # Shape inference stops at fused operators, and the quantizer then needs to be told the type.
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
        result = OnnxModel.from_proto(onnx.load(target))
    if result.operators() == counts:
        raise Left("nothing to quantize: no product in the graph has constant weights")
    return result


def check_integer_kernels(model: OnnxModel) -> str:
    """Compare what the quantizer wrote with what ONNX Runtime runs; return the counts as a sentence.

    Raises:
        PassError: Integer products that ONNX Runtime did not fuse with their scales, which would be slow.
    """
    written, run = model.operators(), running_operators(model)
    fused = run["DynamicQuantizeMatMul"] + run["MatMulIntegerToFloat"]
    wanted = written["MatMulInteger"] + written["MatMulIntegerToFloat"]
    if fused != wanted or run["MatMulInteger"]:
        raise PassError(
            f"{wanted} products were quantized, but onnxruntime runs only {fused} of them fused "
            f"({run['MatMulInteger']} stay MatMulInteger): its load-time fusions do not fit this graph"
        )
    if run["QAttention"] != written["QAttention"]:
        raise PassError(f"{written['QAttention']} QAttention were written, {run['QAttention']} are run")
    names = ("QAttention", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLinear", "DequantizeLinear")
    return ", ".join(f"{run[name]} {name}" for name in names if run[name])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer warns on the root logger about pre-processing that fused graphs cannot have."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
