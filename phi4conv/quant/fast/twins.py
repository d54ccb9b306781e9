"""The numba twins of the codecs: the same values with their two functions replaced."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.codec import QuantCodec
from phi4conv.quant.fast import q2_k, q3_k, q4_k_q5_k, q6_k, q8_0
from phi4conv.quant.fast.compiler import forget

# The module of each type, and what its kernels take after the arrays.
KERNELS: dict[GGMLQuantizationType, tuple[Any, tuple[int, ...]]] = {
    GGMLQuantizationType.Q8_0: (q8_0, ()),
    GGMLQuantizationType.Q2_K: (q2_k, ()),
    GGMLQuantizationType.Q3_K: (q3_k, ()),
    GGMLQuantizationType.Q4_K: (q4_k_q5_k, (q4_k_q5_k.HIGHEST_Q4_K,)),
    GGMLQuantizationType.Q5_K: (q4_k_q5_k, (q4_k_q5_k.HIGHEST_Q5_K,)),
    GGMLQuantizationType.Q6_K: (q6_k, ()),
}

NO_IMPORTANCE: Floats = np.empty(0, np.float32)


def compiled_twin(codec: QuantCodec) -> QuantCodec:
    """The codec with compiled functions.

    Raises:
        KeyError: There are none for its type.
    """
    module, constants = KERNELS[codec.qtype]
    return replace(
        codec,
        encode_rows=partial(encode_rows, codec, module.encode, constants),
        decode_rows=partial(decode_rows, codec, module.decode, constants),
        path="numba",
    )


def forget_machine_code(codec: QuantCodec) -> None:
    """Compile a codec's kernels anew in this process, and let the next one keep them again if it can."""
    module, _ = KERNELS[codec.qtype]
    for kernel in (module.encode, module.decode):
        forget(kernel)


def encode_rows(
    codec: QuantCodec, kernel: Any, constants: tuple[int, ...], rows: Floats, importance: Floats | None = None
) -> Bytes:
    """See QuantCodec.encode_rows."""
    out = np.empty((len(rows), codec.row_bytes(rows.shape[-1])), np.uint8)
    kernel(flat(rows), flat(NO_IMPORTANCE if importance is None else importance), out.reshape(-1), *constants)
    return out


def decode_rows(codec: QuantCodec, kernel: Any, constants: tuple[int, ...], data: Bytes) -> Floats:
    """See QuantCodec.decode_rows."""
    out = np.empty((len(data), data.shape[-1] // codec.block_bytes * codec.block_weights), np.float32)
    kernel(flat(data), out.reshape(-1), *constants)
    return out


def flat(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """All elements as one read-only axis. Arrays that may be written are another type to numba, compiled anew."""
    view = array.reshape(-1)
    view.flags.writeable = False
    return view
