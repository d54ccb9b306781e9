"""What the K-quants share before and after the search: superblocks in tiles, turned so that numpy adds like C.

A K-quant stores 256 weights, a superblock, as groups of 16 or 32 with a scale each. The bytes depend on the
last bit of many sums, and ggml adds from the first element to the last. numpy does so only across the outer
axis: along a row it adds in pairs. So a tile of superblocks is turned into columns, one column a group, and
every step works on all columns at once while each column keeps its own order.

All arithmetic is float32, rounded after every operation. Overflow and NaN within it are part of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Bytes, Floats, Ints

SUPERBLOCK = 256  # weights; QK_K in ggml-common.h

# Superblocks worked on at a time: few enough for a core's second-level cache, enough to outweigh numpy's calls.
TILE = 512

# 1.5 * 2^23: adding it to a small float32 leaves the nearest integer in the low bits of the sum.
ROUNDING_SHIFT = np.float32(12582912.0)
ROUNDING_LIMIT = 4194303.0  # nearest_int's own limit for its argument, 2^22 - 1

Bools = npt.NDArray[np.bool_]

EncodeTile = Callable[[Floats, "Floats | None"], Bytes]
DecodeTile = Callable[[Bytes, Floats], None]


def encode_in_tiles(rows: Floats, importance: Floats | None, block_bytes: int, encode_tile: EncodeTile) -> Bytes:
    """Encode rows a tile at a time, so that memory does not grow with their number.

    Args:
        rows: float32 (rows, width), the width a multiple of 256.
        importance: float32 (width,), for every row the same; or None.
        block_bytes: Size of an encoded superblock.
        encode_tile: float32 (superblocks, 256), and as many importances or None, to uint8 (superblocks, block_bytes).

    Returns:
        uint8 (rows, width / 256 * block_bytes).
    """
    blocks = rows.reshape(-1, SUPERBLOCK)
    out = np.empty((len(blocks), block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), TILE):
            tile = blocks[start : start + TILE]
            tile_importance = None
            if importance is not None:
                by_block = importance.reshape(-1, SUPERBLOCK)
                tile_importance = by_block[np.arange(start, start + len(tile)) % len(by_block)]
            out[start : start + TILE] = encode_tile(tile, tile_importance).T
    return out.reshape(len(rows), rows.shape[1] // SUPERBLOCK * block_bytes)


def decode_in_tiles(data: Bytes, block_bytes: int, decode_tile: DecodeTile) -> Floats:
    """Decode rows a tile at a time.

    Args:
        data: uint8 (rows, row bytes).
        block_bytes: Size of an encoded superblock.
        decode_tile: Called with uint8 (superblocks, block_bytes) and the float32 (superblocks, 256) to fill.

    Returns:
        float32 (rows, row bytes / block_bytes * 256).
    """
    blocks = data.reshape(-1, block_bytes)
    out = np.empty((len(blocks), SUPERBLOCK), np.float32)
    with np.errstate(all="ignore"):  # an infinite scale decodes to infinities and NaN, as in ggml
        for start in range(0, len(blocks), TILE):
            decode_tile(blocks[start : start + TILE], out[start : start + TILE])
    return out.reshape(len(data), data.shape[1] // block_bytes * SUPERBLOCK)


@dataclass(frozen=True)
class Groups:
    """The groups of a tile as columns: column j * superblocks + b is group j of superblock b.

    Attributes:
        x: float32 (group size, columns).
        bounds: The smallest value of each column, and the largest: float32 (2, columns). A step that keeps order,
            or turns it round, keeps x between bounds, and rounding to float32 is such a step too. So what is done
            to both bounds tells how large x can have become.
    """

    x: Floats
    bounds: Floats

    @classmethod
    def of_columns(cls, x: Floats) -> Groups:
        """The groups that are the columns of x, (group size, columns)."""
        return cls(x, np.stack([np.minimum.reduce(x, axis=0), np.maximum.reduce(x, axis=0)]))

    @classmethod
    def of_blocks(cls, blocks: Floats, size: int) -> Groups:
        """The groups of `size` neighbours in superblocks (superblocks, 256)."""
        return cls.of_columns(to_columns(blocks, size))

    def pick(self, columns: Bools) -> Groups:
        """The columns of a mask."""
        return Groups(self.x[:, columns], self.bounds[:, columns])


def to_columns(blocks: Floats, size: int) -> Floats:
    """Turn (superblocks, 256) into (size, 256 / size * superblocks), a group of `size` neighbours in each column."""
    count = len(blocks)
    return np.ascontiguousarray(blocks.reshape(count, -1, size).transpose(2, 1, 0)).reshape(size, -1)


def in_order(codes: Floats, superblocks: int) -> Bytes:
    """Turn codes float32 (size, columns) into uint8 (256, superblocks), a weight's code in each row, in file order."""
    columns = codes.astype(np.uint8).reshape(len(codes), -1, superblocks)
    ordered: Bytes = columns.transpose(1, 0, 2).reshape(SUPERBLOCK, superblocks)
    return ordered


