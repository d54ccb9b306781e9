"""Whether blocks of a quantized tensor were made from given weights, whatever made them.

A block's own scales and minima say which values its codes can stand for: a grid for every weight. An encoder may choose
them as it likes (an importance matrix, another search, another tool), and then takes for each weight the code whose
value is nearest. So errors alone do not tell a good block from a bad one, since one made with an importance matrix may
err a hundred times as much in the mean square; but codes do, for in a good block they are the nearest ones:

    codes off from the nearest ones, measured on 262,144 normal weights     share   by 3 and more   mean distance
    Q2_K to Q6_K, with any importance matrix or none                          0          0             0
    Q8_0, Q4_0 to Q5_1 without importance: scales are rounded last       up to 0.007     0         up to 0.007
    a row's neighbour, codes moved by a byte, random codes       Q2_K    0.69 to 0.75  0.05 to 0.08  1.0 to 1.2
                                                                 Q4_K    0.92 to 0.94  0.6 to 0.7    4.0 to 4.9
                                                                 Q8_0        0.99        0.97        62 to 76
    weights scaled by 1.05 before encoding, all off outward      Q2_K       0.014        0             0.014
                                                                 Q4_K       0.09         0             0.09
                                                                 Q8_0       0.85         0.34          2.1

Q4_0 to Q5_1 with an importance matrix keep the codes of their search instead, and are judged more leniently. Where the
importances of neighbours differ by a factor of 10,000,000, ggml's Q4_1 and Q5_1 lose blocks altogether: these are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant import CODECS, decode, encode

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# A block is looked at only when its error is more than this many times (in squares) what phi4conv's encoder leaves.
# Codes that tools change by one to suit activations, even all of them at random, double it.
NOTABLE = 2.0

# Beyond this, an error that no importance explains. For tensors whose bytes cannot be seen, and lenient types.
GROSS = 12.0

# Relative to the weights, in squares: far below what float32 arithmetic can tell.
NEGLIGIBLE = 1e-12

# Of a block's codes: how far off any of them may be, how many so far, and all on the average. Tools that adjust codes
# change some of them by one, and that may add to one that was off before.
MOST_OFF = 2
MOST_OFF_SHARE, FEW = 0.02, 2
MEAN_OFF = 0.5

# Codes off in one direction alone (up, or away from zero) are no rounding: so large a part of those that are off, and
# so many times the root of their number, which is how far chance would go.
ONE_SIDED = 0.8
BEYOND_CHANCE = 5.0

# Nor are codes that make the error so many times (in squares) what the nearest ones would leave, and so many times what
# the type leaves of normal weights.
NEEDLESS, TYPICAL = 8.0, 4.0
NEARLY_ALL = 0.9

# Blocks correlated less with their weights are not made from them, if they err more than importance explains.
UNLIKE = 0.5

# A block is gone when it has less than this of the weights' energy, or of their spread.
GONE = 0.01

# A group of a block is gone when its scale is zero and most of its energy lost, though its weights, but for so many at
# either end (an importance matrix may give up outliers), need steps of at least this share of the block's largest. That
# is more than two units of any type's scales. Where a few columns matter more than all others together, or weights are
# far from zero in Q2_K, ggml does it to a group or two; so many weights in the same block are damage.
ENDS = 1 / 8
NEEDED_STEP = 0.15
LOST_WEIGHTS = 48

# The least positive float16: scales below half of it become zero.
F16_STEP = 2.0**-24


@dataclass(frozen=True)
class Codes:
    """Where a type's blocks hold codes.

    Attributes:
        start: The first byte of the codes.
        stop: The byte behind them.
        levels: How many values a code has.
        multiple: The most that a weight is of its block's float16 scale.
        error: Relative error on normal weights, root mean square.
        low, high: The bytes that, repeated, make every code its lowest and its highest.
        nearest: Whether ggml always takes the nearest code.
        group: How many weights share a scale.
    """

    start: int
    stop: int
    levels: int
    multiple: int
    error: float
    low: int = 0x00
    high: int = 0xFF
    nearest: bool = True
    group: int = 32


TYPE = GGMLQuantizationType
CODES: Mapping[GGMLQuantizationType, Codes] = {
    TYPE.Q2_K: Codes(16, 80, 4, 15 * 3, 0.297, group=16),
    TYPE.Q3_K: Codes(0, 96, 8, 32 * 4, 0.151, group=16),
    TYPE.Q4_K: Codes(16, 144, 16, 63 * 15, 0.0715),
    TYPE.Q5_K: Codes(16, 176, 32, 63 * 31, 0.0362),
    TYPE.Q6_K: Codes(0, 192, 64, 128 * 32, 0.0178, group=16),
    TYPE.Q8_0: Codes(2, 34, 256, 127, 0.00536, low=0x80, high=0x7F),
    TYPE.Q4_0: Codes(2, 18, 16, 8, 0.0861, nearest=False),
    TYPE.Q4_1: Codes(4, 20, 16, 15, 0.0783, nearest=False),
    TYPE.Q5_0: Codes(2, 22, 32, 16, 0.0428, nearest=False),
    TYPE.Q5_1: Codes(4, 24, 32, 31, 0.0379, nearest=False),
}


@dataclass(frozen=True)
class Judgement:
    """Rows of a tensor held against the weights that they should have been made from, block by block.

    All but identical are (rows, blocks). The block is the type's.

    Attributes:
        suspect: Blocks that were not made from these weights.
        finite: Blocks whose weights are finite in the file; the figures of others are zero.
        noise, own_noise: Sums of the squared errors, in the file and in phi4conv's own encoding.
        signal: Sums of the squared weights.
        peak: The largest magnitudes.
        product, own_product: Sums of found times expected weights.
        moved, own_moved: How many codes are not the nearest; zero where the bytes cannot be seen.
        outward: How many of the file's are moved away from zero, less those moved towards it.
        identical: Whether a row's bytes are those of phi4conv's own encoding, (rows,); None where they are not seen.
    """

    suspect: Flags
    finite: Flags
    noise: Doubles
    own_noise: Doubles
    signal: Doubles
    peak: Doubles
    product: Doubles
    own_product: Doubles
    moved: Doubles
    own_moved: Doubles
    outward: Doubles
    identical: Flags | None

    def __add__(self, below: Judgement) -> Judgement:
        """The judgement of these rows and those below."""
        both = {
            field.name: np.concatenate([getattr(self, field.name), getattr(below, field.name)])
            for field in fields(self)
            if field.name != "identical"
        }
        one, other = self.identical, below.identical
        return Judgement(**both, identical=None if one is None or other is None else np.concatenate([one, other]))


def judge(qtype: GGMLQuantizationType, found: Floats, data: Bytes | None, expected: Floats) -> Judgement:
    """Hold rows of a file against weights.

    Args:
        qtype: A type of CODES.
        found: The rows decoded, float32 (rows, width).
        data: The same rows as they are in the file, uint8 (rows, row bytes), if these can be had.
        expected: The weights, float32 (rows, width), all finite and within the type's range.

    Raises:
        ValueError: The encoder refuses the weights.
    """
    codec, codes = CODECS[qtype], CODES[qtype]
    own_data = encode(codec, expected)
    # Damaged scales may be infinite or NaN: these blocks are told of elsewhere.
    with np.errstate(all="ignore"):
        weights = by_block(expected, codec.block_weights)
        values = by_block(found, codec.block_weights)
        own_values = by_block(decode(codec, own_data), codec.block_weights)
        finite: Flags = np.asarray(np.isfinite(values).all(axis=-1))
        values[~finite] = weights[~finite]
        signal, energy = products(weights, weights), products(values, values)
        noise, own_noise = squares(values - weights), squares(own_values - weights)
        peak, extent = np.abs(weights).max(axis=-1), np.ptp(weights, axis=-1)
        # Where float16 cannot hold the scale, nothing is left by good encoders, either.
        least = codes.multiple * F16_STEP
        variance = spread(weights)
        gone = (energy < GONE * signal) & (own_noise < 0.5 * signal) & (peak >= least)
        gone |= (spread(values) < GONE * variance) & (own_noise < 0.5 * variance) & (extent >= least)
        if data is None:
            suspect = gone | is_gross(noise, own_noise, variance)
            moves = own_moves = np.zeros(weights.shape)
        else:
            moves, steps = moved_codes(qtype, values, data, weights)
            own_moves, own_steps = moved_codes(qtype, own_values, own_data, weights)
            lost = lost_weights(qtype, steps, values, weights) - lost_weights(qtype, own_steps, own_values, weights)
            gone |= (lost >= LOST_WEIGHTS) & (extent >= least)
            notable = noise > NOTABLE * own_noise + NEGLIGIBLE * signal
            if codes.nearest:
                nearest_noise = squares(values - moves * steps - weights)
                wrong = inconsistent(moves, weights)
                wrong |= (noise > NEEDLESS * nearest_noise) & (noise > TYPICAL * codes.error**2 * signal)
            else:
                unlike = (noise > variance) | (correlation(values, weights) < UNLIKE)
                wrong = (is_far(moves) & is_gross(noise, own_noise, variance) & unlike) | all_one_way(moves)
            suspect = gone | (notable & wrong)
        return Judgement(
            suspect=suspect & finite,
            finite=finite,
            noise=noise,
            own_noise=np.where(finite, own_noise, 0),
            signal=np.where(finite, signal, 0),
            peak=peak,
            product=np.where(finite, products(values, weights), 0),
            own_product=np.where(finite, products(own_values, weights), 0),
            moved=np.where(finite, count(moves != 0), 0),
            own_moved=np.where(finite, count(own_moves != 0), 0),
            outward=np.where(finite, outwards(moves, weights), 0),
            identical=None if data is None else (data == own_data).all(axis=1),
        )


def moved_codes(qtype: GGMLQuantizationType, values: Doubles, data: Bytes, weights: Doubles) -> tuple[Doubles, Doubles]:
    """How many steps each value is above the nearest one to its weight, and the steps, zero or positive.

    values, weights: float64 (rows, blocks, block). Where all codes mean the same value no value is off.
    """
    codec, codes = CODECS[qtype], CODES[qtype]
    ends = []
    for fill in (codes.low, codes.high):
        filled = data.copy().reshape(-1, codec.block_bytes)
        filled[:, codes.start : codes.stop] = fill
        ends.append(by_block(decode(codec, filled.reshape(data.shape)), codec.block_weights))
    step = (ends[1] - ends[0]) / (codes.levels - 1)
    usable = np.isfinite(step) & (step != 0) & np.isfinite(ends[0])
    nearest = np.clip(np.rint((weights - ends[0]) / step), 0, codes.levels - 1)
    code = np.rint((values - ends[0]) / step)
    return np.where(usable, (code - nearest) * np.sign(step), 0.0), np.where(usable, np.abs(step), 0.0)


def lost_weights(qtype: GGMLQuantizationType, steps: Doubles, values: Doubles, weights: Doubles) -> Doubles:
    """How many weights of each block are in groups that are gone: all (rows, blocks, block) -> (rows, blocks)."""
    codes = CODES[qtype]
    shape = (*weights.shape[:2], -1, codes.group)
    values, weights = values.reshape(shape), np.sort(weights.reshape(shape))
    constant = steps.reshape(shape).max(axis=-1) == 0  # (rows, blocks, groups)
    # All values of such a group are alike, so that the order of the weights does not matter.
    lost = np.square(values - weights).sum(axis=-1) > 0.5 * np.square(weights).sum(axis=-1)
    cut = int(ENDS * codes.group)
    lowest, highest = np.minimum(weights[..., cut], 0), np.maximum(weights[..., -1 - cut], 0)
    largest = steps.max(axis=-1, keepdims=True)
    needed = (highest - lowest) / (codes.levels - 1) > NEEDED_STEP * largest
    return codes.group * count(constant & lost & needed & (largest > 0))


def inconsistent(moves: Doubles, weights: Doubles) -> Flags:
    """Which blocks have codes that are not these weights': both (rows, blocks, block) -> (rows, blocks)."""
    moved = count(moves != 0)
    one_way = np.maximum(np.abs(np.sign(moves).sum(axis=-1)), np.abs(outwards(moves, weights)))
    flags: Flags = is_far(moves) | (one_way > np.maximum(ONE_SIDED * moved, BEYOND_CHANCE * np.sqrt(moved)))
    return flags


