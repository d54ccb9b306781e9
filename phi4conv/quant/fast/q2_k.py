"""Q2_K: the numba twin of ../q2_k.py."""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.fast.asymmetric import Fits, Header, fit_group, new_fits, new_header, quantize_scales
from phi4conv.quant.fast.compiler import helper, kernel
from phi4conv.quant.fast.rounding import ZERO, nearest_code
from phi4conv.quant.fast.searches import Steps
from phi4conv.quant.fast.superblocks import (
    SUPERBLOCK,
    fill_magnitudes,
    load_importance,
    load_superblocks,
    new_batch,
    read_halves,
    scale_importance,
    store_half,
)
from phi4conv.quant.fast.vector import LANES, I32x16, load, load_bytes, splat, store, store_bytes, to_float, to_int

GROUPS = 16
GROUP = 16
TILE = GROUP * LANES
BLOCK_BYTES = 84
HIGHEST = 3
HIGHEST_SCALE = 15

PLAIN_STEPS = Steps(np.float32(-0.5), np.float32(0.1), 16)
IMPORTANCE_STEPS = Steps(np.float32(-0.9), np.float32(0.05), 37)


@kernel
def encode(rows: Floats, importance: Floats, out: Bytes) -> None:
    """Encode superblocks.

    Args:
        rows: float32 (blocks * 256,).
        importance: float32 (width,), empty for none.
        out: uint8 (blocks * 84,), filled.
    """
    batch = new_batch()
    fits, header = new_fits(GROUPS), new_header(GROUPS)
    by_importance = importance.size > 0
    steps = IMPORTANCE_STEPS if by_importance else PLAIN_STEPS
    blocks = rows.size // SUPERBLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_superblocks(rows, first, count, batch)
        if by_importance:
            load_importance(importance, first, batch)
            scale_importance(np.float32(1), batch)
        else:
            fill_magnitudes(batch.x, SUPERBLOCK, splat(ZERO), batch.w)
        for group in range(GROUPS):
            fit_group(batch, group, GROUP, HIGHEST, steps, not by_importance, fits)
        quantize_scales(fits, GROUPS, HIGHEST_SCALE, by_importance, header)
        for lane in range(count):
            at = (first + lane) * BLOCK_BYTES
            for group in range(GROUPS):
                k = group * LANES + lane
                out[at + group] = header.scale_codes[k] | header.min_codes[k] << 4
            pack_codes(rows, (first + lane) * SUPERBLOCK, fits, header, lane, out, at)
            store_half(out, at + 80, header.halves[0, lane])
            store_half(out, at + 82, header.halves[1, lane])


@helper
def pack_codes(rows: Floats, start: int, fits: Fits, header: Header, lane: int, out: Bytes, at: int) -> None:
    """The final codes of one superblock, four to a byte."""
    for half in range(2):
        for part in range(2):  # of sixteen weights each in a run of 32
            packed = splat(0)
            for run in range(4):
                group = 8 * half + 2 * run + part
                code = final_codes(rows, start + group * GROUP, fits, header, group, lane, out[at + group])
                packed = packed | (code << (2 * run))
            store_bytes(out, at + 16 + 32 * half + 16 * part, packed)


@helper
def final_codes(
    rows: Floats, start: int, fits: Fits, header: Header, group: int, lane: int, scale_and_min: int
) -> I32x16:
    """The codes of the sixteen weights of a group."""
    v = load(rows, start)
    scale = header.readings[0, lane] * np.float32(scale_and_min & 15)
    if scale == ZERO:  # the codes of the search stay
        k = group * LANES + lane
        return to_int(nearest_code(fits.inverses[k] * (v - fits.bases[k]), 0, HIGHEST))
    minimum = header.readings[1, lane] * np.float32(scale_and_min >> 4)
    return to_int(nearest_code((v + minimum) / scale, 0, HIGHEST))


@kernel
def decode(data: Bytes, out: Floats) -> None:
    """Decode superblocks.

    Args:
        data: uint8 (blocks * 84,).
        out: float32 (blocks * 256,), filled.
    """
    d, dmin = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    blocks = data.size // BLOCK_BYTES
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        read_halves(data, first, count, BLOCK_BYTES, 80, d)
        read_halves(data, first, count, BLOCK_BYTES, 82, dmin)
        for lane in range(count):
            at, start = (first + lane) * BLOCK_BYTES, (first + lane) * SUPERBLOCK
            for group in range(GROUPS):
                half, run, part = group // 8, group // 2 % 4, group % 2
                scale = d[lane] * np.float32(data[at + group] & 15)
                minimum = dmin[lane] * np.float32(data[at + group] >> 4)
                code = load_bytes(data, at + 16 + 32 * half + 16 * part) >> (2 * run) & 3
                store(out, start + group * GROUP, to_float(code) * scale - minimum)
