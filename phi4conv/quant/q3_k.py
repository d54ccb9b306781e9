"""Q3_K: 256 weights in 110 bytes (3.44 bits each), three-bit codes, a six-bit scale for each group of 16.

    byte 0     | 32 bytes: the codes' upper bits; bit k of byte i belongs to weight 32 * k + i |
    byte 32    | 64 bytes: the codes' lower two bits; byte 32 + 32 * h + i holds, from its lowest bits up,
               |   weights 128 * h + i, + 32, + 64 and + 96 |
    byte 96    | 8 bytes: the scales' lower four bits; byte 96 + j holds those of group j, then of group j + 8 |
    byte 104   | 4 bytes: the scales' upper two bits; byte 104 + j holds groups j, j + 4, j + 8, j + 12 |
    byte 108   | f16 d |

    weight = (d * (scale - 32)) * (code - 4)          code 0..7, scale 0..63

Bytes equal those of ggml (ggml-quants.c quantize_row_q3_K_ref, with importance quantize_row_q3_K_impl).
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.bit_packing import pack_bits, unpack_bits
from phi4conv.quant.codec import F16_LARGEST, QuantCodec
from phi4conv.quant.scale_search import (
    first_largest,
    fit_scale,
    importance_weights,
    rescaled_codes,
)
from phi4conv.quant.sweeps import fit_scale_by_sweeps
from phi4conv.quant.tiles import (
    Groups,
    by_group,
    decode_in_tiles,
    encode_in_tiles,
    in_order,
    nearest_int,
    per_weight,
    read_f16,
    sum_in_order,
    to_f16,
)

BLOCK_BYTES = 110
GROUP = 16
HALF = 4  # codes on either side of zero
SCALE_HALF = 32


def encode_q3_k(rows: Floats, importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 256 * 110). importance: float32 (width,)."""
    return encode_in_tiles(rows, importance, BLOCK_BYTES, encode_tile)


def encode_tile(blocks: Floats, importance: Floats | None) -> Bytes:
    """float32 (superblocks, 256) -> uint8 (110, superblocks)."""
    count = len(blocks)
    groups = Groups.of_blocks(blocks, GROUP)
    if importance is None:
        group_scales, searched = fit_scale_by_sweeps(groups, HALF)
        d, scales = signed_multiples_of_one(by_group(group_scales, count))
    else:
        weights = importance_weights(blocks, importance, GROUP, doubled=True)
        fit = fit_scale(groups, weights, HALF)
        searched = fit.searched_codes(groups, HALF)
        scale_groups = Groups.of_columns(by_group(fit.scale, count))
        scale_fit = fit_scale(scale_groups, by_group(sum_in_order(weights), count), SCALE_HALF)
        d, scales = scale_fit.scale, scale_fit.searched_codes(scale_groups, SCALE_HALF).astype(np.uint8)

    d_bytes, d = to_f16(d)
    group_d = (d * (scales.astype(np.float32) - SCALE_HALF)).reshape(-1)
    # Where d * scale is zero, ggml leaves the codes of the search.
    codes = in_order(np.where(group_d == 0, searched, rescaled_codes(groups, group_d, HALF)), count)
    return np.concatenate([pack_bits(codes, 1, from_bit=2), pack_bits(codes, 2), pack_scales(scales), d_bytes])


def signed_multiples_of_one(scales: Floats) -> tuple[Floats, Bytes]:
    """Express a superblock's scales as multiples -32..31 of one scale, as quantize_row_q3_K_ref does.

    scales: float32 (16, superblocks). Returns the one scale, float32 (superblocks,), and the multiples plus 32,
    uint8 like scales; all zero where every scale is.
    """
    peak = first_largest(Groups.of_columns(scales))
    inverse = np.float32(-SCALE_HALF) / peak
    multiples = nearest_int(inverse * scales).astype(np.int32).astype(np.int8)  # C keeps them in eight bits
    stored = np.clip(multiples, -SCALE_HALF, SCALE_HALF - 1) + SCALE_HALF
    zero = peak == 0
    return np.where(zero, np.float32(0), np.float32(1) / inverse), np.where(zero, 0, stored).astype(np.uint8)


def pack_scales(scales: Bytes) -> Bytes:
    """Pack scales 0..63: uint8 (16, superblocks) -> (12, superblocks)."""
    low = (scales[:8] & 15) | (scales[8:] << 4)
    upper = scales >> 4
    high = upper[0:4] | upper[4:8] << 2 | upper[8:12] << 4 | upper[12:16] << 6
    return np.concatenate([low, high])


def unpack_scales(packed: Bytes) -> Bytes:
    """The way back, superblock by superblock: uint8 (superblocks, 12) -> (superblocks, 16)."""
    low, high = packed[:, 0:8], packed[:, 8:12]
    lower = np.concatenate([low & 15, low >> 4], axis=1)
    upper = np.concatenate([high & 3, high >> 2 & 3, high >> 4 & 3, high >> 6], axis=1)
    scales: Bytes = lower | upper << 4
    return scales


def decode_q3_k(data: Bytes) -> Floats:
    """uint8 (rows, width / 256 * 110) -> float32 (rows, width), as dequantize_row_q3_K does."""
    return decode_in_tiles(data, BLOCK_BYTES, decode_tile)


def decode_tile(blocks: Bytes, out: Floats) -> None:
    """uint8 (superblocks, 110) -> float32 (superblocks, 256), into out."""
    codes = unpack_bits(blocks[:, 0:32], 1)
    codes <<= 2
    codes |= unpack_bits(blocks[:, 32:96], 2)
    codes -= HALF
    scales = unpack_scales(blocks[:, 96:108]).astype(np.float32) - SCALE_HALF  # (superblocks, 16)
    out[...] = codes.view(np.int8)
    out *= per_weight(read_f16(blocks[:, 108:110]) * scales)


Q3_K = QuantCodec(
    GGMLQuantizationType.Q3_K,
    encode_q3_k,
    decode_q3_k,
    largest=F16_LARGEST * 32 * 4,
    scale_offsets=(108,),
    uses_importance=True,
)
