"""Quantization-aware training: the model learns to answer as the original does while its linear layers round."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.source import Source
from lepto.compiler.training.lesson import prepare_lesson
from lepto.compiler.training.loop import Schedule, train
from lepto.compiler.training.qat import quantization_aware
from lepto.compiler.verify import encode
from lepto.runtime.errors import LeptoError

Activations = Literal["static", "dynamic"]


@dataclass(frozen=True, slots=True)
class QuantizationAware:
    """Teach the weights to bear 8 bits, before an 8-bit pass rounds them for good.

    The model learns from its original, as in distillation, with every linear layer rounding weights and inputs. What
    comes out is a float model; an 8-bit pass goes after it, a static one with the ranges that the weights were trained
    for. Worth its time where plain 8 bits lose too much.

    Attributes:
        epochs: Passes over the training samples; each reads one of the augmented copies, too.
        learning_rate: Peak of AdamW's rate.
        activations: What the 8-bit pass will do: ranges from training data, or those of each request.
        copies: Augmented copies of each sample.
        batch_size: Samples in a step.
        reduce_range: Seven-bit weights, for CPUs without VNNI.
        exclude: Paths of linear layers that stay in float.
    """

    name: ClassVar[str] = "quantization-aware"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("labels",)
    on_source: ClassVar[bool] = True

    epochs: float = 1.0
    learning_rate: float = 1e-4
    activations: Activations = "static"
    copies: int = 1
    batch_size: int = 32
    reduce_range: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        self._schedule(0)
        if self.activations not in get_args(Activations):
            raise ValueError(f"activations must be one of {', '.join(get_args(Activations))}, got {self.activations!r}")
        if self.copies < 0:
            raise ValueError(f"copies must not be negative, got {self.copies}")

    def _schedule(self, seed: int) -> Schedule:
        return Schedule(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate, seed=seed)

    def __call__(self, source: Source, context: Context) -> Source:
        """Return the taught source.

        Raises:
            Left: There is no training data, no PyTorch model, or no linear layer.
            LeptoError: A path in ``exclude`` is no linear layer.
            PassError: The loss is not finite.
        """
        if context.train is None:
            raise Left("there is nothing to learn from: give --train")
        if context.teacher is None or source.load_module is None or context.teacher.load_module is None:
            raise Left("an ONNX file cannot be taught: give the PyTorch model that it was made from")
        module = copy_module(source)
        if not any(isinstance(child, torch.nn.Linear) for child in module.modules()):
            raise Left(f"{source.architecture} has no linear layer, and only those learn to bear 8 bits")
        lesson = prepare_lesson(
            context.teacher,
            source,
            context.train,
            copies=self.copies,
            seed=context.seed,
            cache=Cache(),
            versions={},
            progress=context.progress,
        )
        dynamic = self.activations == "dynamic"
        with contextlib.ExitStack() as stack:
            try:
                rounding = stack.enter_context(
                    quantization_aware(module, dynamic=dynamic, reduce_range=self.reduce_range, exclude=self.exclude)
                )
            except ValueError as error:
                raise LeptoError(f"{self.name}: {error}") from error
            losses = train(
                module,
                lesson.path,
                lesson.student[0],
                lesson.student[1:],
                self._schedule(context.seed),
                name=source.description,
                progress=context.progress,
            )
        layers = len(rounding.ranges())
        context.note(
            f"{layers} linear layers learned with 8-bit weights and {self.activations} 8-bit inputs: {self.epochs:g} "
            f"epochs of {len(context.train):,} samples, loss {losses[0]:.3f} → {losses[-1]:.3f}"
        )
        learned = None if dynamic else rounding.learned(encode(_first(context.train.inputs), source.text)[0])
        return derive(source, module, learned=learned)


def _first(inputs: Any) -> Any:
    """The first sample alone."""
    if isinstance(inputs, Mapping):
        return {name: array[:1] for name, array in inputs.items()}
    return inputs[:1]
