"""The q and k of a `llama` GGUF in the order that they have in the checkpoint.

llama.cpp rotates neighbours, components 2 i and 2 i + 1 of a head, where the architecture is `llama`; transformers
rotates component i with i + n/2 (NEOX order). So llama.cpp's converter shuffles the rows of each head (`permute` in
conversion/llama.py): row i of the first half becomes row 2 i, row i of the second half row 2 i + 1. Read back in the
checkpoint's order, the same weights give the same scores with NEOX rotation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Floats
from phi4conv.rows import RowSource


@dataclass(frozen=True)
class PermutedRows:
    """A matrix whose heads were shuffled by llama.cpp's converter, seen as it was before.

    Attributes:
        whole: The matrix as the file has it: (heads * head_size, width).
        head_size: Rows of a head, an even number.

    Raises:
        ValueError: The rows are no whole number of such heads.
    """

    whole: RowSource
    head_size: int

    def __post_init__(self) -> None:
        if not can_be_permuted(self.whole.shape, self.head_size):
            raise ValueError(f"no heads of {self.head_size} rows in shape {self.whole.shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """See RowSource."""
        return self.whole.names

    @property
    def shape(self) -> tuple[int, ...]:
        """See RowSource."""
        return self.whole.shape

    def rows(self, start: int, stop: int) -> Floats:
        """See RowSource. The heads that the rows belong to are read whole."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"{self.names} has {self.shape[0]} rows, not {start} to {stop}")
        if start == stop:
            return self.whole.rows(start, stop)
        first = start // self.head_size * self.head_size
        last = -(-stop // self.head_size) * self.head_size
        rows: Floats = self.whole.rows(first, last)[self.places(start, stop) - first]
        return rows

    def places(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Where rows start to stop are in `whole`: int64 (stop - start,).

        With heads of 4 rows, rows 0 to 3 are the file's 0, 2, 1, 3.
        """
        row = np.arange(start, stop)
        head, within = row - row % self.head_size, row % self.head_size
        half = self.head_size // 2
        return head + within % half * 2 + within // half


def can_be_permuted(shape: tuple[int, ...], head_size: int) -> bool:
    """Whether a matrix of this shape consists of heads of so many rows, an even number.

    >>> can_be_permuted((1280, 5120), 128), can_be_permuted((1280, 5120), 96)
    (True, False)
    """
    return len(shape) == 2 and head_size > 0 and head_size % 2 == 0 and shape[0] % head_size == 0
