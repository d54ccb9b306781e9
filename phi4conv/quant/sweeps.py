"""The searches that move one code after another to where the others want it, sweep by sweep.

    fit_positive_scales   ggml's make_qp_quants: a superblock's scales or minima, given an importance matrix
    fit_scale_by_sweeps   make_q3_quants: a group of Q3_K without one

Both fit a scale to codes by weighted least squares. Without the element in question, the others have the scale
rest_xl / rest_l2; its own code becomes x divided by that, if the fit gets better. Each element sees what became of
those before it, so numpy works on all columns at once but on one row after another.

Arrays are float32 (n, columns), as in scale_search.py; ggml's functions are in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.quant.scale_search import NEGLIGIBLE, TENTH, first_largest
from phi4conv.quant.tiles import Bools, Groups, nearest_int, sum_in_order, wrapped_to_byte

SWEEPS = 5  # at most; ggml's loops end after a sweep without a change


@dataclass(frozen=True)
class Fit:
    """Codes and the sums that their scale comes from, which change in place.

    Attributes:
        x: float32 (n, columns), as are weights, weighted (weights * x) and codes.
        weights: How much each element matters.
        weighted: Computed once, for ggml's weights * x * code associates from the left.
        codes: Integers.
        sum_xl: Sum of weighted * codes, float32 (columns,).
        sum_l2: Sum of weights * codes * codes, float32 (columns,).
    """

    x: Floats
    weights: Floats
    weighted: Floats
    codes: Floats
    sum_xl: Floats
    sum_l2: Floats

    @classmethod
    def of(cls, x: Floats, weights: Floats, codes: Floats) -> Fit:
        """The fit of these codes to x."""
        weighted = weights * x
        return cls(x, weights, weighted, codes, sum_in_order(weighted * codes), sum_in_order(weights * codes * codes))

    @property
    def scale(self) -> Floats:
        """The scale that fits the codes best, float32 (columns,)."""
        return np.where(self.sum_l2 > 0, self.sum_xl / self.sum_l2, np.float32(0))

    def pick(self, columns: Bools) -> Fit:
        """A copy of the columns of a mask."""
        arrays = (self.x, self.weights, self.weighted, self.codes, self.sum_xl, self.sum_l2)
        return Fit(*(np.compress(columns, array, axis=-1) for array in arrays))

    def elements(self) -> Iterator[tuple[Floats, Floats, Floats, Floats]]:
        """Row after row: the value, its weight, weight * value, and the code, float32 (columns,) each."""
        return zip(self.x, self.weights, self.weighted, self.codes, strict=True)


def fit_positive_scales(values: Floats, weights: Floats, largest: int) -> tuple[Floats, Floats]:
    """Find one scale for a superblock's scales, or minima, as make_qp_quants does.

    Args:
        values: float32 (n, columns), one superblock a column. They are meant to be positive; a negative one, which a
            fit can produce, gets the code that it gets in C.
        weights: How much each matters, float32 (n, columns).
        largest: The largest code.

    Returns:
        The scale, float32 (columns,), and the codes as C keeps them in a byte, float32 (n, columns).
    """
    top = np.float32(largest)
    peak = np.zeros(values.shape[1], np.float32)
    for value in values:
        peak = np.where(peak > value, peak, value)  # C's MAX takes a NaN, and loses it to the next value
    negligible = peak < NEGLIGIBLE
    peak[negligible] = 1

    inverse = best_step(values, weights, peak, top)
    codes = np.minimum(nearest_int(values * inverse), top)
    fit = Fit.of(values, weights, codes)
    codes[...] = wrapped_to_byte(codes)  # the sums are of the codes before
    for _ in range(SWEEPS):
        if not sweep_positive(fit, top):
            break
    codes[:, negligible] = 0
    return np.where(negligible, np.float32(0), fit.scale), codes


def best_step(values: Floats, weights: Floats, peak: Floats, top: np.float32) -> Floats:
    """The inverse step width, of nine, that loses least in rounding; float32 (columns,)."""
    inverse: Floats = np.divide(top, peak)
    codes = wrapped_to_byte(nearest_int(values * inverse))  # the first are not clamped
    best_error = rounding_error(values, codes, inverse, weights)
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (TENTH * np.float32(k) + top) / peak
        codes = np.minimum(nearest_int(values * tried), top)
        error = rounding_error(values, codes, tried, weights)
        better = error < best_error
        np.putmask(best_error, better, error)
        np.putmask(inverse, better, tried)
    return inverse


def rounding_error(values: Floats, codes: Floats, inverse: Floats, weights: Floats) -> Floats:
    """Sum of (weights * difference) * difference, in this order; float32 (columns,)."""
    difference = values - np.float32(1) / inverse * codes
    return sum_in_order(weights * difference * difference)


def sweep_positive(fit: Fit, top: np.float32) -> bool:
    """Go once through all codes; returns whether any changed.

    A column in which nothing changes goes through the next sweep in the same way. So all columns sweep as often as
    the most restless one.
    """
    changed = False
    for value, weight, weighted, code in fit.elements():
        rest_xl = fit.sum_xl - weighted * code
        rest_l2 = fit.sum_l2 - weight * code * code
        new = np.minimum(nearest_int(np.divide(value * rest_l2, rest_xl)), top)
        new_xl = rest_xl + weighted * new
        new_l2 = rest_l2 + weight * new * new
        accepted = (rest_xl > 0) & (rest_l2 > 0) & (new != code)
        accepted &= new_xl * new_xl * fit.sum_l2 > fit.sum_xl * fit.sum_xl * new_l2
        np.putmask(code, accepted, wrapped_to_byte(new))
        np.putmask(fit.sum_xl, accepted, new_xl)
        np.putmask(fit.sum_l2, accepted, new_l2)
        changed |= bool(accepted.any())
    return changed


def fit_scale_by_sweeps(groups: Groups, largest: int) -> tuple[Floats, Floats]:
    """Find a scale and codes -largest..largest - 1, as make_q3_quants does.

    Args:
        groups: The weights of the model, columns of n; each matters by its square.
        largest: Half the number of codes.

    Returns:
        The scale, float32 (columns,), and the codes as stored, 0 .. 2 * largest - 1, float32 (n, columns).
    """
    x = groups.x
    peak = first_largest(groups)
    negligible = np.abs(peak) < NEGLIGIBLE
    peak[negligible] = 1
    codes = np.clip(nearest_int(x * (np.float32(-largest) / peak)), -largest, largest - 1)
    whole = Fit.of(x, x * x, codes)

    # Sweeps are dear here, and a column without a change is done. So only the others go on.
    active, columns = whole, np.arange(x.shape[1])
    for _ in range(SWEEPS):
        changed = sweep_signed(active, largest)
        columns = columns[changed]
        if not len(columns):
            break
        active = active.pick(changed)
        codes[:, columns] = active.codes
        whole.sum_xl[columns], whole.sum_l2[columns] = active.sum_xl, active.sum_l2

    codes += np.float32(largest)
    codes[:, negligible] = 0  # not `largest`, which would stand for a weight of zero
    return np.where(negligible, np.float32(0), whole.scale), codes


def sweep_signed(fit: Fit, largest: int) -> Bools:
    """Go once through all codes; returns in which columns any changed, bool (columns,)."""
    changed = np.zeros(len(fit.sum_xl), np.bool_)
    for value, weight, weighted, code in fit.elements():
        rest_xl = fit.sum_xl - weighted * code
        rest_l2 = fit.sum_l2 - weight * code * code
        new = np.clip(nearest_int(np.divide(value * rest_l2, rest_xl)), -largest, largest - 1)
        new_xl = rest_xl + weighted * new
        new_l2 = rest_l2 + weight * new * new
        accepted = (rest_xl > 0) & (new != code) & (new_l2 > 0)
        accepted &= new_xl * new_xl * fit.sum_l2 > fit.sum_xl * fit.sum_xl * new_l2
        np.putmask(code, accepted, new)
        np.putmask(fit.sum_xl, accepted, new_xl)
        np.putmask(fit.sum_l2, accepted, new_l2)
        changed |= accepted
    return changed
