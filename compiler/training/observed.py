"""The moving range of a layer's input while its weights learn to bear 8 bits, and how a team agrees on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Observed:
    """The moving range of one layer's input.

    Attributes:
        low: Its lower end, a scalar <= 0; None before the first batch.
        high: Its upper end, >= 0.
    """

    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def update(self, x: torch.Tensor, momentum: float) -> None:
        """Move towards the range of a batch."""
        with torch.no_grad():
            low, high = x.min().clamp_max(0), x.max().clamp_min(0)
            # The first batch sets the range, so that no step trains with a wrong one.
            self.low = low if self.low is None else torch.lerp(low, self.low.to(low), momentum)
            self.high = high if self.high is None else torch.lerp(high, self.high.to(high), momentum)


def observed_in(module: torch.nn.Module) -> list[Observed]:
    """The ranges that a module's layers observe, in the order of the layers; see ``quantization_aware``."""
    forwards = [vars(child).get("forward") for child in module.modules()]
    partials = [forward for forward in forwards if isinstance(forward, functools.partial)]
    return [argument for forward in partials for argument in forward.args if isinstance(argument, Observed)]


def ends(observed: Sequence[Observed], has_samples: bool) -> torch.Tensor:
    """The ends of ranges, the upper ones negated, so that over processes the smallest of each are the whole batch's.

    From one common range each has moved towards that of its own samples. A process without samples has not, and what is
    not known says nothing either.
    """
    known = [(one.low, one.high) if has_samples else (None, None) for one in observed]
    return torch.tensor(
        [[math.inf if low is None else low, math.inf if high is None else -high] for low, high in known],
        dtype=torch.float64,
    )


def set_ends(observed: Sequence[Observed], smallest: torch.Tensor) -> None:
    """Set ranges to what :func:`ends` made of them and processes agreed on."""
    for one, (low, high) in zip(observed, smallest.tolist(), strict=True):
        if math.isfinite(low):
            device = None if one.low is None else one.low.device
            one.low, one.high = torch.tensor(low, device=device), torch.tensor(-high, device=device)
