"""Models and data as a user's own module gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Cnn(nn.Module):
    labels = ("dark", "light", "striped")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixels).flatten(1))


class Loud(nn.Module):
    """Its second layer reads one channel that is ten thousand times as large as the others: 8 bits lose the others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(64, 1024), nn.Linear(1024, 64), nn.Linear(64, 4)
        with torch.no_grad():
            self.a.weight[0] *= 10_000
            self.b.weight[:, 0] /= 10_000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def loud() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Loud(), {"x": torch.randn(1, 64, generator=torch.Generator().manual_seed(1))}


def loud_train() -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    return _loud_data(0)


def loud_eval() -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    return _loud_data(1)


def _loud_data(seed: int) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    x = np.random.default_rng(seed).standard_normal((400, 64)).astype(np.float32)
    with torch.inference_mode():
        return {"x": x}, Loud()(torch.from_numpy(x)).argmax(1).numpy()


def mlp() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Mlp(), {"x": torch.randn(1, 16, generator=torch.Generator().manual_seed(1))}


def cnn() -> tuple[nn.Module, dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    size = {"pixels": {2: "height", 3: "width"}}
    return Cnn(), {"pixels": torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(1))}, size


def mlp_data() -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    x = np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32)
    with torch.inference_mode():
        return {"x": x}, Mlp()(torch.from_numpy(x)).argmax(1).numpy()


def rows() -> Iterator[dict[str, Any]]:
    yield {"text": "cancel it", "label": "cancel order"}
    yield {"text": "", "label": 0}


def wrong_name() -> Any:
    return Mlp(), {"y": torch.zeros(2, 16)}


def wrong_shape() -> Any:
    return Mlp(), {"x": torch.zeros(2, 15)}


def not_a_pair() -> Any:
    return Mlp()


def numbers() -> Any:
    return [1, 2]


def fails() -> Any:
    raise ZeroDivisionError("on purpose")


class Folded(nn.Module):
    """The exporter folds the normalization into the convolution: what it writes are nobody's weights any more."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.conv = nn.Conv2d(1, channels, 3)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 4)
        nn.init.normal_(self.norm.weight)
        self.norm.running_mean += 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))


def folded_six() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Folded(6), {"x": torch.randn(2, 1, 8, 8)}


def folded_four() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Folded(4), {"x": torch.randn(2, 1, 8, 8)}
