"""The same logits as eager attention, and the same hidden states without padding."""

from __future__ import annotations

import pytest
import torch
import transformers

from lepto.kernels.attention import Packing, pack, unpack
from lepto.kernels.ship.transformers import install

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
MODELS = {
    "Bert": SMALL,
    "Roberta": SMALL | {"pad_token_id": 1},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50},
    "ModernBert": SMALL | {"local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 0},
}


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    mask = (torch.arange(23)[None] < torch.tensor([23, 7])[:, None]).long()
    return torch.randint(5, 50, (2, 23), generator=gen) * mask + (1 - mask), mask


def both(kind: str, config: dict, head: str):
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(**config)
    made._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}{head}")(made).eval()
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_encoders_give_the_logits_of_eager(kind):
    x, mask = ids()
    model = both(kind, MODELS[kind], "ForSequenceClassification")
    with torch.no_grad():
        eager = model(input_ids=x, attention_mask=mask).logits
        other = model(input_ids=x.roll(1, 1), attention_mask=mask).logits
        model.set_attn_implementation(install())
        ours = model(input_ids=x, attention_mask=mask).logits
    assert (eager - other).abs().max() > 1e-3, "logits that no input changes would prove nothing"
    torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-4)


def test_a_decoder_gives_the_logits_of_eager_in_prefill_and_generation():
    x, mask = ids()
    model = both("Llama", SMALL | {"num_key_value_heads": 1}, "ForCausalLM")
    with torch.no_grad():
        eager = model(input_ids=x, attention_mask=mask).logits
        words = model.generate(x[:1, :9], max_new_tokens=4, do_sample=False)
        model.set_attn_implementation(install())
        ours = model(input_ids=x, attention_mask=mask).logits
        torch.testing.assert_close(ours[mask.bool()], eager[mask.bool()], atol=1e-5, rtol=1e-4)
        assert torch.equal(model.generate(x[:1, :9], max_new_tokens=4, do_sample=False), words)


def test_an_encoder_unpads_before_the_embedding_and_pads_at_the_end():
    x, mask = ids()
    model = both("Bert", SMALL, "Model")
    with torch.no_grad():
        eager = model(input_ids=x, attention_mask=mask).last_hidden_state
        model.set_attn_implementation(install())
        packing = Packing.from_mask(mask)
        places = pack(torch.arange(23).expand(2, 23).contiguous(), packing)
        packed = model(
            input_ids=pack(x, packing)[None], position_ids=places[None], cu_seq_lens_q=packing.cu_seqlens,
            cu_seq_lens_k=packing.cu_seqlens, max_length_q=packing.max_seqlen, max_length_k=packing.max_seqlen,
        ).last_hidden_state[0]  # fmt: skip
    torch.testing.assert_close(unpack(packed, packing)[mask.bool()], eager[mask.bool()], atol=1e-5, rtol=1e-4)


def test_dropout_is_refused():
    x, mask = ids()
    model = both("Bert", SMALL, "Model").train()
    model.set_attn_implementation(install())
    with pytest.raises(ValueError, match=r"for inference, dropout is 0.1: call model.eval\(\)"):
        model(input_ids=x, attention_mask=mask)
