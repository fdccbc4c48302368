"""Quantization-aware training: linear layers that round as the 8-bit passes will, while their weights learn.

Weights are rounded to int8 with a scale for each output, activations to uint8 with one scale and zero point, and the
gradient goes through the rounding as if it were not there (Bengio et al., arXiv 1308.3432; Jacob et al., "Quantization
and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", arXiv 1712.05877, section 3).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lepto.compiler.context import Feed
from lepto.compiler.passes.learned import LearnedRanges, Range
from lepto.compiler.training.observed import Observed

_SMALLEST = float(torch.finfo(torch.float32).tiny)


def fake_quantize_weight(weight: torch.Tensor, largest: int = 127) -> torch.Tensor:
    """Round a weight to symmetric int8 with a scale for each output.

    Args:
        weight: ``[N, K]`` float32.
        largest: Largest level: 127, or 64 for seven-bit weights.

    Returns:
        ``[N, K]``, what the integers stand for; its gradient is the weight's.
    """
    scales = (weight.detach().abs().amax(dim=1) / largest).clamp_min(_SMALLEST)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -largest, largest)


def fake_quantize_activation(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Round an activation to asymmetric uint8; its gradient is the activation's, and 0 outside of the range.

    Args:
        x: ``[..., K]`` float32.
        low: Lower end of the range, a scalar <= 0.
        high: Upper end, >= 0.
    """
    scale = ((high - low) / 255).clamp_min(_SMALLEST)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


@dataclass
class Rounding:
    """A module's linear layers while they round; see :func:`quantization_aware`.

    Attributes:
        module: The module.
        observed: Ranges by the layer's path.
    """

    module: torch.nn.Module
    observed: dict[str, Observed] = field(default_factory=dict)

    def ranges(self) -> dict[str, Range]:
        """The range of each layer's input, by its path; layers that were never run have none."""
        return {
            path: (float(seen.low), float(seen.high))
            for path, seen in self.observed.items()
            if seen.low is not None and seen.high is not None
        }

    def learned(self, feed: Feed) -> LearnedRanges:
        """The ranges for :class:`~lepto.compiler.passes.quantize_static.QuantizeStatic`, as ``Context.learned``.

        Call it after the block, when the weights are final and nothing rounds any more.

        Args:
            feed: A sample, by which the tensors of an exported graph are recognised.
        """
        ranges = self.ranges()
        inputs: dict[str, Any] = {}

        def keep(path: str, _module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[path] = arguments[0].detach().float().cpu().numpy().copy()

        hooks = [
            self.module.get_submodule(path).register_forward_pre_hook(functools.partial(keep, path)) for path in ranges
        ]
        device = next(self.module.parameters()).device
        try:
            with torch.inference_mode():
                self.module(**{n: torch.from_numpy(np.ascontiguousarray(a)).to(device) for n, a in feed.items()})
        finally:
            for hook in hooks:
                hook.remove()
        return LearnedRanges({path: ranges[path] for path in inputs}, feed, inputs)


@contextlib.contextmanager
def quantization_aware(
    module: torch.nn.Module,
    *,
    dynamic: bool = False,
    reduce_range: bool = False,
    momentum: float = 0.95,
    exclude: Collection[str] = (),
) -> Iterator[Rounding]:
    """Let a module's linear layers round to 8 bits while it is trained.

    Inside the block every ``nn.Linear`` computes with rounded weights and inputs; afterwards it is a plain linear layer
    again, with the weights that were learned. Wraps :func:`lepto.compiler.training.loop.train`:

        with quantization_aware(student) as rounding:
            train(student, path, pool, augmented, Schedule(epochs=2, learning_rate=1e-4))

    Args:
        module: The module; must not be copied inside the block.
        dynamic: Activations get the range of each batch, as dynamic quantization does it; else a moving average over
            the batches of the training, fixed in evaluation mode.
        reduce_range: Seven-bit weights.
        momentum: Of the moving average, in [0, 1).
        exclude: Paths of layers that stay in float.

    Raises:
        ValueError: ``momentum`` is out of range, a path in ``exclude`` is no linear layer, or none is left.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    layers = {path: child for path, child in module.named_modules() if isinstance(child, torch.nn.Linear)}
    if unknown := sorted(set(exclude) - set(layers)):
        raise ValueError(f"exclude: {unknown[0]!r} is no linear layer; those that are: {', '.join(layers)}")
    chosen = {path: layer for path, layer in layers.items() if path not in exclude}
    if not chosen:
        raise ValueError("the module has no linear layer to train for 8 bits")
    if busy := [path for path, layer in chosen.items() if "forward" in vars(layer)]:
        raise ValueError(f"the forward of layer {busy[0]!r} is replaced already")
    rounding = Rounding(module, {path: Observed() for path in chosen})
    largest = 64 if reduce_range else 127
    try:
        for path, layer in chosen.items():
            observed = rounding.observed[path]
            # An attribute of the instance hides the class's method; hooks and parameters stay as they are.
            layer.forward = functools.partial(_forward, layer, observed, largest, momentum, dynamic)  # type: ignore[method-assign]
        yield rounding
    finally:
        for layer in chosen.values():
            vars(layer).pop("forward", None)


def _forward(
    layer: torch.nn.Linear,
    observed: Observed,
    largest: int,
    momentum: float,
    dynamic: bool,
    input: torch.Tensor,
) -> torch.Tensor:
    # In bfloat16 the 256 levels could not be told apart.
    with torch.autocast(input.device.type, enabled=False):
        x = input.float()
        if layer.training or dynamic or observed.low is None:
            observed.update(x, momentum)
        if dynamic:
            low, high = x.detach().min().clamp_max(0), x.detach().max().clamp_min(0)
        else:
            assert observed.low is not None
            assert observed.high is not None
            low, high = observed.low, observed.high
        rounded = fake_quantize_activation(x, low, high)
        return functional.linear(rounded, fake_quantize_weight(layer.weight, largest), layer.bias)
