"""The streaming pass over a tensor: sums of its errors, and marks for every block, in a few nanoseconds a weight.

Sums are float32 within a block of at most 256 weights and float64 beyond, always in the same order, so that they do
not depend on threads. Blocks whose float32 sums could overflow or vanish are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Floats
from phi4conv.quant import CODECS, decode, encode
from phi4conv.reference.code_grid import CODES, F16_STEP, Doubles, Flags
from phi4conv.rows import RowSource

TYPE = GGMLQuantizationType

# Types whose weights stand for themselves.
FLOAT_TYPES = (TYPE.F32, TYPE.F16, TYPE.BF16)

# Weights a chunk, 2 MB as float32: arrays of 4 MB are given back to the system each time, and getting them anew takes
# as long as all the rest. And a tile, which with its twin and the difference fits into a core's cache.
CHUNK_WEIGHTS = 1 << 19
TILE_WEIGHTS = 1 << 16

# Between these magnitudes squares, and sums of 256 of them, are well within float32.
SMALL, LARGE = 1e-15, 1e15

# The spacing of a type's numbers relative to their magnitude: rounding errs by less, whichever way it goes.
SPACING = {TYPE.F32: 2.0**-23, TYPE.F16: 2.0**-10, TYPE.BF16: 2.0**-7}

# Below it, numbers of float16 are F16_STEP apart.
F16_LEAST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class Place:
    """A weight in a part, counted from 0."""

    row: int
    column: int


@dataclass(frozen=True)
class Sums:
    """Sums over the weights that are finite on both sides.

    Attributes:
        weights: How many there are.
        noise: Of the squared errors.
        signal: Of the squared weights expected.
        energy: Of the squared weights found.
        drift: Of error times weight expected.
        largest: The largest magnitude of an error; where it is, unless there is none.
        non_finite: How many weights of the file are not finite, and are in the source; where the first is.
    """

    weights: int = 0
    noise: float = 0.0
    signal: float = 0.0
    energy: float = 0.0
    drift: float = 0.0
    largest: float = 0.0
    largest_at: Place | None = None
    non_finite: int = 0
    first_non_finite: Place | None = None

    def __add__(self, later: Sums) -> Sums:
        """The sums over both; later lies behind in the tensor."""
        larger = later.largest > self.largest
        return Sums(
            weights=self.weights + later.weights,
            noise=self.noise + later.noise,
            signal=self.signal + later.signal,
            energy=self.energy + later.energy,
            drift=self.drift + later.drift,
            largest=later.largest if larger else self.largest,
            largest_at=later.largest_at if larger else self.largest_at,
            non_finite=self.non_finite + later.non_finite,
            first_non_finite=self.first_non_finite or later.first_non_finite,
        )


@dataclass(frozen=True)
class Screen:
    """A tensor, or a chunk of its rows, as its blocks look.

    Attributes:
        sums: See Sums.
        marks: float32 (2, rows, blocks). Of quantized types: squared error over the squared largest weight, and squared
            error over the squared weights; where the type's own blocks are smaller, those of the worst one. Of float
            types: how many weights are beyond rounding, and how many are not zero on both sides.
        broken: bool (rows, blocks): the file has a weight that is not finite, and is in the source.
        rounded: A weight is another than its type makes of it. Float types only.
    """

    sums: Sums
    marks: Floats
    broken: Flags
    rounded: bool


def joined(screens: Sequence[Screen]) -> Screen:
    """The screen of a whole tensor from those of its chunks, in order."""
    return Screen(
        sums=sum((screen.sums for screen in screens), Sums()),
        marks=np.concatenate([screen.marks for screen in screens], axis=1),
        broken=np.concatenate([screen.broken for screen in screens]),
        rounded=any(screen.rounded for screen in screens),
    )


def row_steps(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Rows in steps of about CHUNK_WEIGHTS weights, each as start and stop."""
    step = max(1, CHUNK_WEIGHTS // width)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def block_width(width: int) -> int:
    """How many weights are marked together: 256, or 32, or a row.

    >>> block_width(5120), block_width(96), block_width(100)
    (256, 32, 100)
    """
    return next((size for size in (256, 32) if width % size == 0), width)


def screen_rows(found: RowSource, expected: RowSource, qtype: TYPE, start: int, stop: int) -> Screen:
    """Screen rows start to stop of a part; the places are the part's.

    Raises:
        FormatError, CheckpointError: A file cannot be read, or its type not be decoded.
    """
    width = expected.shape[-1]
    marked = block_width(width)
    block = min(marked, CODECS[qtype].block_weights) if qtype in CODES else marked
    values = np.ascontiguousarray(found.rows(start, stop)).reshape(-1, block)
    weights = np.ascontiguousarray(expected.rows(start, stop)).reshape(-1, block)
    height = max(1, TILE_WEIGHTS // block)
    # What is damaged overflows, or is NaN, and is told as such.
    tiles: list[Screen] = []
    with np.errstate(all="ignore"):
        for first in range(0, len(weights), height):
            pair = values[first : first + height], weights[first : first + height]
            largest = max((tile.sums.largest for tile in tiles), default=0.0)
            place = start * width + first * block
            tiles.append(screen_tile(*pair, qtype, first=place, width=width, largest_before=largest))
    whole = joined(tiles)
    shape = (stop - start, width // marked, marked // block)
    marks = whole.marks.reshape(2, *shape).max(axis=-1)
    broken = np.asarray(whole.broken.reshape(shape).any(axis=-1))
    return Screen(whole.sums, marks, broken, whole.rounded)


def screen_tile(
    values: Floats, weights: Floats, qtype: TYPE, *, first: int, width: int, largest_before: float
) -> Screen:
    """Screen float32 (blocks, block); the first weight is that number in the part, whose rows have width weights.

    Errors that are not larger than the largest one before are not looked for.
    """
    difference = values - weights
    noise, signal, energy, drift = (
        products(*pair).astype(np.float64)
        for pair in ((difference, difference), (weights, weights), (values, values), (difference, weights))
    )
    peak = np.maximum(weights.max(axis=1), -weights.min(axis=1))
    count, non_finite, first_non_finite = weights.size, 0, None
    broken = np.zeros(len(weights), np.bool_)
    tame = (peak < LARGE) & (energy < LARGE**2) & ((peak > SMALL) | ((peak == 0) & (energy == 0)))
    if not tame.all():
        odd = np.flatnonzero(~tame)
        exact_values, exact_weights = values[odd].astype(np.float64), weights[odd].astype(np.float64)
        bad = ~np.isfinite(exact_values) & np.isfinite(exact_weights)
        usable = np.isfinite(exact_values) & np.isfinite(exact_weights)
        exact_values, exact_weights = np.where(usable, exact_values, 0), np.where(usable, exact_weights, 0)
        exact = exact_values - exact_weights
        difference[odd] = exact
        noise[odd], signal[odd] = products(exact, exact), products(exact_weights, exact_weights)
        energy[odd], drift[odd] = products(exact_values, exact_values), products(exact, exact_weights)
        peak[odd] = np.abs(exact_weights).max(axis=1)
        broken[odd] = bad.any(axis=1)
        count -= int(np.count_nonzero(~usable))
        non_finite = int(np.count_nonzero(bad))
        if non_finite:
            block, column = map(int, np.argwhere(bad)[0])
            first_non_finite = as_place(first + int(odd[block]) * values.shape[1] + column, width)
    largest = max(float(difference.max()), -float(difference.min()))
    exact_fit = largest == 0
    largest_at = None
    if largest > largest_before:
        largest_at = as_place(first + int(np.abs(difference).argmax()), width)
    sums = Sums(
        weights=count,
        noise=float(noise.sum()),
        signal=float(signal.sum()),
        energy=float(energy.sum()),
        drift=float(drift.sum()),
        largest=largest if largest_at else 0.0,
        largest_at=largest_at,
        non_finite=non_finite,
        first_non_finite=first_non_finite,
    )
    marks = np.zeros((2, len(weights)), np.float32)
    if qtype in FLOAT_TYPES:
        rounded = not exact_fit and not is_encoding(values, weights, qtype)
        if rounded:
            marks[0] = np.count_nonzero(beyond_rounding(values, weights, qtype), axis=1)
        marks[1] = np.count_nonzero((values != 0) | (weights != 0), axis=1) if rounded else weights.shape[1]
        return Screen(sums, marks, broken, rounded)
    marks[0] = quotient(noise, np.square(peak.astype(np.float64)))
    marks[1] = quotient(noise, signal)
    # What is left of weights too small for the type's scale says nothing, as long as it is small, too.
    least = CODES[qtype].multiple * F16_STEP if qtype in CODES else 0.0
    marks[:, (peak < least) & (marks[1] < 4)] = 0
    return Screen(sums, marks, broken, rounded=False)


def products(left: Floats | Doubles, right: Floats | Doubles) -> Doubles:
    """The sums of products along the last axis: (blocks, block) twice -> (blocks,)."""
    sums: Doubles = np.einsum("ij,ij->i", left, right)
    return sums


def quotient(part: Doubles, whole: Doubles) -> Doubles:
    """Part over whole; of a whole that is zero 0 where the part is, too, else infinity."""
    return np.divide(part, whole, out=np.where(part > 0, np.inf, 0.0), where=whole > 0)


def as_place(number: int, width: int) -> Place:
    """The place of the weight of that number."""
    return Place(*divmod(number, width))


def is_encoding(values: Floats, weights: Floats, qtype: TYPE) -> bool:
    """Whether values are exactly what a float type makes of the weights."""
    codec = CODECS[qtype]
    return np.array_equal(decode(codec, encode(codec, weights)), values, equal_nan=True)


def beyond_rounding(values: Floats, weights: Floats, qtype: TYPE) -> Flags:
    """Weights that rounding does not explain: neither to the type, up or down, nor through BF16 or F16 on the way.

    Weights that are not finite on either side are left out.
    """
    error, magnitude = np.abs(values - weights), np.abs(weights)
    explained = error <= SPACING[qtype] * magnitude
    on_bf16 = values.view(np.uint32) & 0xFFFF == 0
    explained |= on_bf16 & (error <= SPACING[TYPE.BF16] * magnitude)
    on_f16 = values.astype(np.float16).astype(np.float32) == values
    explained |= on_f16 & (error <= SPACING[TYPE.F16] * magnitude + F16_STEP)
    # Rounded to BF16 and then to a float16 that is not normal, a weight is on neither grid.
    through_both = on_f16 & (magnitude < F16_LEAST_NORMAL)
    explained |= through_both & (error <= SPACING[TYPE.BF16] * magnitude + F16_STEP)
    beyond: Flags = ~explained & np.isfinite(values) & np.isfinite(weights)
    return beyond
