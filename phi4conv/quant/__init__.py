"""Tensor types of GGUF as codecs on numpy arrays, K-quants included, byte for byte as llama.cpp writes them.

>>> import numpy as np
>>> from phi4conv.quant import Q4_K, decode, encode
>>> weights = np.sin(np.arange(512, dtype=np.float32)).reshape(1, 512)
>>> data = encode(Q4_K, weights)
>>> data.shape, data.dtype
((1, 288), dtype('uint8'))
>>> bool(np.abs(decode(Q4_K, data) - weights).max() < 0.08)
True

encode() and decode() run compiled code where numba works; Q4_K.encode() and Q4_K.decode() are the same in
numpy alone, with the same bytes.
"""

from __future__ import annotations

from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant import fast
from phi4conv.quant.codec import QuantCodec
from phi4conv.quant.legacy import Q4_0, Q4_1, Q5_0, Q5_1
from phi4conv.quant.q2_k import Q2_K
from phi4conv.quant.q3_k import Q3_K
from phi4conv.quant.q4_k import Q4_K
from phi4conv.quant.q5_k import Q5_K
from phi4conv.quant.q6_k import Q6_K
from phi4conv.quant.simple import BF16, F16, F32, Q8_0

CODECS: dict[GGMLQuantizationType, QuantCodec] = {
    GGMLQuantizationType.F32: F32,
    GGMLQuantizationType.F16: F16,
    GGMLQuantizationType.BF16: BF16,
    GGMLQuantizationType.Q8_0: Q8_0,
    GGMLQuantizationType.Q6_K: Q6_K,
    GGMLQuantizationType.Q5_K: Q5_K,
    GGMLQuantizationType.Q4_K: Q4_K,
    GGMLQuantizationType.Q3_K: Q3_K,
    GGMLQuantizationType.Q2_K: Q2_K,
    GGMLQuantizationType.Q5_1: Q5_1,
    GGMLQuantizationType.Q5_0: Q5_0,
    GGMLQuantizationType.Q4_1: Q4_1,
    GGMLQuantizationType.Q4_0: Q4_0,
}


def encode(codec: QuantCodec, weights: Floats, importance: Floats | None = None) -> Bytes:
    """Encode weights (…, width) of float32 as uint8 (…, row bytes).

    Args:
        codec: The type, such as Q4_K.
        weights: Finite float32. What no block can hold (beyond codec.largest, or less when the block's other
            weights are unlike) becomes what ggml makes of it, infinite or zero; codec.broken_block finds the
            infinite ones.
        importance: How much each column matters: float32 (width,), finite, none negative, not all zero
            (ggml's quant_weights; the mean squared activations of an importance matrix). Types that have
            no use for it ignore it, as ggml does.

    Raises:
        ValueError: The weights are not float32, the width is not a multiple of the codec's block, a
            quantized type is given NaN or Inf, or the importance is none that can be used.
    """
    return fast.encoder(codec).encode(weights, importance)


def decode(codec: QuantCodec, data: Bytes) -> Floats:
    """Decode uint8 (…, row bytes) to float32 (…, width), exactly.

    Raises:
        ValueError: The data is not uint8 or not a whole number of blocks.
    """
    return fast.decoder(codec).decode(data)


__all__ = [
    "BF16", "CODECS", "F16", "F32", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0",
    "QuantCodec", "decode", "encode",
]  # fmt: skip
