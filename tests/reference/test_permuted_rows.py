"""Rows that llama.cpp's converter shuffled are given in the order that they had."""

from __future__ import annotations

import numpy as np
import pytest
from llama_arch import permuted_rows

from phi4conv.arrays import Floats
from phi4conv.reference.permuted_rows import PermutedRows


class Numbered:
    """A matrix whose every weight is the number of its row."""

    names = ("numbered",)
    shape = (24, 3)

    def rows(self, start: int, stop: int) -> Floats:
        return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], 3, axis=1)


def test_permuted_rows_undo_the_converters_permutation_wherever_they_are_cut() -> None:
    original = Numbered().rows(0, 24)
    shuffled = permuted_rows(original, 3)
    rows = PermutedRows(Numbered(), 8)
    assert np.array_equal(shuffled[rows.places(0, 24)], original)
    whole = rows.rows(0, 24)
    for start in range(25):
        for stop in range(start, 25):
            assert np.array_equal(rows.rows(start, stop), whole[start:stop])
    with pytest.raises(ValueError, match="not 0 to 25"):
        rows.rows(0, 25)


@pytest.mark.parametrize("head_size", [0, 3, 5, 16])
def test_rows_that_are_no_heads_are_not_permuted(head_size: int) -> None:
    with pytest.raises(ValueError, match="no heads of"):
        PermutedRows(Numbered(), head_size)
