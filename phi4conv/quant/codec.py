"""QuantCodec: how rows of weights become a tensor type's bytes, and back.

Rows, widths, importance and what a broken block looks like live here once; a codec's own functions see
only whole rows that are known to be good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats

Array = TypeVar("Array", bound=npt.NDArray[Any])

F16_EXPONENT = 0x7C00  # all ones: infinity or NaN
F16_LARGEST = 65504.0


class EncodeRows(Protocol):
    """How a type encodes; see QuantCodec.encode_rows."""

    def __call__(self, rows: Floats, importance: Floats | None = None, /) -> Bytes:
        """float32 (rows, width), and float32 (width,) or None, to uint8 (rows, row bytes)."""


@dataclass(frozen=True)
class QuantCodec:
    """One tensor type of GGUF.

    Attributes:
        qtype: The type's number and name in ggml.
        encode_rows: float32 (rows, width) and the importance, float32 (width,) or None, to uint8 (rows,
            width // block_weights * block_bytes). Rows, not blocks, because some types choose a scale from
            the whole row.
        decode_rows: The way back, exact.
        largest: Weights beyond this magnitude overflow the type (a weight, or its block's scale, becomes
            infinite). Where that depends on the block's other weights, the most that any block can hold.
        scale_offsets: Where a block holds float16 scales, in bytes.
        uses_importance: Whether an importance matrix changes the bytes; otherwise it is not looked at.
        path: What computes: "numpy" or "numba".
    """

    qtype: GGMLQuantizationType
    encode_rows: EncodeRows
    decode_rows: Callable[[Bytes], Floats]
    largest: float = float(np.finfo(np.float32).max)
    scale_offsets: tuple[int, ...] = ()
    uses_importance: bool = False
    path: str = "numpy"

    @property
    def name(self) -> str:
        """The type's name, "Q8_0"."""
        return self.qtype.name

    @property
    def block_weights(self) -> int:
        """How many weights a block holds; a row is a whole number of blocks."""
        return GGML_QUANT_SIZES[self.qtype][0]

    @property
    def block_bytes(self) -> int:
        """How many bytes a block takes."""
        return GGML_QUANT_SIZES[self.qtype][1]

    def row_bytes(self, width: int) -> int:
        """How many bytes a row of width weights takes.

        Raises:
            ValueError: The width is not a multiple of the block.
        """
        blocks, rest = divmod(width, self.block_weights)
        if rest:
            raise ValueError(f"{self.name} needs rows of a multiple of {self.block_weights} weights, not {width}")
        return blocks * self.block_bytes

    def encode(self, weights: Floats, importance: Floats | None = None) -> Bytes:
        """Encode weights (…, width) of float32 as uint8 (…, row bytes), by this codec's own path.

        Args:
            weights: Finite float32. What no block can hold (beyond `largest`, or less when the block's other weights
                are unlike) becomes what ggml makes of it, infinite or zero; `broken_block` finds the infinite ones.
            importance: How much each column matters: float32 (width,), finite, none negative, not all zero
                (ggml's quant_weights; the mean squared activations of an importance matrix). Types that have
                no use for it ignore it, as ggml does.

        Raises:
            ValueError: The weights are not float32, the width is not a multiple of the codec's block, a
                quantized type is given NaN or Inf, or the importance is none that can be used.
        """
        if weights.dtype != np.float32:
            raise ValueError(f"expected float32 weights, not {weights.dtype}")
        if not weights.ndim:
            raise ValueError("expected rows of weights, not a single number")
        width = weights.shape[-1]
        row_bytes = self.row_bytes(width)
        if importance is not None:
            importance = checked_importance(importance, width)
        rows = np.ascontiguousarray(weights).reshape(-1, width) if width else weights.reshape(0, 0)
        if self.scale_offsets and rows.size and not (np.isfinite(rows.min()) and np.isfinite(rows.max())):
            raise ValueError(f"{self.name} cannot hold NaN or infinite weights")
        data = unshared(self.encode_rows(rows, importance if self.uses_importance else None), weights)
        return data.reshape(*weights.shape[:-1], row_bytes)

    def decode(self, data: Bytes) -> Floats:
        """Decode uint8 (…, row bytes) to float32 (…, width), by this codec's own path.

        Raises:
            ValueError: The data is not uint8 or not a whole number of blocks.
        """
        if data.dtype != np.uint8:
            raise ValueError(f"expected uint8 data, not {data.dtype}")
        if not data.ndim:
            raise ValueError("expected rows of bytes, not a single one")
        size = data.shape[-1]
        blocks, rest = divmod(size, self.block_bytes)
        if rest:
            raise ValueError(f"{self.name} rows are a multiple of {self.block_bytes} bytes, not {size}")
        rows = np.ascontiguousarray(data).reshape(-1, size) if size else data.reshape(0, 0)
        weights = unshared(self.decode_rows(rows), data)
        return weights.reshape(*data.shape[:-1], blocks * self.block_weights)

    def broken_block(self, data: Bytes) -> tuple[int, int] | None:
        """The first block of encoded rows with an infinite or NaN scale, as (row, block in the row).

        The rule is ggml_validate_row_data's; None when every block is good. data: uint8 (rows, row bytes).
        """
        blocks = data.reshape(-1, self.block_bytes)
        broken = np.zeros(len(blocks), np.bool_)
        for offset in self.scale_offsets:
            scales = blocks[:, offset : offset + 2].copy().view("<u2")[:, 0]
            broken |= (scales & F16_EXPONENT) == F16_EXPONENT
        if not broken.any():
            return None
        row, block = divmod(int(broken.argmax()), data.shape[-1] // self.block_bytes)
        return row, block


def unshared(result: Array, argument: npt.NDArray[Any]) -> Array:
    """The result, copied if it is the caller's own memory seen as another type."""
    return result.copy() if np.may_share_memory(result, argument) else result


def checked_importance(importance: Floats, width: int) -> Floats:
    """The importance as contiguous float32 (width,).

    Raises:
        ValueError: It has another shape or type, a NaN, an infinite or a negative value, or only zeros.
    """
    if importance.shape != (width,) or importance.dtype != np.float32:
        raise ValueError(
            f"expected one float32 importance for each of {width} columns, not {importance.dtype} {importance.shape}"
        )
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        column = int(np.argmin(np.isfinite(importance) & (importance >= 0)))
        raise ValueError(f"importance must be finite and not negative; column {column} has {importance[column]:g}")
    if width and not importance.any():
        raise ValueError("importance is zero everywhere; pass None for weights that all matter alike")
    return np.ascontiguousarray(importance)
