"""From PyTorch to ONNX, with proof: the dynamic axes are run, not believed."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lepto.compiler.context import Feed, PassError
from lepto.compiler.model import OnnxModel
from lepto.compiler.source import Axes, Source, first_output
from lepto.compiler.verify import Parity, parity, runner
from lepto.runtime.embedding import EMBEDDINGS
from lepto.runtime.errors import LeptoError, is_full_disk
from lepto.runtime.manifest import FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

OPSET = 18
"""The lowest opset that torch's exporter writes; the written-out attention of it is what the fusions know."""


@dataclass(frozen=True)
class Exported:
    """An export and its proof.

    Attributes:
        model: The ONNX model; for classifiers with ``scores = softmax(logits)`` as second output.
        exporter: Which exporter made it.
        proof: Parity with the source over all shapes that were run.
        shapes: The shapes that were run, as ``BxS`` or ``B``.
        fallback: Why the first exporter could not be used; empty if it could.
    """

    model: OnnxModel
    exporter: str
    proof: Parity
    shapes: tuple[str, ...]
    fallback: str = ""


def export_onnx(source: Source, *, threads: int, typical: int = 16) -> Exported:
    """Export a source and prove the result against it.

    Args:
        source: What to export; ONNX sources are taken as they are.
        threads: Intra-op threads of the runs that prove it.
        typical: A typical size of the dynamic axes other than the batch.

    Raises:
        PassError: No exporter can export it, or the export computes something else; the first layer at fault is named.
    """
    exporter, fallback = "as given", ""
    if source.load_onnx is not None:
        proto = source.load_onnx().proto()
    else:
        proto, exporter, fallback = _export(source)
    name = _first_name(source)
    outputs = None if name is None else [name]
    model = _finish(proto, source, outputs)
    proof, feeds = prove(source, model, threads=threads, typical=typical)
    shapes = shapes_of(feeds, source)
    if not proof.ok:
        blame = "" if source.load_onnx is not None else first_layer_apart(source, model, feeds, threads)
        raise PassError(
            f"the ONNX export of {source.description} does not compute what PyTorch computes: {proof}; "
            f"shapes run: {', '.join(shapes)}{blame}"
        )
    return Exported(model, exporter, proof, shapes, fallback)


def prove(source: Source, model: OnnxModel, *, threads: int, typical: int = 16) -> tuple[Parity, list[Feed]]:
    """Run a graph beside its source on minimal, typical and maximal shapes; the comparison, and what was run."""
    feeds = proof_feeds(source, typical)
    decides = source.task != FEATURE_EXTRACTION
    return parity(source.runner(threads), runner(model, threads), feeds, decides=decides), feeds


