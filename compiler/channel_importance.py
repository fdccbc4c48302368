"""How much each channel matters, and how many each group should keep for the time they cost.

B batch, C channels, U units of a group, see :mod:`lepto.compiler.channel_groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lepto.compiler.channel_groups import Group, Groups, Member
from lepto.compiler.channels import prune_channels, rounded
from lepto.compiler.context import PassError
from lepto.compiler.sensitivity import answer_loss
from lepto.compiler.source import first_output
from lepto.compiler.training.pool import Pool

Cost = Callable[[str, int], float]
"""From a group's name and its number of channels to milliseconds."""


def gate_derivatives(values: torch.Tensor, gradients: torch.Tensor, axis: int) -> torch.Tensor:
    """Each sample's derivative of the loss by a gate, standing at 1, on every channel.

    It is the sum of value times gradient over the channel. Summed over samples that equals the sum of weight times
    gradient over the weights that read the channel: the first-order change of the loss when they are removed. Molchanov
    et al. 2019, "Importance Estimation for Neural Network Pruning", equations 8 and 9.

    Args:
        values: ``[B, ...]`` with C on ``axis``.
        gradients: The loss's derivative by them, of the same shape.
        axis: Where the channels are; not 0.

    Returns:
        ``[B, C]``, float32.
    """
    product = (values.float() * gradients.float()).movedim(axis, 1)
    return product.flatten(2).sum(2) if product.ndim > 2 else product


