"""RowSource: the one way weights are read, whatever holds them.

A tensor is seen as rows along its last axis: a matrix (17920, 5120) is 17920 rows of 5120 weights, a
norm (5120,) is one row of 5120. Sources are plain picklable values, so that a chunk of work can be
sent to another thread or process.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from phi4conv.arrays import Floats


class RowSource(Protocol):
    """Weights on demand."""

    @property
    def names(self) -> tuple[str, ...]:
        """The source tensors that the rows come from, in order; empty for constants."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in numpy order: the last axis is the row."""

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start to stop as float32 (stop - start, width), exact for every 16-bit source."""


def row_count(shape: Sequence[int]) -> int:
    """How many rows a tensor of this shape has.

    >>> row_count((17920, 5120)), row_count((5120,))
    (17920, 1)
    """
    return math.prod(shape[:-1])


def locate(source: RowSource, row: int) -> tuple[str, int]:
    """The source tensor that holds a row, and the row's number there."""
    for part in source.parts if isinstance(source, StackedRows) else (source,):
        count = row_count(part.shape)
        if row < count:
            return ", ".join(part.names), row
        row -= count
    raise IndexError(f"no row {row} in {source.names}")


@dataclass(frozen=True)
class StackedRows:
    """Several matrices of one width, one below the other (q, k, v into qkv; gate, up into gate_up)."""

    parts: tuple[RowSource, ...]

    def __post_init__(self) -> None:
        widths = {part.shape[-1] for part in self.parts}
        if len(widths) != 1 or any(len(part.shape) != 2 for part in self.parts):
            raise ValueError(f"cannot stack shapes {[part.shape for part in self.parts]}")

    @property
    def names(self) -> tuple[str, ...]:
        """See RowSource."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """See RowSource."""
        return (sum(part.shape[0] for part in self.parts), self.parts[0].shape[1])

    def rows(self, start: int, stop: int) -> Floats:
        """See RowSource."""
        ends = list(accumulate(part.shape[0] for part in self.parts))
        pieces = []
        while start < stop:
            index = bisect_right(ends, start)
            offset = ends[index] - self.parts[index].shape[0]
            end = min(stop, ends[index])
            pieces.append(self.parts[index].rows(start - offset, end - offset))
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True)
class SlicedRows:
    """Rows start to stop of a matrix (v out of a fused qkv); stop - start of them."""

    whole: RowSource
    start: int
    stop: int

    def __post_init__(self) -> None:
        if len(self.whole.shape) != 2 or not 0 <= self.start <= self.stop <= self.whole.shape[0]:
            raise ValueError(f"no rows {self.start} to {self.stop} in shape {self.whole.shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """See RowSource."""
        return self.whole.names

    @property
    def shape(self) -> tuple[int, ...]:
        """See RowSource."""
        return (self.stop - self.start, self.whole.shape[1])

    def rows(self, start: int, stop: int) -> Floats:
        """See RowSource."""
        if not 0 <= start <= stop <= self.stop - self.start:
            raise ValueError(f"{self.names} has {self.stop - self.start} rows here, not {start} to {stop}")
        return self.whole.rows(self.start + start, self.start + stop)


@dataclass(frozen=True)
class ConstantRow:
    """A short vector that comes from the configuration, such as the LongRoPE factors."""

    values: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """See RowSource."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """See RowSource."""
        return (len(self.values),)

    def rows(self, start: int, stop: int) -> Floats:
        """See RowSource."""
        return np.array([self.values], dtype=np.float32)[start:stop]
