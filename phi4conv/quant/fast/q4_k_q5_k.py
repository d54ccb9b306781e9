"""Q4_K and Q5_K: the numba twins of ../q4_k.py and ../q5_k.py, which differ in one bit of each code."""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats, Ints
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
from phi4conv.quant.fast.vector import (
    LANES,
    I32x16,
    load,
    load_bytes,
    select,
    splat,
    square_root,
    store,
    store_bytes,
    to_float,
    to_int,
)

GROUPS = 8
GROUP = 32
TILE = GROUP * LANES
HIGHEST_SCALE = 63
Q4_K_BYTES = 144
Q5_K_BYTES = 176
HIGHEST_Q4_K = 15
HIGHEST_Q5_K = 31

Q4_K_STEPS = Steps(np.float32(-1), np.float32(0.1), 21)
Q5_K_STEPS = Steps(np.float32(-0.5), np.float32(0.1), 16)
IMPORTANCE_STEPS = Steps(np.float32(-0.9), np.float32(0.05), 37)


@kernel
def encode(rows: Floats, importance: Floats, out: Bytes, highest: int) -> None:
    """Encode superblocks.

    Args:
        rows: float32 (blocks * 256,).
        importance: float32 (width,), empty for none.
        out: uint8 (blocks * block bytes,), filled.
        highest: HIGHEST_Q4_K or HIGHEST_Q5_K, which says the type.
    """
    batch = new_batch()
    fits, header = new_fits(GROUPS), new_header(GROUPS)
    is_q5_k = highest == HIGHEST_Q5_K
    block_bytes = Q5_K_BYTES if is_q5_k else Q4_K_BYTES
    by_importance = importance.size > 0
    steps = IMPORTANCE_STEPS if by_importance else Q5_K_STEPS if is_q5_k else Q4_K_STEPS
    blocks = rows.size // SUPERBLOCK
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        load_superblocks(rows, first, count, batch)
        if by_importance:
            load_importance(importance, first, batch)
            scale_importance(np.float32(2), batch)
        else:
            fill_plain_weights(batch.x, batch.w)
        for group in range(GROUPS):
            fit_group(batch, group, GROUP, highest, steps, False, fits)
        quantize_scales(fits, GROUPS, HIGHEST_SCALE, by_importance, header)
        if is_q5_k or not by_importance:
            # Q4_K with importance keeps codes beyond 63; pack_scales says what becomes of them.
            limit_codes(header.scale_codes)
            limit_codes(header.min_codes)
        for lane in range(count):
            at = (first + lane) * block_bytes
            store_half(out, at, header.halves[0, lane])
            store_half(out, at + 2, header.halves[1, lane])
            pack_scales(header, lane, out, at + 4)
            pack_codes(rows, (first + lane) * SUPERBLOCK, highest, fits, header, lane, out, at)


@helper
def fill_plain_weights(x: Floats, w: Floats) -> None:
    """W = sqrt(mean of x**2 over the group) + |x|."""
    for start in range(0, GROUPS * TILE, TILE):
        squares = splat(ZERO)
        for i in range(GROUP):
            v = load(x, start + i * LANES)
            squares = squares + v * v
        fill_magnitudes(x[start:], GROUP, square_root(squares / np.float32(GROUP)), w[start:])


@helper
def limit_codes(codes: Ints) -> None:
    """At most 63."""
    for at in range(0, GROUPS * LANES, LANES):
        code = load(codes, at)
        store(codes, at, select(code > HIGHEST_SCALE, HIGHEST_SCALE, code))


