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

from gguf.constants import GGMLQuantizationType

from phi4conv.quant.codec import QuantCodec, decode, encode
from phi4conv.quant.simple import BF16, F16, F32, Q8_0

CODECS: dict[GGMLQuantizationType, QuantCodec] = {
    GGMLQuantizationType.F32: F32,
    GGMLQuantizationType.F16: F16,
    GGMLQuantizationType.BF16: BF16,
    GGMLQuantizationType.Q8_0: Q8_0,
}

__all__ = ["BF16", "CODECS", "F16", "F32", "Q8_0", "QuantCodec", "decode", "encode"]
