"""Tensor types of GGUF as codecs on numpy arrays.

>>> import numpy as np
>>> from phi4conv.quant import Q8_0, decode, encode
>>> weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
>>> data = encode(Q8_0, weights)
>>> data.shape, data.dtype
((1, 68), dtype('uint8'))
>>> bool(np.abs(decode(Q8_0, data) - weights).max() < 1 / 127)
True
"""

from __future__ import annotations

from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.codec import QuantCodec
from phi4conv.quant.simple import BF16, F16, F32, Q8_0

CODECS: dict[GGMLQuantizationType, QuantCodec] = {
    codec.qtype: codec for codec in (F32, F16, BF16, Q8_0)
}


def encode(codec: QuantCodec, weights: Floats, importance: Floats | None = None) -> Bytes:
    """Encode weights (…, width) of float32 as uint8 (…, row bytes), by the fastest path there is.

    See QuantCodec.encode for the arguments and what is raised.
    """
    return codec.encode(weights, importance)


def decode(codec: QuantCodec, data: Bytes) -> Floats:
    """Decode uint8 (…, row bytes) to float32 (…, width), by the fastest path there is.

    See QuantCodec.decode for what is raised.
    """
    return codec.decode(data)


__all__ = ["BF16", "CODECS", "F16", "F32", "Q8_0", "QuantCodec", "decode", "encode"]
