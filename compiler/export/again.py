"""The export of one module, with the weights of another that was cut to other sizes: seconds saved for each candidate.

PyTorch's exporter takes some seconds to trace a module, whatever its size. Modules that differ in nothing but the sizes
of their weights mostly have one graph; whether they do is not reasoned about but proven like any export.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from lepto.compiler.context import Feed
from lepto.compiler.export.onnx import Exported, export_onnx, prove, shapes_of
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import session
from lepto.compiler.source import Source

State = Mapping[str, npt.NDArray[np.generic]]
"""Parameters and buffers of a module by name."""


@dataclass
class Exporter:
    """Exports sources, each proven; what has the graph of one before takes that graph.

    Attributes:
        threads: Intra-op threads of the runs that prove them.
    """

    threads: int
    _made: dict[tuple[Any, ...], tuple[State, Exported] | None] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, source: Source) -> Exported:
        """Export a source.

        Raises:
            PassError: It cannot be exported, or the export computes something else.
        """
        if source.load_module is None:
            return export_onnx(source, threads=self.threads)
        state = state_of(source)
        key = (source.task, source.labels, repr(source.axes), tuple((name, a.ndim) for name, a in state.items()))
        before = self._made.get(key)
        if before is not None:
            if (exported := self._again(source, *before, state)) is not None:
                return exported
            self._made[key] = None  # it is no graph for other sizes: it is not tried again
        exported = export_onnx(source, threads=self.threads)
        self._made.setdefault(key, (state, exported))
        return exported

    def _again(self, source: Source, before: State, first: Exported, state: State) -> Exported | None:
        try:
            found = with_weights(first.model, before, state, source.example, threads=self.threads)
            if found is None:
                return None
            proof, feeds = prove(source, found, threads=self.threads)
        except Exception:  # ONNX Runtime refuses a graph whose sizes do not fit in ways of its own
            return None
        if not proof.ok:
            return None
        exporter = f"{first.exporter}, traced for other sizes"
        return dataclasses.replace(first, model=found, exporter=exporter, proof=proof, shapes=shapes_of(feeds, source))


def state_of(source: Source) -> State:
    """What a source's module holds, not copied."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in source.module().state_dict().items()}


def with_weights(model: OnnxModel, before: State, after: State, feed: Feed, *, threads: int) -> OnnxModel | None:
    """A graph with other weights in place of those that it was exported with.

    Exporters keep the names of most parameters and write the others transposed under names of their own; these are
    known by their values.

    Args:
        model: The graph.
        before: What its module held.
        after: What the other module holds; the same names, other sizes.
        feed: Inputs that it can be run with.
        threads: Intra-op threads of that run.

    Returns:
        The graph with those weights, to be proven; None where it is not known which weights are whose.
    """
    proto = model.proto()
    for tensor in proto.graph.initializer:
        if tensor.name in before:
            _put(tensor, after[tensor.name])
        elif tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 0:
            found = _origin(numpy_helper.to_array(tensor), before, after)
            if any(not np.array_equal(found[0], other) for other in found[1:]):
                return None
            if found:
                _put(tensor, found[0])
    _sizes(proto, feed, threads)
    return OnnxModel.from_proto(proto)


def _origin(array: npt.NDArray[Any], before: State, after: State) -> list[npt.NDArray[Any]]:
    """What stands in ``after`` for the parameters that an initializer may be, as it is or transposed."""
    found = []
    for name, own in before.items():
        if own.shape == array.shape and np.array_equal(own, array):
            found.append(after[name])
        elif own.ndim == 2 and own.shape[::-1] == array.shape and np.array_equal(own.T, array):
            found.append(after[name].T)
    return found


def _put(tensor: onnx.TensorProto, array: npt.NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _sizes(proto: onnx.ModelProto, feed: Feed, threads: int) -> None:
    """Give the values of a graph the sizes that they have with its weights, seen in one run; names of axes stay."""
    graph = proto.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output}
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.value_info[:], watched.graph.output[:]
    for value in graph.value_info:
        if value.name in made:
            kind = value.type.tensor_type.elem_type
            watched.graph.output.append(onnx.helper.make_tensor_value_info(value.name, kind, None))
    names = [value.name for value in watched.graph.output]
    if not names:
        return
    run = session(watched.SerializeToString(), threads)
    taken = {value.name for value in run.get_inputs()}
    results = run.run(names, {name: array for name, array in feed.items() if name in taken})
    shapes = {**weights, **{name: result.shape for name, result in zip(names, results, strict=True)}}
    for value in graph.value_info:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if dim.dim_value:
                dim.dim_value = size
