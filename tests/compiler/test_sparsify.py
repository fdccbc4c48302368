from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from onnx import numpy_helper

from lepto.compiler.context import Context, Left
from lepto.compiler.passes.quantize_dynamic import quantizable
from lepto.compiler.passes.sparsify import Sparsify, magnitude_mask, two_of_four, with_zeros

from .test_quantize import mlp

weights = hn.arrays(np.float32, st.tuples(st.integers(1, 13), st.integers(1, 5)), elements=st.floats(-9, 9, width=32))


@given(weights)
def test_two_of_every_four_inputs_are_kept_and_they_are_the_largest(weight: Any) -> None:
    kept = two_of_four(weight)
    whole = len(weight) - len(weight) % 4
    groups, size = kept[:whole].reshape(-1, 4, weight.shape[1]), np.abs(weight[:whole]).reshape(-1, 4, weight.shape[1])
    assert (groups.sum(axis=1) == 2).all()
    assert kept[whole:].all()
    if whole:
        assert (np.where(groups, size, np.inf).min(axis=1) >= np.where(groups, -np.inf, size).max(axis=1)).all()


@given(weights, st.floats(0.01, 0.99))
def test_magnitudes_are_removed_from_the_smallest(weight: Any, sparsity: float) -> None:
    kept = magnitude_mask(weight, sparsity)
    assert (~kept).sum() == round(sparsity * weight.size)
    if kept.any() and not kept.all():
        assert np.abs(weight[kept]).min() >= np.abs(weight[~kept]).max()


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_the_cpu_gains_nothing_and_the_figures_say_so(pattern: Any) -> None:
    with pytest.raises(
        Left, match=r"no gain from zeros on this machine: 64 x 64 with 50% zeros .*1 rows: \d\.\d\d x \["
    ):
        Sparsify(pattern=pattern)(mlp(), Context())


def test_zeros_go_into_the_weights_of_all_products_but_the_excluded() -> None:
    model = mlp()
    (first, _) = quantizable(model)
    excluded = with_zeros(model, two_of_four, [first])
    assert sum((numpy_helper.to_array(t) == 0).mean() == 0.5 for t in excluded.proto().graph.initializer) == 1
    sparse = with_zeros(model, two_of_four)
    matrices = [a for t in sparse.proto().graph.initializer if (a := numpy_helper.to_array(t)).ndim == 2]
    assert len(matrices) == 2
    assert all((a == 0).mean() == 0.5 for a in matrices)


@pytest.mark.parametrize("wrong", [{"pattern": "1:2"}, {"sparsity": 1.0}, {"sparsity": 0.9}])
def test_options_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sparsify(**wrong)
