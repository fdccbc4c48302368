"""Write the tiny models that the runtime's tests run.

The tests run where the `onnx` package is not installed, so the models are stored. To write them again:
``python tests/runtime/data/make.py`` (needs `onnx`).
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
# Vocabulary of the tiny tokenizer in conftest.py: [PAD] [UNK] [CLS] [SEP] order cancel refund where is my please
VOCABULARY = 11
LABELS = 3


def save(name: str, nodes: list[onnx.NodeProto], inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> None:
    graph = helper.make_graph(
        nodes, name, inputs, outputs, [numpy_helper.from_array(value, key) for key, value in weights.items()]
    )
    # Old versions on purpose: every onnxruntime that pyproject.toml allows reads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def text(name: str, gain: float) -> None:
    """Mean over the tokens of one row per token: order -> 0, cancel -> 1, refund -> 2, times gain."""
    rows = np.zeros((VOCABULARY, LABELS), np.float32)
    rows[4, 0] = rows[5, 1] = rows[6, 2] = gain
    rows[7] = [0.4, 0.1, 0.2]
    save(
        name,
        [
            helper.make_node("Gather", ["rows", "input_ids"], ["tokens"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
            helper.make_node("Mul", ["tokens", "mask3"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "one"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask3", "one"], ["count"], keepdims=0),
            helper.make_node("Div", ["total", "count"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
            for n in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", LABELS]) for n in ("logits", "scores")],
        {"rows": rows, "last": np.array([-1], np.int64), "one": np.array([1], np.int64)},
    )


def tensor(name: str) -> None:
    """y = x @ weight, [B, 4] -> [B, 2]."""
    save(
        name,
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        {"weight": np.array([[1, 0], [0, 1], [2, 0], [0, -1]], np.float32)},
    )


def external(name: str) -> None:
    """The tensor model with its weight in a file outside the folder: a package must refuse it."""
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4, 2], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../weights.bin")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    text("text", 4.0)
    text("text_v2", 5.0)
    tensor("tensor")
    external("external")
