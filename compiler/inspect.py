"""What a model is, and which passes apply to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from lepto.compiler.channels import find_groups
from lepto.compiler.context import Context, Left
from lepto.compiler.cut_channels import example_tensors
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.passes import PASSES
from lepto.compiler.passes.options import make_pass
from lepto.compiler.source import Source
from lepto.compiler.source_passes import is_source_pass
from lepto.runtime.errors import LeptoError


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
    """Try the export and every pass on the model; what a pass says when it declines is the reason.

    Without data the example inputs stand for calibration samples: they show whether a pass can do its work, not how
    well it does.

    Args:
        source: The model.
        threads: Intra-op threads of the runs that prove the export.
        samples: Not needed; with evaluation data a quantization can be judged.
    """
    exported = export_onnx(source, threads=threads)
    shapes = ", ".join(exported.shapes)
    found = [Applies("export", True, f"{exported.exporter}; shapes {shapes}: {exported.proof}")]
    model = exported.model
    rows = len(next(iter(source.example.values())))
    calibration = [{name: array[i : i + 1] for name, array in source.example.items()} for i in range(rows)]
    for name in PASSES:
        step = make_pass(name)
        if is_source_pass(step):
            found.append(Applies(name, *_on_module(name, source)))
            continue
        context = Context(calibration=calibration, threads=threads, layers=source.layers)
        if name == "tensorrt":
            model = exported.model  # it takes the export itself
        needs = ["--train"] if "calibration" in step.reads else []
        needs += [] if samples or step.preserves_function else ["--eval"]
        if "labels" in step.reads:
            found.append(Applies(name, *_mixed(found)))
            continue
        try:
            result = step(model, context)
        except (Left, LeptoError) as declined:
            found.append(Applies(name, False, str(declined)))
            continue
        said = "; ".join(context.notes) + (f"; needs {' and '.join(needs)}" if needs else "")
        found.append(Applies(name, True, said))
        if name == "fuse":  # the other passes come after it
            model = result
    return found


def _on_module(name: str, source: Source) -> tuple[bool, str]:
    """Passes before the export: what they could cut or teach, without doing it."""
    if source.load_module is None:
        return False, "an ONNX file cannot be cut or taught: give the PyTorch model that it was made from"
    encoder = Encoder.of(source.module())
    if name == "trim-vocabulary":
        if source.text is None:
            return False, "the model reads no text"
        if encoder is None:
            return False, f"{source.architecture} is no encoder whose tables are known"
        return True, f"{encoder.sizes().tokens:,} tokens; needs --train and --eval"
    if name == "distill":
        return True, "needs --train and --eval"
    if name == "quantization-aware":
        count = sum(isinstance(child, torch.nn.Linear) for child in source.module().modules())
        return count > 0, f"{count} linear layers" + ("; needs --train and --eval" if count else "")
    if encoder is not None:
        return True, f"{encoder.sizes()}; needs --train and --eval"
    if source.text is not None:
        return False, f"{source.architecture} is no encoder that can be cut"
    try:
        groups = find_groups(source.module(), example_tensors(source))
    except Left as left:
        return False, str(left)
    channels = sum(group.channels for group in groups.groups)
    return True, f"{channels:,} channels in {len(groups.groups)} groups; needs --train and --eval"


def _mixed(found: list[Applies]) -> tuple[bool, str]:
    """Which nodes to blame only labelled samples can tell; whether there are any, static quantization has said."""
    static = next(entry for entry in found if entry.name == "quantize-static")
    if not static.applies:
        return False, static.reason
    return True, "where plain quantization is over the budget; needs --train and --eval"
