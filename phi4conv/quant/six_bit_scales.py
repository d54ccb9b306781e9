"""What Q4_K and Q5_K share: eight groups of 32 weights, a six-bit scale and a six-bit minimum for each.

    weight = (d * scale) * code - (dmin * minimum)

d and dmin are float16, one pair for a superblock. The eight scales and eight minima take 12 bytes, two to a
byte where they do not fit; sJ and mJ are the scale and minimum of group J, and bits are drawn high to low:

    byte  0..3    | s4..s7 bits 5..4 | s0..s3 (6 bits) |
    byte  4..7    | m4..m7 bits 5..4 | m0..m3 (6 bits) |
    byte  8..11   | m4..m7 bits 3..0 | s4..s7 bits 3..0 |
"""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.scale_search import (
    STEPS_WITH_IMPORTANCE,
    Steps,
    fit_scale_and_min,
    importance_weights,
    multiples_of_one,
)
from phi4conv.quant.sweeps import fit_positive_scales
from phi4conv.quant.tiles import Groups, by_group, in_order, per_weight, read_f16, sum_in_order, to_f16

GROUP = 32
LARGEST_SCALE = 63


def encode_superblocks(
    blocks: Floats, importance: Floats | None, largest: int, steps: Steps, *, clamped: bool
) -> tuple[Bytes, Bytes]:
    """Encode superblocks with codes 0..largest: quantize_row_q4_K_ref and, with importance, quantize_row_q4_K_impl.

    The functions for Q5_K are the same, but for their constants and one clamp.

    Args:
        blocks: float32 (superblocks, 256).
        importance: float32 (superblocks, 256), or None.
        largest: 15 or 31.
        steps: The step widths to try without importance.
        clamped: Whether scales found with importance are held to six bits. Q5_K does, Q4_K does not.

    Returns:
        The header, uint8 (16, superblocks): d, dmin and the packed scales and minima; and the codes,
        uint8 (256, superblocks).
    """
    count = len(blocks)
    groups = Groups.of_blocks(blocks, GROUP)
    if importance is None:
        weights = average_weights(groups.x)
        fit = fit_scale_and_min(groups, weights, sum_in_order(weights), largest, steps)
        d, scales = multiples_of_one(by_group(fit.scale, count), LARGEST_SCALE)
        dmin, minima = multiples_of_one(by_group(fit.minimum, count), LARGEST_SCALE)
    else:
        weights = importance_weights(blocks, importance, GROUP, doubled=True)
        sum_w = sum_in_order(weights)
        fit = fit_scale_and_min(groups, weights, sum_w, largest, STEPS_WITH_IMPORTANCE)
        d, scales = fit_positive_scales(by_group(fit.scale, count), by_group(sum_w, count), LARGEST_SCALE)
        dmin, minima = fit_positive_scales(by_group(fit.minimum, count), by_group(sum_w, count), LARGEST_SCALE)
    if clamped or importance is None:
        scales, minima = (np.minimum(codes, np.float32(LARGEST_SCALE)) for codes in (scales, minima))

    header = np.empty((16, count), np.uint8)
    header[0:2], d = to_f16(d)
    header[2:4], dmin = to_f16(dmin)
    header[4:16] = pack_six_bits(scales.astype(np.uint8), minima.astype(np.uint8))
    # Read back, because the upper bits of a scale beyond 63, which is possible in Q4_K, spill into another group's.
    packed_scales, packed_minima = unpack_six_bits(header[4:16])
    codes = fit.final_codes(groups, (d * packed_scales).reshape(-1), (dmin * packed_minima).reshape(-1), largest)
    return header, in_order(codes, count)


def average_weights(x: Floats) -> Floats:
    """How much each weight matters without importance: the group's root mean square + |x|; (32, columns)."""
    squares = np.square(x)
    root_mean_square = np.sqrt(sum_in_order(squares) / np.float32(len(x)))
    weights = np.abs(x, out=squares)
    weights += root_mean_square
    return weights


def pack_six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Pack scale and minimum codes, uint8 (8, superblocks) each, into uint8 (12, superblocks)."""
    first = scales[:4] | (scales[4:] >> 4 << 6)
    second = minima[:4] | (minima[4:] >> 4 << 6)
    third = (scales[4:] & 15) | (minima[4:] << 4)
    return np.concatenate([first, second, third])


def unpack_six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The scale and minimum codes in uint8 (12, superblocks), each uint8 (8, superblocks)."""
    first, second, third = packed[0:4], packed[4:8], packed[8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)])
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)])
    return scales, minima


def decode_superblocks(header: Bytes, codes: Bytes, out: Floats) -> None:
    """Fill out, float32 (superblocks, 256), from headers uint8 (superblocks, 16) and codes uint8 (superblocks, 256)."""
    scales, minima = unpack_six_bits(header[:, 4:16].T)
    out[...] = codes
    out *= per_weight(read_f16(header[:, 0:2]) * scales.T)
    out -= per_weight(read_f16(header[:, 2:4]) * minima.T)
