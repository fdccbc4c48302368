"""Proof against the source: parity of outputs, the task metric, agreement, and blame by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lepto.compiler.context import Feed
from lepto.compiler.data import Samples
from lepto.compiler.model import OnnxModel
from lepto.compiler.ort import session
from lepto.compiler.source import Text
from lepto.compiler.words import Words, are_words, read_words, word_outputs

Run = Callable[[Feed], npt.NDArray[np.float32]]
"""From inputs to the first output, float32 ``[B, ...]``."""

PARITY_RTOL = 1e-3
PARITY_ATOL = 1e-4
"""A function-preserving step keeps ``|a - b| <= atol + rtol * max|b|``: some hundred times float32's rounding on these
depths, and far below what moves a decision."""


_TIE = 1e-5
"""Outputs closer than this part of the largest one are equal in float32 after a network's worth of roundings."""


@dataclass(frozen=True)
class Parity:
    """How far two models' outputs lie apart on the same inputs.

    Attributes:
        max_abs: Largest absolute difference.
        max_rel: The same over the largest magnitude of the reference in its run.
        agreement: Fraction of rows (of tokens, where each has an output) with the same arg max, in [0, 1].
        rows: Rows compared.
        ok: Every difference is within the tolerance.
        decides: Whether an arg max means anything; if not, ``agreement`` is 1.
    """

    max_abs: float
    max_rel: float
    agreement: float
    rows: int
    ok: bool
    decides: bool = True

    def __str__(self) -> str:
        """For people."""
        same = f"same decision {self.agreement:.2%} of {self.rows} rows" if self.decides else f"{self.rows} rows"
        return f"max abs {self.max_abs:.1e}, relative {self.max_rel:.1e}, {same}"


def parity(reference: Run, candidate: Run, feeds: Sequence[Feed], *, decides: bool = True) -> Parity:
    """Compare the first outputs of two models, run by run.

    A NaN or an infinity on either side is a difference without bound.

    Args:
        reference: The one to be compared with.
        candidate: The other one.
        feeds: Inputs.
        decides: Whether the largest of the outputs is a decision; that of a vector is not.
    """
    max_abs = max_rel = 0.0
    same = rows = 0
    ok = True
    for feed in feeds:
        a, b = np.asarray(reference(feed), np.float64), np.asarray(candidate(feed), np.float64)
        if a.shape != b.shape:
            raise ValueError(f"the outputs have shapes {list(a.shape)} and {list(b.shape)} for one input")
        finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
        difference = float(np.abs(a - b).max(initial=0.0)) if finite else float("inf")
        size = float(np.abs(a).max(initial=0.0)) if finite else 1.0
        max_abs = max(max_abs, difference)
        max_rel = max(max_rel, difference / max(size, 1e-12))
        ok &= difference <= PARITY_ATOL + PARITY_RTOL * size
        count = len(a) * a.shape[1] if a.ndim == 3 else len(a)
        a2, b2 = a.reshape(count, -1), b.reshape(count, -1)
        # Where the reference's best two are equal up to rounding, either is its decision.
        rows_of = np.arange(len(a2))
        if finite:
            same += int((a2.max(axis=1) - a2[rows_of, b2.argmax(axis=1)] <= _TIE * size).sum())
        rows += count
    return Parity(max_abs, max_rel, same / max(rows, 1) if decides else 1.0, rows, ok, decides)


def runner(model: OnnxModel, threads: int) -> Run:
    """Run a model on ONNX Runtime; only its first output is given."""
    loaded = session(model, threads)
    names = {value.name for value in loaded.get_inputs()}
    first = [loaded.get_outputs()[0].name]
    return lambda feed: loaded.run(first, {k: v for k, v in feed.items() if k in names})[0]


def encode(inputs: Sequence[str | Words] | Mapping[str, npt.NDArray[np.generic]], text: Text | None) -> list[Feed]:
    """Samples as inputs of batch 1, in order."""
    if isinstance(inputs, Mapping):
        count = len(next(iter(inputs.values())))
        return [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(count)]
    if text is None:
        raise ValueError("text samples need a tokenizer")
    return [pad([ids], text) for ids in tokenize(inputs, text)]


def tokenize(texts: Sequence[str | Words], text: Text) -> list[list[int]]:
    """Token ids of each text or row of words, cut at the maximum length."""
    from tokenizers import Tokenizer

    if are_words(texts):
        return [reading.ids for reading in read_words(texts, text)]
    tokenizer = Tokenizer.from_str(text.tokenizer)
    tokenizer.enable_truncation(text.preprocessing.max_length)
    # Only a tokenizer without [CLS] makes nothing of an empty text; the runtime gives the model one token then, too.
    return [encoding.ids or [text.preprocessing.pad_id] for encoding in tokenizer.encode_batch_fast(list(texts))]


