"""Q5_K: 256 weights in 176 bytes (5.5 bits each), five-bit codes, six-bit scales and minima for groups of 32.

    byte 0     | f16 d | f16 dmin |
    byte 4     | 12 bytes: the scales and minima of the eight groups, see six_bit_scales.py |
    byte 16    | 32 bytes: the codes' upper bits; bit k of byte 16 + i belongs to weight 32 * k + i |
    byte 48    | 128 bytes: the codes' lower four bits; byte 48 + 32 * j + i holds
               |   low half:  weight 64 * j + i        high half:  weight 64 * j + 32 + i |

    weight = (d * scale) * code - (dmin * minimum)          code 0..31

Bytes equal those of ggml (ggml-quants.c quantize_row_q5_K_ref, with importance quantize_row_q5_K_impl).
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.bit_packing import pack_bits, unpack_bits
from phi4conv.quant.codec import F16_LARGEST, QuantCodec
from phi4conv.quant.scale_search import Steps
from phi4conv.quant.six_bit_scales import decode_superblocks, encode_superblocks
from phi4conv.quant.tiles import decode_in_tiles, encode_in_tiles

BLOCK_BYTES = 176
LARGEST = 31
STEPS = Steps(first=-0.5, spacing=0.1, count=16)


def encode_q5_k(rows: Floats, importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 256 * 176). importance: float32 (width,)."""
    return encode_in_tiles(rows, importance, BLOCK_BYTES, encode_tile)


def encode_tile(blocks: Floats, importance: Floats | None) -> Bytes:
    """float32 (superblocks, 256) -> uint8 (176, superblocks)."""
    header, codes = encode_superblocks(blocks, importance, LARGEST, STEPS, clamped=True)
    return np.concatenate([header, pack_bits(codes, 1, from_bit=4), pack_bits(codes, 4)])


def decode_q5_k(data: Bytes) -> Floats:
    """uint8 (rows, width / 256 * 176) -> float32 (rows, width), as dequantize_row_q5_K does."""
    return decode_in_tiles(data, BLOCK_BYTES, decode_tile)


def decode_tile(blocks: Bytes, out: Floats) -> None:
    """uint8 (superblocks, 176) -> float32 (superblocks, 256), into out."""
    codes = unpack_bits(blocks[:, 16:48], 1)
    codes <<= 4
    codes |= unpack_bits(blocks[:, 48:176], 4)
    decode_superblocks(blocks[:, 0:16], codes, out)


Q5_K = QuantCodec(
    GGMLQuantizationType.Q5_K,
    encode_q5_k,
    decode_q5_k,
    largest=F16_LARGEST * 63 * LARGEST,
    scale_offsets=(0, 2),
    uses_importance=True,
)
