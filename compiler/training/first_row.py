"""Teach only what is read: where a head reads the first position, the last layer computes that position alone.

The same that :class:`~lepto.compiler.passes.fuse.Fuse` does to the exported graph, for the module while it is taught:
after the last attention every row but the first is dropped. The search gives the last layer most of a student's
neurons, since they are cheap there at run time; so they are in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from lepto.compiler.encoder import Encoder
from lepto.compiler.source import first_output


@contextlib.contextmanager
def first_row_only(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Iterator[bool]:
    """Drop all rows but the first after a module's last attention, if its answers show that nothing else is read.

    Args:
        module: The model; its hooks are removed again after the block.
        inputs: Samples to try it on, ``[B, S]`` with S > 1 real tokens in one of them at least.

    Yields:
        Whether the rows are dropped: not for models other than known encoders, nor where other rows are read.
    """
    encoder = Encoder.of(module)
    shortest = min((tensor.shape[1] for tensor in inputs.values() if tensor.ndim > 1), default=0)
    if encoder is None or shortest < 2:
        yield False
        return
    before = _answers(module, inputs)
    hook = encoder.layers()[-1].get_submodule(encoder.family.rows).register_forward_pre_hook(_first)
    try:
        try:
            after = _answers(module, inputs)
            same = before.shape == after.shape and torch.allclose(before, after, rtol=1e-4, atol=1e-4)
        except (RuntimeError, IndexError):  # a head that reads another row finds none
            same = False
        if not same:
            hook.remove()
        yield same
    finally:
        hook.remove()


def _first(_module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a[:, :1] if isinstance(a, torch.Tensor) and a.ndim == 3 else a for a in arguments)


def _answers(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """In evaluation mode, which is left as it was."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            return first_output(module(**inputs)).float()
    finally:
        module.train(training)
