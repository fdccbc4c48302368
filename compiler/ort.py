"""ONNX Runtime sessions as the compiler uses them: on the CPU, quiet, with a stated number of threads."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from lepto.compiler.model import OnnxModel, count_operators
from lepto.runtime.session import load, session_options


def session(model: OnnxModel | bytes, threads: int, *, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Load a model.

    Args:
        model: The model or its bytes.
        threads: Intra-op threads.
        optimized: Where ONNX Runtime writes the graph that it really runs, for inspection.
    """
    options = session_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return load(model.data if isinstance(model, OnnxModel) else model, options)


def running_operators(model: OnnxModel) -> Counter[str]:
    """The operators that ONNX Runtime runs after its own load-time fusions.

    Quantized products become ``DynamicQuantizeMatMul`` or ``MatMulIntegerToFloat`` only there, so this is where a
    broken fusion shows.
    """
    with tempfile.TemporaryDirectory(prefix="lepto-") as folder:
        path = Path(folder) / "optimized.onnx"
        session(model, 1, optimized=path)
        return count_operators(onnx.load(path, load_external_data=False).graph)
