"""What a source answers is the same without what its head does not read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lepto.compiler.data import load_samples
from lepto.compiler.encoder import Encoder
from lepto.compiler.importance import measure_importance
from lepto.compiler.module_outputs import module_outputs
from lepto.compiler.source import Source, open_source
from lepto.compiler.training.lesson import own_answers
from lepto.compiler.verify import logits_in_batches
from lepto.runtime.manifest import TEXT_CLASSIFICATION

from .conftest import Toy


@pytest.fixture
def source(toy: Toy) -> Source:
    return open_source(str(toy.model))


def test_the_last_layer_computes_one_row_of_each_text(toy: Toy, source: Source) -> None:
    samples = load_samples(
        str(toy.eval), text_column="text", label_column="label", labels=source.labels, split="test",
        task=TEXT_CLASSIFICATION,
    )  # fmt: skip
    encoder = Encoder.of(source.module())
    assert encoder is not None
    rows: list[int] = []
    down = encoder.layers()[-1].get_submodule(encoder.family.down)
    watch = down.register_forward_pre_hook(lambda _m, inputs: rows.append(inputs[0].shape[1]))
    done: list[int] = []
    found = module_outputs(source, samples, 1, done.append)
    assert sum(done) == len(samples)
    assert rows[2:] == [1] * len(done)  # the first two tell whether that is right
    whole = logits_in_batches(source.runner(1), samples, source.text, lambda _: None)
    assert rows[-1] > 1
    watch.remove()
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_what_matters_is_measured_without_gradients_of_weights(toy: Toy, source: Source) -> None:
    samples = load_samples(
        str(toy.train), text_column="text", label_column="label", labels=source.labels, split="train",
        task=TEXT_CLASSIFICATION,
    )  # fmt: skip
    module = source.module()
    encoder = Encoder.of(module)
    assert encoder is not None
    frozen = next(module.parameters()).requires_grad_(False)
    pool = own_answers(source, samples, 64)
    scores = measure_importance(encoder, pool, samples=64)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [p.requires_grad for p in module.parameters()] == [p is not frozen for p in module.parameters()]
    # As it is where everything before learns, too.
    frozen.requires_grad_()
    own = torch.nn.Module.parameters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "parameters", lambda *_a, **_k: iter(()))
        whole = measure_importance(encoder, pool, samples=64)
    assert any(parameter.grad is not None for parameter in own(module))
    for one, other in zip(
        (*scores.heads, *scores.neurons, scores.width), (*whole.heads, *whole.neurons, whole.width), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
        assert float(one.sum()) > 0
