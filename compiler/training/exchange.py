"""What a team's processes tell each other of a step, so that each takes the step that one alone would have taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.modules.batchnorm import _NormBase


def statistics_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """The running statistics of a module's normalizations."""
    norms = [child for child in module.modules() if isinstance(child, _NormBase)]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def pack(
    loss: float, samples: int, parameters: Sequence[torch.nn.Parameter], statistics: Sequence[torch.Tensor]
) -> torch.Tensor:
    """What a process found, as one row of numbers that are added up over processes.

    Gradients follow the loss and, for each parameter, whether it has one: the optimizer leaves alone what has none in
    any process, and a process without samples has none at all. Running statistics are weighted by the samples: every
    process normalizes by its own share of a batch, and those of the first alone would leave out what the others saw.
    Other buffers stay as the first process has them.

    Args:
        loss: This process's part.
        samples: How many it has of the batch.
        parameters: What learns, with its gradients.
        statistics: See :func:`statistics_of`.
    """
    device = parameters[0].device
    head = torch.tensor([loss, samples, *[float(p.grad is not None) for p in parameters]], device=device)
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    return torch.cat([head, *gradients, *[samples * buffer.flatten() for buffer in statistics]])


def unpack(row: torch.Tensor, parameters: Sequence[torch.nn.Parameter], statistics: Sequence[torch.Tensor]) -> float:
    """Set gradients and statistics from what :func:`pack` made of them, added up.

    Returns:
        The loss over the whole batch.
    """
    tensors = [*parameters, *statistics]
    head, *parts = row.split([2 + len(parameters), *[t.numel() for t in tensors]])  # type: ignore[no-untyped-call]  # as torch has it
    loss, samples, *has = head.tolist()
    values = [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
    for parameter, gradient, some in zip(parameters, values, has, strict=False):
        parameter.grad = gradient if some else None
    for buffer, total in zip(statistics, values[len(parameters) :], strict=True):
        buffer.copy_(total / samples)
    return float(loss)
