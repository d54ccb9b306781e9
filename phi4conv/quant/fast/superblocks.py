"""Sixteen superblocks of 256 weights at a time, one in each lane.

A tile is a flat array of n times sixteen: element i of all lanes at 16 * i.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Bytes, Floats, Ints
from phi4conv.quant.fast.compiler import helper
from phi4conv.quant.fast.rounding import ZERO, f16_bits, f16_value
from phi4conv.quant.fast.vector import LANES, F32x16, absolute, load, load_transposed, splat, square_root, store

SUPERBLOCK = 256


class Batch(NamedTuple):
    """Sixteen superblocks at work.

    Attributes:
        x: Tile of their 256 weights.
        w: Tile of how much each weight counts.
        spare: Tile of 32, scratch of the searches.
        offsets: int64 (16,), where each lane's superblock begins.
    """

    x: Floats
    w: Floats
    spare: Floats
    offsets: npt.NDArray[np.int64]


@helper
def new_batch() -> Batch:
    """Room for a batch."""
    tiles = np.empty((2, SUPERBLOCK * LANES), np.float32)
    return Batch(tiles[0], tiles[1], np.empty(32 * LANES, np.float32), np.empty(LANES, np.int64))


@helper
def load_superblocks(rows: Floats, first: int, count: int, batch: Batch) -> None:
    """Fill x with superblocks first .. first + count; spare lanes repeat the last one."""
    for lane in range(LANES):
        batch.offsets[lane] = (first + min(lane, count - 1)) * SUPERBLOCK
    for i in range(0, SUPERBLOCK, LANES):
        load_transposed(rows, batch.offsets, i, batch.x, i * LANES)


@helper
def load_importance(importance: Floats, first: int, batch: Batch) -> None:
    """Fill w with the importance of the same weights; it begins anew with each row."""
    blocks_in_row = importance.size // SUPERBLOCK
    for lane in range(LANES):
        batch.offsets[lane] = (first + lane) % blocks_in_row * SUPERBLOCK
    for i in range(0, SUPERBLOCK, LANES):
        load_transposed(importance, batch.offsets, i, batch.w, i * LANES)


@helper
def scale_importance(factor: np.float32, batch: Batch) -> None:
    """Turn the importance q in w into q * sqrt(factor * mean square + x * x), with the mean over the superblock."""
    squares = splat(ZERO)
    for i in range(SUPERBLOCK):
        v = load(batch.x, i * LANES)
        squares = squares + v * v
    variance = factor * squares / np.float32(SUPERBLOCK)
    for i in range(SUPERBLOCK):
        v = load(batch.x, i * LANES)
        store(batch.w, i * LANES, load(batch.w, i * LANES) * square_root(variance + v * v))


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
def store_scale(scale: F32x16, halves: Ints, readings: Floats) -> None:
    """Round sixteen scales to float16, and read them back."""
    half = f16_bits(scale)
    store(halves, 0, half)
    store(readings, 0, f16_value(half))


@helper
def read_halves(data: Bytes, first: int, count: int, block_bytes: int, offset: int, readings: Floats) -> None:
    """The float16 at an offset of blocks first .. first + count <= first + 16, as float32."""
    halves = np.zeros(LANES, np.int32)
    for lane in range(count):
        at = (first + lane) * block_bytes + offset
        halves[lane] = np.int32(data[at]) | np.int32(data[at + 1]) << 8
    store(readings, 0, f16_value(load(halves, 0)))
