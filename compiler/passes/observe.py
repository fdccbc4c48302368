"""Look at tensors inside a model while it runs on calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from lepto.compiler.context import Context, Feed, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import session

Array = npt.NDArray[np.float32]


def choose_feeds(context: Context, samples: int) -> list[Feed]:
    """At most ``samples`` calibration inputs, drawn by the context's seed and in their own order."""
    count = min(samples, len(context.calibration))
    rng = np.random.default_rng(context.seed)
    return [context.calibration[i] for i in sorted(rng.choice(len(context.calibration), count, replace=False))]


def observe(model: OnnxModel, names: Sequence[str], feeds: Sequence[Feed], threads: int) -> Iterator[list[Array]]:
    """Run the model and give the named float tensors of each run, in the order of the names.

    One run's tensors are held at a time.

    Raises:
        PassError: The graph has no such tensor, or one is not finite.
    """
    proto = model.proto()
    made = {output for node in proto.graph.node for output in node.output} | {value.name for value in proto.graph.input}
    if missing := [name for name in names if name not in made]:
        raise PassError(f"calibration: the float graph has no tensor {missing[0]!r}")
    # A graph's input cannot be its output, so every tensor is given under another name.
    del proto.graph.output[:]
    outputs = [f"observed_{i}" for i in range(len(names))]
    for name, output in zip(names, outputs, strict=True):
        proto.graph.node.append(onnx.helper.make_node("Identity", [name], [output]))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    loaded = session(proto.SerializeToString(), threads)
    inputs = {value.name for value in loaded.get_inputs()}
    for feed in feeds:
        values = loaded.run(outputs, {k: v for k, v in feed.items() if k in inputs})
        for name, value in zip(names, values, strict=True):
            if not np.isfinite(value).all():
                raise PassError(f"calibration: the activation {name!r} is not finite on the training data")
        yield values
