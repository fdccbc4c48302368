"""The parts of the search that decide."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from lepto.compiler import search
from lepto.compiler.data import Samples
from lepto.compiler.encoder import Sizes
from lepto.compiler.importance import Importance, gate_scores, most_important
from lepto.compiler.latency import Curve, LatencyTable, fit_to_latency
from lepto.compiler.recipe import seconds
from lepto.compiler.search import Shape, Student, kept_layers, shapes, split_development, survivors
from lepto.runtime.errors import LeptoError

TABLE = LatencyTable(Curve((1, 4), (0.1, 0.4)), Curve((64, 256), (0.05, 0.2)), Curve((64, 256), (0.01, 0.04)), 15)


def _student(ms: float, accuracy: float) -> Student:
    return Student(Shape((0,), (1,), (64,), ms), None, accuracy)  # type: ignore[arg-type]


def test_the_development_split_is_a_part_and_keeps_the_shares_of_the_labels() -> None:
    samples = Samples(tuple(f"text {i}" for i in range(200)), np.repeat([0, 1], [150, 50]), "here")
    train, dev = split_development(samples, 0.1, 0)
    assert set(train.inputs) | set(dev.inputs) == set(samples.inputs)
    assert not set(train.inputs) & set(dev.inputs)
    assert np.bincount(dev.labels).tolist() == [15, 5]
    again, _ = split_development(samples, 0.1, 0)
    assert again.digest == train.digest


def test_too_few_samples_cannot_be_split() -> None:
    with pytest.raises(LeptoError, match="--dev"):
        split_development(Samples(("a", "b"), np.array([0, 1]), "here"), 0.1, 0)


@pytest.mark.parametrize(("count", "keep", "kept"), [(6, 1, (0,)), (6, 2, (0, 5)), (6, 3, (0, 2, 5)), (2, 2, (0, 1))])
def test_layers_are_kept_at_the_ends_and_evenly_between(count: int, keep: int, kept: tuple[int, ...]) -> None:
    assert kept_layers(count, keep) == kept


def test_survivors_are_the_fastest_that_may_reach_it_and_the_best() -> None:
    hopeless, fast, dominated, best = (
        _student(0.1, 0.70), _student(0.2, 0.90), _student(0.3, 0.89), _student(0.9, 0.95)
    )  # fmt: skip
    assert survivors([best, dominated, fast, hopeless], 0.92, 0.03, 3) == [fast, best]
    assert survivors([best, fast], 0.94, 0.0, 1) == [best]


def test_greedy_fit_keeps_what_matters_and_meets_the_budget() -> None:
    heads = [np.array([9.0, 1, 1, 1]), np.array([1.0, 1, 1, 1])]
    neurons = [np.ones(256), np.concatenate([np.full(64, 50.0), np.zeros(192)])]
    kept_heads, kept_neurons = fit_to_latency(TABLE, heads, neurons, 0.6, last_row_only=False)
    cost = sum(TABLE.layer_ms(h, n, last_row_only=False) for h, n in zip(kept_heads, kept_neurons, strict=True))
    assert cost <= 0.6
    assert kept_neurons[1] == 64
    assert fit_to_latency(TABLE, heads, neurons, 9.0, last_row_only=False) == ((4, 4), (256, 256))


def test_candidates_ascend_in_cost_and_none_comes_twice() -> None:
    sizes = Sizes((4,) * 6, (256,) * 6, 32, 128, 1000, 64)
    importance = Importance([torch.rand(4) for _ in range(6)], [torch.rand(256) for _ in range(6)], torch.rand(128))
    found = shapes(sizes, importance, TABLE, last_row_only=True)
    costs = [shape.predicted_ms for shape in found]
    assert costs == sorted(costs)
    assert len({(s.layers, s.heads, s.neurons) for s in found}) == len(found) >= 6


def test_gate_scores_are_the_squared_derivative_by_a_gate() -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 2, 4)
    gates = torch.ones(3, 2, requires_grad=True)
    weight = torch.randn(4)
    loss = ((values.view(3, 2, 2, 2) * gates[:, None, :, None]).reshape(3, 2, 4) * weight).sin().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    leaf = values.clone().requires_grad_(True)
    (leaf * weight).sin().sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert gates.grad is not None
    torch.testing.assert_close(gate_scores(values, leaf.grad, 2), gates.grad.square().sum(0))


def test_the_most_important_are_kept_in_order() -> None:
    assert most_important(torch.tensor([0.1, 3.0, 2.0, 3.0]), 2) == (1, 3)
    with pytest.raises(ValueError, match="keep"):
        most_important(torch.ones(2), 3)


def test_evaluation_samples_are_no_argument_of_a_search() -> None:
    assert not [name for name in inspect.signature(search.Search).parameters if "eval" in name]


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7", 7)])
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "0m", "-1s", "3d"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)
