"""Q6_K: the numba twin of ../q6_k.py."""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats, Ints
from phi4conv.quant.fast.compiler import helper, kernel
from phi4conv.quant.fast.rounding import ONE, ZERO, nearest_code, nearest_int
from phi4conv.quant.fast.searches import EPSILON, extreme_value, fit_symmetric, is_nothing
from phi4conv.quant.fast.superblocks import (
    SUPERBLOCK,
    fill_squares,
    load_importance,
    load_superblocks,
    new_batch,
    read_halves,
    store_half,
    store_scale,
)
from phi4conv.quant.fast.vector import (
    LANES,
    F32x16,
    I32x16,
    load,
    load_bytes,
    select,
    splat,
    store,
    store_bytes,
    to_float,
    to_int,
)

GROUPS = 16
GROUP = 16
TILE = GROUP * LANES
BLOCK_BYTES = 210
HIGHEST = 32


@kernel
def encode(rows: Floats, importance: Floats, out: Bytes) -> None:
    """Encode superblocks.

    Args:
        rows: float32 (blocks * 256,).
        importance: float32 (width,), empty for none.
        out: uint8 (blocks * 210,), filled.
    """
    batch = new_batch()
    scales, inverses = np.empty(GROUPS * LANES, np.float32), np.empty(GROUPS * LANES, np.float32)
    scale_codes, halves = np.empty(GROUPS * LANES, np.int32), np.empty(LANES, np.int32)
    d, extremes = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    blocks = rows.size // SUPERBLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_superblocks(rows, first, count, batch)
        if importance.size:
            load_importance(importance, first, batch)
        else:
            fill_squares(batch.x, SUPERBLOCK, batch.w)
        for group in range(GROUPS):
            scale, inverse = fit_symmetric(
                batch.x[group * TILE :], batch.w[group * TILE :], batch.spare, GROUP, HIGHEST, True
            )
            store(scales, group * LANES, scale)
            store(inverses, group * LANES, inverse)
        store(extremes, 0, extreme_value(scales, GROUPS))
        quantize_scales(scales, load(extremes, 0), scale_codes, halves, d)
        for lane in range(count):
            at = (first + lane) * BLOCK_BYTES
            if abs(extremes[lane]) < EPSILON:  # no scale is worth a code
                out[at : at + BLOCK_BYTES] = 0
            else:
                for group in range(GROUPS):
                    out[at + 192 + group] = scale_codes[group * LANES + lane]
                store_half(out, at + 208, halves[lane])
                pack_codes(rows, (first + lane) * SUPERBLOCK, inverses, scale_codes, lane, d[lane], out, at)


@helper
def quantize_scales(scales: Floats, extreme: F32x16, codes: Ints, halves: Ints, readings: Floats) -> None:
    """The sixteen scales as int8 codes of the one of largest magnitude, which gets -128."""
    inverse = splat(np.float32(-128)) / extreme
    for group in range(GROUPS):
        code = nearest_int(inverse * load(scales, group * LANES))
        store(codes, group * LANES, select(code > 127, 127, code))
    store_scale(ONE / inverse, halves, readings)


@helper
def pack_codes(
    rows: Floats, start: int, inverses: Floats, scale_codes: Ints, lane: int, d: np.float32, out: Bytes, at: int
) -> None:
    """The final codes of one superblock: 128 bytes of low nibbles, 64 of high bit pairs."""
    for half in range(2):
        for part in range(2):  # of sixteen weights each in a run of 32
            group = 8 * half + part
            place = start + group * GROUP
            a = final_codes(rows, place, inverses, scale_codes, group * LANES + lane, d)
            b = final_codes(rows, place + 32, inverses, scale_codes, (group + 2) * LANES + lane, d)
            c = final_codes(rows, place + 64, inverses, scale_codes, (group + 4) * LANES + lane, d)
            e = final_codes(rows, place + 96, inverses, scale_codes, (group + 6) * LANES + lane, d)
            store_bytes(out, at + 64 * half + 16 * part, (a & 15) | ((c & 15) << 4))
            store_bytes(out, at + 64 * half + 32 + 16 * part, (b & 15) | ((e & 15) << 4))
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
            store_bytes(out, at + 128 + 32 * half + 16 * part, high)


@helper
def final_codes(rows: Floats, start: int, inverses: Floats, scale_codes: Ints, k: int, d: np.float32) -> I32x16:
    """The codes 0 .. 63 of the sixteen weights of a group, number k of the tile."""
    v = load(rows, start)
    scale = d * np.float32(scale_codes[k])
    if scale == ZERO:  # the codes of the search stay; those of a group of zeros are 0, not 32
        if is_nothing(inverses[k]):
            return splat(0)
        return to_int(nearest_code(inverses[k] * v, -HIGHEST, HIGHEST - 1)) + HIGHEST
    return to_int(nearest_code(v / scale, -HIGHEST, HIGHEST - 1)) + HIGHEST


@kernel
def decode(data: Bytes, out: Floats) -> None:
    """Decode superblocks.

    Args:
        data: uint8 (blocks * 210,).
        out: float32 (blocks * 256,), filled.
    """
    d = np.empty(LANES, np.float32)
    signed = data.view(np.int8)
    blocks = data.size // BLOCK_BYTES
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        read_halves(data, first, count, BLOCK_BYTES, 208, d)
        for lane in range(count):
            at, start = (first + lane) * BLOCK_BYTES, (first + lane) * SUPERBLOCK
            for group in range(GROUPS):
                half, run, part = group // 8, group // 2 % 4, group % 2
                low = load_bytes(data, at + 64 * half + 32 * (run % 2) + 16 * part) >> (4 * (run // 2)) & 15
                high = load_bytes(data, at + 128 + 32 * half + 16 * part) >> (2 * run) & 3
                scale = d[lane] * np.float32(signed[at + 192 + group])
                store(out, start + group * GROUP, to_float((low | high << 4) - HIGHEST) * scale)