@helper
def pack_scales(header: Header, lane: int, out: Bytes, at: int) -> None:
    """The codes of eight scales and eight minima in twelve bytes, six bits each.

    The first four of each are whole bytes, as in ggml: a code beyond 63 spills its upper bits into those of
    the group four places on.
    """
    for j in range(4):
        scale, minimum = header.scale_codes[j * LANES + lane], header.min_codes[j * LANES + lane]
        k = (j + 4) * LANES + lane
        later_scale, later_minimum = header.scale_codes[k], header.min_codes[k]
        out[at + j] = scale | (later_scale >> 4) << 6
        out[at + j + 4] = minimum | (later_minimum >> 4) << 6
        out[at + j + 8] = (later_scale & 15) | (later_minimum & 15) << 4


@helper
def unpack_scale(packed: Bytes, at: int, group: int) -> tuple[int, int]:
    """Scale and minimum code of a group, from the twelve bytes at a place."""
    if group < 4:
        return packed[at + group] & 63, packed[at + group + 4] & 63
    mixed = packed[at + group + 4]
    return (mixed & 15) | (packed[at + group - 4] >> 6) << 4, (mixed >> 4) | (packed[at + group] >> 6) << 4


@helper
def pack_codes(
    rows: Floats, start: int, highest: int, fits: Fits, header: Header, lane: int, out: Bytes, at: int
) -> None:
    """The final codes of one superblock, from its scales as they will be read back."""
    is_q5_k = highest == HIGHEST_Q5_K
    low = at + 48 if is_q5_k else at + 16
    for half in (0, 16):  # two vectors make a group
        fifths = splat(0)
        for pair in range(4):
            nibbles = splat(0)
            for upper in range(2):
                group = 2 * pair + upper
                place = start + group * GROUP + half
                code = final_codes(rows, place, highest, fits, header, group, lane, out, at + 4)
                nibbles = nibbles | ((code & 15) << (4 * upper))
                fifths = fifths | ((code >> 4) << group)
            store_bytes(out, low + GROUP * pair + half, nibbles)
        if is_q5_k:
            store_bytes(out, at + 16 + half, fifths)


@helper
def final_codes(
    rows: Floats, start: int, highest: int, fits: Fits, header: Header, group: int, lane: int, packed: Bytes, at: int
) -> I32x16:
    """The codes of sixteen weights of a group."""
    v = load(rows, start)
    scale_code, min_code = unpack_scale(packed, at, group)
    scale = header.readings[0, lane] * np.float32(scale_code)
    if scale == ZERO:  # the codes of the search stay
        k = group * LANES + lane
        return to_int(nearest_code(fits.inverses[k] * (v - fits.bases[k]), 0, highest))
    minimum = header.readings[1, lane] * np.float32(min_code)
    return to_int(nearest_code((v + minimum) / scale, 0, highest))


@kernel
def decode(data: Bytes, out: Floats, highest: int) -> None:
    """Decode superblocks.

    Args:
        data: uint8 (blocks * block bytes,).
        out: float32 (blocks * 256,), filled.
        highest: HIGHEST_Q4_K or HIGHEST_Q5_K, which says the type.
    """
    d, dmin = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    is_q5_k = highest == HIGHEST_Q5_K
    block_bytes = Q5_K_BYTES if is_q5_k else Q4_K_BYTES
    blocks = data.size // block_bytes
    for first in range(0, blocks, LANES):
        count = min(LANES, blocks - first)
        read_halves(data, first, count, block_bytes, 0, d)
        read_halves(data, first, count, block_bytes, 2, dmin)
        for lane in range(count):
            at, start = (first + lane) * block_bytes, (first + lane) * SUPERBLOCK
            low = at + 48 if is_q5_k else at + 16
            for group in range(GROUPS):
                scale_code, min_code = unpack_scale(data, at + 4, group)
                scale = d[lane] * np.float32(scale_code)
                minimum = dmin[lane] * np.float32(min_code)
                for half in (0, LANES):
                    code = load_bytes(data, low + group // 2 * GROUP + half) >> (4 * (group % 2)) & 15
                    if is_q5_k:
                        code = code | ((load_bytes(data, at + 16 + half) >> group & 1) << 4)
                    store(out, start + group * GROUP + half, to_float(code) * scale - minimum)
