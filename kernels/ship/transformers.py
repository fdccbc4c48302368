"""``attn_implementation="lepto"`` for the models of transformers."""

from __future__ import annotations

from typing import Any

import torch

from lepto.kernels.attention import attention, attention_varlen
from lepto.kernels.ship import library as _library  # noqa: F401 - registers torch.ops.lepto

NAME = "lepto"


def install() -> str:
    """Register attention and its mask function with transformers.

    Returns:
        The name for ``attn_implementation``: ``from_pretrained(..., attn_implementation=install())``.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention_forward)
    # Boolean [B, 1, S_q, S_k], True takes part, or None where all do or the causal mask is the whole mask.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What a layer of transformers calls: ``[B, H, S, D]`` in, ``[B, S, H, D]`` out, no weights.

    With ``cu_seq_lens_q`` and ``max_length_q`` among the arguments of the model, the batch is packed: no padding.

    Raises:
        ValueError: Dropout was asked for: the kernels are for inference.
    """
    if dropout:
        raise ValueError(f"lepto's attention is for inference, dropout is {dropout}: call model.eval()")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    cap = softcap or 0.0
    cu = kwargs.get("cu_seq_lens_q")
    if cu is not None:
        # ModernBERT's and others' window counts the tokens on both sides of a bidirectional layer.
        window = None if sliding_window is None else (sliding_window, -1 if causal else sliding_window)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if torch.compiler.is_compiling():
            longest = int(kwargs["max_length_q"])
            packed = torch.ops.lepto.attention_varlen(
                q, k, v, cu, cu if kwargs.get("cu_seq_lens_k") is None else kwargs["cu_seq_lens_k"],
                longest, int(kwargs.get("max_length_k") or longest), None, causal, *(window or (-1, -1)), cap, scaling,
            )  # fmt: skip
            return packed[None], None
        out = attention_varlen(
            q, k, v, cu, kwargs.get("cu_seq_lens_k"),
            max_seqlen_q=int(kwargs["max_length_q"]), max_seqlen_k=kwargs.get("max_length_k"),
            causal=causal, window=window, softcap=cap, scale=scaling, check_values=False,
        )  # fmt: skip
        assert isinstance(out, torch.Tensor)
        return out[None], None
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    bias = None if attention_mask is None else attention_mask[..., : key.shape[2]]
    causal = causal and attention_mask is None and query.shape[2] > 1
    if torch.compiler.is_compiling():  # a tracer takes the operator for one node
        made = torch.ops.lepto.attention(query, key, value, None, bias, None, causal, -1, -1, cap, scaling)
        return made.transpose(1, 2), None
    out = attention(
        query,
        key,
        value,
        bias=bias,
        causal=causal,
        softcap=cap,
        scale=scaling,
        check_values=False,
    )
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2), None
