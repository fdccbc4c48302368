"""Structured pruning: whole layers, heads, neurons, dimensions or channels go, the least important first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepto.compiler.context import Context, Left
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.encoder import Encoder, Selection
from lepto.compiler.importance import measure_importance, most_important
from lepto.compiler.source import Source
from lepto.compiler.training.lesson import own_answers

_SHARES = ("heads", "neurons", "width", "channels")


@dataclass(frozen=True, slots=True)
class Prune:
    """Keep a part of the model; what is kept is decided by Fisher scores on training samples.

    What is left answers badly until ``distill`` has taught it.

    Attributes:
        layers: How many layers of an encoder are kept: the first, the last, and others evenly between; 0 keeps all.
        heads: Share of each layer's heads that is kept, in (0, 1].
        neurons: Share of each layer's feed-forward neurons, rounded to multiples of 64.
        width: Share of an encoder's hidden width, rounded to multiples of 64.
        channels: Share of each layer's channels, for networks without attention, rounded to multiples of 8.
        samples: How many training samples decide.
    """

    name: ClassVar[str] = "prune"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("labels",)
    on_source: ClassVar[bool] = True

    layers: int = 0
    heads: float = 1.0
    neurons: float = 1.0
    width: float = 1.0
    channels: float = 1.0
    samples: int = 512

    def __post_init__(self) -> None:
        """Check the options."""
        for name in _SHARES:
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.layers < 0:
            raise ValueError(f"layers must not be negative, got {self.layers}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")

    def __call__(self, source: Source, context: Context) -> Source:
        """Return the smaller source.

        Raises:
            Left: There is no training data, nothing is to be cut, or it is not known how.
        """
        if context.train is None:
            raise Left("what is kept is decided on training data: give --train")
        if source.load_module is None:
            raise Left("an ONNX file cannot be pruned: give the PyTorch model that it was made from")
        encoder = Encoder.of(source.module())
        return self._channels(source, context) if encoder is None else self._encoder(source, encoder, context)

    def _encoder(self, source: Source, encoder: Encoder, context: Context) -> Source:
        from lepto.compiler.cut_encoder import kept_layers

        sizes = encoder.sizes()
        layers = kept_layers(sizes.layers, min(self.layers or sizes.layers, sizes.layers))
        heads = tuple(max(1, round(self.heads * sizes.heads[i])) for i in layers)
        neurons = tuple(_in_units(self.neurons, sizes.neurons[i], 64) for i in layers)
        width = _in_units(self.width, sizes.width, 64)
        if width != sizes.width and encoder.reader() is None:
            raise Left("the hidden width cannot be cut: it is not known what reads it")
        whole = (tuple(range(sizes.layers)), sizes.heads, sizes.neurons, sizes.width)
        if (layers, heads, neurons, width) == whole:
            raise Left(f"nothing to prune: all of {sizes} is kept (give layers, heads, neurons or width)")
        assert context.train is not None
        scores = measure_importance(encoder, own_answers(source, context.train, self.samples), samples=self.samples)
        module = copy_module(source)
        smaller = Encoder(module, encoder.family)
        smaller.cut(
            Selection(
                layers,
                tuple(most_important(scores.heads[i], n) for i, n in zip(layers, heads, strict=True)),
                tuple(most_important(scores.neurons[i], n) for i, n in zip(layers, neurons, strict=True)),
                None if width == sizes.width else most_important(scores.width, width),
            )
        )
        made = derive(source, module)
        context.note(f"{sizes} → {smaller.sizes()}; {source.parameters:,} → {made.parameters:,} parameters")
        return made

    def _channels(self, source: Source, context: Context) -> Source:
        from lepto.compiler.channel_importance import measure_channels
        from lepto.compiler.channels import find_groups, prune_channels
        from lepto.compiler.cut_channels import example_tensors

        if self.channels == 1.0:
            raise Left(f"{source.architecture} is no encoder that can be cut; its channels can be: give channels")
        example = example_tensors(source)
        groups = find_groups(source.module(), example)
        assert context.train is not None
        pool = own_answers(source, context.train, self.samples)
        scores = measure_channels(source.module(), groups, pool, samples=self.samples)
        module, cut = prune_channels(source.module(), example, groups, scores, keep=self.channels)
        made = derive(source, module, cut=cut)
        context.note(f"{cut}; {source.parameters:,} → {made.parameters:,} parameters")
        return made


def _in_units(share: float, count: int, unit: int) -> int:
    """A share of a count in whole units, at least one; all of it where the share is 1 or the count is small."""
    if share == 1.0 or count <= unit:
        return count if share == 1.0 else max(1, round(share * count))
    return min(count, max(unit, round(share * count / unit) * unit))
