"""Q4_K: 256 weights in 144 bytes (4.5 bits each), four-bit codes, six-bit scales and minima for groups of 32.

    byte 0     | f16 d | f16 dmin |
    byte 4     | 12 bytes: the scales and minima of the eight groups, see six_bit_scales.py |
    byte 16    | 128 bytes: a code in each half; byte 16 + 32 * j + i holds
               |   low half:  weight 64 * j + i        high half:  weight 64 * j + 32 + i |

    weight = (d * scale) * code - (dmin * minimum)          code 0..15

Bytes equal those of ggml (ggml-quants.c quantize_row_q4_K_ref, with importance quantize_row_q4_K_impl).
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

BLOCK_BYTES = 144
LARGEST = 15
STEPS = Steps(first=-1.0, spacing=0.1, count=21)


def encode_q4_k(rows: Floats, importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 256 * 144). importance: float32 (width,)."""
    return encode_in_tiles(rows, importance, BLOCK_BYTES, encode_tile)


def encode_tile(blocks: Floats, importance: Floats | None) -> Bytes:
    """float32 (superblocks, 256) -> uint8 (144, superblocks)."""
    header, codes = encode_superblocks(blocks, importance, LARGEST, STEPS, clamped=False)
    return np.concatenate([header, pack_bits(codes, 4)])


def decode_q4_k(data: Bytes) -> Floats:
    """uint8 (rows, width / 256 * 144) -> float32 (rows, width), as dequantize_row_q4_K does."""
    return decode_in_tiles(data, BLOCK_BYTES, decode_tile)


def decode_tile(blocks: Bytes, out: Floats) -> None:
    """uint8 (superblocks, 144) -> float32 (superblocks, 256), into out."""
    decode_superblocks(blocks[:, 0:16], unpack_bits(blocks[:, 16:144], 4), out)


Q4_K = QuantCodec(
    GGMLQuantizationType.Q4_K,
    encode_q4_k,
    decode_q4_k,
    largest=F16_LARGEST * 63 * LARGEST,
    scale_offsets=(0, 2),
    uses_importance=True,
)
