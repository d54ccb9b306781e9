"""Q8_0: the numba twin of the one in ../simple.py."""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.fast.compiler import helper, kernel
from phi4conv.quant.fast.rounding import ONE, ZERO, f16_bits
from phi4conv.quant.fast.superblocks import read_halves, store_half
from phi4conv.quant.fast.vector import (
    LANES,
    F32x16,
    I32x16,
    absolute,
    bits_of,
    largest_lane,
    load,
    load_bytes,
    select,
    store,
    store_bytes,
    to_float,
    to_int,
    truncate,
)

BLOCK = 32
BLOCK_BYTES = 34
TWO = np.float32(2)


@kernel
def encode(rows: Floats, _importance: Floats, out: Bytes) -> None:
    """Encode blocks.

    Args:
        rows: float32 (blocks * 32,).
        _importance: Has no use here; every kernel is called alike.
        out: uint8 (blocks * 34,), filled.
    """
    largest = np.empty(1, np.float32)
    d, halves = np.zeros(LANES, np.float32), np.empty(LANES, np.int32)
    blocks = rows.size // BLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        for lane in range(count):
            start, at = (first + lane) * BLOCK, (first + lane) * BLOCK_BYTES
            low, high = load(rows, start), load(rows, start + LANES)
            # Magnitudes are in the order of their bit patterns.
            one, other = bits_of(absolute(low)), bits_of(absolute(high))
            largest.view(np.int32)[0] = largest_lane(select(one > other, one, other))
            scale = largest[0] / np.float32(127)
            inverse = ONE / scale if scale != ZERO else ZERO
            store_bytes(out, at + 2, nearest_away(low * inverse))
            store_bytes(out, at + 2 + LANES, nearest_away(high * inverse))
            d[lane] = scale
        store(halves, 0, f16_bits(load(d, 0)))
        for lane in range(count):
            store_half(out, (first + lane) * BLOCK_BYTES, halves[lane])


@helper
def nearest_away(value: F32x16) -> I32x16:
    """C's roundf: to nearest, halves away from zero. The fraction left by truncate is exact."""
    whole = truncate(value)
    return to_int(whole + truncate((value - whole) * TWO))


@kernel
def decode(data: Bytes, out: Floats) -> None:
    """Decode blocks.

    Args:
        data: uint8 (blocks * 34,).
        out: float32 (blocks * 32,), filled.
    """
    d = np.empty(LANES, np.float32)
    signed = data.view(np.int8)
    blocks = data.size // BLOCK_BYTES
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        read_halves(data, first, count, BLOCK_BYTES, 0, d)
        for lane in range(count):
            at, start = (first + lane) * BLOCK_BYTES + 2, (first + lane) * BLOCK
            for half in (0, LANES):
                store(out, start + half, to_float(load_bytes(signed, at + half)) * d[lane])
