"""Models that are no transformers, trained in seconds, and their data: digits, chest X-rays, a table."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from torch.nn import functional

Arrays = tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""Inputs by name, ``[N, ...]`` each, and labels ``[N]``."""

PNEUMONIA = Path(__file__).parents[3] / "shared" / "data" / "pneumoniamnist" / "pneumoniamnist.npz"


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        same = stride == 1 and width == out
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network as in He et al. 2016, three stages of ``depth`` blocks."""

    def __init__(self, classes: int, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, 2 * width, 4 * width]
        blocks, before = [], width
        for stage, out in enumerate(widths):
            for block in range(depth):
                blocks.append(Residual(before, out, 2 if stage and not block else 1))
                before = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(functional.adaptive_avg_pool2d(self.blocks(self.stem(pixels)), 1).flatten(1))


class Inverted(nn.Module):
    """Expand, filter each channel by itself, weigh the channels, project: Sandler et al. 2018, Howard et al. 2019."""

    def __init__(self, width: int, out: int, stride: int, expand: int = 4) -> None:
        super().__init__()
        inner = expand * width
        self.expand = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, inner // 4, 1),
            nn.ReLU(),
            nn.Conv2d(inner // 4, inner, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and width == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(y * self.squeeze(y))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish())
        self.blocks = nn.Sequential(
            Inverted(width, width, 1), Inverted(width, 2 * width, 2), Inverted(2 * width, 2 * width, 1)
        )
        self.head = nn.Sequential(nn.Linear(2 * width, 64), nn.Hardswish(), nn.Dropout(0.1), nn.Linear(64, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(pixels)).mean((2, 3)))


class Flat(nn.Module):
    """Convolutions whose maps are flattened before the linear layers: each channel is many features."""

    def __init__(self, classes: int, side: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * (side // 2) ** 2, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(pixels))


class Table(nn.Module):
    """A multilayer perceptron on a table, with both kinds of normalization."""

    def __init__(self, columns: int, classes: int, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(columns, width)
        self.norm1 = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.third = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm1(self.first(row)))
        x = functional.gelu(self.norm2(self.second(x)))
        return self.head(x + functional.silu(self.third(x)))


def digits_train() -> Arrays:
    """1,297 images ``[1, 8, 8]`` in [0, 1] of ten digits."""
    return _digits(slice(500, None))


def digits_eval() -> Arrays:
    """The other 500."""
    return _digits(slice(0, 500))


def _digits(rows: slice) -> Arrays:
    loaded = load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))[rows]
    return {"pixels": (loaded.images[order, None] / 16).astype(np.float32)}, loaded.target[order].astype(np.int64)


def pneumonia(split: str) -> Arrays:
    """Images ``[1, 28, 28]`` in [-1, 1] of two classes; ``split`` is train, val or test."""
    with np.load(PNEUMONIA, allow_pickle=False) as loaded:
        images, labels = loaded[f"{split}_images"], loaded[f"{split}_labels"]
    return {"pixels": (images[:, None] / 127.5 - 1).astype(np.float32)}, labels[:, 0].astype(np.int64)


def table_train() -> Arrays:
    """400 rows of 30 columns, two classes."""
    return _table(slice(169, None))


def table_eval() -> Arrays:
    """The other 169."""
    return _table(slice(0, 169))


def _table(rows: slice) -> Arrays:
    loaded = load_breast_cancer()
    scaled = (loaded.data - loaded.data.mean(0)) / loaded.data.std(0)
    order = np.random.default_rng(0).permutation(len(loaded.target))[rows]
    return {"row": scaled[order].astype(np.float32)}, loaded.target[order].astype(np.int64)


def fit(module: nn.Module, data: Arrays, *, epochs: int, rate: float = 3e-3, batch: int = 64) -> nn.Module:
    """Train with labels; returns the module in evaluation mode."""
    inputs, labels = data
    (name, array), target = next(iter(inputs.items())), torch.from_numpy(labels)
    x = torch.from_numpy(array)
    steps = epochs * -(-len(x) // batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = functional.cross_entropy(module(**{name: x[rows]}), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.zero_grad()
    return module.eval()


def accuracy(module: nn.Module, data: Arrays) -> float:
    inputs, labels = data
    with torch.inference_mode():
        output = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return float((output.argmax(1).numpy() == labels).mean())


def example(data: Arrays, rows: int = 2) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array[:rows]) for name, array in data[0].items()}


@functools.cache
def trained_resnet() -> nn.Module:
    """Do not change what is returned: tests share it."""
    torch.manual_seed(0)
    return fit(ResNet(10), digits_train(), epochs=4)


@functools.cache
def trained_mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return fit(MobileNet(10), digits_train(), epochs=5)


@functools.cache
def trained_table() -> nn.Module:
    torch.manual_seed(0)
    return fit(Table(30, 2), table_train(), epochs=15, rate=1e-3)


Made = tuple[nn.Module, Mapping[str, torch.Tensor]]


def resnet() -> Made:
    """For ``package.module:resnet``; so are the next ones."""
    return trained_resnet(), example(digits_train())


def mobilenet() -> Made:
    return trained_mobilenet(), example(digits_train())


def table() -> Made:
    return trained_table(), example(table_train())
