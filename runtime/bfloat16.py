"""Models in bf16 on a CPU: ONNX Runtime has no such products there, so that they are computed in float32 and rounded.

That is what a GPU does as well: its matrix units add products of bf16 in float32, and round what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def on_a_cpu(data: bytes) -> bytes:
    """A model in which every node that has bf16 is computed in float32, from and to values that are rounded to bf16.

    Args:
        data: An ONNX model whose values have their types in it.

    Returns:
        The model as it is where nothing has bf16.

    Raises:
        ImportError: The package onnx is missing.
    """
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    low = {v.name for v in (*graph.value_info, *graph.input, *graph.output) if _is_low(v.type.tensor_type.elem_type)}
    low |= {tensor.name for tensor in graph.initializer if _is_low(tensor.data_type)}
    if not low:
        return data
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Cast" or not low & {*node.input, *node.output}:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name not in low:
                continue
            if name not in wide:
                wide[name] = f"{name}.wide"
                nodes.append(_cast(name, wide[name], onnx.TensorProto.FLOAT))
            node.input[place] = wide[name]
        for attribute in node.attribute:
            if attribute.HasField("t") and _is_low(attribute.t.data_type):
                array = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
        rounds = []
        for place, name in enumerate(node.output):
            if name in low:
                node.output[place] = f"{name}.exact"
                rounds.append(_cast(f"{name}.exact", name, onnx.TensorProto.BFLOAT16))
        nodes += [node, *rounds]
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def _is_low(kind: int) -> bool:
    import onnx

    return kind == int(onnx.TensorProto.BFLOAT16)


def _cast(source: str, output: str, kind: int) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("Cast", [source], [output], name=f"cast.{output}", to=kind)
