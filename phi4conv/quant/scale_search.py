"""The searches for a group's scale that the K-quants share, all groups of a tile at once.

A group of weights x becomes small integer codes and a scale, or a scale and a minimum, so that x is about
scale * code (+ minimum). ggml tries about twenty step widths, rounds the weights with each, fits the scale to
the codes by weighted least squares and keeps the best. What is kept of the best here is its step width, not its
codes: the codes of the file are computed anew from the scale as it is stored, and only where that is zero do the
searched ones stay.

    fit_scale_and_min     ggml's make_qkx2_quants and make_qkx3_quants, for Q2_K, Q4_K and Q5_K
    fit_scale             make_qx_quants, for Q6_K, and for Q3_K with an importance matrix

The two searches that move one code after another are in sweeps.py. Groups are the columns of float32 arrays
(n, columns), for reasons told in tiles.py: sums run from the first element to the last, products associate from
left to right, and a division is a division. All of it is in ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.quant.tiles import (
    SUPERBLOCK,
    Bools,
    Groups,
    nearest_int,
    round_codes,
    sum_in_order,
    to_columns,
    within_rounding_limit,
    wrapped_to_byte,
)

# Groups whose largest magnitude is below this are taken for zero (GROUP_MAX_EPS).
NEGLIGIBLE = np.float32(1e-15)

TENTH = np.float32(0.1)


@dataclass(frozen=True)
class Steps:
    """The step widths that fit_scale_and_min tries: the range divided by largest + first + spacing * k.

    Attributes:
        first: rmin in ggml.
        spacing: rdelta.
        count: nstep + 1, for ggml tries nstep itself too.
    """

    first: float
    spacing: float
    count: int

    def divisors(self, largest: int) -> list[np.float32]:
        """Each candidate's number of steps in the range, computed in float32 as in C."""
        first, spacing, top = np.float32(self.first), np.float32(self.spacing), np.float32(largest)
        return [first + spacing * np.float32(k) + top for k in range(self.count)]


# What the types with a minimum try when an importance matrix is given.
STEPS_WITH_IMPORTANCE = Steps(first=-0.9, spacing=0.05, count=37)


@dataclass(frozen=True)
class ScaleAndMin:
    """What fit_scale_and_min found for each column; all float32 (columns,).

    Attributes:
        scale: A weight is about scale * code - minimum.
        minimum: Never negative, up to rounding.
        inverse: With offset, what gives the codes: (x - offset) * inverse.
        offset: The minimum that the codes were rounded with, in the sign of the weights. The fit that followed
            may have moved minimum away from it.
    """

    scale: Floats
    minimum: Floats
    inverse: Floats
    offset: Floats

    def final_codes(self, groups: Groups, d: Floats, dmin: Floats, largest: int) -> Floats:
        """Codes 0..largest for the scale and minimum that a reader sees of each column: float32 (n, columns)."""
        unscaled = d == 0
        divisor = np.where(unscaled, np.float32(1), d)
        codes = groups.x + dmin
        codes /= divisor
        round_codes(codes, 0, largest, by_rint=within_rounding_limit(np.divide(groups.bounds + dmin, divisor)))
        if unscaled.any():
            # With d zero every code decodes to -dmin. ggml leaves the codes of the search, and they are the bytes.
            rest = groups.pick(unscaled)
            codes[:, unscaled] = codes_above(
                rest, self.offset[unscaled], self.inverse[unscaled], largest, np.empty_like(rest.x)
            )
        return codes


def codes_above(groups: Groups, minimum: Floats, inverse: Floats, largest: int, out: Floats) -> Floats:
    """Codes 0..largest of (x - minimum) * inverse, into out: float32 (n, columns)."""
    np.subtract(groups.x, minimum, out=out)
    out *= inverse
    return round_codes(out, 0, largest, by_rint=within_rounding_limit((groups.bounds - minimum) * inverse))


