"""Where a part of a file does not hold the source's weights: the blocks that stand out are read again and judged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes
from phi4conv.gguf_file.rows import GGUFRows
from phi4conv.quant import CODECS, decode, encode
from phi4conv.reference.code_grid import CODES, Doubles, Flags, Judgement, judge
from phi4conv.reference.permuted_rows import PermutedRows
from phi4conv.reference.tensor_screen import F16_LEAST_NORMAL, Screen, beyond_rounding, block_width
from phi4conv.rows import RowSource, SlicedRows

TYPE = GGMLQuantizationType
Rows = npt.NDArray[np.int64]

# A block stands out when its error, relative to its largest weight, is beyond what phi4conv's own encoding of the
# sampled rows leaves in any block, with room for what the sample has not met and for importance; or when so much of
# its signal is gone.
ROOM = 1.5
LOST = 0.8

# The least of what an encoding leaves, for weights that the sample's types hold exactly.
LEAST_LIMIT = 1e-6

# Of the blocks that stand out most, so many are judged in any case; and so many rows at most.
ALWAYS_JUDGED = 8
MOST_ROWS = 512

# Weights judged at once: some 20 MB of float64.
JUDGED_WEIGHTS = 1 << 17

# A part corresponds nowhere when this share of the sampled blocks (or of all weights, in float types) does not.
MOST = 0.5

# A part is scaled when its codes are moved away from zero, or towards it, beyond what the encoder's own are, and the
# slope says the same. With importance codes are not moved. Measured at a factor of 1.05: a share of 0.006 to 0.98,
# every one of them outward.
FEWEST_SCALED = 24
SCALED = 0.003
ONE_SIDED = 0.8
SLOPE_OFF = 0.01

# Where the codes cannot be seen: importance changes the slope of Q2_K by 0.09.
SLOPE_OFF_UNSEEN = 0.15

# Of float types: cutting off BF16's lower bits instead of rounding makes weights smaller by 0.003.
SLOPE_OFF_FLOAT = 0.005

# Bad weights of float types with fewer good ones between them are one region.
GAP = 16

# Regions that are listed, and blocks that are looked at to list them.
MOST_REGIONS = 64
MOST_BLOCKS = 4096


@dataclass(frozen=True, order=True)
class Region:
    """A rectangle of a part, both ends included, counted from 0."""

    first_row: int
    last_row: int
    first_column: int
    last_column: int


@dataclass(frozen=True)
class Expectation:
    """What a part's type should give.

    Attributes:
        basis: "encoded" by phi4conv; "typical" of the type, as measured on normal weights; or "none".
        rows: How many rows were encoded.
        rmse: Root mean square of the errors that phi4conv's own encoding of these rows leaves.
        relative: The same over that of the weights.
        slope: The factor by which the weights come nearest to what that encoding holds.
        found_rmse: Root mean square of the file's errors in the same rows.
        identical: Whether the file has the very bytes of that encoding, that is llama.cpp's without an importance
            matrix; None where its bytes cannot be seen.
        moved: The share of the file's codes in these rows that are not the nearest to their weights; None for types
            whose encoder in ggml does not always take those. With an importance matrix, too, it is 0.
    """

    basis: Literal["encoded", "typical", "none"]
    rows: int = 0
    rmse: float = 0.0
    relative: float = 0.0
    slope: float = 1.0
    found_rmse: float = 0.0
    identical: bool | None = None
    moved: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What was found of a part: see PartError."""

    expectation: Expectation
    suspects: tuple[Region, ...] = ()
    suspect_weights: int = 0
    everywhere: bool = False


@dataclass(frozen=True)
class JudgedRows:
    """Rows of a part and what is thought of them."""

    rows: Rows
    judgement: Judgement


Block = tuple[int, int, int]  # row, first and last column


def find_suspects(found: RowSource, expected: RowSource, qtype: TYPE, screen: Screen, sample_rows: int) -> Evidence:
    """Judge some rows of a quantized part, and those that stand out in its screen."""
    width = expected.shape[-1]
    broken = as_blocks(np.arange(len(screen.broken)), screen.broken, block_width(width))
    if qtype not in CODES:
        gone = 0 < LOST * screen.sums.signal < screen.sums.noise
        return Evidence(Expectation("none"), *regions(broken), everywhere=gone)
    sample = judged(found, expected, qtype, spread_rows(len(screen.broken), sample_rows))
    if sample is None:
        return Evidence(Expectation("none"), *regions(broken))
    expectation = expectation_of(sample.judgement, qtype)
    if corresponds_nowhere(sample.judgement, CODECS[qtype].block_weights):
        return Evidence(expectation, *regions([*broken, *suspect_blocks(sample, width)]), everywhere=True)
    strength = strengths(screen, sample.judgement)
    rows = standing_out(screen, strength)
    examined = judged(found, expected, qtype, rows[:MOST_ROWS])
    blocks = [*broken, *suspect_blocks(sample, width), *suspect_blocks(examined, width)]
    if examined and len(rows) > MOST_ROWS and examined.judgement.suspect.any(axis=1).mean() > 0.9:
        # All that stand out most are bad, and there are more than are judged: so the rest is taken to be.
        rest = rows[MOST_ROWS:]
        blocks += as_blocks(rest, strength[rest] > 1, block_width(width))
    return Evidence(expectation, *regions(blocks))


