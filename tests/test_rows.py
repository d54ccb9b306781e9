"""Rows are the same however they are cut."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4conv.arrays import Floats
from phi4conv.rows import ConstantRow, StackedRows, locate, row_count


@dataclass(frozen=True)
class Counting:
    """Rows whose weights tell where they come from: name, then 1000 * row + column."""

    name: str
    shape: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def rows(self, start: int, stop: int) -> Floats:
        rows, columns = np.mgrid[start:stop, : self.shape[1]]
        weights: Floats = (rows * 1000 + columns + 100_000 * ord(self.name)).astype(np.float32)
        return weights


STACK = StackedRows((Counting("q", (5, 3)), Counting("k", (2, 3)), Counting("v", (4, 3))))


@given(st.integers(0, 11), st.integers(0, 11))
def test_stacked_rows_are_the_parts_one_below_the_other(one: int, other: int) -> None:
    start, stop = sorted((one, other))
    whole = np.concatenate([part.rows(0, part.shape[0]) for part in STACK.parts])
    if start < stop:
        assert np.array_equal(STACK.rows(start, stop), whole[start:stop])


def test_a_stack_knows_its_parts() -> None:
    assert STACK.shape == (11, 3)
    assert STACK.names == ("q", "k", "v")
    assert [locate(STACK, row) for row in (0, 4, 5, 7, 10)] == [("q", 0), ("q", 4), ("k", 0), ("v", 0), ("v", 3)]
    with pytest.raises(IndexError):
        locate(STACK, 11)


def test_parts_of_different_width_do_not_stack() -> None:
    with pytest.raises(ValueError, match="cannot stack"):
        StackedRows((Counting("q", (5, 3)), Counting("k", (2, 4))))


def test_a_constant_is_one_row() -> None:
    factors = ConstantRow((1.0, 1.5))
    assert factors.shape == (2,)
    assert row_count(factors.shape) == 1
    assert factors.rows(0, 1).tolist() == [[1.0, 1.5]]
    assert pickle.loads(pickle.dumps(factors)) == factors  # noqa: S301  # our own value
