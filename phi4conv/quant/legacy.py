"""Q4_0, Q4_1, Q5_0 and Q5_1: what a K-quant falls back to where rows do not fill its 256.

    Q4_0  32 weights in 18 bytes   weight = d * (code - 8)
    Q4_1  32 weights in 20 bytes   weight = d * code + m
    Q5_0  32 weights in 22 bytes   weight = d * (code - 16)
    Q5_1  32 weights in 24 bytes   weight = d * code + m

The encoders and decoders are gguf-py's. Without importance they give ggml's bytes, but for the sign of a scale or
minimum of zero in blocks that hold a -0.0, which decodes alike. With importance ggml searches for better scales; these
encoders do not.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.codec import QuantCodec


def encode_rows(rows: Floats, _importance: Floats | None = None, *, qtype: GGMLQuantizationType) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, row bytes)."""
    with np.errstate(all="ignore"):  # denormal or huge weights overflow on the way, as in ggml
        data: Bytes = quants.quantize(rows, qtype)
    return data


def decode_rows(data: Bytes, *, qtype: GGMLQuantizationType) -> Floats:
    """uint8 (rows, row bytes) -> float32 (rows, width)."""
    with np.errstate(all="ignore"):  # an infinite scale decodes to infinities and NaN, as in ggml
        rows: Floats = quants.dequantize(data, qtype)
    return rows


def codec(qtype: GGMLQuantizationType, *scale_offsets: int) -> QuantCodec:
    """The codec of one of these types."""
    return QuantCodec(
        qtype, partial(encode_rows, qtype=qtype), partial(decode_rows, qtype=qtype), scale_offsets=scale_offsets
    )


Q4_0 = codec(GGMLQuantizationType.Q4_0, 0)
Q4_1 = codec(GGMLQuantizationType.Q4_1, 0, 2)
Q5_0 = codec(GGMLQuantizationType.Q5_0, 0)
Q5_1 = codec(GGMLQuantizationType.Q5_1, 0, 2)