def find_bad_weights(found: RowSource, expected: RowSource, qtype: TYPE, screen: Screen, sample_rows: int) -> Evidence:
    """List the weights of a float type that rounding does not explain, as the screen has counted them."""
    sums, (beyond, compared) = screen.sums, screen.marks
    rows = spread_rows(len(beyond), sample_rows)
    expectation = float_expectation(found, expected, qtype, rows)
    count, width = int(beyond.sum()), expected.shape[-1]
    # Float16 rounds weights below its normal ones by more than a few parts in a thousand.
    telling = sums.signal > F16_LEAST_NORMAL**2 * sums.weights
    scaled = not count and telling and abs(sums.drift / sums.signal) > SLOPE_OFF_FLOAT
    bad = (beyond > 0) | screen.broken
    blocks = []
    for row in np.flatnonzero(bad.any(axis=1))[:MOST_BLOCKS]:
        values, weights = found.rows(row, row + 1), expected.rows(row, row + 1)
        with np.errstate(all="ignore"):
            wrong = beyond_rounding(values, weights, qtype) | (~np.isfinite(values) & np.isfinite(weights))
        blocks += [(int(row), first, last) for first, last in runs(np.flatnonzero(wrong[0]))]
        if len(blocks) > MOST_BLOCKS:
            break
    listed, _ = regions(blocks)
    everywhere = scaled or count > MOST * float(compared.sum())
    return Evidence(expectation, listed, min(count + sums.non_finite, len(beyond) * width), everywhere)