def by_group(values: Floats, superblocks: int) -> Floats:
    """One value for each column, seen as (groups in a superblock, superblocks)."""
    return values.reshape(-1, superblocks)


def per_weight(values: Floats) -> Floats:
    """A value for each group, spread over its weights: (superblocks, groups) -> (superblocks, 256)."""
    spread: Floats = np.repeat(values, SUPERBLOCK // values.shape[1], axis=1)
    return spread


def sum_in_order(terms: Floats) -> Floats:
    """Add up each column from the first element to the last, as a loop in C does: (n, columns) -> (columns,).

    terms is C-contiguous. Across the outer axis numpy adds row after row; but a single column is one run of
    memory to it, which it would add in pairs.
    """
    sums: Floats = np.add.accumulate(terms, axis=0)[-1] if terms.shape[1] == 1 else np.add.reduce(terms, axis=0)
    return sums


def nearest_int(values: Floats) -> Floats:
    """Round as ggml's nearest_int does, for any value, to a float32 that is an integer.

    Below 2^22 that is to nearest, halves to even. Beyond, the low 23 bits of the shifted sum are what remains:
    infinity gives -2^22 and NaN 0. (ggml-quants.c nearest_int)
    """
    bits: Ints = (values + ROUNDING_SHIFT).view(np.int32)
    bits &= 0x007FFFFF
    bits -= 0x00400000
    return bits.astype(np.float32)


def within_rounding_limit(bounds: Floats) -> bool:
    """Whether np.rint rounds everything between bounds as nearest_int does; not for NaN or infinity."""
    return bool(np.abs(bounds).max() < ROUNDING_LIMIT)


def round_codes(values: Floats, first: int, last: int, *, by_rint: bool) -> Floats:
    """Round as nearest_int does and clamp to first..last, in place; returns values.

    by_rint: that all values are known to be within the rounding limit, where np.rint does the same, and faster.
    """
    if by_rint:
        np.rint(values, out=values)
    else:
        values[...] = nearest_int(values)
    return np.clip(values, first, last, out=values)


def wrapped_to_byte(values: Floats) -> Floats:
    """Integers kept in a uint8, as C does by dropping the upper bits: 256 becomes 0 and -1 becomes 255."""
    return values.astype(np.int32).astype(np.uint8).astype(np.float32)


def to_f16(values: Floats) -> tuple[Bytes, Floats]:
    """Round scales float32 (n,) to float16: their bytes, uint8 (2, n), and what a reader sees, float32 (n,)."""
    halves = values.astype("<f2")
    return halves.view(np.uint8).reshape(-1, 2).T, halves.astype(np.float32)


def read_f16(data: Bytes) -> Floats:
    """The float16 that each row of bytes holds, uint8 (n, 2), as float32 (n, 1)."""
    scales: Floats = data.copy().view("<f2").astype(np.float32)
    return scales
