"""Q3_K: the numba twin of ../q3_k.py."""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats, Ints
from phi4conv.quant.fast.compiler import helper, kernel
from phi4conv.quant.fast.rounding import ONE, ZERO, nearest_code, nearest_int
from phi4conv.quant.fast.searches import extreme_value, fit_by_sweeps, fit_symmetric, is_nothing
from phi4conv.quant.fast.superblocks import (
    SUPERBLOCK,
    Batch,
    load_importance,
    load_superblocks,
    new_batch,
    read_halves,
    scale_importance,
    store_half,
    store_scale,
    sum_of_group,
)
from phi4conv.quant.fast.vector import (
    LANES,
    F32x16,
    I32x16,
    load,
    load_bytes,
    load_lane,
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
BLOCK_BYTES = 110
HIGHEST = 4
HIGHEST_SCALE = 32


@kernel
def encode(rows: Floats, importance: Floats, out: Bytes) -> None:
    """Encode superblocks.

    Args:
        rows: float32 (blocks * 256,).
        importance: float32 (width,), empty for none.
        out: uint8 (blocks * 110,), filled.
    """
    batch = new_batch()
    codes = np.empty(GROUPS * TILE, np.float32)
    scales, weights = np.empty(GROUPS * LANES, np.float32), np.empty(GROUPS * LANES, np.float32)
    scale_codes, halves, d = np.empty(GROUPS * LANES, np.int32), np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    blocks = rows.size // SUPERBLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_superblocks(rows, first, count, batch)
        if importance.size:
            load_importance(importance, first, batch)
            scale_importance(np.float32(2), batch)
            fit_with_importance(batch, codes, scales, weights)
            scale = quantize_by_search(scales, weights, batch.spare, scale_codes)
        else:
            for group in range(GROUPS):
                start = group * TILE
                store(scales, group * LANES, fit_by_sweeps(batch.x[start:], GROUP, HIGHEST, codes[start:]))
            scale = quantize_by_extreme(scales, scale_codes)
        store_scale(scale, halves, d)
        for lane in range(count):
            at = (first + lane) * BLOCK_BYTES
            pack_codes(rows, (first + lane) * SUPERBLOCK, codes, scale_codes, lane, d[lane], out, at)
            pack_scales(scale_codes, lane, out, at + 96)
            store_half(out, at + 108, halves[lane])


@helper
def fit_with_importance(batch: Batch, codes: Floats, scales: Floats, weights: Floats) -> None:
    """Search C on the sixteen groups: their codes 0 .. 7, scales, and how much each group counts."""
    for group in range(GROUPS):
        start = group * TILE
        scale, inverse = fit_symmetric(batch.x[start:], batch.w[start:], batch.spare, GROUP, HIGHEST, True)
        for i in range(start, start + TILE, LANES):
            code = nearest_code(inverse * load(batch.x, i), -HIGHEST, HIGHEST - 1) + np.float32(HIGHEST)
            store(codes, i, select(is_nothing(inverse), ZERO, code))  # zeros have code 0, not 4
        store(scales, group * LANES, scale)
        store(weights, group * LANES, sum_of_group(batch.w[start:], GROUP))


@helper
def quantize_by_search(scales: Floats, weights: Floats, wx: Floats, codes: Ints) -> F32x16:
    """The sixteen scales as codes 0 .. 63 of the scale that search C finds, which is returned."""
    scale, inverse = fit_symmetric(scales, weights, wx, GROUPS, HIGHEST_SCALE, False)
    for at in range(0, GROUPS * LANES, LANES):
        code = to_int(nearest_code(inverse * load(scales, at), -HIGHEST_SCALE, HIGHEST_SCALE - 1)) + HIGHEST_SCALE
        store(codes, at, select(is_nothing(inverse), 0, code))
    return scale


@helper
def quantize_by_extreme(scales: Floats, codes: Ints) -> F32x16:
    """The sixteen scales as codes 0 .. 63 of the one of largest magnitude, which stands for -32; d is returned."""
    extreme = extreme_value(scales, GROUPS)
    inverse = splat(np.float32(-HIGHEST_SCALE)) / extreme
    for at in range(0, GROUPS * LANES, LANES):
        # ggml keeps the code in a signed byte before it limits it.
        code = ((nearest_int(inverse * load(scales, at)) + 128) & 255) - 128
        code = select(code > HIGHEST_SCALE - 1, HIGHEST_SCALE - 1, code)
        code = select(code < -HIGHEST_SCALE, -HIGHEST_SCALE, code) + HIGHEST_SCALE
        store(codes, at, select(extreme != ZERO, code, 0))
    return select(extreme != ZERO, ONE / inverse, ZERO)


@helper
def pack_codes(
    rows: Floats, start: int, searched: Floats, scale_codes: Ints, lane: int, d: np.float32, out: Bytes, at: int
) -> None:
    """The final codes of one superblock: 32 bytes of third bits, 64 of the lower two."""
    for part in range(2):  # of sixteen weights each in a run of 32
        thirds = splat(0)
        for half in range(2):
            packed = splat(0)
            for run in range(4):
                group = 8 * half + 2 * run + part
                code = final_codes(rows, start + group * GROUP, searched, scale_codes, group, lane, d)
                packed = packed | ((code & 3) << (2 * run))
                thirds = thirds | ((code >> 2) << (4 * half + run))
            store_bytes(out, at + 32 + 32 * half + 16 * part, packed)
        store_bytes(out, at + 16 * part, thirds)


@helper
def final_codes(
    rows: Floats, start: int, searched: Floats, scale_codes: Ints, group: int, lane: int, d: np.float32
) -> I32x16:
    """The codes 0 .. 7 of the sixteen weights of a group."""
    scale = d * np.float32(scale_codes[group * LANES + lane] - HIGHEST_SCALE)
    if scale == ZERO:  # the codes of the search stay
        return to_int(load_lane(searched, group * TILE + lane))
    return to_int(nearest_code(load(rows, start) / scale, -HIGHEST, HIGHEST - 1)) + HIGHEST


@helper
def pack_scales(codes: Ints, lane: int, out: Bytes, at: int) -> None:
    """Sixteen 6-bit codes in twelve bytes: low nibbles of j and j + 8, then four pairs of high bits."""
    for j in range(8):
        out[at + j] = (codes[j * LANES + lane] & 15) | (codes[(j + 8) * LANES + lane] & 15) << 4
    for j in range(4):
        pairs = 0
        for k in range(4):
            pairs |= (codes[(4 * k + j) * LANES + lane] >> 4) << (2 * k)
        out[at + 8 + j] = pairs


@kernel
def decode(data: Bytes, out: Floats) -> None:
    """Decode superblocks.

    Args:
        data: uint8 (blocks * 110,).
        out: float32 (blocks * 256,), filled.
    """
    d = np.empty(LANES, np.float32)
    blocks = data.size // BLOCK_BYTES
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        read_halves(data, first, count, BLOCK_BYTES, 108, d)
        for lane in range(count):
            at, start = (first + lane) * BLOCK_BYTES, (first + lane) * SUPERBLOCK
            for group in range(GROUPS):
                half, run, part = group // 8, group // 2 % 4, group % 2
                scale = d[lane] * np.float32(unpack_scale(data, at + 96, group) - HIGHEST_SCALE)
                low = load_bytes(data, at + 32 + 32 * half + 16 * part) >> (2 * run) & 3
                third = load_bytes(data, at + 16 * part) >> (4 * half + run) & 1
                store(out, start + group * GROUP, to_float((low | third << 2) - HIGHEST) * scale)


@helper
def unpack_scale(packed: Bytes, at: int, group: int) -> int:
    """The 6-bit scale code of a group, from the twelve bytes at a place."""
    low: int = packed[at + group % 8] >> (4 * (group // 8)) & 15
    high: int = packed[at + 8 + group % 4] >> (2 * (group // 4)) & 3
    return low | high << 4
