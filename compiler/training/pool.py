"""Training samples with what the teacher says of each: made once, read in every epoch of every student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lepto.compiler.data import NO_LABEL
from lepto.compiler.source import first_output
from lepto.compiler.training.first_row import first_row_only
from lepto.compiler.training.team import Team, current
from lepto.runtime.errors import LeptoError
from lepto.runtime.machine import this_machine

Collate = Callable[[Sequence[int]], dict[str, torch.Tensor]]
"""From indices of samples to a module's inputs."""


def head_path(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> str | None:
    """Path of the last linear layer that a forward pass runs: the classifier; None where there is none."""
    last: list[str] = []
    hooks = [
        child.register_forward_pre_hook(lambda _m, _i, name=name: last.append(name))
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear)
    ]
    try:
        with torch.inference_mode():
            module(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return last[-1] if last else None


class Features:
    """Keeps what the classifier read in the last forward pass.

    Args:
        module: The model.
        path: Its classifier, see :func:`head_path`; None keeps nothing.
    """

    def __init__(self, module: torch.nn.Module, path: str | None) -> None:
        self.value: torch.Tensor | None = None
        self._hook = None
        if path is not None:
            self._hook = module.get_submodule(path).register_forward_pre_hook(self._keep)

    def _keep(self, _module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.value = inputs[0]

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()


@dataclass(frozen=True)
class Targets:
    """What the teacher says of N samples.

    Attributes:
        logits: For each sample ``[C]``, or ``[S, C]`` for a label at every token.
        features: For each sample what the teacher's classifier read, ``[W]`` or ``[S, W]``; empty if there is none.
    """

    logits: Sequence[npt.NDArray[np.float32]]
    features: Sequence[npt.NDArray[np.float32]]


def teach(
    teacher: torch.nn.Module,
    path: str | None,
    sizes: Sequence[int],
    collate: Collate,
    *,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Targets:
    """Run the teacher over samples; under ``torchrun`` every process runs it over some batches.

    Args:
        teacher: In evaluation mode.
        path: Its classifier.
        sizes: A size for each sample, its tokens: samples of like size share a batch.
        collate: Makes the inputs.
        batch: Samples at once.
        progress: Told how many samples were done.

    Raises:
        LeptoError: An output is not finite.
    """
    return current().run(_teach, teacher, path, sizes, collate, batch, progress=progress)


def _teach(
    team: Team,
    teacher: torch.nn.Module,
    path: str | None,
    sizes: Sequence[int],
    collate: Collate,
    batch: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Targets:
    order = np.argsort(np.asarray(sizes), kind="stable")
    logits: dict[int, npt.NDArray[np.float32]] = {}
    features: dict[int, npt.NDArray[np.float32]] = {}
    device = next(teacher.parameters()).device
    longest = on_device(collate(order[-2:].tolist()), device)
    with (
        team.together(),
        first_row_only(teacher, longest),
        torch.inference_mode(),
        reduced_precision(device),
        Features(teacher, path) as seen,
    ):
        for start in range(team.rank * batch, len(order), team.size * batch):
            rows = order[start : start + batch].tolist()
            output = first_output(teacher(**on_device(collate(rows), device))).float().cpu().numpy()
            if not np.isfinite(output).all():
                raise LeptoError("the source's own output is not finite on its training data: it cannot teach")
            read = None if seen.value is None else seen.value.float().cpu().numpy()
            for place, row in enumerate(rows):
                # A label at every token: the padding after the sample's own tokens says nothing.
                cut = slice(None) if output.ndim == 2 else slice(0, sizes[row])
                logits[row] = output[place][cut].copy()
                if read is not None and read.shape[0] == len(rows):
                    features[row] = read[place][cut if read.ndim == 3 else slice(None)].copy()
            if progress is not None:
                progress(len(order[start : start + team.size * batch]))
    parts = team.gather((logits, features))
    logits, features = ({row: answer for part in parts for row, answer in part[i].items()} for i in (0, 1))
    every = sorted(logits)
    return Targets([logits[i] for i in every], [features[i] for i in every] if features else [])


def on_device(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The same inputs where a module is."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def reduced_precision(device: torch.device) -> Any:
    """Products in bfloat16 where the hardware has them: twice as fast, and answers are softened anyway."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16())


def has_bf16() -> bool:
    """Whether products of bfloat16 run in hardware: on a GPU, or a CPU with AVX-512 BF16 (or AMX)."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return any("bf16" in name for name in this_machine().instruction_sets)


@dataclass(frozen=True)
class Pool:
    """Samples to learn from.

    Attributes:
        collate: Makes the student's inputs.
        sizes: Tokens of each sample; 1 where there are none.
        labels: For each sample its label, or the labels of its tokens; ``NO_LABEL`` where there is none.
        targets: What the teacher says.
        vectors: Whether that are vectors, which nothing is decided by, and not logits.
    """

    collate: Collate
    sizes: Sequence[int]
    labels: Sequence[int] | Sequence[Sequence[int]]
    targets: Targets
    vectors: bool = False

    def __len__(self) -> int:
        """N."""
        return len(self.sizes)

    def longest(self) -> dict[str, torch.Tensor]:
        """Inputs of the two samples with most tokens."""
        return self.collate(np.argsort(np.asarray(self.sizes), kind="stable")[-2:].tolist())

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """Shuffled batches of samples of like size: shuffled, sorted in windows of sixteen batches, shuffled again."""
        order = rng.permutation(len(self))
        window = 16 * size
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            chunk = sorted(order[start : start + window].tolist(), key=lambda i: self.sizes[i])
            batches.extend(chunk[i : i + size] for i in range(0, len(chunk), size))
        for index in rng.permutation(len(batches)):
            yield batches[index]

    def batch(self, rows: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor | None, Any]:
        """Inputs, the teacher's logits and features, and the labels of some samples; tokens are padded."""
        inputs = self.collate(rows)
        longest = max(tensor.shape[1] if tensor.ndim > 1 else 0 for tensor in inputs.values())
        logits = _stack([self.targets.logits[i] for i in rows], longest)
        features = _stack([self.targets.features[i] for i in rows], longest) if self.targets.features else None
        labels: Any = [self.labels[i] for i in rows]
        if logits.ndim == 3:
            labels = [[*row, *[NO_LABEL] * (longest - len(row))] for row in labels]
        return inputs, logits, features, torch.tensor(labels)


def _stack(arrays: Sequence[npt.NDArray[np.float32]], longest: int) -> torch.Tensor:
    if arrays[0].ndim == 1:
        return torch.from_numpy(np.stack(arrays))
    return torch.from_numpy(np.stack([np.pad(a, ((0, longest - len(a)), (0, 0))) for a in arrays]))


_LENGTHS = 4
"""The tokens of a batch are a multiple of it, or as many as there may be.

For each length oneDNN compiles every product once more, and keeps it. Three epochs of 3,000 questions took 53 s in
place of 56 to 60 so, and 1.8 GB in place of 2.1 (with its caches bounded as in ``lepto.compiler``; 58 to 63 s with that
alone).
"""


def text_collate(
    rows: Sequence[Sequence[int]], pad_id: int, names: Sequence[str], max_length: int | None = None
) -> Collate:
    """Inputs of a text model: ``[B, S]`` int64, padded at the end to the longest of the batch, and some places further.

    Args:
        rows: Token ids.
        pad_id: What stands after them.
        names: The model's inputs.
        max_length: Most tokens; None without a limit.
    """
    # A list has 40 bytes for each token, and with their copies the samples are some 50,000 rows.
    kept = [np.asarray(row, dtype=np.int32) for row in rows]

    def collate(indices: Sequence[int]) -> dict[str, torch.Tensor]:
        longest = max(len(kept[i]) for i in indices)
        stepped = -(-longest // _LENGTHS) * _LENGTHS
        longest = min(stepped, max_length or stepped)  # no row is longer than that
        ids = np.full((len(indices), longest), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, i in enumerate(indices):
            ids[place, : len(kept[i])] = kept[i]
            mask[place, : len(kept[i])] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: torch.from_numpy(arrays[name]) for name in names}

    return collate


def array_collate(arrays: Mapping[str, npt.NDArray[np.generic]]) -> Collate:
    """Inputs of a model that takes arrays ``[N, ...]``."""
    return lambda indices: {name: torch.from_numpy(array[list(indices)]) for name, array in arrays.items()}
