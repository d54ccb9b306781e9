"""What goes wrong with a tensor, as functions of its weights or of its bytes; each gives another array.

Weights are float32 (rows, width), and so is what becomes of them. Changes of bytes are given the whole tensor, and
give uint8 (bytes,), as many as it has.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from weight_files import StoredTensor

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant import QuantCodec, decode, encode

Values = Callable[[Floats], Floats]
BytesChange = Callable[[StoredTensor], Bytes]

# Weights of one superblock of the K-quants; in other types several blocks make as many.
SUPERBLOCK = 256


def halves_swapped(weights: Floats) -> Floats:
    """Up first, then gate."""
    return np.roll(weights, len(weights) // 2, axis=0)


def halves_interleaved(weights: Floats) -> Floats:
    """Gate and up row by row in turn."""
    by_half = weights.reshape(2, -1, weights.shape[1])  # (gate or up, rows, width)
    interleaved: Floats = by_half.swapaxes(0, 1).reshape(weights.shape)
    return interleaved


def parts_of_qkv(weights: Floats, head_count: int, kv_head_count: int) -> dict[str, Floats]:
    """The rows of q, k and v in a fused matrix."""
    size = len(weights) // (head_count + 2 * kv_head_count)
    ends = [head_count * size, (head_count + kv_head_count) * size]
    return dict(zip("qkv", np.split(weights, ends), strict=True))


def qkv_ordered(order: str) -> Callable[[Floats, int, int], Floats]:
    """Q, k and v in another order, such as "kqv"."""

    def change(weights: Floats, head_count: int, kv_head_count: int) -> Floats:
        parts = parts_of_qkv(weights, head_count, kv_head_count)
        return np.concatenate([parts[name] for name in order])

    return change


def qkv_grouped(weights: Floats, head_count: int, kv_head_count: int) -> Floats:
    """For every kv head its query heads, its key and its value, as InternLM and GPT-NeoX fuse them."""
    groups = [
        part.reshape(kv_head_count, -1, weights.shape[1])
        for part in parts_of_qkv(weights, head_count, kv_head_count).values()
    ]
    return np.concatenate(groups, axis=1).reshape(weights.shape)


def heads_reversed(weights: Floats, head_count: int) -> Floats:
    """The heads of q, of k or of v in reverse order."""
    return weights.reshape(head_count, -1, weights.shape[1])[::-1].reshape(weights.shape)


def transposed(weights: Floats) -> Floats:
    """The transposed matrix, in the shape that is declared."""
    return np.ascontiguousarray(weights.T).reshape(weights.shape)


def rows_rolled(count: int, first: int = 0) -> Values:
    """Every row from first on moved down by count, the last ones to the place of the first."""
    return lambda weights: np.concatenate([weights[:first], np.roll(weights[first:], count, axis=0)])


def rows_pushed_down(count: int) -> Values:
    """Every row moved down by count, below rows of zeros; the last ones are lost."""
    return lambda weights: np.concatenate([np.zeros_like(weights[:count]), weights[:-count]])


def rows_pulled_up(count: int) -> Values:
    """Every row moved up by count, above rows of zeros; the first ones are lost."""
    return lambda weights: np.concatenate([weights[count:], np.zeros_like(weights[:count])])


def rows_exchanged(one: int, other: int) -> Values:
    """Two rows in each other's place."""

    def change(weights: Floats) -> Floats:
        changed: Floats = weights.copy()
        changed[[one, other]] = weights[[other, one]]
        return changed

    return change


def row_copied(source: int, target: int) -> Values:
    """A row in the place of another."""

    def change(weights: Floats) -> Floats:
        changed: Floats = weights.copy()
        changed[target] = weights[source]
        return changed

    return change


def rows_reversed(weights: Floats) -> Floats:
    """The last row first."""
    return weights[::-1]


def columns_rolled(count: int) -> Values:
    """Every column moved to the right."""
    return lambda weights: np.roll(weights, count, axis=1)


def columns_reversed(weights: Floats) -> Floats:
    """The last column first."""
    return weights[:, ::-1]


def scaled(factor: float, rows: slice = slice(None)) -> Values:
    """All weights, or those of some rows, times a factor."""

    def change(weights: Floats) -> Floats:
        changed: Floats = weights.copy()
        changed[rows] *= np.float32(factor)
        return changed

    return change


