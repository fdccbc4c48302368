"""Shapes of an encoder: few of its layers, with the heads and neurons that are worth their time, or half its width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepto.compiler.cutter import LESS, Shape
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.encoder import Encoder, Selection, Sizes
from lepto.compiler.importance import Importance, measure_importance, most_important
from lepto.compiler.latency import LatencyTable, fit_to_latency
from lepto.compiler.source import Source
from lepto.compiler.training.first_row import first_row_only
from lepto.compiler.training.pool import Pool

_SHARES: tuple[float, ...] = (1.0, 0.7, 0.57, 0.45)
"""Of what the kept layers cost, what their heads and neurons are cut to."""

_UNIT = 64
"""The width is cut to a multiple of this."""

_LEAST_HEADS, _LEAST_NEURONS = 2, 64
"""No layer keeps fewer."""


@dataclass(frozen=True)
class EncoderCutter:
    """Cuts one encoder.

    Attributes:
        base: What is cut: the source, or the source with a trimmed vocabulary.
        sizes: Its sizes.
        importance: Of its parts.
        table: What they cost.
        last_row_only: Whether nothing but the first position is read of its last layer.
        cuts_width: Whether it is known what reads its width.
        strict: Whether shapes must be able to be as good as the source.
    """

    base: Source
    sizes: Sizes
    importance: Importance
    table: LatencyTable
    last_row_only: bool
    cuts_width: bool = True
    strict: bool = False

    def shapes(self) -> list[Shape]:
        """See :func:`encoder_shapes`."""
        return self._shapes(strict=self.strict)

    def larger(self) -> list[Shape]:
        """Shapes of more layers, up to all of them."""
        if self.strict:
            return []
        dearest = max(shape.predicted_ms for shape in self.shapes())
        return [shape for shape in self._shapes(strict=True) if shape.predicted_ms > dearest]

    def cut(self, shape: Shape) -> Source:
        """A new source with the most important heads, neurons and dimensions of that shape."""
        module = copy_module(self.base)
        encoder = Encoder.of(module)
        assert encoder is not None
        sizes: Selected = shape.what
        importance = self.importance
        pairs = list(zip(sizes.layers, sizes.heads, sizes.neurons, strict=True))
        encoder.cut(
            Selection(
                sizes.layers,
                tuple(most_important(importance.heads[i], heads) for i, heads, _ in pairs),
                tuple(most_important(importance.neurons[i], neurons) for i, _, neurons in pairs),
                None if sizes.width == self.sizes.width else most_important(importance.width, sizes.width),
            )
        )
        return derive(self.base, module)

    def smaller(self, student: Source, shape: Shape, pool: Pool) -> tuple[Shape, Source] | None:
        """See :meth:`lepto.compiler.cutter.Cutter.smaller`; layers and width stay."""
        module = copy_module(student)
        encoder = Encoder.of(module)
        assert encoder is not None
        sizes: Selected = shape.what
        importance = measure_importance(encoder, pool)
        heads, neurons = ([i.double().numpy() for i in each] for each in (importance.heads, importance.neurons))
        kept = fit_to_latency(
            self.table,
            heads,
            neurons,
            LESS * self._layers_ms(sizes.heads, sizes.neurons),
            last_row_only=self.last_row_only,
            # What it has learned should be learned again soon: no layer loses more than half of anything at once.
            least_heads=[max(_LEAST_HEADS, -(-count // 2)) for count in sizes.heads],
            least_neurons=[max(_LEAST_NEURONS, -(-count // 2)) for count in sizes.neurons],
        )
        if kept == (sizes.heads, sizes.neurons):
            return None
        encoder.cut(
            Selection(
                tuple(range(len(sizes.layers))),
                tuple(most_important(scores, n) for scores, n in zip(importance.heads, kept[0], strict=True)),
                tuple(most_important(scores, n) for scores, n in zip(importance.neurons, kept[1], strict=True)),
            )
        )
        return self._shape(Selected(sizes.layers, *kept, sizes.width)), derive(student, module)

    def _shapes(self, *, strict: bool) -> list[Shape]:
        return encoder_shapes(
            self.sizes,
            self.importance,
            self.table,
            last_row_only=self.last_row_only,
            cuts_width=self.cuts_width,
            strict=strict,
        )

    def _layers_ms(self, heads: Sequence[int], neurons: Sequence[int]) -> float:
        return layers_ms(self.table, heads, neurons, last_row_only=self.last_row_only)

    def _shape(self, chosen: Selected) -> Shape:
        return named(chosen, self.sizes, self._layers_ms(chosen.heads, chosen.neurons))


@dataclass(frozen=True)
class Selected:
    """How much of an encoder is kept: its layers by index, and for each its heads and neurons; the width."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    neurons: tuple[int, ...]
    width: int

    def __str__(self) -> str:
        """For people."""
        pairs = [f"{h} heads + {n} neurons" for h, n in zip(self.heads, self.neurons, strict=True)]
        each = f"{pairs[0]} each" if len(set(pairs)) == 1 and len(pairs) > 1 else ", ".join(pairs)
        return f"layer{'s' if len(pairs) > 1 else ''} {'+'.join(map(str, self.layers))} ({each})"


