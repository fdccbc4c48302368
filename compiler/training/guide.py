"""A teacher that is asked while a student learns: what its layers hold, and how its values relate.

Logits and features can be stored for every sample; hidden states of every token cannot. Where they are wanted the
teacher runs beside the student, which about halves the speed of teaching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lepto.compiler.encoder import Encoder
from lepto.compiler.source import first_output
from lepto.compiler.training.losses import Part, feature_distance, relation_distance
from lepto.compiler.training.pool import Pool, reduced_precision


def matched_layers(student: int, teacher: int) -> tuple[int, ...]:
    """For each student layer the teacher layer whose output it should have: evenly spread, the last to the last.

    Sun et al. 2019, "Patient Knowledge Distillation", section 3.2 (skip).

    Raises:
        ValueError: A model has no layer, or the student has more.
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"a student must have between 1 and {teacher} layers, got {student}")
    return tuple(round((i + 1) * teacher / student) - 1 for i in range(student))


class Watch:
    """Keeps what layers return and what the last layer's value projection makes, in the last forward pass."""

    def __init__(self, encoder: Encoder) -> None:
        self.hidden: list[torch.Tensor] = []
        self.values: torch.Tensor | None = None
        layers = encoder.layers()
        self._hooks = [layers[0].register_forward_pre_hook(lambda _m, _i: self.clear())]
        self._hooks += [layer.register_forward_hook(self._keep) for layer in layers]
        self._hooks.append(layers[-1].get_submodule(encoder.family.value).register_forward_hook(self._keep_values))

    def _keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.hidden.append(first_output(output))

    def _keep_values(self, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        self.values = output

    def clear(self) -> None:
        """Forget the last pass."""
        self.hidden, self.values = [], None

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()


@dataclass
class Guide:
    """Hidden-state and relation losses between a running teacher and a student.

    Attributes:
        teacher: The source's encoder, in evaluation mode.
        student: The student's encoder.
        pools: The teacher's inputs for each of the student's pools, in the same order.
        hidden: Weight of the distance between matched layers' outputs.
        relations: Weight of the distance between the last layers' value relations.
        relation_heads: Heads of the relations; must divide both widths of the value projections.
    """

    teacher: Encoder
    student: Encoder
    pools: Sequence[Pool]
    hidden: float = 0.0
    relations: float = 0.0
    relation_heads: int = 1
    projections: torch.nn.ModuleList = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the projections: where the widths differ, a student's states are mapped to the teacher's width."""
        for name in ("hidden", "relations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        ours, theirs = self.student.sizes(), self.teacher.sizes()
        self._matched = matched_layers(ours.layers, theirs.layers)
        same = ours.width == theirs.width
        self.projections = torch.nn.ModuleList(
            torch.nn.Identity() if same else torch.nn.Linear(ours.width, theirs.width, bias=False)
            for _ in self._matched
        )
        self._watches = (Watch(self.student), Watch(self.teacher))

    def parameters(self) -> list[torch.nn.Parameter]:
        """What learns beside the student and is thrown away after it."""
        return list(self.projections.parameters())

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses that :meth:`parts` can give."""
        return (*(f"hidden {i}" for i in range(len(self._matched))), "relations")

    def parts(self, place: int, rows: Sequence[int], device: torch.device) -> dict[str, Part]:
        """After the student's forward pass: the teacher's on the same samples, and the distances, by name.

        Args:
            place: Which of the pools.
            rows: Its samples.
            device: Where the models are.
        """
        ours, theirs = self._watches
        inputs = {name: tensor.to(device) for name, tensor in self.pools[place].collate(rows).items()}
        with torch.no_grad(), reduced_precision(device):
            self.teacher.module(**inputs)
        mask = inputs["attention_mask"].float()
        parts = {}
        if self.hidden:
            real, weight = mask.bool(), self.hidden / len(self._matched)
            matched = zip(ours.hidden, self._matched, self.projections, strict=True)
            for i, (state, index, projection) in enumerate(matched):
                wanted = theirs.hidden[index].float()[real]
                parts[f"hidden {i}"] = weight * feature_distance(projection(state.float())[real], wanted)
        if self.relations:
            assert ours.values is not None
            assert theirs.values is not None
            distance = relation_distance(ours.values, theirs.values, mask, self.relation_heads)
            parts["relations"] = self.relations * distance
        self.clear()
        return parts

    def clear(self) -> None:
        """Forget the last passes."""
        for watch in self._watches:
            watch.clear()

    def close(self) -> None:
        """Stop watching the models."""
        for watch in self._watches:
            watch.close()
