"""Attention for inference, forward only, written in Triton's language.

Shapes in one alphabet: B batch, H query heads, G key/value heads, S sequence, T tokens of a packed batch, D head_dim.
"""

from lepto.kernels.attention.api import attention, attention_varlen
from lepto.kernels.attention.decode import attention_decode
from lepto.kernels.attention.int8 import attention_int8
from lepto.kernels.attention.packing import Packing, pack, unpack

__all__ = ["Packing", "attention", "attention_decode", "attention_int8", "attention_varlen", "pack", "unpack"]
