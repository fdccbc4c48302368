"""What a student is taught by, as pure tensor functions.

B batch, C classes, S sequence, W width, H heads, D head_dim. Every loss is a mean over the batch, so that the batch
size does not change its scale.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
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
    return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2


def feature_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the teacher's mean square, so that its scale is that of no layer.

    Args:
        student: ``[B, W]`` or ``[B, S, W]``.
        teacher: The same shape.
    """
    teacher = teacher.float()
    return functional.mse_loss(student.float(), teacher) / teacher.square().mean().clamp_min(1e-6)


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


def relation_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """Kullback-Leibler divergence between two models' value relations, a mean over heads and real positions.

    Args:
        student: ``[B, S, W]``.
        teacher: ``[B, S, W']``.
        mask: ``[B, S]``, 1 where a position is real; rows of padding do not count.
        heads: Relation heads; must divide both widths.
    """
    ours, theirs = relations(student, heads), relations(teacher, heads)
    each = functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean(1)
    return (each * mask).sum() / mask.sum().clamp_min(1)
