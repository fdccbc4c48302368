"""Which channels of a network live and die together, as torch-pruning's dependency graph finds them.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning". C channels, U units: a unit is the least that can be
removed, one channel mostly, or one channel in every group where a grouped convolution or normalization needs them
equal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lepto.compiler.context import Left
from lepto.compiler.data import first_line

Norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm)
"""Normalizations whose parameters belong to channels."""

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.PReLU, *Norm)


@dataclass(frozen=True)
class Member:
    """One axis of one layer that a group of channels runs through.

    Attributes:
        path: The layer, or a bare parameter.
        side: ``out`` or ``in`` of a layer; layers whose channels pass straight through have ``out`` alone. For a bare
            parameter the axis, as a digit.
        index: Places on that axis.
        unit: For each of them the unit of the group that it belongs to; as long as ``index``.
    """

    path: str
    side: str
    index: tuple[int, ...]
    unit: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that are removed together.

    Attributes:
        name: Path of a layer that makes them.
        channels: How many this layer makes, C.
        units: How many can be removed one by one, U; divides C.
        members: Every axis that they run through.
    """

    name: str
    channels: int
    units: int
    members: tuple[Member, ...]

    @property
    def tied(self) -> int:
        """Channels in a unit."""
        return self.channels // self.units

    def readers(self) -> tuple[Member, ...]:
        """The members that read the channels and end the group."""
        return tuple(member for member in self.members if member.side == "in")


@dataclass(frozen=True)
class Groups:
    """What can be cut of a network.

    Attributes:
        groups: Groups of channels; they do not overlap.
        left: Layers whose channels cannot be cut, and why.
    """

    groups: tuple[Group, ...]
    left: Mapping[str, str]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution filters each channel by itself."""
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def coupled_groups(module: nn.Module, example: Mapping[str, torch.Tensor], ignore: Sequence[str] = ()) -> Groups:
    """Find the groups by tracing; they are believed here, :func:`lepto.compiler.channels.find_groups` proves them.

    Args:
        module: The network; not changed.
        example: Inputs by argument name, batch first.
        ignore: Paths of layers, or of what holds them, whose outputs stay as they are.

    Raises:
        Left: The network cannot be traced.
        ValueError: A path in ``ignore`` does not exist.
    """
    import torch_pruning

    for path in ignore:
        try:
            module.get_submodule(path)
        except AttributeError:
            raise ValueError(f"ignore names {path!r}, and {type(module).__name__} has no such layer") from None
    try:
        traced = copy.deepcopy(module)
        for parameter in traced.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(traced, dict(example), verbose=False)
            found = list(graph.get_all_groups())
    except Exception as error:  # whatever the module's code or the tracer raises
        raise Left(
            f"no channels pruned: {type(module).__name__} cannot be traced "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    shared = _shared_parameters(traced)
    groups, left = [], {}
    for items in found:
        name = graph._module2name[items[0].dep.target.module]
        try:
            groups.append(_group(name, items, graph, ignore, shared))
        except Left as reason:
            left[name] = str(reason)
    return Groups(tuple(groups), left)


def _group(name: str, items: Any, graph: Any, ignore: Sequence[str], shared: frozenset[str]) -> Group:
    """Read one group; raises Left with the reason if it cannot be cut."""
    channels = len(items[0].idxs)
    if channels < 2:
        raise Left("there is a single channel")
    raw, divisors = [], [1]
    for item in items:
        target, index, roots = item.dep.target, tuple(item.idxs), tuple(item.root_idxs)
        layer, out = target.module, item.dep.handler.__name__ != "prune_in_channels"
        if not target.outputs and (out or not isinstance(layer, _LAYERS)):
            raise Left("it is an output of the model")
        path = graph._module2name.get(layer)
        if path is None:
            if type(layer).__module__.startswith("torch_pruning"):
                continue  # an operation without parameters
            raise Left(f"it runs through {type(layer).__name__}, which is not known here")
        if isinstance(layer, nn.Parameter):
            path = graph._param_to_name[layer]
            raw.append((path, str(target.pruning_dim % layer.ndim), index, roots))
            continue
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            continue  # one slope for all channels
        if not isinstance(layer, _LAYERS):
            raise Left(f"it runs through {path!r}, a {type(layer).__name__}, which is not known here")
        out = out or not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) or is_depthwise(layer)
        _check(path, layer, out, shared)
        if out and any(path == one or path.startswith(f"{one}.") for one in ignore):
            raise Left(f"{path!r} is to be ignored")
        if (count := _parts(layer)) > 1:
            if len(index) != (size := _size(layer, out)):
                raise Left(f"{path!r} has {count} groups and takes {len(index)} of its {size} channels from here")
            divisors.append(count)
        raw.append((path, "out" if out else "in", index, roots))
    tied = math.lcm(*divisors)
    if channels % tied or channels == tied:
        raise Left(
            f"{channels} channels in {tied} groups (grouped convolutions or normalizations) leave none to remove"
        )
    units = channels // tied
    members = tuple(Member(path, side, index, tuple(r % units for r in roots)) for path, side, index, roots in raw)
    group = Group(name, channels, units, members)
    if not group.readers():
        raise Left("no convolution and no linear layer reads it")
    return group


def _check(path: str, layer: nn.Module, out: bool, shared: frozenset[str]) -> None:
    if path in shared:
        raise Left(f"{path!r} shares a parameter with another layer")
    weight = layer._parameters.get("weight")
    if weight is None and getattr(layer, "weight", None) is not None:
        raise Left(f"the weight of {path!r} is computed from other parameters")
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
        raise Left(f"{path!r} normalizes over {len(layer.normalized_shape)} axes")
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1 and not is_depthwise(layer):
        if layer.transposed:
            raise Left(f"{path!r} is a grouped transposed convolution")
        if layer.groups in (layer.in_channels, layer.out_channels):
            raise Left(
                f"{path!r} has {layer.groups} groups for {layer.in_channels} channels in and {layer.out_channels} out"
            )


def _parts(layer: nn.Module) -> int:
    """In how many equal parts a layer takes its channels."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, nn.modules.conv._ConvNd) and not is_depthwise(layer):
        return layer.groups
    return 1


def _size(layer: nn.Module, out: bool) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    assert isinstance(layer, nn.modules.conv._ConvNd)
    return layer.out_channels if out else layer.in_channels


def _shared_parameters(module: nn.Module) -> frozenset[str]:
    """Paths of layers that hold a parameter which another layer holds, too."""
    holders: dict[int, list[str]] = {}
    for path, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            holders.setdefault(id(parameter), []).append(path)
    return frozenset(path for paths in holders.values() if len(paths) > 1 for path in paths)
