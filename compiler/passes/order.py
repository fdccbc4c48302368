"""In which order passes may stand: what each needs to find in the graph, and what it leaves there."""

from __future__ import annotations

from collections.abc import Sequence

_STEP = {
    "trim-vocabulary": 0,
    "prune": 1,
    "distill": 2,
    "quantization-aware": 3,
    "attention": 4,
    "fuse": 4,
    "sparsify": 5,
    "smooth": 5,
    "quantize-embeddings": 6,
    "quantize-weights": 6,
    "quantize-dynamic": 7,
    "quantize-static": 7,
    "mixed-precision": 7,
    "tensorrt": 7,
}
"""Passes of a lower step come first; those of one step may stand in any order, but of the last only one may stand."""

_BEFORE_TENSORRT = ("trim-vocabulary", "prune", "distill", "attention")
_LAST = max(_STEP.values())
_WHY = (
    "what is learned afterwards is learned in the tokens that are left",
    "what is cut is taught afterwards",
    "it changes the PyTorch module, which is exported after it",
    "it changes the PyTorch module, which is exported after it",
    "it looks for the patterns that the export writes",
    "it changes float weights",
    "the 8-bit passes leave what it has quantized alone, but not the other way round",
)


def check_order(plan: Sequence[Sequence[str]]) -> None:
    """Refuse a plan that no graph could allow.

    Args:
        plan: For each step the names of its alternatives.

    Raises:
        ValueError: A pass stands twice, two quantize the same products, or one comes after what it must come before.
    """
    before: list[str] = []
    for names in plan:
        for name in names:
            if name in before:
                raise ValueError(f"each pass may stand once, got {name} twice")
            for earlier in before:
                if name == "tensorrt" and earlier not in _BEFORE_TENSORRT:
                    raise ValueError(
                        f"{earlier} writes what TensorRT does not read: before tensorrt only "
                        f"{', '.join(_BEFORE_TENSORRT)} may stand"
                    )
                if _STEP[name] == _STEP[earlier] == _LAST:
                    raise ValueError(
                        f"only one quantization of all products can be applied, got {earlier} and {name}: joined by "
                        "'|' they are alternatives, of which the better one is taken"
                    )
                if _STEP[name] < _STEP[earlier]:
                    raise ValueError(f"{name} must come before {earlier}: {_WHY[_STEP[name]]}")
        before.extend(dict.fromkeys(names))
