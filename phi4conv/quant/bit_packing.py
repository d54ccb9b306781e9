"""Codes of fewer than eight bits in bytes.

A byte holds the codes of weights that lie `distance` apart, the first in its lowest bits. Packed so are all of a
superblock's 256 codes, 2 * distance (4 *, 8 *) of them after another. Four bits at distance 32, for instance:

    byte      0             31  32            63  64
    bits 3..0 | L0  ...  L31  | L64  ...  L95  | L128 ...
    bits 7..4 | L32 ...  L63  | L96  ...  L127 | L160 ...
"""

from __future__ import annotations

import numpy as np

from phi4conv.arrays import Bytes


def pack_bits(codes: Bytes, bits: int, *, from_bit: int = 0, distance: int = 32) -> Bytes:
    """Pack `bits` bits of each code, from from_bit up: uint8 (256, superblocks) -> (32 * bits, superblocks)."""
    superblocks = codes.shape[1]
    fields = np.right_shift(codes, from_bit)
    fields &= (1 << bits) - 1
    parts = fields.reshape(-1, 8 // bits, distance, superblocks)
    packed: Bytes = parts[:, 0].copy()
    for place in range(1, 8 // bits):
        packed |= np.left_shift(parts[:, place], bits * place)
    return packed.reshape(-1, superblocks)


def unpack_bits(data: Bytes, bits: int, *, distance: int = 32) -> Bytes:
    """The way back, superblock by superblock: uint8 (superblocks, 32 * bits) -> (superblocks, 256)."""
    superblocks = len(data)
    parts = data.reshape(superblocks, -1, distance)
    codes = np.empty((superblocks, parts.shape[1], 8 // bits, distance), np.uint8)
    for place in range(8 // bits):
        np.right_shift(parts, bits * place, out=codes[:, :, place])
    codes &= (1 << bits) - 1
    return codes.reshape(superblocks, -1)
