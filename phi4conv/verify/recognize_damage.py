"""Damage in some place of a tensor: blocks of zeros, NaN, one absurd value, bytes that were overwritten.

The whole tensor is gone through in pieces of 256 weights, and what stands out is looked at in the blocks of its type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.quant import CODECS
from phi4conv.verify.recognize_evidence import Indices, Mask, TensorView, limits, rows_at, slope_limits, through

PIECE = 256  # weights: a superblock of the K-quants, and a whole number of every other type's blocks

# Relative error of a cell of exact weights that rounding through 16 bits may leave.
SMALLEST_CELL_LIMIT = 0.006

# The relative error up to which a cell is good whatever its weights are: 1.4 times that of normal weights, without an
# importance matrix.
SCREENS = {
    GGMLQuantizationType.Q2_K: 0.42,
    GGMLQuantizationType.Q3_K: 0.21,
    GGMLQuantizationType.Q4_0: 0.12,
    GGMLQuantizationType.Q4_1: 0.11,
    GGMLQuantizationType.Q4_K: 0.1,
    GGMLQuantizationType.Q5_0: 0.06,
    GGMLQuantizationType.Q5_1: 0.054,
    GGMLQuantizationType.Q5_K: 0.051,
    GGMLQuantizationType.Q6_K: 0.025,
    GGMLQuantizationType.Q8_0: 0.0075,
}

# A tensor less than this part of which is bad is damaged in a place; a norm, all of which is a page or two of a file,
# less than that.
DAMAGED_SHARE, DAMAGED_SHARE_OF_NORM = 0.5, 0.3

# Weights read at once.
CHUNK_WEIGHTS = 1 << 20

# A weight is absurd when it is so many times larger than the largest that the source has in its row.
ABSURD = 4.0

# And it stands alone when it is so many times larger than all others that are wrong.
OUTSTANDING = 4.0

# A weight of F32, F16 or BF16 is wrong when it is off by more than this part of its row's root mean square.
EXACT_TOLERANCE = 0.006

# Rows that are looked at in the blocks of their type; more of them say no more.
EXAMINED_ROWS = 512


@dataclass(frozen=True)
class Scan:
    """What a tensor has that the source has not.

    Attributes:
        rows: Bad rows, ascending.
        bad_pieces: For each of them how many of its pieces are bad.
        pieces_in_row: How many there are.
        non_finite: How many weights of the tensor are NaN or infinite.
        first_non_finite: Row and column of the first.
    """

    rows: Indices
    bad_pieces: Indices
    pieces_in_row: int
    non_finite: int
    first_non_finite: tuple[int, int] | None

    @property
    def share(self) -> float:
        """The part of the bad rows' pieces that is bad."""
        return float(self.bad_pieces.sum()) / max(1, len(self.rows) * self.pieces_in_row)