def pad(rows: Sequence[Sequence[int]], text: Text) -> Feed:
    """One batch ``[B, S]``, int64, padded at the end to its longest row."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), text.preprocessing.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: arrays[name] for name in text.preprocessing.inputs}


def logits_one_by_one(
    run: Run,
    feeds: Sequence[Feed],
    progress: Callable[[int], None],
    first: Sequence[Sequence[int]] | None = None,
) -> npt.NDArray[np.float32]:
    """[N, L] outputs, each sample run alone, as a single request is served.

    Args:
        run: The model.
        feeds: One for each sample.
        progress: Told how many samples were done.
        first: For samples of words the places of the first tokens; the outputs are then [N, W, L], of words.
    """
    rows = []
    for feed in feeds:
        rows.append(run(feed))
        progress(1)
    return np.concatenate(rows) if first is None else word_outputs([row[0] for row in rows], first)


def first_places(inputs: Any, text: Text | None) -> list[list[int]] | None:
    """For samples of words the place of each word's first token; None for other samples."""
    return [reading.first for reading in read_words(inputs, text)] if text is not None and are_words(inputs) else None


_ARRAYS = 32
"""Samples of arrays that are run at once."""


def logits_in_batches(
    run: Run,
    samples: Samples,
    text: Text | None,
    progress: Callable[[int], None],
    *,
    tokens: int = 1024,
) -> npt.NDArray[np.float32]:
    """[N, L] outputs in batches of like length: for float models, whose rows do not touch each other.

    For samples of words [N, W, L], what is said at each word's first token.

    Args:
        run: The model.
        samples: N of them.
        text: How texts are read.
        progress: Told how many more are done.
        tokens: At most so many of texts at once, padding counted, and at least one text: a CPU is the fastest with as
            much as its caches hold.
    """
    if isinstance(samples.inputs, Mapping):
        feeds: list[Feed] = [
            {name: array[i : i + _ARRAYS] for name, array in samples.inputs.items()}
            for i in range(0, len(samples), _ARRAYS)
        ]
        order = np.arange(len(samples))
    else:
        assert text is not None
        ids = tokenize(samples.inputs, text)
        order = np.argsort([len(row) for row in ids], kind="stable")
        feeds, rest = [], order.tolist()
        while rest:
            # Sorted, so that the last of them is the longest.
            count = next((n for n in range(1, len(rest)) if (n + 1) * len(ids[rest[n]]) > tokens), len(rest))
            feeds.append(pad([ids[i] for i in rest[:count]], text))
            del rest[:count]
    rows = []
    for feed in feeds:
        rows.append(run(feed))
        progress(len(rows[-1]))
    if (first := first_places(samples.inputs, text)) is not None:
        outputs = dict(zip(order.tolist(), (own for row in rows for own in row), strict=True))
        return word_outputs([outputs[i] for i in range(len(outputs))], first)
    stacked = np.concatenate(rows)
    result = np.empty_like(stacked)
    result[order] = stacked
    return result


@dataclass(frozen=True)
class Difference:
    """The first tensor, in the order of computation, on which two graphs disagree."""

    tensor: str
    layer: str
    max_abs: float
    max_reference: float

    def __str__(self) -> str:
        """For people."""
        where = f"layer {self.layer!r}, tensor {self.tensor!r}" if self.layer else f"tensor {self.tensor!r}"
        return f"{where} (max abs difference {self.max_abs:.2e} where values reach {self.max_reference:.2e})"


def first_difference(
    reference: OnnxModel, candidate: OnnxModel, feeds: Sequence[Feed], threads: int
) -> Difference | None:
    """Name the first layer whose output differs between a graph and its rewrite.

    Rewrites keep the names of the tensors that they still compute; all float tensors with a name in both graphs are
    read and compared in the candidate's order of computation.
    """
    shared = _float_tensors(reference) & _float_tensors(candidate)
    ordered = [name for name in _tensor_order(candidate) if name in shared]
    if not ordered:
        return None
    a, b = _expose(reference, ordered, threads), _expose(candidate, ordered, threads)
    layers = _layers(candidate)
    for feed in feeds:
        left, right = a(feed), b(feed)
        for name, x, y in zip(ordered, left, right, strict=True):
            if x.shape != y.shape:
                return Difference(name, layers.get(name, ""), float("inf"), float("nan"))
            size = float(np.abs(x).max(initial=0.0))
            difference = float(np.abs(x.astype(np.float64) - y).max(initial=0.0))
            if not difference <= PARITY_ATOL + PARITY_RTOL * size:
                return Difference(name, layers.get(name, ""), difference, size)
    return None


def _expose(model: OnnxModel, names: Sequence[str], threads: int) -> Callable[[Feed], list[Any]]:
    proto = model.proto()
    del proto.graph.output[:]
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    loaded = session(proto.SerializeToString(), threads)
    inputs = {value.name for value in loaded.get_inputs()}
    return lambda feed: loaded.run(list(names), {k: v for k, v in feed.items() if k in inputs})


def _tensor_order(model: OnnxModel) -> list[str]:
    return [name for node in model.proto().graph.node for name in node.output if name]


def _float_tensors(model: OnnxModel) -> set[str]:
    """Tensors whose recorded type is float32; fused nodes inherit the type of what they replace."""
    graph = model.proto().graph
    infos = [*graph.value_info, *graph.output]
    made = {name for node in graph.node for name in node.output}
    return {v.name for v in infos if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT} & made


def _layers(model: OnnxModel) -> dict[str, str]:
    layers = {}
    for node in model.proto().graph.node:
        scope = next((p.value for p in node.metadata_props if p.key == "layer"), "")
        layers.update(dict.fromkeys(node.output, scope))
    return layers
