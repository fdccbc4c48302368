"""Transformer encoders seen as what can be cut: layers, heads, feed-forward neurons, hidden width, table rows.

Where the parts lie in a module is data, one entry for each family of Hugging Face's encoders. Everything else here is
slicing. L layers, H heads, D head_dim, F feed-forward neurons, W hidden width, V tokens, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Family:
    """Where the parts of an encoder lie: paths below the base model, and below one layer.

    Attributes:
        layers: The list of layers.
        attention: The module that knows how many heads there are.
        query, key, value: Projections ``[H * D, W]``.
        out: Projection of the attention's output, ``[W, H * D]``.
        rows: The first module after the attention whose inputs ``[B, S, W]`` are taken row by row, and all after it.
        up: First half of the feed-forward block, ``[F, W]``.
        down: Second half, ``[W, F]``.
        norms: Normalizations over W in a layer.
        tables: Embedding tables ``[., W]``: words, positions, and kinds of token if there are any.
        table_norm: The normalization after the embeddings.
        heads: Attributes of ``attention`` with the number of heads, and with H * D.
    """

    layers: str
    attention: str
    query: str
    key: str
    value: str
    out: str
    rows: str
    up: str
    down: str
    norms: tuple[str, ...]
    tables: tuple[str, ...]
    table_norm: str
    heads: tuple[str, str]


_BERT = Family(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    rows="attention.output",
    up="intermediate.dense",
    down="output.dense",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    tables=("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings"),
    table_norm="embeddings.LayerNorm",
    heads=("num_attention_heads", "all_head_size"),
)

_DISTILBERT = Family(
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    rows="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    norms=("sa_layer_norm", "output_layer_norm"),
    tables=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    table_norm="embeddings.LayerNorm",
    heads=("n_heads", "dim"),
)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
"""By ``model_type`` of the configuration."""

_READERS = ("{base}.pooler.dense", "classifier.dense", "pre_classifier", "classifier")
"""What may read the last hidden states: the first of these linear layers that a model has."""


@dataclass(frozen=True)
class Selection:
    """What is kept of an encoder.

    Attributes:
        layers: The layers, by their index in the source.
        heads: For each kept layer its heads.
        neurons: For each kept layer its feed-forward neurons.
        width: The hidden dimensions; None keeps all.
        tokens: The rows of the word table; None keeps all.
        positions: How many rows of the position table; None keeps all.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    neurons: tuple[tuple[int, ...], ...]
    width: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.layers:
            raise ValueError("at least one layer must be kept")
        if not len(self.layers) == len(self.heads) == len(self.neurons):
            raise ValueError(
                f"layers, heads and neurons must pair up, got {len(self.layers)}, {len(self.heads)} and "
                f"{len(self.neurons)}"
            )
        for layer, heads, neurons in zip(self.layers, self.heads, self.neurons, strict=True):
            if not heads or not neurons:
                raise ValueError(f"layer {layer} must keep a head and a neuron; drop the layer instead")


