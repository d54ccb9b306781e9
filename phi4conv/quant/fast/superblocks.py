"""Sixteen superblocks of 256 weights at a time, one in each lane.

A tile is a flat array of n times sixteen: element i of all lanes at 16 * i.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.fast.compiler import helper
from phi4conv.quant.fast.rounding import ZERO, f16_value
from phi4conv.quant.fast.vector import LANES, F32x16, absolute, load, load_transposed, splat, square_root, store

SUPERBLOCK = 256


@helper
def load_superblocks(rows: Floats, first: int, count: int, offsets: npt.NDArray[np.int64], x: Floats) -> None:
    """Fill a tile of 256 elements with superblocks first .. first + count; spare lanes repeat the last one."""
    for lane in range(LANES):
        offsets[lane] = (first + min(lane, count - 1)) * SUPERBLOCK
    for i in range(0, SUPERBLOCK, LANES):
        load_transposed(rows, offsets, i, x, i * LANES)


@helper
def load_importance(importance: Floats, first: int, offsets: npt.NDArray[np.int64], q: Floats) -> None:
    """Fill a tile of 256 elements with the importance of the same weights; it begins anew with each row."""
    blocks_in_row = importance.size // SUPERBLOCK
    for lane in range(LANES):
        offsets[lane] = (first + lane) % blocks_in_row * SUPERBLOCK
    for i in range(0, SUPERBLOCK, LANES):
        load_transposed(importance, offsets, i, q, i * LANES)


@helper
def scale_importance(x: Floats, factor: np.float32, w: Floats) -> None:
    """Turn importance q into q * sqrt(factor * mean square + x * x), with the mean over the superblock."""
    squares = splat(ZERO)
    for i in range(SUPERBLOCK):
        v = load(x, i * LANES)
        squares = squares + v * v
    variance = factor * squares / np.float32(SUPERBLOCK)
    for i in range(SUPERBLOCK):
        v = load(x, i * LANES)
        store(w, i * LANES, load(w, i * LANES) * square_root(variance + v * v))


@helper
def sum_of_group(w: Floats, n: int) -> F32x16:
    """The sum of a group's elements, in order."""
    total = splat(ZERO)
    for i in range(n):
        total = total + load(w, i * LANES)
    return total


@helper
def fill_magnitudes(x: Floats, n: int, offset: F32x16, w: Floats) -> None:
    """W = offset + |x|."""
    for i in range(n):
        store(w, i * LANES, offset + absolute(load(x, i * LANES)))


@helper
def fill_squares(x: Floats, n: int, w: Floats) -> None:
    """W = x * x."""
    for i in range(n):
        v = load(x, i * LANES)
        store(w, i * LANES, v * v)


@helper
def store_half(out: Bytes, at: int, half: int) -> None:
    """Two bytes of a float16, little-endian."""
    out[at] = half & 255
    out[at + 1] = half >> 8


@helper
def read_halves(data: Bytes, first: int, count: int, block_bytes: int, offset: int, readings: Floats) -> None:
    """The float16 at an offset of blocks first .. first + count <= first + 16, as float32."""
    halves = np.zeros(LANES, np.int32)
    for lane in range(count):
        at = (first + lane) * block_bytes + offset
        halves[lane] = np.int32(data[at]) | np.int32(data[at + 1]) << 8
    store(readings, 0, f16_value(load(halves, 0)))
