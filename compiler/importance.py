"""How much each part of an encoder matters, from gradients on the training data.

The score of a part is the Fisher information of a gate on it that stands at 1: the mean over samples of the squared
derivative of the loss with respect to the gate. For a gate g on a vector h, dL/dg is the sum of h * dL/dh over the
vector. Michel, Levy & Neubig 2019, "Are Sixteen Heads Really Better than One?"; Kwon et al. 2022, "A Fast
Post-Training Pruning Framework for Transformers", equation 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lepto.compiler.encoder import Encoder
from lepto.compiler.sensitivity import Loss, answer_loss
from lepto.compiler.source import first_output
from lepto.compiler.training.pool import Pool


def gate_scores(values: torch.Tensor, gradients: torch.Tensor, parts: int) -> torch.Tensor:
    """Squared derivative of the loss by a gate on each part of the last axis, summed over samples.

    Args:
        values: ``[B, S, N]``, what the gates stand on.
        gradients: ``[B, S, N]``, the loss's derivative by it.
        parts: Equal parts of the last axis that share a gate; must divide N.

    Returns:
        ``[parts]``.

    Raises:
        ValueError: ``parts`` does not divide N.
    """
    size = values.shape[-1]
    if size % parts:
        raise ValueError(f"parts must divide the last axis: {size} values, {parts} parts")
    each = (
        (values.float() * gradients.float()).flatten(1, -2) if values.ndim > 2 else values.float() * gradients.float()
    )
    per_sample = each.view(len(values), -1, parts, size // parts).sum(dim=(1, 3))
    return per_sample.square().sum(0)


def most_important(scores: torch.Tensor, keep: int) -> tuple[int, ...]:
    """Indices of the ``keep`` largest scores, ascending; ties go to the lower index.

    Raises:
        ValueError: ``keep`` is not in [1, N].
    """
    if not 1 <= keep <= len(scores):
        raise ValueError(f"keep must be in [1, {len(scores)}], got {keep}")
    order = torch.sort(scores, descending=True, stable=True).indices[:keep]
    return tuple(sorted(order.tolist()))


@dataclass
class Importance:
    """Scores of an encoder's parts.

    Attributes:
        heads: For each layer ``[H]``.
        neurons: For each layer ``[F]``.
        width: ``[W]``.
    """

    heads: list[torch.Tensor] = field(default_factory=list)
    neurons: list[torch.Tensor] = field(default_factory=list)
    width: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


def measure_importance(encoder: Encoder, pool: Pool, *, samples: int = 512, batch: int = 32) -> Importance:
    """Score heads, neurons and hidden dimensions of an encoder on training samples.

    The loss is that of :func:`lepto.compiler.sensitivity.answer_loss`.

    Args:
        encoder: The whole model; not changed.
        pool: Samples with what the teacher says of them.
        samples: How many are used, spread over the pool.
        batch: Samples at once.
    """
    sizes = encoder.sizes()
    result = Importance(
        [torch.zeros(n) for n in sizes.heads], [torch.zeros(n) for n in sizes.neurons], torch.zeros(sizes.width)
    )
    seen: dict[tuple[str, int], torch.Tensor] = {}
    hooks = [*_watch(encoder, seen)]
    chosen = torch.linspace(0, len(pool) - 1, min(samples, len(pool))).long().tolist()
    module: Any = encoder.module
    loss = answer_loss(pool)
    # Gradients of weights, which nobody asks for, would take a third of the time.
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        for start in range(0, len(chosen), batch):
            _score(module, pool, chosen[start : start + batch], seen, result, loss)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in learning:
            parameter.requires_grad_()
    return result


def _watch(encoder: Encoder, seen: dict[tuple[str, int], torch.Tensor]) -> list[Any]:
    """Keep what enters the projections that read heads, neurons and hidden dimensions."""
    hooks = []
    for index, layer in enumerate(encoder.layers()):
        for kind, path in (
            ("heads", encoder.family.out),
            ("neurons", encoder.family.down),
            ("width", encoder.family.up),
        ):

            def keep(_module: Any, inputs: tuple[Any, ...], key: tuple[str, int] = (kind, index)) -> None:
                if not inputs[0].requires_grad:  # nothing before the first of them does
                    inputs[0].requires_grad_()
                inputs[0].retain_grad()
                seen[key] = inputs[0]

            hooks.append(layer.get_submodule(path).register_forward_pre_hook(keep))
    return hooks


def _score(
    module: Any,
    pool: Pool,
    rows: Sequence[int],
    seen: dict[tuple[str, int], torch.Tensor],
    result: Importance,
    loss: Loss,
) -> None:
    inputs, logits, _, _ = pool.batch(rows)
    torch.autograd.backward(loss(first_output(module(**inputs)), logits))
    for (kind, index), value in seen.items():
        assert value.grad is not None
        value_, gradient = value.detach(), value.grad
        if kind == "heads":
            result.heads[index] += gate_scores(value_, gradient, len(result.heads[index]))
        elif kind == "neurons":
            result.neurons[index] += gate_scores(value_, gradient, len(result.neurons[index]))
        else:
            result.width += gate_scores(value_, gradient, len(result.width))
    seen.clear()
