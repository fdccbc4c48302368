"""While a model is taught, its last layer computes the one row that is read: the same answers, the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

from lepto.compiler.encoder import Encoder
from lepto.compiler.training.first_row import first_row_only

SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "electra": {
        "hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}  # fmt: skip


def network(kind: str, auto: type = AutoModelForSequenceClassification) -> torch.nn.Module:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, vocab_size=50, num_labels=3, **SMALL[kind])).eval()


def batch(rows: int = 3, length: int = 7) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", SMALL)
def test_answers_and_gradients_stay(kind: str) -> None:
    module = network(kind)
    other = copy.deepcopy(module)
    want = module(**batch()).logits
    want.square().sum().backward()
    encoder = Encoder.of(other)
    assert encoder is not None
    rows: list[int] = []
    down = encoder.layers()[-1].get_submodule(encoder.family.down)
    watch = down.register_forward_pre_hook(lambda _m, inputs: rows.append(inputs[0].shape[1]))
    with first_row_only(other, batch()) as dropped:
        assert dropped
        rows.clear()
        got = other(**batch()).logits
        got.square().sum().backward()
        assert rows == [1]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for (name, a), b in zip(module.named_parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, atol=1e-4, rtol=1e-4, msg=name)
    other(**batch())
    assert rows == [1, 7]
    watch.remove()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_where_other_rows_are_read_nothing_is_dropped(kind: str) -> None:
    module = network(kind, AutoModelForTokenClassification)
    want = module(**batch()).logits
    with first_row_only(module, batch()) as dropped:
        assert not dropped
        torch.testing.assert_close(module(**batch()).logits, want)


def test_one_token_shows_nothing_and_other_networks_have_no_such_row() -> None:
    with first_row_only(network("bert"), batch(length=1)) as dropped:
        assert not dropped
    linear = torch.nn.Linear(4, 2)
    with first_row_only(linear, {"input": torch.zeros(2, 4)}) as dropped:
        assert not dropped
