"""The types without a search: F32, F16, BF16 and Q8_0.

    F32   the weights as they are, little-endian
    F16   IEEE half precision, rounded to nearest even
    BF16  the upper half of a float32, rounded to nearest even
    Q8_0  32 weights in 34 bytes:  | f16 d | 32 x int8 q |   weight = q * d

Bytes equal those of ggml's reference functions (ggml-quants.c quantize_row_q8_0_ref, ggml-impl.h
ggml_compute_fp32_to_bf16) as baseline x86-64 builds run them: float32 throughout, no fused multiply-add.
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.codec import QuantCodec

# Halfway from the largest finite value to the next power of two; from there on, rounding gives infinity.
F16_OVERFLOW = 65520.0
BF16_OVERFLOW = float.fromhex("0x1.ffp127")


def below(limit: float) -> float:
    """The largest float32 under a limit."""
    return float(np.nextafter(np.float32(limit), np.float32(0)))


def encode_f32(rows: Floats, _importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, 4 * width)."""
    return rows.astype("<f4", copy=False).view(np.uint8)


def decode_f32(data: Bytes) -> Floats:
    """uint8 (rows, 4 * width) -> float32 (rows, width)."""
    return data.view("<f4").astype(np.float32, copy=False)


def encode_f16(rows: Floats, _importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, 2 * width)."""
    with np.errstate(over="ignore"):  # an overflow is the caller's to refuse; see QuantCodec.largest
        return rows.astype("<f2").view(np.uint8)


def decode_f16(data: Bytes) -> Floats:
    """uint8 (rows, 2 * width) -> float32 (rows, width)."""
    return data.view("<f2").astype(np.float32)


def encode_bf16(rows: Floats, _importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, 2 * width)."""
    bits = rows.view(np.uint32)
    # Adding 0x7fff plus the lowest kept bit carries into the kept half exactly when nearest-even rounds up.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    halves = rounded.astype("<u2")
    nan = np.isnan(rows)
    if nan.any():  # rounding could carry a NaN's payload away; ggml keeps it and sets the quiet bit
        halves[nan] = (bits[nan] >> 16) | 64
    return halves.view(np.uint8)


def decode_bf16(data: Bytes) -> Floats:
    """uint8 (rows, 2 * width) -> float32 (rows, width)."""
    widened = data.view("<u2").astype(np.uint32)
    widened <<= 16
    return widened.view(np.float32)


# Blocks of Q8_0 worked on at a time, 256 kB: a core's second-level cache holds them, and memory is asked for once.
TILE = 2048


def encode_q8_0(rows: Floats, _importance: Floats | None = None) -> Bytes:
    """float32 (rows, width) -> uint8 (rows, width / 32 * 34)."""
    blocks = rows.reshape(-1, 32)
    out = np.empty((len(blocks), 34), np.uint8)
    scratch = np.empty((2, min(TILE, len(blocks)), 32), np.float32)
    for start in range(0, len(blocks), TILE):
        tile = blocks[start : start + TILE]
        encode_q8_0_tile(tile, scratch[:, : len(tile)], out[start : start + TILE])
    return out.reshape(len(rows), rows.shape[1] // 32 * 34)


def encode_q8_0_tile(blocks: Floats, scratch: Floats, out: Bytes) -> None:
    """float32 (blocks, 32) into uint8 (blocks, 34); scratch is float32 (2, blocks, 32)."""
    values, whole = scratch
    d = np.abs(blocks, out=values).max(axis=1, keepdims=True)  # (blocks, 1)
    d /= np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # Codes come from the unrounded d; below 3.7e-37 its inverse overflows, as it does in ggml.
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
        round_half_away(np.multiply(blocks, inverse, out=values), whole)
        out[:, :2] = d.astype("<f2").view(np.uint8)
        out[:, 2:] = whole.astype(np.int8).view(np.uint8)


def round_half_away(values: Floats, whole: Floats) -> None:
    """C's roundf of values into whole: to nearest, halves away from zero. values is used up.

    Adding 0.5 first would round 0.49999997 up; the fraction left by trunc is exact.
    """
    np.trunc(values, out=whole)
    values -= whole
    values *= 2
    np.trunc(values, out=values)
    whole += values


def decode_q8_0(data: Bytes) -> Floats:
    """uint8 (rows, width / 32 * 34) -> float32 (rows, width)."""
    blocks = data.reshape(-1, 34)
    weights = np.empty((len(blocks), 32), np.float32)
    for start in range(0, len(blocks), TILE):
        tile = blocks[start : start + TILE]
        d = tile[:, :2].copy().view("<f2").astype(np.float32)  # (blocks, 1)
        with np.errstate(invalid="ignore"):  # with an infinite scale weights are infinities and NaN, as in ggml
            np.multiply(tile[:, 2:].view(np.int8), d, out=weights[start : start + TILE], dtype=np.float32)
    return weights.reshape(len(data), data.shape[1] // 34 * 32)


F32 = QuantCodec(GGMLQuantizationType.F32, encode_f32, decode_f32)
F16 = QuantCodec(GGMLQuantizationType.F16, encode_f16, decode_f16, below(F16_OVERFLOW))
BF16 = QuantCodec(GGMLQuantizationType.BF16, encode_bf16, decode_bf16, below(BF16_OVERFLOW))
Q8_0 = QuantCodec(
    GGMLQuantizationType.Q8_0, encode_q8_0, decode_q8_0, below(127 * F16_OVERFLOW), scale_offsets=(0,)
)
