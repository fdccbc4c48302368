"""Distillation: the model learns to answer as the original does, on training samples and augmented copies of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepto.compiler.cache import Cache
from lepto.compiler.context import Context, Left
from lepto.compiler.derived import copy_module, derive
from lepto.compiler.encoder import Encoder
from lepto.compiler.source import Source
from lepto.compiler.training.guide import Guide
from lepto.compiler.training.lesson import copies_for, prepare_lesson
from lepto.compiler.training.loop import Schedule, train


@dataclass(frozen=True, slots=True)
class Distill:
    """Teach a model by its original.

    Attributes:
        epochs: Passes over the training samples; each reads one of the augmented copies, too.
        learning_rate: Peak of AdamW's rate.
        temperature: Of the softened distributions.
        logits: Weight of the distance to the teacher's logits.
        features: Weight of the distance to what the teacher's classifier reads, where the widths agree.
        labels: Weight of the cross-entropy to the labels.
        hidden: Weight of the distance between matched layers' states; widths that differ are projected. The teacher
            then runs beside the student, for encoders only.
        relations: Weight of the distance between the last layers' value relations (MiniLM); the same holds.
        copies: Augmented copies of each sample; -1 chooses by the number of samples.
        batch_size: Samples in a step.
    """

    name: ClassVar[str] = "distill"
    preserves_function: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ("labels",)
    on_source: ClassVar[bool] = True

    epochs: float = 4.0
    learning_rate: float = 1e-3
    temperature: float = 2.0
    logits: float = 1.0
    features: float = 1.0
    labels: float = 0.2
    hidden: float = 0.0
    relations: float = 0.0
    copies: int = -1
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check the options."""
        self._schedule(0, train_tables=True)
        for name in ("hidden", "relations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.copies < -1:
            raise ValueError(f"copies must be at least 0, or -1, got {self.copies}")

    def _schedule(self, seed: int, *, train_tables: bool) -> Schedule:
        return Schedule(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            temperature=self.temperature,
            logits=self.logits,
            features=self.features,
            labels=self.labels,
            train_tables=train_tables,
            seed=seed,
        )

    def __call__(self, source: Source, context: Context) -> Source:
        """Return the taught source.

        Raises:
            Left: There is no training data or no original to learn from.
            PassError: The loss is not finite.
        """
        if context.train is None:
            raise Left("there is nothing to learn from: give --train")
        if context.teacher is None or source.load_module is None or context.teacher.load_module is None:
            raise Left("an ONNX file cannot be taught: give the PyTorch model that it was made from")
        copies = copies_for(len(context.train)) if self.copies < 0 else self.copies
        lesson = prepare_lesson(
            context.teacher,
            source,
            context.train,
            copies=copies,
            seed=context.seed,
            cache=Cache(),
            versions={},
            progress=context.progress,
        )
        module, guide = copy_module(source), None
        if self.hidden or self.relations:
            teacher, student = Encoder.of(copy_module(context.teacher)), Encoder.of(module)
            if teacher is None or student is None:
                raise Left(f"hidden and relations: the layers of {source.architecture} are not known")
            guide = Guide(
                teacher, student, [lesson.original, *lesson.augmented], hidden=self.hidden, relations=self.relations
            )
        losses = train(
            module,
            lesson.path,
            lesson.student[0],
            lesson.student[1:],
            # Tokens that the samples have not mean something only for as long as the others stay what they are.
            self._schedule(context.seed, train_tables=not lesson.beyond),
            guide=guide,
            name=source.description,
            progress=context.progress,
        )
        context.note(
            f"{self.epochs:g} epochs of {len(context.train):,} samples and a copy, {copies} copies in all; loss "
            f"{losses[0]:.3f} → {losses[-1]:.3f}"
        )
        return derive(source, module)