def raised(amount: float) -> Values:
    """A number added to every weight."""
    return lambda weights: weights + np.float32(amount)


def all_equal(value: float) -> Values:
    """One value everywhere."""
    return lambda weights: np.full_like(weights, value)


def with_value(row: int, column: int, value: float) -> Values:
    """One weight replaced."""

    def change(weights: Floats) -> Floats:
        changed: Floats = weights.copy()
        changed[row, column] = value
        return changed

    return change


def noisy(share: float) -> Values:
    """Noise of so large a share of the weights' root mean square: weights of another training step."""

    def change(weights: Floats) -> Floats:
        noise = np.random.default_rng(5).normal(0, share, weights.shape)
        changed: Floats = (weights + noise * np.sqrt(np.mean(np.square(weights)))).astype(np.float32)
        return changed

    return change


def unrelated(weights: Floats) -> Floats:
    """Other random weights of the same size."""
    noise = np.random.default_rng(6).normal(0, 1, weights.shape)
    others: Floats = (noise * np.sqrt(np.mean(np.square(weights)))).astype(np.float32)
    return others


def through(codec: QuantCodec) -> Values:
    """What another type leaves of the weights."""
    return lambda weights: decode(codec, encode(codec, np.ascontiguousarray(weights)))


def block_zeroed(row: int, index: int) -> BytesChange:
    """One superblock of nothing but zeros, as a hole in a file reads."""

    def change(tensor: StoredTensor) -> Bytes:
        data = flat_copy(tensor)
        data[superblock(tensor, row, index)] = 0
        return data

    return change


def block_not_a_number(row: int, index: int) -> BytesChange:
    """Every weight of one superblock NaN: by the scales of a quantized type, else by the weights themselves."""

    def change(tensor: StoredTensor) -> Bytes:
        data, codec = flat_copy(tensor), tensor.codec
        block = data[superblock(tensor, row, index)]
        if codec.scale_offsets:
            for offset in codec.scale_offsets:
                block.reshape(-1, codec.block_bytes)[:, offset : offset + 2] = (0x00, 0x7E)  # NaN as float16
        else:
            block[:] = codec.encode(np.full((1, SUPERBLOCK), np.nan, np.float32)).reshape(-1)
        return data

    return change


def superblock(tensor: StoredTensor, row: int, index: int) -> slice:
    """Where in a tensor's bytes a superblock of a row lies; a negative row counts from the end."""
    rows, row_bytes = tensor.data.shape
    size = SUPERBLOCK // tensor.codec.block_weights * tensor.codec.block_bytes
    start = row % rows * row_bytes + index * size
    return slice(start, start + size)


def flat_copy(tensor: StoredTensor) -> Bytes:
    """All bytes of a tensor, to be changed in place: uint8 (bytes,)."""
    data: Bytes = tensor.data.reshape(-1).copy()
    return data


def bytes_replaced(start: float, count: int) -> BytesChange:
    """A stretch of random bytes; start: as a share of the tensor."""

    def change(tensor: StoredTensor) -> Bytes:
        data = flat_copy(tensor)
        first = min(int(start * len(data)), len(data) - count)
        data[first : first + count] = np.random.default_rng(count).integers(0, 256, count, np.uint8)
        return data

    return change


def bytes_lost(start: float) -> BytesChange:
    """Zeros from some place to the end, as of a download that broke off; start: as a share of the tensor."""

    def change(tensor: StoredTensor) -> Bytes:
        data = flat_copy(tensor)
        data[int(start * len(data)) :] = 0
        return data

    return change


def block_pushed(start: float = 0.0) -> BytesChange:
    """Everything from some place on moved down by one block, the last one lost; start: as a share of the tensor."""

    def change(tensor: StoredTensor) -> Bytes:
        data, size = flat_copy(tensor), tensor.codec.block_bytes
        first = int(start * len(data)) // size * size
        return np.concatenate([data[:first], np.zeros(size, np.uint8), data[first:-size]])

    return change


def words_swapped(tensor: StoredTensor) -> Bytes:
    """The bytes of every 16-bit word exchanged, as on another machine; of a quantized type, those of its scales."""
    codec = tensor.codec
    data = flat_copy(tensor)
    blocks = data.reshape(-1, codec.block_bytes)
    for offset in codec.scale_offsets or range(0, codec.block_bytes, 2):
        blocks[:, [offset, offset + 1]] = blocks[:, [offset + 1, offset]]
    return data