def fit_scale_and_min(
    groups: Groups, weights: Floats, sum_w: Floats, largest: int, steps: Steps, *, absolute: bool = False
) -> ScaleAndMin:
    """Find a scale and a minimum for codes 0..largest, as make_qkx2_quants and make_qkx3_quants do.

    Args:
        groups: The weights of the model, columns of n.
        weights: How much each matters, float32 (n, columns).
        sum_w: Their sums in order, float32 (columns,).
        largest: The largest code.
        steps: The step widths to try.
        absolute: Whether the error is the sum of |difference| in place of its square.
    """
    x = groups.x
    sum_x = sum_in_order(weights * x)
    lowest, highest = groups.bounds
    minimum = np.minimum(lowest, np.float32(0))
    # Columns of one value, zero or negative, have no range: scale 0, codes 0. With some range above it, their
    # codes come out as 0 below, and no candidate wins because the determinant is 0.
    flat = highest == minimum
    highest = np.where(flat, np.float32(1), highest)

    codes, terms = np.empty_like(x), np.empty_like(x)
    inverse, offset = np.float32(largest) / (highest - minimum), minimum.copy()
    scale = np.float32(1) / inverse
    codes_above(groups, minimum, inverse, largest, codes)
    best_error = weighted_error(x, codes, scale, minimum, weights, absolute=absolute, terms=terms)

    for divisor in steps.divisors(largest):
        # The range is measured from the best minimum so far, so a candidate depends on those that won before.
        tried = divisor / (highest - minimum)
        codes_above(groups, minimum, tried, largest, codes)
        weighted = np.multiply(weights, codes, out=terms)
        sum_l = sum_in_order(weighted)
        sum_l2 = sum_in_order(weighted * codes)
        weighted *= x
        sum_xl = sum_in_order(weighted)

        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale: Floats = np.divide(sum_w * sum_xl - sum_x * sum_l, determinant)
        new_minimum: Floats = np.divide(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = np.flatnonzero(new_minimum > 0)
        new_minimum[positive] = 0
        new_scale[positive] = sum_xl[positive] / sum_l2[positive]

        error = weighted_error(x, codes, new_scale, new_minimum, weights, absolute=absolute, terms=terms)
        better = (determinant > 0) & (error < best_error)
        np.putmask(best_error, better, error)
        np.putmask(inverse, better, tried)
        np.putmask(offset, better, minimum)
        np.putmask(scale, better, new_scale)
        np.putmask(minimum, better, new_minimum)

    return ScaleAndMin(np.where(flat, np.float32(0), scale), -minimum, inverse, offset)


def weighted_error(
    x: Floats, codes: Floats, scale: Floats, minimum: Floats, weights: Floats, *, absolute: bool, terms: Floats
) -> Floats:
    """Sum of weights * difference^2, or of weights * |difference|, for each column; terms is scratch space."""
    np.multiply(codes, scale, out=terms)
    terms += minimum
    terms -= x
    if absolute:
        np.abs(terms, out=terms)
    else:
        np.square(terms, out=terms)
    terms *= weights
    return sum_in_order(terms)


def multiples_of_one(scales: Floats, largest: int) -> tuple[Floats, Floats]:
    """Express a superblock's scales, or its minima, as multiples 0..largest of one scale.

    This is how quantize_row_q4_K_ref and its like do it, where no importance matrix is given.

    Args:
        scales: float32 (groups, superblocks).
        largest: The largest multiple, the largest scale's own.

    Returns:
        The one scale, float32 (superblocks,), and the multiples as C keeps them in a byte, float32 like scales:
        a negative scale, which the fit can produce, wraps to 2xx.
    """
    top = np.float32(largest)
    peak = np.zeros(scales.shape[1], np.float32)
    for row in scales:
        np.copyto(peak, row, where=row > peak)
    inverse = np.where(peak > 0, top / peak, np.float32(0))
    return peak / top, wrapped_to_byte(nearest_int(inverse * scales))


@dataclass(frozen=True)
class Scale:
    """What fit_scale found for each column; all (columns,).

    Attributes:
        scale: A weight is about scale * code; float32.
        inverse: What gives the codes: x * inverse; float32.
        negligible: Whether the column is taken for zero: scale 0, stored codes 0; bool.
    """

    scale: Floats
    inverse: Floats
    negligible: Bools

    def pick(self, columns: Bools) -> Scale:
        """The columns of a mask."""
        return Scale(self.scale[columns], self.inverse[columns], self.negligible[columns])

    def searched_codes(self, groups: Groups, largest: int) -> Floats:
        """The codes of the search as stored, 0 .. 2 * largest - 1: float32 (n, columns)."""
        codes = groups.x * self.inverse
        by_rint = within_rounding_limit(groups.bounds * self.inverse)
        round_codes(codes, -largest, largest - 1, by_rint=by_rint)
        codes += np.float32(largest)
        codes[:, self.negligible] = 0  # not `largest`, which would stand for a weight of zero
        return codes

    def final_codes(self, groups: Groups, d: Floats, largest: int) -> Floats:
        """Stored codes for the scale that a reader sees of each column: float32 (n, columns)."""
        codes = rescaled_codes(groups, d, largest)
        unscaled = d == 0
        if unscaled.any():  # ggml leaves the codes of the search
            codes[:, unscaled] = self.pick(unscaled).searched_codes(groups.pick(unscaled), largest)
        return codes


def rescaled_codes(groups: Groups, d: Floats, largest: int) -> Floats:
    """The codes of x / d as stored, 0 .. 2 * largest - 1; where d is zero they mean nothing."""
    divisor = np.where(d == 0, np.float32(1), d)
    codes: Floats = np.divide(groups.x, divisor)
    round_codes(codes, -largest, largest - 1, by_rint=within_rounding_limit(np.divide(groups.bounds, divisor)))
    codes += np.float32(largest)
    return codes


def fit_scale(groups: Groups, weights: Floats, largest: int) -> Scale:
    """Find a scale for codes -largest..largest - 1, as make_qx_quants does.

    The value of largest magnitude gets the code -largest, whatever its sign, so scales have either sign.

    Args:
        groups: The values, columns of n.
        weights: How much each matters, float32 (n, columns).
        largest: Half the number of codes.
    """
    x = groups.x
    peak = first_largest(groups)
    negligible = np.abs(peak) < NEGLIGIBLE
    peak[negligible] = 1
    weighted = weights * x
    codes, terms = np.empty_like(x), np.empty_like(x)

    best_inverse = np.float32(-largest) / peak
    # Nothing is larger than the peak, so codes before rounding stay close to largest, unless something is infinite.
    by_rint = within_rounding_limit(groups.bounds * best_inverse)

    def fit(inverse: Floats) -> tuple[Floats, Floats]:
        np.multiply(x, inverse, out=codes)
        round_codes(codes, -largest, largest - 1, by_rint=by_rint)
        sum_xl = sum_in_order(np.multiply(weighted, codes, out=terms))
        np.multiply(weights, codes, out=terms)
        return sum_xl, sum_in_order(np.multiply(terms, codes, out=terms))

    sum_xl, sum_l2 = fit(best_inverse)
    scale = np.where(sum_l2 != 0, sum_xl / sum_l2, np.float32(0))
    best = scale * sum_xl
    for k in (*range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(largest) + TENTH * np.float32(k)) / peak
        sum_xl, sum_l2 = fit(inverse)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        new_scale = sum_xl / sum_l2
        np.putmask(best, better, new_scale * sum_xl)
        np.putmask(scale, better, new_scale)
        np.putmask(best_inverse, better, inverse)
    scale[negligible] = 0
    return Scale(scale, best_inverse, negligible)


def first_largest(groups: Groups) -> Floats:
    """The signed value of largest magnitude in each column, the first of equals; float32 (columns,).

    As by C's loop: a NaN is never larger than what came before.
    """
    lowest, highest = groups.bounds
    largest: Floats = np.where(highest > -lowest, highest, lowest)
    unclear = np.flatnonzero(~((highest > -lowest) | (highest < -lowest)))  # ties, and columns with a NaN
    if len(unclear):
        value, magnitude = np.zeros((2, len(unclear)), np.float32)
        for row in groups.x[:, unclear]:
            larger = np.abs(row) > magnitude
            value = np.where(larger, row, value)
            magnitude = np.abs(value)
        largest[unclear] = value
    return largest


def importance_weights(blocks: Floats, importance: Floats, size: int, *, doubled: bool) -> Floats:
    """How much each weight matters given its column's importance: importance * sqrt(sigma2 + x^2).

    sigma2 is the superblock's mean square, twice that for some types.

    Args:
        blocks: float32 (superblocks, 256).
        importance: float32 (superblocks, 256).
        size: Of a group.
        doubled: Whether sigma2 is doubled, as for every type but Q2_K.

    Returns:
        float32 (size, columns), in Groups' order.
    """
    x2 = np.square(np.ascontiguousarray(blocks.T))  # (256, superblocks)
    sum_x2 = sum_in_order(x2)
    sigma2 = (np.float32(2) * sum_x2 if doubled else sum_x2) / np.float32(SUPERBLOCK)
    x2 += sigma2
    np.sqrt(x2, out=x2)
    x2 *= importance.T
    return to_columns(x2.T, size)
