"""Q2_K: 256 weights in 84 bytes (2.63 bits each), two-bit codes, four-bit scales and minima for groups of 16.

    byte 0     | 16 bytes, one a group:  minimum << 4 | scale |
    byte 16    | 64 bytes: four codes each; byte 16 + 32 * h + i holds, from its lowest bits up,
               |   weights 128 * h + i, + 32, + 64 and + 96 |
    byte 80    | f16 d | f16 dmin |

    weight = (d * scale) * code - (dmin * minimum)          code 0..3

Bytes equal those of ggml (ggml-quants.c quantize_row_q2_K_ref, with importance quantize_row_q2_K_impl).
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.bit_packing import pack_bits, unpack_bits
from phi4conv.quant.codec import F16_LARGEST, QuantCodec
from phi4conv.quant.scale_search import (
    STEPS_WITH_IMPORTANCE,
    Steps,
    fit_scale_and_min,
    importance_weights,
    multiples_of_one,
)
from phi4conv.quant.sweeps import fit_positive_scales
from phi4conv.quant.tiles import (
    Groups,
    by_group,
    decode_in_tiles,
    encode_in_tiles,
    in_order,
    per_weight,
    read_f16,
    sum_in_order,
    to_f16,
)

BLOCK_BYTES = 84
GROUP = 16
LARGEST = 3
LARGEST_SCALE = 15
STEPS = Steps(first=-0.5, spacing=0.1, count=16)


def encode_q2_k(rows: Floats, importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 256 * 84). importance: float32 (width,)."""
    return encode_in_tiles(rows, importance, BLOCK_BYTES, encode_tile)


def encode_tile(blocks: Floats, importance: Floats | None) -> Bytes:
    """float32 (superblocks, 256) -> uint8 (84, superblocks)."""
    count = len(blocks)
    groups = Groups.of_blocks(blocks, GROUP)
    if importance is None:
        weights = np.abs(groups.x)
        fit = fit_scale_and_min(groups, weights, sum_in_order(weights), LARGEST, STEPS, absolute=True)
        d, scales = multiples_of_one(by_group(fit.scale, count), LARGEST_SCALE)
        dmin, minima = multiples_of_one(by_group(fit.minimum, count), LARGEST_SCALE)
    else:
        weights = importance_weights(blocks, importance, GROUP, doubled=False)
        sum_w = sum_in_order(weights)
        fit = fit_scale_and_min(groups, weights, sum_w, LARGEST, STEPS_WITH_IMPORTANCE)
        d, scales = fit_positive_scales(by_group(fit.scale, count), by_group(sum_w, count), LARGEST_SCALE)
        dmin, minima = fit_positive_scales(by_group(fit.minimum, count), by_group(sum_w, count), LARGEST_SCALE)

    # A negative scale is a byte of 2xx here, and its upper half spills into the minimum: so ggml, and so read back.
    packed = scales.astype(np.uint8) | minima.astype(np.uint8) << 4  # (16, superblocks)
    d_bytes, d = to_f16(d)
    dmin_bytes, dmin = to_f16(dmin)
    codes = fit.final_codes(groups, (d * (packed & 15)).reshape(-1), (dmin * (packed >> 4)).reshape(-1), LARGEST)
    return np.concatenate([packed, pack_bits(in_order(codes, count), 2), d_bytes, dmin_bytes])


def decode_q2_k(data: Bytes) -> Floats:
    """uint8 (rows, width / 256 * 84) -> float32 (rows, width), as dequantize_row_q2_K does."""
    return decode_in_tiles(data, BLOCK_BYTES, decode_tile)


def decode_tile(blocks: Bytes, out: Floats) -> None:
    """uint8 (superblocks, 84) -> float32 (superblocks, 256), into out."""
    packed = blocks[:, 0:16]
    out[...] = unpack_bits(blocks[:, 16:80], 2)
    out *= per_weight(read_f16(blocks[:, 80:82]) * (packed & 15))
    out -= per_weight(read_f16(blocks[:, 82:84]) * (packed >> 4))


Q2_K = QuantCodec(
    GGMLQuantizationType.Q2_K,
    encode_q2_k,
    decode_q2_k,
    largest=F16_LARGEST * 15 * LARGEST,
    scale_offsets=(80, 82),
    uses_importance=True,
)