@dataclass(frozen=True)
class Sizes:
    """How large an encoder is.

    Attributes:
        heads: For each layer its number of heads.
        neurons: For each layer its number of feed-forward neurons.
        head_dim: D, the same everywhere.
        width: W.
        tokens: V.
        positions: P.
    """

    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    head_dim: int
    width: int
    tokens: int
    positions: int

    @property
    def layers(self) -> int:
        """L."""
        return len(self.heads)

    def share_of(self, whole: Sizes) -> float:
        """The share of another encoder's weights that these layers have; embeddings do not count."""

        def weights(sizes: Sizes) -> int:
            return sizes.width * (4 * sizes.head_dim * sum(sizes.heads) + 2 * sum(sizes.neurons))

        return weights(self) / weights(whole)

    def __str__(self) -> str:
        """For people: ``2 layers, 12 heads, 768 neurons, width 384``."""

        def each(counts: tuple[int, ...]) -> str:
            return str(counts[0]) if len(set(counts)) == 1 else "+".join(map(str, counts))

        plural = "" if self.layers == 1 else "s"
        return (
            f"{self.layers} layer{plural}, {each(self.heads)} heads, {each(self.neurons)} neurons, width {self.width}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` gave, through JSON."""
        plain: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Encoder:
    """One module with the family that it belongs to.

    Attributes:
        module: The whole model, head included.
        family: Where its parts lie.
    """

    module: Any
    family: Family

    @classmethod
    def of(cls, module: torch.nn.Module) -> Encoder | None:
        """The encoder in a module; None where the family is not known or a part does not lie where it should."""
        kind = getattr(getattr(module, "config", None), "model_type", None)
        family = FAMILIES.get(str(kind))
        if family is None:
            return None
        encoder = cls(module, family)
        try:
            encoder.sizes()
        except AttributeError:
            return None
        # Factorized embeddings (ELECTRA small) have a width of their own, which is not cut here.
        return None if hasattr(encoder.base, "embeddings_project") else encoder

    @property
    def base(self) -> Any:
        """The model without its head."""
        return getattr(self.module, self.module.base_model_prefix, self.module)

    def part(self, path: str) -> Any:
        """A module below the base model."""
        return self.base.get_submodule(path)

    def layers(self) -> list[Any]:
        """The layers."""
        return list(self.part(self.family.layers))

    def sizes(self) -> Sizes:
        """How large it is."""
        family, heads, neurons, head_dim = self.family, [], [], 0
        for layer in self.layers():
            attention = layer.get_submodule(family.attention)
            head_dim = int(attention.attention_head_size)
            heads.append(layer.get_submodule(family.query).out_features // head_dim)
            neurons.append(layer.get_submodule(family.up).out_features)
        words, positions = self.part(family.tables[0]), self.part(family.tables[1])
        return Sizes(
            tuple(heads), tuple(neurons), head_dim, words.embedding_dim, words.num_embeddings, positions.num_embeddings
        )

    def table(self) -> npt.NDArray[np.float32]:
        """The embeddings of all tokens, ``[V, W]``."""
        weight = self.part(self.family.tables[0]).weight
        return np.asarray(weight.detach().float().numpy())

    def whole(self) -> Selection:
        """The selection that keeps everything."""
        sizes = self.sizes()
        return Selection(
            tuple(range(sizes.layers)),
            tuple(tuple(range(n)) for n in sizes.heads),
            tuple(tuple(range(n)) for n in sizes.neurons),
        )

    def first_position(self) -> int:
        """Row of the position table that the first token reads; RoBERTa counts from the padding index + 1."""
        padding = self.part(self.family.tables[1]).padding_idx
        return 0 if padding is None else int(padding) + 1

    def reader(self) -> str | None:
        """Path of the first linear layer that reads the last hidden states, below the whole model; None without one."""
        import torch

        for name in _READERS:
            path = name.format(base=self.module.base_model_prefix)
            try:
                found = self.module.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(found, torch.nn.Linear):
                return path
        return None

    def cut(self, selection: Selection) -> None:
        """Keep only what is selected; changes the module.

        Raises:
            ValueError: The width is to be cut, and it is not known what reads it.
        """
        import torch

        family, head_dim = self.family, self.sizes().head_dim
        kept = []
        layers = self.layers()
        for index, heads, neurons in zip(selection.layers, selection.heads, selection.neurons, strict=True):
            layer = layers[index]
            rows = [head * head_dim + i for head in heads for i in range(head_dim)]
            for path in (family.query, family.key, family.value):
                _slice_linear(layer.get_submodule(path), rows=rows)
            _slice_linear(layer.get_submodule(family.out), columns=rows)
            _slice_linear(layer.get_submodule(family.up), rows=neurons)
            _slice_linear(layer.get_submodule(family.down), columns=neurons)
            attention = layer.get_submodule(family.attention)
            setattr(attention, family.heads[0], len(heads))
            setattr(attention, family.heads[1], len(rows))
            kept.append(layer)
        parent, _, name = family.layers.rpartition(".")
        setattr(self.part(parent), name, torch.nn.ModuleList(kept))
        words, positions = self.part(family.tables[0]), self.part(family.tables[1])
        if selection.tokens is not None:
            _slice_table(words, rows=selection.tokens)
            self.module.config.vocab_size = len(selection.tokens)
        if selection.positions is not None:
            _slice_table(positions, rows=range(selection.positions))
        if selection.width is not None:
            self._cut_width(selection.width)

    def _cut_width(self, width: Sequence[int]) -> None:
        family, reader = self.family, self.reader()
        if reader is None:
            raise ValueError("the hidden width cannot be cut: the model has no head that is known to read it")
        for path in family.tables:
            _slice_table(self.part(path), columns=width)
        _slice_norm(self.part(family.table_norm), width)
        for layer in self.layers():
            for path in (family.query, family.key, family.value, family.up):
                _slice_linear(layer.get_submodule(path), columns=width)
            for path in (family.out, family.down):
                _slice_linear(layer.get_submodule(path), rows=width)
            for path in family.norms:
                _slice_norm(layer.get_submodule(path), width)
        _slice_linear(self.module.get_submodule(reader), columns=width)


def shaped(sizes: Sizes, source: Sizes) -> Selection:
    """A selection of the given sizes from an encoder, for shapes only: the first of everything."""
    return Selection(
        tuple(range(sizes.layers)),
        tuple(tuple(range(n)) for n in sizes.heads),
        tuple(tuple(range(n)) for n in sizes.neurons),
        tuple(range(sizes.width)) if sizes.width != source.width else None,
        tuple(range(sizes.tokens)) if sizes.tokens != source.tokens else None,
        sizes.positions if sizes.positions != source.positions else None,
    )


def with_tokens(selection: Selection, tokens: Sequence[int], positions: int) -> Selection:
    """The same selection with these rows of the word table and so many positions."""
    return replace(selection, tokens=tuple(tokens), positions=positions)


def _slice_linear(linear: Any, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> None:
    import torch

    weight = linear.weight.data
    if rows is not None:
        weight = weight[list(rows)]
        if linear.bias is not None:
            linear.bias = torch.nn.Parameter(linear.bias.data[list(rows)].clone())
    if columns is not None:
        weight = weight[:, list(columns)]
    linear.weight = torch.nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = weight.shape


def _slice_table(table: Any, *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None) -> None:
    import torch

    weight = table.weight.data
    if rows is not None:
        weight = weight[list(rows)]
        if table.padding_idx is not None:
            table.padding_idx = list(rows).index(table.padding_idx)
    if columns is not None:
        weight = weight[:, list(columns)]
    table.weight = torch.nn.Parameter(weight.clone())
    table.num_embeddings, table.embedding_dim = weight.shape


def _slice_norm(norm: Any, width: Sequence[int]) -> None:
    import torch

    norm.weight = torch.nn.Parameter(norm.weight.data[list(width)].clone())
    norm.bias = torch.nn.Parameter(norm.bias.data[list(width)].clone())
    norm.normalized_shape = (len(width),)
