"""An encoder end to end on batches of real lengths: without padding, against PyTorch's eager, SDPA and compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lepto.kernels.attention import Packing, pack, unpack

ENCODERS: dict[str, dict[str, Any]] = {
    "MiniLM-L6": {
        "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
        "vocab_size": 30522,
    },
    "BERT-base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "vocab_size": 30522,
    },
}  # fmt: skip
"""Their shapes; weights are random, which no kernel's time depends on."""


def make_encoder(config: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A BERT with random weights, in eval mode."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    made: Any = BertModel(BertConfig(**config), add_pooling_layer=False)
    return made.eval().to(device, dtype)


def batch_of(lengths: list[int], vocabulary: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids ``[B, S]`` and their mask, padded at the end to the longest."""
    gen = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, vocabulary, mask.shape, generator=gen) * mask
    return ids.to(device), mask.long().to(device)


def without_padding(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first token's last hidden state ``[B, hidden]``: unpadded before the embedding, nothing padded again.

    Args:
        model: With ``attn_implementation="lepto"``, compiled or not.
        ids: ``[B, S]``.
        mask: ``[B, S]``.
    """
    packing = Packing.from_mask(mask)
    columns = torch.arange(mask.shape[1], device=ids.device).expand(mask.shape).contiguous()
    hidden = model(
        input_ids=pack(ids, packing)[None], position_ids=pack(columns, packing)[None],
        cu_seq_lens_q=packing.cu_seqlens, cu_seq_lens_k=packing.cu_seqlens,
        max_length_q=packing.max_seqlen, max_length_k=packing.max_seqlen,
    ).last_hidden_state[0]  # fmt: skip
    return unpack(hidden, packing)[:, 0]


def contenders(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, tuple[str, Callable[[], torch.Tensor]]]:
    """Each way to run the same encoder: which attention to set first, and what to call."""
    from lepto.kernels.ship.transformers import install

    name = install()
    compiled = torch.compile(model, dynamic=False)

    def padded(run: Any) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            result: torch.Tensor = run(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
            return result

        return call

    return {
        "lepto without padding": (name, lambda: without_padding(model, ids, mask)),
        "lepto padded": (name, padded(model)),
        "eager": ("eager", padded(model)),
        "sdpa": ("sdpa", padded(model)),
        "torch.compile, sdpa": ("sdpa", padded(torch.compile(model, dynamic=False))),
        "torch.compile, lepto without padding": (name, lambda: without_padding(compiled, ids, mask)),
    }
