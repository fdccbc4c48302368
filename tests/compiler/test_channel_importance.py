from __future__ import annotations

import itertools

import models_images as images
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lepto.compiler.channel_groups import Group
from lepto.compiler.channel_importance import (
    allot,
    counts,
    gate_derivatives,
    magnitude_importance,
    magnitudes,
    measure_channels,
    measure_costs,
)
from lepto.compiler.channels import find_groups, prune_channels
from lepto.compiler.context import PassError
from lepto.compiler.training.pool import Pool, array_collate, teach


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_gates_say_what_weight_times_gradient_says(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3) if kind == "convolution" else nn.Linear(6, 4)
    x = torch.randn(5, 6, 7, 7) if kind == "convolution" else torch.randn(5, 3, 6)
    x.requires_grad_()
    layer(x).pow(2).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    gates = gate_derivatives(x.detach(), x.grad, 1 if kind == "convolution" else -1)
    assert gates.shape == (5, 6)
    other = tuple(i for i in range(layer.weight.ndim) if i != 1)
    torch.testing.assert_close(gates.sum(0), (layer.weight * layer.weight.grad).sum(other).detach())


def test_magnitudes() -> None:
    weight = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]], [[0.0, 0.0]]])
    assert magnitudes(weight, 0).tolist() == [5.0, 9.0, 0.0]
    assert magnitudes(weight, 2).tolist() == [10.0, 4.0]


def lessons(module: nn.Module, data: images.Arrays) -> Pool:
    inputs, labels = data
    collate, sizes = array_collate(inputs), [1] * len(labels)
    return Pool(collate, sizes, labels.tolist(), teach(module, None, sizes, collate))


