"""Networks without attention made narrower: channels of convolutions and hidden units of linear layers removed.

Removing a channel together with everything coupled to it is the same as zeroing the weights that read it. That is
how every cut is proved here: against the original with those weights zeroed, on the example inputs. Where the two
differ a coupling was not seen, and the channels stay. Normalizations over channels (LayerNorm, GroupNorm) mix what they
normalize by design; for the proof alone they are replaced by their scale and shift on both sides.

C channels, U units, see :mod:`lepto.compiler.channel_groups`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from lepto.compiler.channel_groups import Group, Groups, coupled_groups
from lepto.compiler.channel_surgery import layer_at, narrow, select_layer, width, zero_layer
from lepto.compiler.context import Left
from lepto.compiler.data import first_line

_PROOF_RTOL = 1e-4
"""Of the largest output: some hundred times float32's rounding, and far below what one misplaced channel does."""


@dataclass(frozen=True)
class Cut:
    """How wide a pruned network is: enough to build its shapes again from the original.

    Attributes:
        sizes: For each changed layer its ``out`` and ``in`` sizes, for bare parameters the size of an axis.
        groups: For each group that lost channels how many it kept, and of how many.
    """

    sizes: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, tuple[int, int]]

    def __str__(self) -> str:
        """For people: ``112 of 224 channels kept in 6 groups``."""
        if not self.groups:
            return "nothing cut"
        kept, of = (sum(values) for values in zip(*self.groups.values(), strict=True))
        return f"{kept} of {of} channels kept in {len(self.groups)} groups"

    def then(self, other: Cut) -> Cut:
        """This cut, and another one of what it left."""
        sizes = {
            path: {**self.sizes.get(path, {}), **other.sizes.get(path, {})} for path in {**self.sizes, **other.sizes}
        }
        before = {name: (kept, self.groups.get(name, (0, of))[1]) for name, (kept, of) in other.groups.items()}
        return Cut(sizes, {**self.groups, **before})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "sizes": {k: dict(v) for k, v in self.sizes.items()},
            "groups": {k: [*v] for k, v in self.groups.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`to_json` gave, through JSON."""
        groups = {name: (int(kept), int(of)) for name, (kept, of) in values["groups"].items()}
        return cls({path: {k: int(v) for k, v in sides.items()} for path, sides in values["sizes"].items()}, groups)


def rounded(channels: int, keep: float, round_to: int, tied: int = 1) -> int:
    """How many channels to keep: the nearest multiple that the target's matrix units like.

    Args:
        channels: C, at least 1.
        keep: The fraction wanted, in (0, 1]; 1 keeps all.
        round_to: The multiple; halved until C holds two of it, so that small layers can be cut, too.
        tied: Channels that can only go together; must divide C, and divides the result.

    Returns:
        At least one unit, at most C.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"keep must be in (0, 1], got {keep}")
    if round_to < 1 or tied < 1 or channels % tied:
        raise ValueError(f"round_to and tied must be positive and tied divide channels: {round_to}, {tied}, {channels}")
    if keep == 1.0:
        return channels
    step = round_to
    while step > 1 and channels < 2 * step:
        step //= 2
    step = math.lcm(step, tied)
    if channels < 2 * step:
        step = tied
    count = max(1, math.floor(channels * keep / step + 0.5)) * step
    return min(count, channels)


def find_groups(module: nn.Module, example: Mapping[str, torch.Tensor], ignore: Sequence[str] = ()) -> Groups:
    """The groups of channels that can be cut, each proved by cutting every second unit of it.

    Args:
        module: The network; not changed.
        example: Inputs by argument name, batch first.
        ignore: Paths of layers, or of what holds them, whose outputs stay as they are. What the model returns is never
            cut.

    Raises:
        Left: There is none, with the reasons.
        ValueError: A path in ``ignore`` does not exist.
    """
    found = coupled_groups(module, example, ignore)
    groups, left = list(found.groups), dict(found.left)

    def fails(some: Sequence[Group]) -> str:
        return _difference(module, example, {group.name: range(1, group.units, 2) for group in some}, some)

    if groups and fails(groups):
        for group in list(groups):
            if reason := fails([group]):
                left[group.name] = reason
                groups.remove(group)
        if groups and (reason := fails(groups)):
            raise Left(f"no channels pruned: the groups cannot be cut together: {reason}")
    if not groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        raise Left(f"no channels pruned: {why or 'there is no convolution and no linear layer'}")
    return Groups(tuple(groups), left)


