"""A small residual network on images, trained here: what the search is shown on besides text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lepto.runtime.errors import LeptoError

Arrays = tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64]]

WORK = "LEPTO_BENCH_WORK"
"""Environment variable with the folder where trained weights lie."""

PNEUMONIA = Path(__file__).parents[2] / "shared" / "data" / "pneumoniamnist" / "pneumoniamnist.npz"


class Block(nn.Module):
    """Two convolutions around which the input goes, too."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.around = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, C, H, W]``."""
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.around(x))


class ResNet(nn.Module):
    """He et al. 2016, "Deep Residual Learning", for small images of one channel: 32, 64 and 128 channels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 64, 1), Block(64, 128, 2))
        self.head = nn.Linear(128, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """From ``[B, 1, H, W]`` to logits ``[B, classes]``."""
        logits: torch.Tensor = self.head(self.blocks(self.stem(pixels)).mean(dim=(2, 3)))
        return logits


def digits(split: str) -> Arrays:
    """Scikit-learn's digits ``[N, 1, 8, 8]`` in [0, 1]: 1,097 to train on, 200 to steer, 500 to judge."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    rows = order[{"test": slice(0, 500), "val": slice(500, 700), "train": slice(700, None)}[split]]
    return {"pixels": (loaded.images[rows, None] / 16).astype(np.float32)}, loaded.target[rows].astype(np.int64)


def pneumonia(split: str) -> Arrays:
    """PneumoniaMNIST ``[N, 1, 28, 28]`` in [-1, 1], its own splits (Yang et al. 2023, "MedMNIST v2")."""
    with np.load(PNEUMONIA, allow_pickle=False) as loaded:
        images, labels = loaded[f"{split}_images"], loaded[f"{split}_labels"]
    return {"pixels": (images[:, None] / 127.5 - 1).astype(np.float32)}, labels[:, 0].astype(np.int64)


def fit(classes: int, data: Arrays, *, epochs: int, file: Path) -> None:
    """Train with labels and save; a file that is there is kept."""
    from safetensors.torch import save_file

    if file.is_file():
        return
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), ResNet(classes)
    pixels, labels = torch.from_numpy(data[0]["pixels"]), torch.from_numpy(data[1])
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.from_numpy(rng.permutation(len(labels)))
        for rows in order.split(64):  # type: ignore[no-untyped-call]  # torch gives it no types
            loss = nn.functional.cross_entropy(model(pixels[rows]), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
            optimizer.step()
            decay.step()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)


def _load(name: str, classes: int, data: Arrays) -> tuple[nn.Module, Mapping[str, torch.Tensor]]:
    from safetensors.torch import load_file

    file = Path(os.environ.get(WORK, "build/searches")) / f"{name}.safetensors"
    if not file.is_file():
        raise LeptoError(f"{file} does not exist: python -m lepto.benchmarks.searches trains it")
    model = ResNet(classes)
    model.load_state_dict(load_file(file))
    return model.eval(), {"pixels": torch.from_numpy(data[0]["pixels"][:2])}


def digits_model() -> Any:
    """Model and example inputs, as a compile takes them."""
    return _load("digits", 10, digits("test"))


def pneumonia_model() -> Any:
    """Model and example inputs, as a compile takes them."""
    return _load("pneumonia", 2, pneumonia("test"))


def digits_train() -> Arrays:
    """To learn from."""
    return digits("train")


def digits_dev() -> Arrays:
    """To steer by."""
    return digits("val")


def digits_eval() -> Arrays:
    """To judge by."""
    return digits("test")


def pneumonia_train() -> Arrays:
    """To learn from."""
    return pneumonia("train")


def pneumonia_dev() -> Arrays:
    """To steer by."""
    return pneumonia("val")


def pneumonia_eval() -> Arrays:
    """To judge by."""
    return pneumonia("test")