def proof_feeds(source: Source, typical: int) -> list[Feed]:
    """Inputs of minimal, typical and maximal size for several batch sizes; in the larger batches rows are padded."""
    others = sorted({name for axes in source.axes.values() for i, name in axes.items() if i != 0})
    sizes: list[Mapping[str, int]] = [{}]
    if others:
        largest = {name: source.maximum.get(name, 4 * typical) for name in others}
        sizes = [dict.fromkeys(others, 1), {n: min(typical, largest[n]) for n in others}, largest]
        if source.text is None:
            # A convolution cannot take a size of one; what is known to work is the size of the example.
            own = {name: source.example[i].shape[a] for i, axes in source.axes.items() for a, name in axes.items() if a}
            sizes = [own, {n: s + (s + 1) // 2 for n, s in own.items()}, {n: 2 * s for n, s in own.items()}]
    feeds: list[Feed] = []
    rng = np.random.default_rng(1)
    for index, size in enumerate(sizes):
        batches = (1, 2, 16) if index < len(sizes) - 1 or not others else (1, 2)
        feeds.extend(
            {name: _resize(name, a, source, batch, size, rng) for name, a in source.example.items()}
            for batch in batches
        )
    return feeds


def _resize(
    name: str,
    example: npt.NDArray[np.generic],
    source: Source,
    batch: int,
    size: Mapping[str, int],
    rng: np.random.Generator,
) -> npt.NDArray[np.generic]:
    axes = source.axes[name]
    shape = [batch if i == 0 else size[axes[i]] if i in axes else d for i, d in enumerate(example.shape)]
    if name == "attention_mask":
        mask = np.ones(shape, dtype=example.dtype)
        for row in range(1, batch):  # the first row is full, the others end at random
            mask[row, int(rng.integers(1, shape[1] + 1)) :] = 0
        return mask
    # Values of the example itself, in another order and size: right in range and kind for any model.
    drawn: npt.NDArray[np.generic] = rng.choice(example.reshape(-1), size=shape)
    return drawn


def shapes_of(feeds: Sequence[Feed], source: Source) -> tuple[str, ...]:
    """Of each, as ``BxS`` or ``B``."""
    return tuple("x".join(map(str, _shape(feed, source.axes))) for feed in feeds)


def _shape(feed: Feed, axes: Axes) -> tuple[int, ...]:
    name = max(axes, key=lambda n: len(axes[n]))
    return tuple(feed[name].shape[i] for i in sorted(axes[name]))


def _export(source: Source) -> tuple[onnx.ModelProto, str, str]:
    import torch

    module = source.module()
    kwargs = {name: torch.from_numpy(np.array(array)) for name, array in source.example.items()}
    shapes = {name: dict(axes) for name, axes in source.axes.items()}
    try:
        with torch.inference_mode():
            expected = module(**kwargs)
    except Exception as error:  # whatever the model's code raises
        raise LeptoError(f"{source.description} cannot run its own example inputs: {_reason(error)}") from error
    names = _output_names(expected, source)
    with _quiet(), tempfile.TemporaryDirectory(prefix="lepto-") as folder:
        path = Path(folder) / "model.onnx"
        try:
            program = torch.onnx.export(
                module,
                (),
                kwargs=kwargs,
                dynamo=True,
                dynamic_shapes=shapes,
                output_names=names,
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(str(path))
            return onnx.load(path), "torch.onnx.export(dynamo=True)", ""
        except Exception as error:  # the exporter raises whatever the traced code raises
            _raise_full_disk(error)
            why = _reason(error)
        try:
            torch.onnx.export(
                module,
                (),
                str(path),
                kwargs=kwargs,
                dynamo=False,
                input_names=list(kwargs),
                output_names=names,
                dynamic_axes={**shapes, **{name: {0: "batch"} for name in names}},
                opset_version=17,
            )
            return onnx.load(path), "torch.onnx.export(dynamo=False)", why
        except Exception as error:
            _raise_full_disk(error)
            raise PassError(
                f"{source.description} cannot be exported to ONNX. torch.onnx.export(dynamo=True): {why}; "
                f"dynamo=False: {_reason(error)}"
            ) from error


def _raise_full_disk(error: BaseException) -> None:
    """No exporter can help where the temporary folder is full."""
    cause: BaseException | None = error
    while cause is not None:
        if is_full_disk(cause):
            raise cause
        cause = cause.__cause__ or cause.__context__


def _output_names(output: Any, source: Source) -> list[str]:
    import torch

    if (name := _first_name(source)) is not None:
        made = output.values() if isinstance(output, Mapping) else output
        several = [made] if isinstance(made, torch.Tensor) else list(made)
        count = len([t for t in several if t is not None])
        return [name, *(f"output_{i}" for i in range(1, count))]
    if isinstance(output, torch.Tensor):
        return ["output"]
    if isinstance(output, Mapping):
        return [str(name) for name in output]
    return [f"output_{i}" for i in range(len(output))]


def _first_name(source: Source) -> str | None:
    """What the first output is called, where the task decides it; the others are then dropped."""
    if source.task.endswith("classification"):
        return "logits"
    return EMBEDDINGS if source.task == FEATURE_EXTRACTION and source.text is not None else None


def _finish(proto: onnx.ModelProto, source: Source, outputs: Sequence[str] | None) -> OnnxModel:
    """Name the axes and the layers, drop traces of the machine, and give classifiers their scores."""
    graph = proto.graph
    for node in graph.node:
        layer = _layer(node)
        del node.metadata_props[:]
        if layer:
            node.metadata_props.add(key="layer", value=layer)
        node.doc_string = ""
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.metadata_props[:]
    proto.doc_string = ""
    del graph.metadata_props[:]
    graph.name = "main"
    for value in graph.input:
        if value.name in source.axes:
            dims = value.type.tensor_type.shape.dim
            for axis, name in source.axes[value.name].items():
                dims[axis].dim_param = name
    if outputs is not None:
        if graph.output[0].name != outputs[0]:
            _rename_output(graph, outputs[0])
        del graph.output[1:]
    for value in graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    if source.task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        places = ["batch", *([source.axes["input_ids"][1]] if source.task == TOKEN_CLASSIFICATION else [])]
        _add_scores(proto, places, len(source.labels or ()))
    return OnnxModel.from_proto(proto)


def _add_scores(proto: onnx.ModelProto, places: list[str], labels: int) -> None:
    """Append ``scores = softmax(logits)``, so that a client gets probabilities without a step of its own."""
    graph = proto.graph
    dims = graph.output[0].type.tensor_type.shape.dim
    if len(dims) != len(places) + 1 or (dims[-1].dim_value and dims[-1].dim_value != labels):
        shape = [d.dim_param or d.dim_value for d in dims]
        wanted = ", ".join([*places, str(labels)])
        raise PassError(f"a classifier of {labels} labels must give logits [{wanted}], got {shape}")
    dims[-1].dim_value = labels
    for dim, place in zip(dims, places, strict=False):
        dim.dim_param = place
    made = next((node for node in graph.node if "scores" in node.output), None)
    if made is None:
        graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["scores"], name="lepto.scores", axis=-1))
    elif made.op_type != "Softmax" or list(made.input) != ["logits"]:
        raise PassError("the graph has a tensor 'scores' that is not the softmax of its first output: rename it")
    graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [*places, labels]))


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    old = graph.output[0].name
    taken = {output for node in graph.node for output in node.output} | {value.name for value in graph.input}
    if name in taken:
        raise PassError(f"the graph's first output {old!r} is to be named {name!r}, but another tensor has that name")
    graph.output[0].name = name
    for node in graph.node:
        for names in (node.input, node.output):
            for index, found in enumerate(names):
                if found == old:
                    names[index] = name