def prune_channels(
    module: nn.Module,
    example: Mapping[str, torch.Tensor],
    groups: Groups,
    importance: Mapping[str, torch.Tensor],
    *,
    keep: float | Mapping[str, int],
    round_to: int = 8,
) -> tuple[nn.Module, Cut]:
    """Remove the channels that matter least, with all that is coupled to them.

    Args:
        module: The network; not changed.
        example: Inputs by argument name, batch first.
        groups: What :func:`find_groups` found in it.
        importance: For each group ``[U]`` scores, see :mod:`lepto.compiler.channel_importance`.
        keep: The fraction that every group keeps, in (0, 1]; or by group how many channels (see
            :func:`lepto.compiler.channel_importance.allot`), groups that are not named keep all.
        round_to: Fractions are rounded to this multiple of channels, see :func:`rounded`.

    Returns:
        A new network, in the mode (training or evaluation) of the given one, and the cut.

    Raises:
        Left: The result is not what the original computes without these channels.
        ValueError: ``keep`` or ``importance`` does not fit the groups.
    """
    removed = {}
    for group in groups.groups:
        if isinstance(keep, float | int):
            count = rounded(group.channels, keep, round_to, group.tied)
        else:
            count = keep.get(group.name, group.channels)
        if not 1 <= count <= group.channels or count % group.tied:
            raise ValueError(
                f"keep must be a multiple of {group.tied} in [1, {group.channels}] for {group.name!r}, got {count}"
            )
        if count < group.channels:
            removed[group.name] = least(_scores(group, importance), group.units - count // group.tied)
    if isinstance(keep, Mapping) and (unknown := set(keep) - {group.name for group in groups.groups}):
        raise ValueError(f"keep names groups that do not exist: {', '.join(sorted(unknown))}")
    if removed and (reason := _difference(module, example, removed, groups.groups)):
        raise Left(f"no channels pruned: {reason}")
    pruned = copy.deepcopy(module)
    sizes = _cut(pruned, removed, groups.groups)
    kept = {
        g.name: (g.channels - g.tied * len(removed[g.name]), g.channels) for g in groups.groups if g.name in removed
    }
    return pruned, Cut(sizes, kept)


def rebuild(module: nn.Module, example: Mapping[str, torch.Tensor], cut: Cut) -> nn.Module:
    """A network of the shapes that a cut left; its weights mean nothing until ``load_state_dict`` brings them.

    Args:
        module: The original; not changed.
        example: Inputs that the result must be able to run.
        cut: What :func:`prune_channels` returned.

    Raises:
        ValueError: The cut does not fit the network.
    """
    made = copy.deepcopy(module)
    try:
        for path, sides in cut.sizes.items():
            owner, layer = layer_at(made, path)
            for side, count in sides.items():
                if layer is None:
                    narrow(owner, path.rpartition(".")[2], int(side), range(count))
                elif side == "in" and (parts := getattr(layer, "groups", 1)) > 1:
                    each = layer.in_channels // parts
                    select_layer(layer, side, [b * each + i for b in range(parts) for i in range(count // parts)])
                else:
                    select_layer(layer, side, range(count))
        training = made.training
        with torch.no_grad():
            made.eval()(**example)
        made.train(training)
    except Exception as error:  # a missing layer, an index past the end, whatever the module's code raises
        raise ValueError(f"the cut does not fit {type(module).__name__}: {first_line(error)}") from error
    return made


def least(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` smallest of ``[U]`` scores, ascending; of equal ones the later go first."""
    order = torch.argsort(scores.flip(0), stable=True)
    return tuple(sorted(len(scores) - 1 - i for i in order[:count].tolist()))


def _scores(group: Group, importance: Mapping[str, torch.Tensor]) -> torch.Tensor:
    scores = importance.get(group.name)
    if scores is None or scores.shape != (group.units,) or not bool(torch.isfinite(scores).all()):
        found = "none" if scores is None else f"{list(scores.shape)}"
        raise ValueError(f"importance of {group.name!r} must be [{group.units}] finite scores, got {found}")
    return scores


Removed = Mapping[str, Collection[int]]
"""For each group, by name, the units that go."""


def _places(removed: Removed, groups: Sequence[Group]) -> dict[tuple[str, str], set[int]]:
    """For each layer and side the places that go."""
    places: dict[tuple[str, str], set[int]] = {}
    for group in groups:
        units = set(removed.get(group.name, ()))
        for member in group.members if units else ():
            gone = {i for i, unit in zip(member.index, member.unit, strict=True) if unit in units}
            places.setdefault((member.path, member.side), set()).update(gone)
    return {place: gone for place, gone in places.items() if gone}


def _cut(module: nn.Module, removed: Removed, groups: Sequence[Group]) -> dict[str, dict[str, int]]:
    """Remove units from a network, in place; returns the new sizes."""
    sizes: dict[str, dict[str, int]] = {}
    for (path, side), gone in _places(removed, groups).items():
        owner, layer = layer_at(module, path)
        if layer is None:
            name = path.rpartition(".")[2]
            kept = [i for i in range(getattr(owner, name).shape[int(side)]) if i not in gone]
            narrow(owner, name, int(side), kept)
        else:
            kept = [i for i in range(width(layer, side)) if i not in gone]
            select_layer(layer, side, kept)
        sizes.setdefault(path, {})[side] = len(kept)
    return sizes


def _difference(
    module: nn.Module, example: Mapping[str, torch.Tensor], removed: Removed, groups: Sequence[Group]
) -> str:
    """What differs between a network cut and the same with zeroed readers; empty if nothing does."""
    involved = [group for group in groups if group.name in removed]
    names = ", ".join(group.name for group in involved[:3]) + (", …" if len(involved) > 3 else "")
    narrow, zeroed = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    try:
        _cut(narrow, removed, groups)
    except ValueError as error:
        return f"{names}: {error}"
    paths = {member.path for group in groups for member in group.members}
    for one in (narrow, zeroed):
        for path, layer in one.named_modules():
            if path in paths and isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                layer.forward = _Affine(layer)  # type: ignore[assignment,method-assign]  # on a copy
    readers = [dataclasses.replace(group, members=group.readers()) for group in groups]
    with torch.no_grad():
        for (path, _), gone in _places(removed, readers).items():
            zero_layer(zeroed.get_submodule(path), sorted(gone))
        expected = list(_tensors(zeroed(**example)))
        try:
            found = list(_tensors(narrow(**example)))
        except Exception as error:  # whatever the module's code raises
            return f"the network does not run without channels of {names}: {first_line(error)}"
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            return f"without channels of {names} an output is {list(b.shape)}, not {list(a.shape)}"
        difference = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        if not difference <= _PROOF_RTOL * max(float(a.abs().max()), 1e-6):
            return (
                f"removing channels of {names} is not the same as zeroing what reads them (outputs differ by "
                f"{difference:.1e}): something else depends on them"
            )
    return ""


class _Affine:
    """The scale and shift of a normalization alone."""

    def __init__(self, layer: nn.LayerNorm | nn.GroupNorm) -> None:
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if weight is None:
            return x
        if isinstance(self.layer, nn.GroupNorm):
            shape = (-1,) + (1,) * (x.ndim - 2)
            weight, bias = weight.view(shape), bias.view(shape)  # type: ignore[assignment]  # views of parameters
        return x * weight if bias is None else x * weight + bias


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Every tensor in whatever a module returned."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
