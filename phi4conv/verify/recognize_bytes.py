"""Faults of the bytes rather than of the weights: words in the other byte order, data that begin too early or late.

They are tried the other way round: the bytes are mended, and the weights that come out must be the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from phi4conv.arrays import Bytes, Floats
from phi4conv.gguf_file.rows import GGUFRows
from phi4conv.quant import CODECS, QuantCodec, decode
from phi4conv.verify.recognize_evidence import GAIN, Case, Evidence, Indices, enough, fitting, row_errors, squares

# How far data are looked for on either side of their place, in bytes.
SEARCHED_BYTES = 8192

# Weights by which displaced data are known, at least; the types' blocks have up to 256.
SAMPLE_WEIGHTS = 32


@dataclass(frozen=True)
class Mending:
    """What may have happened to bytes, and the file's rows once it is undone.

    Attributes:
        code: Its kebab-case name.
        sentence: What happened.
        weights: The mended rows of these numbers: (rows, width).
    """

    code: str
    sentence: str
    weights: Callable[[Indices], Floats]


def mends(case: Case, mending: Mending) -> bool:
    """Whether the mended rows are the source's, on the bad rows of the trial and of the proof."""
    return all(mends_rows(case, evidence.where(evidence.bad), mending) for evidence in (case.trial, case.proof))


def mends_rows(case: Case, evidence: Evidence, mending: Mending) -> bool:
    """Whether the mended rows are the source's."""
    mended = mending.weights(evidence.rows)
    fits = fitting(case.view.qtype, mended, evidence.expected)
    return enough(fits) and enough(row_errors(mended, evidence.expected) < GAIN * evidence.errors)


def mendings(case: Case) -> Iterator[Mending]:
    """Every fault of bytes that can be undone; none for tensors in memory."""
    stored = case.view.stored
    if stored is None:
        return
    tensor, order = stored
    yield from swapped_words(tensor, order)
    yield from displaced(case, tensor, order)


def stored_rows(tensor: GGUFRows, rows: Indices, move: int = 0) -> Bytes:
    """The bytes of some rows, or those so many bytes further on, zeros outside the file: (rows, row bytes)."""
    size = CODECS[tensor.qtype].row_bytes(tensor.shape[-1])
    end = tensor.reader.size
    data = np.zeros((len(rows), size), np.uint8)
    for place, row in enumerate(rows):
        start = tensor.offset + int(row) * size + move
        first, last = max(0, start), min(end, start + size)
        if first < last:
            data[place, first - start : last - start] = np.frombuffer(tensor.reader.read(first, last - first), np.uint8)
    return data


def swapped_words(tensor: GGUFRows, order: Indices) -> Iterator[Mending]:
    """Words of the other byte order: all words of 16 bits, all of 32 bits, or the float16 scales alone."""
    codec = CODECS[tensor.qtype]

    def mended(change: Callable[[Bytes], Bytes]) -> Callable[[Indices], Floats]:
        def weights(rows: Indices) -> Floats:
            return decode(codec, change(stored_rows(tensor, order[rows])))

        return weights

    yield Mending("byte-swapped", "its 16-bit words are byte-swapped", mended(lambda data: reversed_in(data, 2)))
    if codec.block_bytes == 4:
        yield Mending("byte-swapped", "its 32-bit words are byte-swapped", mended(lambda data: reversed_in(data, 4)))
    if codec.scale_offsets:
        yield Mending(
            "byte-swapped",
            "the scales of its blocks are byte-swapped, as in a big-endian file",
            mended(lambda data: swapped_scales(codec, data)),
        )


def reversed_in(data: Bytes, size: int) -> Bytes:
    """Bytes reversed within each word of so many; a rest of the row stays.

    >>> reversed_in(np.arange(5, dtype=np.uint8).reshape(1, 5), 2).tolist()
    [[1, 0, 3, 2, 4]]
    """
    whole = data.shape[1] // size * size
    words = data[:, :whole].reshape(len(data), -1, size)[:, :, ::-1].reshape(len(data), -1)
    return np.concatenate([words, data[:, whole:]], axis=1)


def swapped_scales(codec: QuantCodec, data: Bytes) -> Bytes:
    """Rows with the two bytes of each block's float16 scales exchanged."""
    blocks = data.reshape(-1, codec.block_bytes).copy()
    for offset in codec.scale_offsets:
        blocks[:, [offset, offset + 1]] = blocks[:, [offset + 1, offset]]
    swapped: Bytes = blocks.reshape(data.shape)
    return swapped


def displaced(case: Case, tensor: GGUFRows, order: Indices) -> Iterator[Mending]:
    """Data that lie some bytes before or behind their place; whole rows are left to recognize_rows."""
    codec = CODECS[tensor.qtype]
    move = displacement(case, tensor, order)
    if move % codec.row_bytes(tensor.shape[-1]) == 0:
        return
    blocks, rest = divmod(abs(move), codec.block_bytes)
    unit = "blocks" if codec.block_weights > 1 else "weights"
    size = "" if rest or not blocks else f" ({blocks} {unit if blocks > 1 else unit[:-1]})"
    rows = case.bad_rows
    since = f" from row {rows[0]} on" if case.complete and rows[0] else ""

    def weights(rows: Indices) -> Floats:
        return decode(codec, stored_rows(tensor, order[rows], move))

    yield Mending(
        "bytes-shifted", f"its data{since} lie {abs(move):,} bytes{size} too {'late' if move > 0 else 'early'}", weights
    )


def displacement(case: Case, tensor: GGUFRows, order: Indices) -> int:
    """How many bytes behind its place a piece of a bad row is found; 0 where it is not found."""
    codec = CODECS[tensor.qtype]
    size = max(codec.block_weights, SAMPLE_WEIGHTS)
    bad = case.trial.where(case.trial.bad)
    chosen = len(bad.rows) // 2
    row, expected = int(bad.rows[chosen]), bad.expected[chosen]
    pieces = len(expected) // size
    if not pieces or not expected.any():
        return 0
    # The strongest piece of the row says most.
    piece = int(squares(expected[: pieces * size].reshape(pieces, size)).argmax())
    wanted = expected[piece * size : (piece + 1) * size]
    place = tensor.offset + int(order[row]) * codec.row_bytes(tensor.shape[-1]) + piece * codec.row_bytes(size)
    start = max(0, place - SEARCHED_BYTES)
    stop = min(tensor.reader.size, place + codec.row_bytes(size) + SEARCHED_BYTES)
    data = np.frombuffer(tensor.reader.read(start, stop - start), np.uint8)
    weights = decode(codec, np.lib.stride_tricks.sliding_window_view(data, codec.row_bytes(size)))
    errors = np.nan_to_num(np.square(weights - wanted).sum(axis=1), nan=np.inf)
    nearest = int(errors.argmin())
    fits = fitting(tensor.qtype, weights[nearest : nearest + 1], wanted[None])
    return start + nearest - place if fits[0] else 0
