"""Q6_K: 256 weights in 210 bytes (6.56 bits each), six-bit codes, an eight-bit scale for each group of 16.

    byte 0     | 128 bytes: the codes' lower four bits; byte 64 * h + i holds
               |   low half:  weight 128 * h + i        high half:  weight 128 * h + 64 + i        (i 0..63) |
    byte 128   | 64 bytes: the codes' upper two bits; byte 128 + 32 * h + i holds, from its lowest bits up,
               |   weights 128 * h + i, + 32, + 64 and + 96                                        (i 0..31) |
    byte 192   | 16 x int8 scale |
    byte 208   | f16 d |

    weight = (d * scale) * (code - 32)          code 0..63

Bytes equal those of ggml (ggml-quants.c quantize_row_q6_K_ref, with importance quantize_row_q6_K_impl).
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.bit_packing import pack_bits, unpack_bits
from phi4conv.quant.codec import F16_LARGEST, QuantCodec
from phi4conv.quant.scale_search import NEGLIGIBLE, first_largest, fit_scale
from phi4conv.quant.tiles import (
    Groups,
    by_group,
    decode_in_tiles,
    encode_in_tiles,
    in_order,
    nearest_int,
    per_weight,
    read_f16,
    to_columns,
    to_f16,
)

BLOCK_BYTES = 210
GROUP = 16
HALF = 32  # codes on either side of zero


def encode_q6_k(rows: Floats, importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 256 * 210). importance: float32 (width,)."""
    return encode_in_tiles(rows, importance, BLOCK_BYTES, encode_tile)


def encode_tile(blocks: Floats, importance: Floats | None) -> Bytes:
    """float32 (superblocks, 256) -> uint8 (210, superblocks)."""
    count = len(blocks)
    groups = Groups.of_blocks(blocks, GROUP)
    # The importance is taken as it is, without the square root of the other types.
    weights = np.square(groups.x) if importance is None else to_columns(importance, GROUP)
    fit = fit_scale(groups, weights, HALF)

    group_scales = by_group(fit.scale, count)  # (16, superblocks)
    peak = first_largest(Groups.of_columns(group_scales))
    inverse = np.float32(-128) / peak
    scales = np.minimum(nearest_int(inverse * group_scales), np.float32(127)).astype(np.int32).astype(np.int8)
    d_bytes, d = to_f16(np.float32(1) / inverse)  # rounded twice, unlike peak / -128
    codes = in_order(fit.final_codes(groups, (d * scales).reshape(-1), HALF), count)

    data = np.concatenate(
        [pack_bits(codes, 4, distance=64), pack_bits(codes, 2, from_bit=4), scales.view(np.uint8), d_bytes]
    )
    data[:, np.abs(peak) < NEGLIGIBLE] = 0  # the codes too, which in zeros would be 32
    return data


def decode_q6_k(data: Bytes) -> Floats:
    """uint8 (rows, width / 256 * 210) -> float32 (rows, width), as dequantize_row_q6_K does."""
    return decode_in_tiles(data, BLOCK_BYTES, decode_tile)


def decode_tile(blocks: Bytes, out: Floats) -> None:
    """uint8 (superblocks, 210) -> float32 (superblocks, 256), into out."""
    codes = unpack_bits(blocks[:, 128:192], 2)
    codes <<= 4
    codes |= unpack_bits(blocks[:, 0:128], 4, distance=64)
    codes -= HALF
    out[...] = codes.view(np.int8)
    out *= per_weight(read_f16(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8))


Q6_K = QuantCodec(
    GGMLQuantizationType.Q6_K,
    encode_q6_k,
    decode_q6_k,
    largest=F16_LARGEST * 128 * 32,
    scale_offsets=(208,),
    uses_importance=True,
)