def spread_rows(total: int, count: int) -> Rows:
    """So many rows of total, evenly spread, first and last among them; all of them if there are no more."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def judged(found: RowSource, expected: RowSource, qtype: TYPE, rows: Rows) -> JudgedRows | None:
    """Rows judged; those whose weights the type cannot hold are left out. None when no row is left."""
    step = max(1, JUDGED_WEIGHTS // expected.shape[-1])
    numbers: list[Rows] = []
    judgement: Judgement | None = None
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        weights = np.concatenate([expected.rows(int(row), int(row) + 1) for row in some])
        fit = np.abs(weights).max(axis=1) <= CODECS[qtype].largest  # false for a NaN, too
        some, weights = some[fit], weights[fit]
        if not len(some):
            continue
        stored = stored_rows(found, some)
        if stored is None:
            values = np.concatenate([found.rows(int(row), int(row) + 1) for row in some])
        else:
            values = decode(CODECS[qtype], stored)
        one = judge(qtype, values, stored, weights)
        judgement = one if judgement is None else judgement + one
        numbers.append(some)
    return None if judgement is None else JudgedRows(np.concatenate(numbers), judgement)


def stored_rows(source: RowSource, rows: Rows) -> Bytes | None:
    """Rows as they lie in the file, uint8 (rows, row bytes); None for rows that come from elsewhere."""
    while isinstance(source, (SlicedRows, PermutedRows)):
        rows = rows + source.start if isinstance(source, SlicedRows) else source.places(0, source.shape[0])[rows]
        source = source.whole
    if not isinstance(source, GGUFRows):
        return None
    return np.concatenate([source.stored(int(row), int(row) + 1) for row in rows])


def expectation_of(sample: Judgement, qtype: TYPE) -> Expectation:
    """What the sampled rows, encoded by phi4conv, say of their type."""
    weights = max(1, CODECS[qtype].block_weights * int(sample.finite.sum()))
    moved = max(0.0, float((sample.moved - sample.own_moved).sum())) / weights
    noise, signal = float(sample.own_noise.sum()), float(sample.signal.sum())
    return Expectation(
        "encoded",
        rows=len(sample.suspect),
        rmse=math.sqrt(noise / weights),
        relative=math.sqrt(noise / signal) if signal > 0 else 0.0,
        slope=float(sample.own_product.sum()) / signal if signal > 0 else 1.0,
        found_rmse=math.sqrt(float(sample.noise.sum()) / weights),
        identical=None if sample.identical is None else bool(sample.identical.all()),
        moved=moved if CODES[qtype].nearest and sample.identical is not None else None,
    )


def float_expectation(found: RowSource, expected: RowSource, qtype: TYPE, rows: Rows) -> Expectation:
    """What the sampled rows should be in a float type."""
    codec = CODECS[qtype]
    weights = np.concatenate([expected.rows(int(row), int(row) + 1) for row in rows])
    values = np.concatenate([found.rows(int(row), int(row) + 1) for row in rows])
    with np.errstate(invalid="ignore"):  # a signalling NaN of damaged bytes
        values = values.astype(np.float64)
    own_data = encode(codec, weights)
    own, exact = decode(codec, own_data).astype(np.float64), weights.astype(np.float64)
    finite = np.isfinite(own) & np.isfinite(exact) & np.isfinite(values)
    own, exact, values = own[finite], exact[finite], values[finite]
    count = max(1, len(exact))
    noise, signal = float(np.square(own - exact).sum()), float(np.square(exact).sum())
    stored = stored_rows(found, rows)
    return Expectation(
        "encoded",
        rows=len(rows),
        rmse=math.sqrt(noise / count),
        relative=math.sqrt(noise / signal) if signal > 0 else 0.0,
        slope=float((own * exact).sum()) / signal if signal > 0 else 1.0,
        found_rmse=math.sqrt(float(np.square(values - exact).sum()) / count),
        identical=None if stored is None else bool(np.array_equal(stored, own_data)),
    )


def corresponds_nowhere(sample: Judgement, block: int) -> bool:
    """Whether most of the sampled blocks were made from other weights, or all from these scaled."""
    telling = sample.finite & (sample.signal > 0)
    if telling.any() and float(sample.suspect[telling].mean()) >= MOST:
        return True
    others = telling & ~sample.suspect
    signal = float(sample.signal[others].sum())
    if not signal > 0:
        return False
    off = float((sample.product - sample.own_product)[others].sum()) / signal
    if sample.identical is None:
        return abs(off) > SLOPE_OFF_UNSEEN
    moved, outward = float(sample.moved[others].sum()), float(sample.outward[others].sum())
    return (
        moved - float(sample.own_moved[others].sum()) >= max(FEWEST_SCALED, SCALED * block * int(others.sum()))
        and abs(outward) >= ONE_SIDED * moved
        and abs(off) > SLOPE_OFF
        and off * outward > 0
    )


def strengths(screen: Screen, sample: Judgement) -> Doubles:
    """How much every block stands out, (rows, blocks); one beyond 1 is to be judged."""
    by_peak, by_signal = (np.where(screen.broken, 0.0, mark.astype(np.float64)) for mark in screen.marks)
    natural = np.divide(
        sample.own_noise, np.square(sample.peak), out=np.zeros_like(sample.peak), where=sample.peak > 0
    )  # fmt: skip
    strength: Doubles = np.maximum(by_peak / max(ROOM * float(natural.max()), LEAST_LIMIT), by_signal / LOST)
    return strength


def standing_out(screen: Screen, strength: Doubles) -> Rows:
    """The rows with blocks that stand out, the strongest first; and those of the highest marks in any case."""
    most = strength.max(axis=1)
    order = np.argsort(-most, kind="stable")
    always = [
        np.argsort(-np.where(screen.broken, 0, mark).max(axis=1), kind="stable")[:ALWAYS_JUDGED]
        for mark in screen.marks
    ]
    rows = dict.fromkeys(int(row) for row in (*np.concatenate(always), *order[: np.count_nonzero(most > 1)]))
    return np.array(list(rows), np.int64)


def suspect_blocks(judged_rows: JudgedRows | None, width: int) -> list[Block]:
    """The blocks that are suspect, by the type's own size."""
    if judged_rows is None:
        return []
    suspect = judged_rows.judgement.suspect
    return as_blocks(judged_rows.rows, suspect, width // suspect.shape[1])


def as_blocks(rows: Rows, flags: Flags, block: int) -> list[Block]:
    """The blocks of some rows that are flagged: flags (rows, blocks)."""
    places = np.argwhere(flags)[:MOST_BLOCKS]
    return [(int(rows[row]), int(column) * block, (int(column) + 1) * block - 1) for row, column in places]


def runs(columns: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending columns as runs, first and last; small gaps do not count.

    >>> runs(np.array([3, 4, 6, 100]))
    [(3, 6), (100, 100)]
    """
    if not len(columns):
        return []
    ends = np.flatnonzero(np.diff(columns) > GAP)
    firsts, lasts = columns[np.append(0, ends + 1)], columns[np.append(ends, len(columns) - 1)]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def regions(blocks: Iterable[Block]) -> tuple[tuple[Region, ...], int]:
    """Blocks as the fewest rectangles, in order; MOST_REGIONS of them at most. And how many weights they all hold.

    >>> regions([(7, 256, 511), (7, 0, 255), (8, 0, 511)])
    ((Region(first_row=7, last_row=8, first_column=0, last_column=511),), 1024)
    """
    spans: list[Block] = []
    for row, first, last in sorted(set(blocks)):
        if spans and spans[-1][0] == row and first <= spans[-1][2] + 1:
            spans[-1] = (row, spans[-1][1], max(last, spans[-1][2]))
        else:
            spans.append((row, first, last))
    open_regions: dict[tuple[int, int], Region] = {}
    closed: list[Region] = []
    for row, first, last in spans:
        above = open_regions.get((first, last))
        if above and above.last_row == row - 1:
            open_regions[first, last] = replace(above, last_row=row)
        else:
            if above:
                closed.append(above)
            open_regions[first, last] = Region(row, row, first, last)
    listed = sorted([*closed, *open_regions.values()])
    return tuple(listed[:MOST_REGIONS]), sum(last - first + 1 for _, first, last in spans)
