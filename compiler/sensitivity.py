"""What is differentiated to see how much the parts of a model matter to its answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from lepto.compiler.training.pool import Pool

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From a model's outputs and what the teacher says, ``[..., C]`` each, to a scalar: a sum over samples."""


def answer_loss(pool: Pool, *, seed: int = 0) -> Loss:
    """A loss whose squared derivatives say how much a part matters, for models that know these samples by heart.

    Args:
        pool: Tells whether the answers are vectors.
        seed: Of the directions in which vectors are moved.
    """
    if not pool.vectors:
        return mixture_loss
    generator = torch.Generator().manual_seed(seed)
    return lambda output, _: direction_loss(output, torch.randn(output.shape, generator=generator))


def mixture_loss(output: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy to the teacher's own distribution mixed with a tenth of the uniform one.

    The labels of the training data are fitted so well that they leave no gradient; the mixture always does. For a
    single output it is the output itself.

    Args:
        output: ``[..., C]``.
        logits: The teacher's, of the same shape.
    """
    output, logits = output.reshape(-1, output.shape[-1]).float(), logits.reshape(-1, logits.shape[-1]).float()
    if output.shape[-1] == 1:
        return output.sum()
    target = 0.9 * logits.softmax(-1) + 0.1 / logits.shape[-1]
    return functional.cross_entropy(output, target, reduction="sum")


def direction_loss(output: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """A vector's direction in space along random ones: its squared derivatives are in the mean those of all of it.

    For a vector u of length 1, whose distribution is a Gaussian around it, Fisher's information of a gate g is
    ``|du/dg|^2``, the mean of ``(v du/dg)^2`` over directions v drawn from a standard normal distribution. A distance
    to the teacher's vector is 0 at the teacher itself, and has no gradient there.

    Args:
        output: ``[B, W]``.
        direction: ``[B, W]``, standard normal.
    """
    return (functional.normalize(output.float(), dim=-1) * direction.to(output.device)).sum()
