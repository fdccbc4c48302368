"""Attention as nodes of domain lepto, in graphs of real architectures, with and without the padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertForSequenceClassification

from lepto.compiler import Recipe, compile_model
from lepto.compiler.context import Context, Left
from lepto.compiler.export.onnx import export_onnx
from lepto.compiler.model import OnnxModel
from lepto.compiler.passes.attention import Attention
from lepto.compiler.passes.tensorrt import Tensorrt
from lepto.compiler.source import open_source
from lepto.compiler.tensorrt.engine import build_engine
from lepto.compiler.tensorrt.kit import build_spec
from lepto.compiler.tensorrt.profiles import Shapes
from lepto.compiler.verify import parity, runner
from lepto.runtime.errors import LeptoError
from lepto.runtime.manifest import Tolerance
from lepto.runtime.targets import TARGETS
from lepto.runtime.verify import verify_package

from .conftest import SIZES, Toy, make_tokenizer
from .test_architectures import modern_bert

SHARED = Path(__file__).parents[3] / "shared" / "models" / "minilm-banking77"
Feed = dict[str, np.ndarray]


def loud(model: OnnxModel) -> OnnxModel:
    """Random classifiers give nearly the same logits for everything: enlarge the weights that tell inputs apart."""
    proto = model.proto()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2 and array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array * 6, tensor.name))
    return OnnxModel.from_proto(proto)


def feeds(model: OnnxModel, vocabulary: int = 60, sizes: tuple[tuple[int, int], ...] = ((1, 1), (4, 9), (7, 16))):
    rng = np.random.default_rng(0)
    names = [value.name for value in model.proto().graph.input]
    for batch, length in sizes:
        mask = (np.arange(length)[None] < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
        mask[0] = 1
        if batch > 2:
            mask[1], mask[1, [0, length - 1]] = 0, 1  # tokens with padding between them
        feed = {"input_ids": rng.integers(0, vocabulary, (batch, length)), "attention_mask": mask}
        yield {name: feed.get(name, np.zeros((batch, length), np.int64)) for name in names}


def check(model: OnnxModel, result: OnnxModel, given: Feed, rtol: float = 1e-4) -> None:
    expected = runner(model, 1)(given)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(runner(result, 1)(given), expected, rtol=rtol, atol=rtol * scale)
    if len(given["input_ids"]) > 1:
        changed = given | {"input_ids": np.roll(given["input_ids"], 1, 1)}
        assert np.abs(runner(model, 1)(changed) - expected).max() > 100 * rtol * scale, "inputs that change nothing"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=32,
        **SIZES,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return loud(export_onnx(open_source(str(folder)), threads=1).model)


@pytest.mark.parametrize("unpad", [False, True])
def test_bert(bert, unpad):
    digest, context = bert.digest, Context()
    result = Attention(unpad=unpad)(bert, context)
    assert OnnxModel(bert.data).digest == digest
    found = result.operators()
    assert found["AttentionVarlen" if unpad else "AttentionMask"] == 2
    assert found["Softmax"] == 1  # that of the scores
    assert "2 x attention" in context.notes[0]
    onnx.checker.check_model(result.proto(), full_check=True)
    for given in feeds(bert):
        check(bert, result, given)
    with pytest.raises(Left, match="no attention was found"):
        Attention(unpad=unpad)(result, Context())


def test_no_padding_reaches_the_layers(bert):
    """The embedding already works on tokens: NaN in the word of the padding never comes out."""
    result = Attention(unpad=True)(bert, Context())
    proto = result.proto()
    table = next(t for t in proto.graph.initializer if t.name.endswith("word_embeddings.weight"))
    array = numpy_helper.to_array(table).copy()
    array[0] = np.nan
    table.CopyFrom(numpy_helper.from_array(array, table.name))
    given = list(feeds(bert))[1]
    given["input_ids"] = np.where(given["attention_mask"] == 1, given["input_ids"].clip(1), 0)
    assert np.isfinite(runner(OnnxModel.from_proto(proto), 1)(given)).all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_other_encoders(other_architectures, name):
    model = loud(export_onnx(open_source(str(other_architectures[name])), threads=1).model)
    for unpad in (False, True):
        result = Attention(unpad=unpad)(model, Context())
        for given in feeds(model):
            if name == "roberta":  # its positions count the tokens that are not padding
                given["input_ids"] = np.where(given["attention_mask"] == 1, given["input_ids"].clip(2), 1)
            check(model, result, given)


@pytest.mark.thorough
def test_rotated_queries_and_windows_become_nodes_and_the_padding_stays(tmp_path):
    torch.manual_seed(0)
    modern_bert().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = loud(export_onnx(open_source(str(tmp_path)), threads=1).model)
    result = Attention()(model, Context())
    found = result.operators()
    assert (found["AttentionMask"], found["AttentionBias"]) == (1, 1)  # one layer sees all, one a window
    for given in feeds(model):
        check(model, result, given)
    with pytest.raises(Left, match="the padding stays: not every attention has the padding of attention_mask"):
        Attention(unpad=True)(model, Context())


def test_an_output_for_each_token_keeps_the_padding(bert):
    proto = bert.proto()
    last = [node for node in proto.graph.node if node.op_type == "LayerNormalization"][-1].output[0]
    proto.graph.output.append(next(value for value in proto.graph.value_info if value.name == last))
    tokens = OnnxModel.from_proto(proto)
    assert Attention()(tokens, Context()).operators()["AttentionMask"] == 2
    with pytest.raises(Left, match="an output has a place for each token, the padding too"):
        Attention(unpad=True)(tokens, Context())


def test_what_is_no_attention_is_left():
    text = '<ir_version: 9, opset_import: ["" : 18]> g (float[B,4] x) => (float[B,4] y) { y = Softmax <axis = -1> (x) }'
    with pytest.raises(Left, match="no attention was found"):
        Attention()(OnnxModel.from_proto(onnx.parser.parse_model(text)), Context())
    old = OnnxModel.from_proto(onnx.parser.parse_model(text.replace("18", "17")))
    with pytest.raises(Left, match="needs opset 18, the graph has 17"):
        Attention()(old, Context())


@pytest.mark.thorough
def test_in_a_recipe_it_is_proven_and_judged_as_any_pass(toy: Toy, tmp_path: Path):
    recipe = Recipe(
        model=str(toy.model), train=str(toy.train), eval=str(toy.eval), threads=1, max_drop="10%",
        passes=("attention(unpad=true)", "quantize-dynamic"),
    )  # fmt: skip
    package = compile_model(recipe, tmp_path / "package")
    record = next(record for record in package.manifest.passes if record.pass_ == "attention")
    assert "2 x attention" in record.reason


def planned(toy: Toy, target: str, *, unpad: bool) -> Recipe:
    return Recipe(
        model=str(toy.model), train=str(toy.train), eval=str(toy.eval), threads=1, max_drop="10%", target=target,
        passes=(f"attention(unpad={str(unpad).lower()})", "tensorrt"),
    )  # fmt: skip


@pytest.mark.parametrize(("target", "unpad"), [("rtx-ada", False), ("l4", True)])
def test_before_tensorrt_the_nodes_and_their_functions_stay(toy: Toy, tmp_path: Path, target, unpad):
    package = compile_model(planned(toy, target, unpad=unpad), tmp_path / "package")
    record = next(record for record in package.manifest.passes if record.pass_ == "attention")
    assert record.kept
    assert "only its target could tell" in record.reason
    proto = OnnxModel((tmp_path / "package" / "model.onnx").read_bytes()).proto()
    name = "AttentionVarlen" if unpad else "AttentionMask"
    assert [function.name for function in proto.functions] == [name]
    assert [node.op_type for node in proto.graph.node].count(name) == 2
    assert all(check.ok for check in verify_package(package))
    if target == "rtx-ada":
        pytest.importorskip("tensorrt_rtx")
        assert (tmp_path / "package" / "engine.plan").stat().st_size > 10_000


def test_where_sizes_may_not_depend_on_values_it_is_said_what_to_leave_out(toy: Toy, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        LeptoError, match=r"refuses the graph at node .*NonZero.* leave unpad out of the pass attention"
    ):
        compile_model(planned(toy, "rtx-ada", unpad=True), tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_the_packed_encoder_with_its_function_becomes_an_engine(bert):
    """All of it but NonZero: where the tokens stand comes in as an input."""
    pytest.importorskip("tensorrt_rtx")
    proto = Attention(unpad=True)(bert, Context()).proto()
    graph = proto.graph
    nonzero = next(node for node in graph.node if node.op_type == "NonZero")
    squeeze = next(node for node in graph.node if nonzero.output[0] in node.input)
    graph.input.append(onnx.helper.make_tensor_value_info(squeeze.output[0], onnx.TensorProto.INT64, ["tokens"]))
    for node in (nonzero, squeeze):
        graph.node.remove(node)
    given = [
        feed | {squeeze.output[0]: np.flatnonzero(feed["attention_mask"])}
        for feed in feeds(bert, sizes=((4, 9), (7, 16)))
    ]
    prepared = Tensorrt()(OnnxModel.from_proto(proto), Context(calibration=given))
    assert prepared.operators()["AttentionVarlen"] == 2
    assert parity(runner(bert, 1), runner(prepared, 1), given).max_rel < 5e-2
    profile = {name: Shapes((1, 1), (8, 16), (32, 32)) for name in given[0]}
    profile[squeeze.output[0]] = Shapes((1,), (64,), (1024,))
    spec = build_spec(prepared, TARGETS["rtx-ada"], profile, Tensorrt(), Tolerance(atol=0.1, rtol=0.1))
    assert build_engine(prepared, spec, "tensorrt_rtx", limit_s=240).record["bytes"] > 10_000


@pytest.mark.thorough
@pytest.mark.skipif(not SHARED.exists(), reason="the shared MiniLM is not here")
@pytest.mark.parametrize("unpad", [False, True])
def test_minilm(unpad):
    model = export_onnx(open_source(str(SHARED)), threads=2).model
    result = Attention(unpad=unpad)(model, Context(layers=6))
    assert result.operators()["AttentionVarlen" if unpad else "AttentionMask"] == 6
    for given in feeds(model, 30000, ((1, 5), (6, 40), (3, 128))):
        check(model, result, given, rtol=1e-3)