def test_a_dead_channel_scores_nothing_and_a_live_one_does() -> None:
    torch.manual_seed(0)
    module, data = images.Flat(10), images.digits_train()
    with torch.no_grad():
        module.features[0].bias.zero_()  # type: ignore[union-attr, operator]
        module.features[0].weight[3] = 0  # type: ignore[index, operator]
        module.head[3].weight[:, 5] = 0  # type: ignore[index, operator]
    module.train()
    module.features[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    groups = find_groups(module, images.example(data))
    measured = measure_channels(module, groups, lessons(module, data), samples=64)
    assert measured["features.0"][3] == 0
    assert measured["head.1"][5] == 0
    assert int((measured["features.0"] > 0).sum()) > 8
    assert module.training
    assert not module.features[0].weight.requires_grad  # type: ignore[union-attr]
    assert all(p.grad is None for p in module.parameters())
    by_size = magnitude_importance(module, groups)
    assert by_size["features.0"].argmin() == 3
    assert {name: scores.shape for name, scores in by_size.items()} == {n: s.shape for n, s in measured.items()}


def test_the_least_important_channels_cost_least() -> None:
    """Without any recovery: what the scores call unimportant against what they call important."""
    module, data = images.trained_resnet(), images.digits_train()
    example = images.example(data)
    groups = find_groups(module, example)
    scores = measure_channels(module, groups, lessons(module, data), samples=256)
    reached = [
        images.accuracy(prune_channels(module, example, groups, some, keep=0.75)[0], images.digits_eval())
        for some in (scores, {name: -values for name, values in scores.items()})
    ]
    assert reached[0] > reached[1] + 0.2


def test_what_is_not_finite_stops() -> None:
    torch.manual_seed(0)
    module, data = images.Flat(10), images.digits_train()
    groups, pool = find_groups(module, images.example(data)), lessons(module, data)
    with torch.no_grad():
        module.features[3].weight[0, 0] = torch.nan  # type: ignore[index, operator]
    with pytest.raises(PassError, match="not finite"):
        measure_channels(module, groups, pool, samples=8)


def test_a_single_output_has_scores_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    x = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    collate = array_collate({"input": x})
    pool = Pool(collate, [1] * 16, [0] * 16, teach(module, None, [1] * 16, collate))
    groups = find_groups(module, {"input": torch.from_numpy(x)})
    assert (measure_channels(module, groups, pool)["0"] > 0).any()


def test_a_table_of_costs() -> None:
    torch.manual_seed(0)
    module, example = images.Flat(10), images.example(images.digits_train())
    groups = find_groups(module, example)
    table = measure_costs(module, example, groups, lambda m: float(sum(p.numel() for p in m.parameters())))
    assert {name: sorted(row) for name, row in table.items()} == {
        "features.0": [8, 16],
        "features.3": [8, 16, 24, 32],
        "head.1": [16, 32, 48, 64],
    }
    whole = sum(p.numel() for p in module.parameters())
    assert {row[max(row)] for row in table.values()} == {whole}
    assert whole - table["features.0"][8] == 8 * (9 + 1) + 8 * 32 * 9
    assert whole - table["head.1"][48] == 16 * (512 + 1 + 10)


def test_widths_worth_trying() -> None:
    assert counts(Group("a", 64, 64, ()), 8) == (64, 48, 32, 16)
    assert counts(Group("a", 64, 64, ()), 32) == (64, 32)
    assert counts(Group("a", 6, 2, ()), 8) == (6, 3)


def staircase(name: str, channels: int) -> float:
    """A step every eight channels, as vector units have it."""
    return {"cheap": 0.1, "dear": 1.0}[name] * -(-channels // 8)


def test_time_is_saved_where_it_costs_the_least_importance() -> None:
    scores = {"cheap": torch.ones(32), "dear": torch.ones(32)}
    channels, widths = {"cheap": 32, "dear": 32}, {name: range(1, 33) for name in ("cheap", "dear")}
    assert allot(scores, widths, channels, staircase, 1.0) == {"cheap": 32, "dear": 24}
    # The dear ones matter a lot: now the cheap ones go first, but for the last step, which needs a dear one.
    scores = {"cheap": torch.full((32,), 1e-3), "dear": torch.ones(32)}
    assert allot(scores, widths, channels, staircase, 0.3) == {"cheap": 8, "dear": 32}
    # Both to the end: nothing below one step saves anything.
    assert allot(scores, widths, channels, staircase, 99.0) == {"cheap": 8, "dear": 8}
    # A whole step is free of loss, and the next ones are not.
    scores = {"cheap": torch.ones(32), "dear": torch.cat([torch.zeros(8), torch.full((24,), 9.0)])}
    assert allot(scores, widths, channels, staircase, 1.0) == {"cheap": 32, "dear": 24}


def test_a_step_that_saves_nothing_is_stepped_over() -> None:
    cost = {16: 2.0, 12: 2.5, 8: 1.0}  # the kernel for 12 is slower than the one for 16
    kept = allot({"a": torch.ones(16)}, {"a": (12, 8)}, {"a": 16}, lambda _, n: cost[n], 0.5)
    assert kept == {"a": 8}


@given(st.lists(st.floats(0, 10), min_size=4, max_size=4), st.lists(st.floats(0.1, 5), min_size=2, max_size=2))
def test_the_greedy_choice_reaches_the_saving_whenever_it_can(importance: list[float], each: list[float]) -> None:
    scores = {"a": torch.tensor(importance[:2]), "b": torch.tensor(importance[2:])}
    channels, widths = {"a": 2, "b": 2}, {"a": (1,), "b": (1,)}

    def cost(name: str, count: int) -> float:
        return count * each[name == "b"]

    for saving in (0.05, each[0], each[1], sum(each)):
        kept = allot(scores, widths, channels, cost, saving)
        saved = sum(cost(n, 2) - cost(n, k) for n, k in kept.items())
        assert saved >= saving - 1e-9
        options = [dict(zip("ab", k, strict=True)) for k in itertools.product((1, 2), repeat=2)]
        if kept == {"a": 1, "b": 1}:  # then neither alone would have done, or greed took a free one first
            single = [o for o in options if sum(cost(n, 2) - cost(n, k) for n, k in o.items()) >= saving]
            assert {"a": 1, "b": 1} in single


def test_arguments_of_allot_are_checked() -> None:
    scores = {"a": torch.ones(4)}
    with pytest.raises(ValueError, match="saving_ms"):
        allot(scores, {"a": (2,)}, {"a": 4}, lambda *_: 1.0, 0.0)
    with pytest.raises(ValueError, match="needs widths"):
        allot(scores, {}, {"a": 4}, lambda *_: 1.0, 1.0)
    with pytest.raises(ValueError, match="multiples of 2"):
        allot(scores, {"a": (3,)}, {"a": 8}, lambda *_: 1.0, 1.0)