def all_one_way(moves: Doubles) -> Flags:
    """Which blocks have nearly all their codes above the nearest ones, or below."""
    flags: Flags = np.abs(np.sign(moves).sum(axis=-1)) >= NEARLY_ALL * moves.shape[-1]
    return flags


def is_far(moves: Doubles) -> Flags:
    """Which blocks have a code that is far from the nearest one, or too many that are not the nearest."""
    distance = np.abs(moves)
    far: Flags = (distance.max(axis=-1) > MOST_OFF) | (distance.mean(axis=-1) > MEAN_OFF)
    far |= count(distance >= MOST_OFF) > max(FEW, MOST_OFF_SHARE * moves.shape[-1])
    return far


def is_gross(noise: Doubles, own_noise: Doubles, variance: Doubles) -> Flags:
    """Which blocks err more than importance explains, and a quarter as much as random weights of the kind would."""
    flags: Flags = (noise > GROSS * own_noise) & (noise > 0.5 * variance)
    return flags


def correlation(values: Doubles, weights: Doubles) -> Doubles:
    """Of the values and the weights of each block; NaN where one of them does not vary."""
    values = values - values.mean(axis=-1, keepdims=True)
    weights = weights - weights.mean(axis=-1, keepdims=True)
    return products(values, weights) / np.sqrt(squares(values) * squares(weights))


def outwards(moves: Doubles, weights: Doubles) -> Doubles:
    """How many codes are moved away from zero, less those moved towards it."""
    sums: Doubles = (np.sign(moves) * np.sign(weights)).sum(axis=-1)
    return sums


def by_block(rows: Floats, block: int) -> Doubles:
    """float32 (rows, width) -> float64 (rows, blocks, block)."""
    return rows.reshape(len(rows), -1, block).astype(np.float64)


def products(left: Doubles, right: Doubles) -> Doubles:
    """Sums of products along the last axis."""
    sums: Doubles = np.einsum("ijk,ijk->ij", left, right)
    return sums


def squares(values: Doubles) -> Doubles:
    """Sums of squares along the last axis."""
    return products(values, values)


def spread(values: Doubles) -> Doubles:
    """Sums of the squared distances from the block's mean."""
    return squares(values - values.mean(axis=-1, keepdims=True))


def count(flags: Flags) -> Doubles:
    """How many are set along the last axis."""
    numbers: Doubles = flags.sum(axis=-1).astype(np.float64)
    return numbers
