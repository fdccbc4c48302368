"""One layer made narrower, in place: what every kind of layer means by its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lepto.compiler.channel_groups import Norm, is_depthwise


def layer_at(module: nn.Module, path: str) -> tuple[nn.Module, Any]:
    """The holder of a path and the layer there; None for a bare parameter."""
    holder, _, name = path.rpartition(".")
    owner = module.get_submodule(holder)
    found = getattr(owner, name)
    return owner, None if isinstance(found, nn.Parameter) else found


def width(layer: Any, side: str) -> int:
    """How many channels a layer has on a side, ``out`` or ``in``."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.out_channels if side == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if side == "out" else layer.in_features
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[0])
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    width: int = layer.num_parameters if isinstance(layer, nn.PReLU) else layer.num_features
    return width


def select_layer(layer: Any, side: str, kept: Sequence[int]) -> None:
    """Keep some channels of a layer, in place, in their order.

    Raises:
        ValueError: A grouped convolution would keep different channels in its groups.
    """
    if isinstance(layer, nn.modules.conv._ConvNd):
        through, axis = is_depthwise(layer), 1 if layer.transposed else 0
        if side == "in":
            each = layer.in_channels // layer.groups
            blocks = [[i - b * each for i in kept if b * each <= i < (b + 1) * each] for b in range(layer.groups)]
            if any(block != blocks[0] for block in blocks):
                raise ValueError("the groups of a convolution would keep different channels")
            narrow(layer, "weight", 1 - axis, blocks[0])
            layer.in_channels = len(kept)
            return
        narrow(layer, "weight", 0 if through else axis, kept)
        narrow(layer, "bias", 0, kept)
        layer.out_channels = len(kept)
        if through:
            layer.in_channels = layer.groups = len(kept)
    elif isinstance(layer, nn.Linear):
        narrow(layer, "weight", 0 if side == "out" else 1, kept)
        if side == "out":
            narrow(layer, "bias", 0, kept)
            layer.out_features = len(kept)
        else:
            layer.in_features = len(kept)
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            narrow(layer, name, 0, kept)
        if isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = (len(kept),)
        elif isinstance(layer, nn.GroupNorm):
            layer.num_channels = len(kept)
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = len(kept)
        else:
            assert isinstance(layer, Norm)
            layer.num_features = len(kept)


def narrow(owner: nn.Module, name: str, axis: int, kept: Sequence[int]) -> None:
    """Keep some places on one axis of a parameter or buffer; nothing where there is none of that name."""
    old = getattr(owner, name, None)
    if old is None:
        return
    chosen = old.detach().index_select(axis, torch.tensor(list(kept), dtype=torch.long, device=old.device)).clone()
    new = nn.Parameter(chosen, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else chosen
    setattr(owner, name, new)


def zero_layer(layer: Any, places: list[int]) -> None:
    """Zero the weights that read some channels."""
    if isinstance(layer, nn.Linear):
        layer.weight[:, places] = 0
    elif layer.transposed:
        layer.weight[places] = 0
    else:
        each, rows = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for place in places:
            block = place // each
            layer.weight[block * rows : (block + 1) * rows, place % each] = 0
