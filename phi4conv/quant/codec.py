"""QuantCodec: how rows of weights become a tensor type's bytes, and back.

Rows, widths and chunking live here once; a codec itself sees only whole rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats


@dataclass(frozen=True)
class QuantCodec:
    """One tensor type of GGUF.

    Attributes:
        qtype: The type's number and name in ggml.
        encode_rows: float32 (rows, width) to uint8 (rows, width // block_weights * block_bytes). Rows, not
            blocks, because some types choose a scale from the whole row.
        decode_rows: The way back, exact.
        largest: Weights beyond this magnitude overflow the type (a weight, or its block's scale, becomes
            infinite).
    """

    qtype: GGMLQuantizationType
    encode_rows: Callable[[Floats], Bytes]
    decode_rows: Callable[[Bytes], Floats]
    largest: float

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


def encode(codec: QuantCodec, weights: Floats) -> Bytes:
    """Encode weights (…, width) of float32 as uint8 (…, row bytes).

    Raises:
        ValueError: The weights are not float32 or the width is not a multiple of the codec's block.
    """
    if weights.dtype != np.float32:
        raise ValueError(f"expected float32 weights, not {weights.dtype}")
    width = weights.shape[-1]
    row_bytes = codec.row_bytes(width)
    rows = np.ascontiguousarray(weights).reshape(-1, width)
    return codec.encode_rows(rows).reshape(*weights.shape[:-1], row_bytes)


def decode(codec: QuantCodec, data: Bytes) -> Floats:
    """Decode uint8 (…, row bytes) to float32 (…, width).

    Raises:
        ValueError: The data is not uint8 or not a whole number of blocks.
    """
    if data.dtype != np.uint8:
        raise ValueError(f"expected uint8 data, not {data.dtype}")
    blocks, rest = divmod(data.shape[-1], codec.block_bytes)
    if rest:
        raise ValueError(f"{codec.name} rows are a multiple of {codec.block_bytes} bytes, not {data.shape[-1]}")
    rows = np.ascontiguousarray(data).reshape(-1, data.shape[-1])
    return codec.decode_rows(rows).reshape(*data.shape[:-1], blocks * codec.block_weights)
