"""What a student is taught by, as pure tensor functions.

B batch, C classes, S sequence, W width, H heads, D head_dim. Every loss is a mean over the batch, so that the batch
size does not change its scale; it comes as a sum and what it is divided by, since the batch may be shared by processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from lepto.compiler.data import NO_LABEL


@dataclass(frozen=True)
class Part:
    """What some of a batch's samples add to a loss.

    Attributes:
        total: A sum over the samples, a scalar with a gradient.
        over: What it is divided by, a scalar >= 0; for a batch in several parts the sum of theirs.
    """

    total: torch.Tensor
    over: torch.Tensor

    def __rmul__(self, weight: float) -> Part:
        """The same with a weight."""
        return Part(weight * self.total, self.over)


def divisors(parts: Mapping[str, Part], terms: Sequence[str], device: torch.device) -> torch.Tensor:
    """What the parts of a batch are divided by, in the order of ``terms``; 0 for those that it has not."""
    return torch.stack([parts[term].over if term in parts else torch.zeros((), device=device) for term in terms])


def whole_loss(parts: Mapping[str, Part], terms: Sequence[str], over: torch.Tensor) -> torch.Tensor:
    """What parts of a batch add to its loss.

    Args:
        parts: One at least.
        terms: Names of all losses.
        over: The :func:`divisors` of the whole batch, ``[len(terms)]``.
    """
    means = [
        parts[t].total / o.to(parts[t].total).clamp_min(1e-6) for t, o in zip(terms, over, strict=True) if t in parts
    ]
    return torch.stack(means).sum()


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> Part:
    """Cross-entropy to the teacher's softened distribution, less its entropy (Kullback-Leibler), times temperature².

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2: the factor keeps the size of
    the gradients when the temperature changes.

    Args:
        student: ``[B, C]`` logits.
        teacher: ``[B, C]`` logits.
        temperature: Above 0.

    Raises:
        ValueError: The temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    ours = functional.log_softmax(student.float() / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.float() / temperature, dim=-1)
    total = functional.kl_div(ours, theirs, log_target=True, reduction="sum") * temperature**2
    return Part(total, total.new_tensor(float(len(student))))


def to_labels(student: torch.Tensor, labels: torch.Tensor) -> Part:
    """Cross-entropy to the labels of the samples that have one.

    Args:
        student: ``[B, C]`` logits.
        labels: ``[B]``, ``NO_LABEL`` where there is none.
    """
    total = functional.cross_entropy(student, labels, ignore_index=NO_LABEL, reduction="sum")
    return Part(total, (labels != NO_LABEL).sum().to(total))


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> Part:
    """Mean squared difference over the teacher's mean square, so that its scale is that of no layer.

    Args:
        student: ``[B, W]`` or ``[B, S, W]``.
        teacher: The same shape.
    """
    teacher = teacher.float()
    total = functional.mse_loss(student.float(), teacher, reduction="sum")
    return Part(total, teacher.square().sum().clamp_min(1e-6 * teacher.numel()))


def direction_distance(student: torch.Tensor, teacher: torch.Tensor) -> Part:
    """One minus the cosine of the angle between two vectors: what a search by vectors compares.

    Args:
        student: ``[B, W]``.
        teacher: ``[B, W]``.
    """
    apart = 1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return Part(apart.sum(), apart.new_tensor(float(len(apart))))


def relations(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Logarithm of softmax(V V^T / sqrt(D)) for each of ``heads`` parts of the width.

    Wang et al. 2020, "MiniLM", equation 4; with relation heads of "MiniLMv2" teacher and student may differ in width.

    Args:
        values: ``[B, S, W]``; ``heads`` must divide W.
        heads: H.

    Returns:
        ``[B, H, S, S]``.

    Raises:
        ValueError: ``heads`` does not divide the width.
    """
    batch, length, width = values.shape
    if width % heads:
        raise ValueError(f"heads must divide the width: width {width}, heads {heads}")
    split = values.float().view(batch, length, heads, width // heads).transpose(1, 2)
    return functional.log_softmax(split @ split.transpose(-1, -2) / (width // heads) ** 0.5, dim=-1)


def relation_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, heads: int) -> Part:
    """Kullback-Leibler divergence between two models' value relations, a mean over heads and real positions.

    Args:
        student: ``[B, S, W]``.
        teacher: ``[B, S, W']``.
        mask: ``[B, S]``, 1 where a position is real; rows of padding do not count.
        heads: Relation heads; must divide both widths.
    """
    ours, theirs = relations(student, heads), relations(teacher, heads)
    each = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean(1)
    return Part((each * mask).sum(), mask.sum())
