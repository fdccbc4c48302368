"""What a model is, and which passes apply to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lepto.compiler.context import Context, Left
from lepto.compiler.data import Samples
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.passes.fuse import Fuse
from lepto.compiler.source import Source


@dataclass(frozen=True)
class Applies:
    """Whether a pass applies, and why or why not."""

    name: str
    applies: bool
    reason: str


def bytes_by_part(source: Source) -> dict[str, int]:
    """Bytes of the weights by part of the model: the first two or three names of each parameter's path."""
    counts: Counter[str] = Counter()
    if source.load_onnx is not None:
        from onnx.numpy_helper import to_array

        for tensor in source.load_onnx().proto().graph.initializer:
            counts[_part(tensor.name)] += to_array(tensor).nbytes
    else:
        for name, parameter in source.module().named_parameters():
            counts[_part(name)] += parameter.numel() * parameter.element_size()
    return dict(counts.most_common())


def _part(name: str) -> str:
    """``bert.encoder.layer.3.attention.self.query.weight`` counts as ``bert.encoder.layer.*``: layers are alike."""
    parts = name.split(".")[:-1] or [name]
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join([*parts[: numbers[0]], "*"]) if numbers else ".".join(parts[:3])


def applicable(source: Source, *, threads: int, samples: Samples | None = None) -> list[Applies]:
    """Try what can be tried without data: the export and the fusions; say what the others need.

    Args:
        source: The model.
        threads: Intra-op threads of the runs that prove the export.
        samples: Not needed; with evaluation data a quantization can be judged.
    """
    exported = export_onnx(source, threads=threads)
    shapes = ", ".join(exported.shapes)
    found = [Applies("export", True, f"{exported.exporter}; shapes {shapes}: {exported.proof}")]
    context = Context(threads=threads, layers=source.layers)
    try:
        fused = Fuse()(exported.model, context)
        found.append(Applies("fuse", True, "; ".join(context.notes)))
    except Left as left:
        fused = exported.model
        found.append(Applies("fuse", False, str(left)))
    operators = fused.operators()
    products = operators["MatMul"] + operators["Gemm"] + operators["Attention"]
    needs = "" if samples else "; needs --eval to judge it"
    if products:
        found.append(Applies("quantize-dynamic", True, f"{products} products, {operators['Gather']} lookups{needs}"))
        found.append(Applies("quantize-static", True, f"{products} products{needs}, and --train to calibrate"))
    else:
        why = f"no product with constant weights ({operators['Conv']} convolutions are not quantized in this release)"
        found += [Applies("quantize-dynamic", False, why), Applies("quantize-static", False, why)]
    return found
