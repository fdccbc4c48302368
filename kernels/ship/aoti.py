"""A traced model as an AOTInductor package (``.pt2``), with the launches of lepto's kernels compiled in.

Triton Inference Server 26.03 and later serves it with ``backend: "pytorch"`` and ``platform: "torch_aoti"``, without
dynamic batching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lepto.kernels.attention import forward
from lepto.kernels.attention.launch import interpreted
from lepto.kernels.attention.tables import architecture


def package(
    model: torch.nn.Module,
    arguments: Sequence[torch.Tensor],
    path: str | Path,
    *,
    keywords: Mapping[str, torch.Tensor] | None = None,
    dynamic_shapes: Any = None,
) -> Path:
    """Trace a model on the GPU that is here and compile it for this GPU.

    Args:
        model: On the GPU, with ``torch.ops.lepto`` or ``attn_implementation="lepto"`` in it.
        arguments: Example inputs, on the GPU.
        path: Of the package; it ends in ``.pt2``.
        keywords: Example inputs by name.
        dynamic_shapes: As ``torch.export.export`` takes it.

    Returns:
        The path.

    Raises:
        ValueError: The path ends otherwise, an input or a weight is not on the GPU, or the GPU has no kernels.
        RuntimeError: There is no GPU, or Triton interprets.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"an AOTInductor package must be called NAME.pt2, got {path.name!r}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "an AOTInductor package is compiled on the GPU that runs it, and no NVIDIA GPU is here: run this there, or "
            "write cubins with `lepto kernels build`, which needs none"
        )
    if interpreted(forward._attention_forward_kernel):
        raise RuntimeError("nothing can be compiled while Triton interprets: unset TRITON_INTERPRET")
    major, minor = torch.cuda.get_device_capability()
    architecture(f"sm_{major}{minor}")
    given = {**{f"input {i}": x for i, x in enumerate(arguments)}, **(keywords or {}), **dict(model.named_parameters())}
    for name, tensor in given.items():
        if tensor.device.type != "cuda":
            raise ValueError(f"{name} must be on the GPU, it is on {tensor.device}")
    with torch.inference_mode():
        program = torch.export.export(
            model, tuple(arguments), dict(keywords or {}), dynamic_shapes=dynamic_shapes, strict=False
        )
    made = torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return Path(made)
