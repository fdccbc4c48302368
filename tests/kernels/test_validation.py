"""What callers get wrong, and what they are told."""

from __future__ import annotations

import pytest
import torch

from lepto.kernels.attention import Packing, attention, attention_varlen, pack, unpack
from lepto.kernels.attention.tables import choose


def qkv(d: int = 16, s: int = 4, h: int = 2, g: int = 2, dtype=torch.float16) -> list[torch.Tensor]:
    return [torch.zeros(1, n, s, d, dtype=dtype) for n in (h, g, g)]


@pytest.mark.parametrize("d", [8, 17, 264])
def test_head_dim(d):
    with pytest.raises(ValueError, match=f"head_dim must be a multiple of 8 from 16 to 256, got {d}: pad"):
        attention(*qkv(d))


def test_mixed_dtypes():
    q, k, v = qkv()
    with pytest.raises(TypeError, match="one dtype: q is float16, k is bfloat16, v is float16"):
        attention(q, k.bfloat16(), v)
    with pytest.raises(TypeError, match="q must be float16 or bfloat16 or float32, got float64"):
        attention(*qkv(dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": torch.tensor([5], dtype=torch.int32)}, r"number of keys, 4: lengths\[0\] is 5"),
        ({"lengths": torch.tensor([-1], dtype=torch.int32)}, r"lengths\[0\] is -1"),
        ({"lengths": torch.tensor([4])}, r"int32 of shape \[1\], got int64"),
        (
            {"bias": torch.zeros(1, 2, 4, 5)},
            r"broadcast to \[B, H, S_q, S_k\] = \[1, 2, 4, 4\], got shape \[1, 2, 4, 5\]",
        ),
        ({"alibi_slopes": torch.zeros(3)}, r"float32 of shape \[2\] or \[1, 2\], got float32 of shape \[3\]"),
        ({"window": (-2, 0)}, r"window must be \(left, right\).*got \(-2, 0\)"),
        ({"softcap": -1.0}, "softcap must be 0 .* got -1.0"),
        ({"scale": float("nan")}, "scale must be a finite number, got nan"),
        ({"layout": "sbhd"}, "layout must be bhsd or bshd, got 'sbhd'"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        attention(*qkv(), **options)


def test_shapes():
    with pytest.raises(ValueError, match="q has 3, k and v have 2"):
        attention(*qkv(h=3))
    q, k, v = qkv()
    with pytest.raises(ValueError, match="k and v must have one shape"):
        attention(q, k, v[:, :, :3])
    with pytest.raises(
        ValueError, match=r"q's last dimension must be contiguous, its stride is 4: call .contiguous\(\)"
    ):
        attention(torch.zeros(1, 2, 16, 4, dtype=torch.float16).transpose(2, 3), k, v)


@pytest.mark.parametrize(
    ("starts", "longest", "message"),
    [
        ([0, 3, 6], 4, "must end at the number of tokens, 7, got 6"),
        ([0, 3, 9], 6, "must end at the number of tokens, 7, got 9"),
        ([1, 3, 7], 4, "must start at 0, got 1"),
        ([0, 8, 7], 8, r"must never fall: cu_seqlens_q\[1\] is 8, cu_seqlens_q\[2\] is 7"),
        ([0, 3, 7], 3, "sequence 1 has 4 tokens, max_seqlen is 3"),
    ],
)
def test_cu_seqlens(starts, longest, message):
    x = torch.zeros(7, 2, 16, dtype=torch.float16)
    with pytest.raises(ValueError, match=message):
        attention_varlen(x, x, x, torch.tensor(starts, dtype=torch.int32), max_seqlen_q=longest)


def test_pack_of_another_batch():
    packing = Packing.from_mask(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"padded must be \[2, 3, ...\], got shape \[2, 4\]"):
        pack(torch.zeros(2, 4), packing)
    with pytest.raises(ValueError, match=r"packed must have 6 tokens, got shape \[5\]"):
        unpack(torch.zeros(5), packing)


def test_a_t4_and_an_unknown_gpu():
    with pytest.raises(ValueError, match="sm_75: Triton emits no tensor-core instruction for it; a T4 gets TensorRT"):
        choose("sm_75", 64, 128)
    with pytest.raises(ValueError, match="sm_120: nothing was compiled and checked for it"):
        choose("sm_120", 64, 128)