def _layer(node: onnx.NodeProto) -> str:
    """The PyTorch module that a node was traced from."""
    for prop in node.metadata_props:
        if prop.key == "layer":
            return str(prop.value)
        if prop.key == "pkg.torch.onnx.name_scopes":
            with contextlib.suppress(ValueError, SyntaxError):
                scopes = ast.literal_eval(prop.value)
                return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def first_layer_apart(source: Source, model: OnnxModel, feeds: Sequence[Feed], threads: int) -> str:
    """Name the first PyTorch module whose output differs from that of the nodes that were traced from it."""
    import torch

    from lepto.compiler.verify import _expose, _float_tensors

    last: dict[str, str] = {}
    floats = _float_tensors(model)
    for node in model.proto().graph.node:
        layer = next((p.value for p in node.metadata_props if p.key == "layer"), "")
        if layer and node.output[0] in floats:
            last[layer] = node.output[0]
    module = source.module()
    seen: dict[str, npt.NDArray[np.float32]] = {}
    hooks = []
    for name, child in module.named_modules():
        # What a module without children computes ends in its output; others may go on after the last node of their own.
        if name in last and not any(child.children()):

            def keep(_: torch.nn.Module, __: Any, output: Any, name: str = name) -> None:
                with contextlib.suppress(Exception):
                    seen[name] = first_output(output).detach().float().numpy()

            hooks.append(child.register_forward_hook(keep))
    try:
        exposed = _expose(model, list(last.values()), threads)
        for feed in feeds:
            seen.clear()
            source.runner(threads)(feed)
            values = dict(zip(last, exposed(feed), strict=True))
            for name, expected in seen.items():  # in the order in which the modules finished
                found = values[name]
                if found.shape != expected.shape:
                    continue  # a node within the module, not its output
                difference = float(np.abs(found - expected).max(initial=0.0))
                if not difference <= 1e-4 + 1e-3 * float(np.abs(expected).max(initial=0.0)):
                    return f"; the first layer apart is {name!r} (max abs difference {difference:.2e})"
    finally:
        for hook in hooks:
            hook.remove()
    return "; no single layer could be named"


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn about their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