def magnitudes(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum of the squared weights of every channel on one axis, ``[C]``: what can be had without data."""
    return weight.detach().float().square().movedim(axis, 0).flatten(1).sum(1)


def measure_channels(
    module: nn.Module, groups: Groups, pool: Pool, *, samples: int = 512, batch: int = 32
) -> dict[str, torch.Tensor]:
    """Fisher scores of channels on training samples: the mean of the squared derivative by a gate on each unit.

    The loss is that of :func:`lepto.compiler.sensitivity.answer_loss`. Scores of different groups can be compared.

    Args:
        module: The network; not changed, and run in evaluation mode.
        groups: What can be cut of it.
        pool: Samples with what the teacher says of them.
        samples: How many are used, spread over the pool.
        batch: Samples at once.

    Returns:
        For each group ``[U]``.

    Raises:
        PassError: A score is not finite.
    """
    scores = {group.name: torch.zeros(group.units) for group in groups.groups}
    read: dict[str, torch.Tensor] = {}
    hooks = []
    for path in {member.path for group in groups.groups for member in group.readers()}:

        def keep(_module: Any, inputs: tuple[Any, ...], path: str = path) -> None:
            inputs[0].retain_grad()
            read[path] = inputs[0]

        hooks.append(module.get_submodule(path).register_forward_pre_hook(keep))
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    gradients = [parameter.grad for parameter, _ in wanted]
    training = module.training
    loss = answer_loss(pool)
    chosen = torch.linspace(0, len(pool) - 1, min(samples, len(pool))).long().tolist()
    try:
        module.eval()
        for parameter, _ in wanted:
            parameter.grad = None  # else the sums would be written into what is to be restored
            parameter.requires_grad_(True)
        for start in range(0, len(chosen), batch):
            rows = chosen[start : start + batch]
            inputs, logits, _, _ = pool.batch(rows)
            with torch.enable_grad():
                torch.autograd.backward(loss(first_output(module(**inputs)), logits))
            for group in groups.groups:
                scores[group.name] += _derivatives(module, group, read).square().sum(0) / len(chosen)
            read.clear()
    finally:
        for hook in hooks:
            hook.remove()
        for (parameter, required), gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient
            parameter.requires_grad_(required)
        module.train(training)
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise PassError(f"the importance of the channels of {name!r} is not finite on the training data")
    return scores


def _derivatives(module: nn.Module, group: Group, read: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``[B, U]``: all that read a channel have it behind one gate."""
    total: torch.Tensor | None = None
    for member in group.readers():
        value = read[member.path]
        assert value.grad is not None
        each = gate_derivatives(value.detach(), value.grad, _channel_axis(module.get_submodule(member.path)))
        units = torch.zeros(len(each), group.units)
        units.index_add_(1, torch.tensor(member.unit), each[:, list(member.index)].cpu())
        total = units if total is None else total + units
    assert total is not None
    return total


def _channel_axis(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def magnitude_importance(module: nn.Module, groups: Groups) -> dict[str, torch.Tensor]:
    """Scores without data: the squared weights that make and read each unit, over their mean in the layer.

    Returns:
        For each group ``[U]``; scores of different groups cannot be compared.
    """
    scores = {}
    for group in groups.groups:
        total = torch.zeros(group.units)
        for member in group.members:
            made = _member_magnitudes(module, member)
            if made is not None:
                total.index_add_(0, torch.tensor(member.unit), (made / made.mean().clamp_min(1e-12)).cpu())
        scores[group.name] = total
    return scores


def _member_magnitudes(module: nn.Module, member: Member) -> torch.Tensor | None:
    if member.side not in ("in", "out"):
        return None
    layer: Any = module.get_submodule(member.path)
    weight = layer.weight
    if weight is None or weight.ndim < 2:
        return None
    grouped = getattr(layer, "groups", 1)
    if member.side == "in" and grouped > 1:
        parts = weight.detach().chunk(grouped)
        each = torch.cat([magnitudes(part, 1) for part in parts])
    else:
        swapped = getattr(layer, "transposed", False) and grouped == 1
        each = magnitudes(weight, int((member.side == "in") != swapped))
    return each[list(member.index)]


def counts(group: Group, round_to: int, steps: int = 4) -> tuple[int, ...]:
    """Widths worth trying: ``steps`` even parts of a group's channels, rounded as the target likes, descending."""
    shares = [step / steps for step in range(steps, 0, -1)]
    return tuple(sorted({rounded(group.channels, s, round_to, group.tied) for s in shares}, reverse=True))


def measure_costs(
    module: nn.Module,
    example: Mapping[str, torch.Tensor],
    groups: Groups,
    measure: Callable[[nn.Module], float],
    *,
    round_to: int = 8,
    steps: int = 4,
) -> dict[str, dict[int, float]]:
    """A table of what each width of each group costs, every other group left whole.

    Args:
        module: The network; not changed.
        example: Inputs by argument name.
        groups: What can be cut of it.
        measure: Times one network on the target, in milliseconds. What the table holds is no better than this.
        round_to: See :func:`counts`.
        steps: See :func:`counts`.

    Returns:
        For each group milliseconds of the whole network by number of channels.
    """
    whole = measure(module)
    any_scores = {group.name: torch.zeros(group.units) for group in groups.groups}
    table: dict[str, dict[int, float]] = {}
    for group in groups.groups:
        table[group.name] = {group.channels: whole}
        for count in counts(group, round_to, steps):
            if count < group.channels:
                narrow, _ = prune_channels(module, example, groups, any_scores, keep={group.name: count})
                table[group.name][count] = measure(narrow)
    return table


def allot(
    importance: Mapping[str, torch.Tensor],
    widths: Mapping[str, Iterable[int]],
    channels: Mapping[str, int],
    cost: Cost,
    saving_ms: float,
) -> dict[str, int]:
    """How many channels each group keeps so that a time is saved at the least loss of importance.

    Greedy knapsack, as in Shen et al. 2022, "Structural Pruning via Latency-Saliency Knapsack": again and again the
    step down is taken that loses the least importance for each millisecond saved. Steps to any smaller width are
    compared, not to the next one alone: cost is a staircase, and some steps save nothing.

    Args:
        importance: For each group ``[U]`` scores that can be compared between groups.
        widths: For each group the widths allowed.
        channels: For each group its channels C; U divides C.
        cost: Milliseconds of a group at a width; only differences matter.
        saving_ms: Milliseconds to save in total, above 0.

    Returns:
        For each group its channels; if the saving cannot be reached, what comes nearest to it.

    Raises:
        ValueError: The arguments do not fit each other.
    """
    if not saving_ms > 0:
        raise ValueError(f"saving_ms must be above 0, got {saving_ms}")
    lost: dict[str, dict[int, float]] = {}
    for name, scores in importance.items():
        if name not in widths or name not in channels or channels[name] % len(scores):
            raise ValueError(f"group {name!r} needs widths, and channels that its {len(scores)} scores divide")
        tied = channels[name] // len(scores)
        summed = [0.0, *torch.sort(scores.double()).values.cumsum(0).tolist()]
        allowed = {*widths[name], channels[name]}
        if bad := [w for w in allowed if not 1 <= w <= channels[name] or w % tied]:
            raise ValueError(f"widths of {name!r} must be multiples of {tied} in [1, {channels[name]}], got {min(bad)}")
        lost[name] = {width: summed[len(scores) - width // tied] for width in allowed}
    kept = {name: channels[name] for name in importance}
    saved = 0.0
    while saved < saving_ms:
        best: tuple[float, float, str, int] | None = None
        for name, losses in lost.items():
            for width, loss in losses.items():
                gain = cost(name, kept[name]) - cost(name, width)
                if width >= kept[name] or gain <= 0:
                    continue
                # What would be saved beyond the target is worth nothing.
                price = (loss - losses[kept[name]]) / min(gain, saving_ms - saved)
                if best is None or (price, -gain, name, width) < best:
                    best = (price, -gain, name, width)
        if best is None:
            return kept
        _, gain, name, width = best
        kept[name] = width
        saved -= gain
    return kept
