"""What a source itself answers, without computing what its head does not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lepto.compiler.data import Samples
from lepto.compiler.derived import held
from lepto.compiler.source import Source
from lepto.compiler.verify import logits_in_batches, pad, tokenize

if TYPE_CHECKING:
    import torch


def module_outputs(
    source: Source, samples: Samples, threads: int, progress: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """The outputs of a source as it is, in batches of like length.

    Of two layers one is then computed for one row of each text alone, which takes half of the time.

    Args:
        source: Run eagerly, or by ONNX Runtime where it is an ONNX file.
        samples: N texts, rows of words, or arrays.
        threads: Intra-op threads.
        progress: Told how many samples were answered.

    Returns:
        ``[N, L]``; for rows of words ``[N, W, L]``.
    """
    if source.load_module is None:
        return logits_in_batches(source.runner(threads), samples, source.text, progress)
    from lepto.compiler.training.first_row import first_row_only

    source = held(source)
    with first_row_only(source.module(), _longest(samples, source)):
        return logits_in_batches(source.runner(threads), samples, source.text, progress)


def _longest(samples: Samples, source: Source) -> dict[str, torch.Tensor]:
    """The two longest of the texts, as a source takes them; nothing where samples are no texts."""
    import torch

    if source.text is None or isinstance(samples.inputs, Mapping):
        return {}
    longest = sorted(samples.inputs, key=len)[-2:]
    return {name: torch.from_numpy(array) for name, array in pad(tokenize(longest, source.text), source.text).items()}