def encoder_cutter(
    root: Source, base: Source, pool: Pool, table: LatencyTable, *, strict: bool = False
) -> EncoderCutter:
    """Measure what matters in an encoder, with the source's own gradients on training samples."""
    encoder = Encoder.of(root.module())
    assert encoder is not None
    # What a tagger reads of its last layer is every row, and its neurons there cost as much as elsewhere.
    with first_row_only(root.module(), pool.longest()) as last_row_only:
        pass
    return EncoderCutter(
        base,
        encoder.sizes(),
        measure_importance(encoder, pool),
        table,
        last_row_only=last_row_only,
        cuts_width=encoder.reader() is not None,
        strict=strict,
    )


def kept_layers(count: int, keep: int) -> tuple[int, ...]:
    """Which of ``count`` layers are kept: the first and the last, and others evenly between; alone, the first."""
    if not 1 <= keep <= count:
        raise ValueError(f"keep must be in [1, {count}], got {keep}")
    if keep == 1:
        return (0,)
    return tuple(int(i) for i in np.round(np.linspace(0, count - 1, keep)))


def layers_ms(table: LatencyTable, heads: Sequence[int], neurons: Sequence[int], *, last_row_only: bool) -> float:
    """What layers of the whole width cost by the table."""
    return sum(
        table.layer_ms(h, n, last_row_only=last_row_only and place == len(heads) - 1)
        for place, (h, n) in enumerate(zip(heads, neurons, strict=True))
    )


def named(chosen: Selected, sizes: Sizes, whole_width_ms: float) -> Shape:
    """A shape with its name and cost: nearly all of a layer is products, whose cost falls with the width."""
    narrow = f", width {chosen.width} of {sizes.width}" if chosen.width != sizes.width else ""
    return Shape(f"{chosen}{narrow}", chosen.width / sizes.width * whole_width_ms, chosen)


def encoder_shapes(
    sizes: Sizes,
    importance: Importance,
    table: LatencyTable,
    *,
    last_row_only: bool,
    cuts_width: bool = True,
    strict: bool = False,
) -> list[Shape]:
    """Candidates from one layer to half of them, whole and cut to shares of their cost; ascending by cost.

    Where a result must be as good as the source, from a third of the layers to all.
    """
    found: dict[Selected, Shape] = {}
    half = max(1, (sizes.layers + 1) // 2)

    def add(layers: tuple[int, ...], heads: Sequence[int], neurons: Sequence[int], width: int) -> None:
        chosen = Selected(layers, tuple(heads), tuple(neurons), width)
        found[chosen] = named(chosen, sizes, layers_ms(table, heads, neurons, last_row_only=last_row_only))

    few = {1, min(2, sizes.layers), min(3, sizes.layers), half}
    many = {max(1, -(-sizes.layers // 3)), half, -(-3 * sizes.layers // 4), sizes.layers}
    for keep in sorted(many if strict else few):
        layers = kept_layers(sizes.layers, keep)
        heads = [importance.heads[i].double().numpy() for i in layers]
        neurons = [importance.neurons[i].double().numpy() for i in layers]
        whole = layers_ms(table, [*map(len, heads)], [*map(len, neurons)], last_row_only=last_row_only)
        shares = _SHARES if keep < half or half <= 2 else _SHARES[:1]
        if strict:
            shares = _SHARES[1:] if keep == sizes.layers else _SHARES[:2]
        for share in shares:
            fitted = fit_to_latency(
                table, heads, neurons, share * whole, last_row_only=last_row_only, least_heads=_LEAST_HEADS
            )
            add(layers, *fitted, sizes.width)
        narrow = sizes.width // 2 // _UNIT * _UNIT
        if keep > 1 and not strict and cuts_width and len(importance.width) == sizes.width and narrow:
            add(layers, [len(h) for h in heads], [len(n) // 2 for n in neurons], narrow)
    return sorted(found.values(), key=lambda shape: shape.predicted_ms)