def scan(view: TensorView) -> Scan:
    """Go through a whole tensor."""
    rows, pieces, non_finite, first = [], [], 0, None
    step = max(1, CHUNK_WEIGHTS // view.width)
    for start in range(0, view.row_count, step):
        stop = min(view.row_count, start + step)
        found, expected = view.found.rows(start, stop), view.expected.rows(start, stop)
        bad = bad_cells(view.qtype, found, expected, PIECE).sum(axis=1)
        if bad.any():
            odd = ~np.isfinite(found)
            if odd.any():
                row, column = np.unravel_index(int(odd.argmax()), odd.shape)
                first = first or (start + int(row), int(column))
                non_finite += int(odd.sum())
            chosen = np.flatnonzero(bad)
            rows.append(chosen + start)
            pieces.append(bad[chosen])
    empty = np.empty(0, np.int64)
    return Scan(
        np.concatenate([empty, *rows]),
        np.concatenate([empty, *pieces]),
        -(-view.width // PIECE),
        non_finite,
        first,
    )


def cell_sums(one: Floats, other: Floats, size: int) -> npt.NDArray[np.float64]:
    """Sums of products in cells of so many columns, the last one of a row shorter: (rows, width) -> (rows, cells)."""
    rows, width = one.shape
    if width % size:
        sums = np.add.reduceat(one * other, np.arange(0, width, size), axis=1)
    else:
        sums = np.einsum("rcw,rcw->rc", one.reshape(rows, -1, size), other.reshape(rows, -1, size))
    return sums.astype(np.float64)


def bad_cells(qtype: GGMLQuantizationType, found: Floats, expected: Floats, size: int) -> Mask:
    """Which cells of so many columns differ by more than the type explains: (rows, width) -> (rows, cells)."""
    norms = np.maximum(cell_sums(expected, expected, size), np.finfo(np.float32).tiny)
    difference = found - expected
    errors = np.sqrt(cell_sums(difference, difference, size) / norms)
    bad: Mask = ~(errors <= SCREENS.get(qtype, SMALLEST_CELL_LIMIT))
    # Only rows that could be bad are encoded.
    rows = np.flatnonzero(bad.any(axis=1))
    if len(rows):
        chosen = expected[rows]
        lost = through(qtype, chosen) - chosen
        own = np.sqrt(cell_sums(lost, lost, size) / norms[rows])
        products = cell_sums(found[rows], chosen, size)
        fits = errors[rows] <= limits(qtype, own, SMALLEST_CELL_LIMIT)
        bad[rows] = ~(fits & (np.abs(products / norms[rows] - 1) <= slope_limits(own, size)))
    return bad


@dataclass(frozen=True)
class Damage:
    """What is wrong in some place.

    Attributes:
        code: Its kebab-case name.
        sentence: What happened.
        expected: What the source has, where that is one value.
        actual: What the file has.
    """

    code: str
    sentence: str
    expected: str = ""
    actual: str = ""


@dataclass(frozen=True)
class Cells:
    """The bad blocks of some rows, in the order in which the file has them.

    Attributes:
        size: Weights in a block: the type's, or 1 where every weight stands by itself.
        rows: The row of each.
        columns: The first column of each.
        found: The file's weights: (blocks, size).
        expected: The source's.
        peaks: The largest magnitude that the source has in the row of each.
    """

    size: int
    rows: Indices
    columns: Indices
    found: Floats
    expected: Floats
    peaks: Floats


def bad_blocks(view: TensorView, rows: Indices) -> Cells:
    """The bad blocks of the first of these rows, one row or more."""
    size = CODECS[view.qtype].block_weights
    rows = rows[:EXAMINED_ROWS]
    found, expected = rows_at(view.found, rows), rows_at(view.expected, rows)
    if size == 1:
        level = np.sqrt(np.mean(expected.astype(np.float64) ** 2, axis=1, keepdims=True))
        bad = ~(np.abs(found - expected) <= EXACT_TOLERANCE * np.maximum(level, np.abs(expected)))
    else:
        bad = bad_cells(view.qtype, found, expected, size)
    row, cell = np.nonzero(bad)
    peaks = np.abs(expected).max(axis=1)
    return Cells(
        size,
        rows[row],
        cell * size,
        found.reshape(len(rows), -1, size)[row, cell],
        expected.reshape(len(rows), -1, size)[row, cell],
        peaks[row],
    )


def damage(view: TensorView, seen: Scan) -> Damage | None:
    """What is wrong with some rows of a tensor that are no other rows of it.

    None when there are no such rows, or when most of the tensor is wrong: then it is another tensor, not a damaged one.
    """
    if not len(seen.rows):
        return None
    if view.row_count > 1 and len(seen.rows) * seen.share >= DAMAGED_SHARE * view.row_count:
        return None
    cells = bad_blocks(view, seen.rows)
    if not len(cells.rows) or (view.row_count == 1 and cells.found.size > DAMAGED_SHARE_OF_NORM * view.width):
        return None
    return non_finite(cells, seen) or absurd(cells) or blank(view, cells, seen) or overwritten(view, cells, seen)


def non_finite(cells: Cells, seen: Scan) -> Damage | None:
    """Nothing but NaN and infinite weights is wrong."""
    if not seen.first_non_finite or np.isfinite(cells.found).all(axis=1).any():
        return None
    row, column = seen.first_non_finite
    count = f"{seen.non_finite:,} weights are" if seen.non_finite > 1 else "one weight is"
    there = np.flatnonzero((cells.rows == row) & (cells.columns <= column) & (column < cells.columns + cells.size))
    cell = int(there[0]) if len(there) else 0
    value, expected = (
        float(each[cell, (column - cells.columns[cell]) % cells.size]) for each in (cells.found, cells.expected)
    )
    place = f"at row {row}, column {column}"
    first = f"the first {place}" if seen.non_finite > 1 else place
    return Damage("non-finite", f"{count} NaN or infinite, {first}", expected=f"{expected:.6g}", actual=f"{value:.6g}")


def absurd(cells: Cells) -> Damage | None:
    """One weight is far too large, or, where weights stand by themselves, wrong; its block may be spoilt by it."""
    ratios = np.abs(cells.found) / np.maximum(cells.peaks, np.finfo(np.float32).tiny)[:, None]
    if len(np.unique(cells.rows)) > 1 or not np.isfinite(cells.found).all():
        return None
    cell, within = (int(place) for place in np.unravel_index(int(ratios.argmax()), ratios.shape))
    is_absurd = bool(ratios[cell, within] > ABSURD)
    if cells.size == 1 and len(cells.rows) > 1:
        return None
    if is_absurd:
        # One huge weight spoils the others of its block, which no longer have a scale of their own.
        others = np.delete(ratios.reshape(-1), int(ratios.argmax()))
        if others.max(initial=0) * OUTSTANDING > ratios[cell, within]:
            return None
    elif cells.size > 1:
        return None
    first, last = int(cells.columns[0]), int(cells.columns[-1]) + cells.size - 1
    if last - first >= max(PIECE, cells.size):
        return None
    value, expected = float(cells.found[cell, within]), float(cells.expected[cell, within])
    row, column = int(cells.rows[cell]), int(cells.columns[cell]) + within
    place = f"{value:.6g} at row {row}, column {column}, where the source has {expected:.6g}"
    code, kind = ("absurd-value", "one weight is absurd") if is_absurd else ("single-value", "one weight is wrong")
    return Damage(code, f"{kind}: {place}", expected=f"{expected:.6g}", actual=f"{value:.6g}")


def blank(view: TensorView, cells: Cells, seen: Scan) -> Damage | None:
    """Zeros, or one value, in the place of weights."""
    if not (np.isfinite(cells.found).all() and (cells.found == cells.found.flat[0]).all()):
        return None
    value = float(cells.found.flat[0])
    what = "zero" if value == 0 else f"{value:.6g}"
    places, many = place_in_words(view, cells, seen)
    code = "zeroed" if value == 0 else "constant"
    return Damage(code, f"{places} {'are' if many else 'is'} {what}", actual=what)


def overwritten(view: TensorView, cells: Cells, seen: Scan) -> Damage:
    """Other values, wherever they come from: the range of bytes is what a user can look at."""
    places, many = place_in_words(view, cells, seen)
    odd = int((~np.isfinite(cells.found)).sum())
    noted = f", {odd:,} of them NaN or infinite" if odd else ""
    ranges = byte_ranges(view, cells)
    if not ranges or len(seen.rows) > EXAMINED_ROWS:
        return Damage("corrupt-bytes", f"{places} {'hold' if many else 'holds'} other values{noted}")
    first, last = ranges[0]
    where = f"bytes {first:,} to {last:,} of the file"
    if len(ranges) > 1:
        where = f"{len(ranges)} places between bytes {first:,} and {ranges[-1][1]:,} of the file"
    return Damage("corrupt-bytes", f"{places} {'hold' if many else 'holds'} other values{noted}: {where}", actual=where)


def place_in_words(view: TensorView, cells: Cells, seen: Scan) -> tuple[str, bool]:
    """Where the cells are, and whether that is a plural."""
    rows = np.unique(cells.rows)
    first, last = int(rows[0]), int(rows[-1])
    per_row = view.width // cells.size
    if len(seen.rows) > EXAMINED_ROWS:
        return f"parts of {len(seen.rows):,} rows between {seen.rows[0]} and {seen.rows[-1]}", True
    if len(rows) > 1 and last - first < len(rows):
        return f"rows {first} to {last}", True
    if len(cells.rows) == len(rows) * per_row:
        return ("all weights", True) if view.row_count == 1 else rows_in_words(rows)
    if len(rows) == 1:
        start, end = int(cells.columns[0]), int(cells.columns[-1]) + cells.size - 1
        columns = f"columns {start} to {end}" if end > start else f"column {start}"
        return columns if view.row_count == 1 else f"{columns} of row {first}", end > start
    blocks = f"blocks of {cells.size} weights" if cells.size > 1 else "weights"
    return f"{len(cells.rows):,} {blocks} between rows {first} and {last}", True


def rows_in_words(rows: Indices) -> tuple[str, bool]:
    """Whole rows that are apart, or one, and whether that is a plural."""
    if len(rows) == 1:
        return f"row {rows[0]}", False
    return f"{len(rows):,} rows between {rows[0]} and {rows[-1]}", True


def byte_ranges(view: TensorView, cells: Cells) -> list[tuple[int, int]]:
    """First and last byte of each unbroken run of blocks, counted from the start of the file; none in memory.

    One good block, or a few good weights, between bad ones does not break a run: some random bytes are right.
    """
    stored = view.stored
    if stored is None:
        return []
    tensor, order = stored
    codec = CODECS[tensor.qtype]
    per_row = tensor.shape[-1] // codec.block_weights
    blocks = np.sort(order[cells.rows] * per_row + cells.columns // codec.block_weights)
    gap = 2 if codec.block_weights > 1 else 8
    runs = np.split(blocks, np.flatnonzero(np.diff(blocks) > gap) + 1)
    size = codec.block_bytes
    return [(tensor.offset + int(run[0]) * size, tensor.offset + (int(run[-1]) + 1) * size - 1) for run in runs]
