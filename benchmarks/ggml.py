"""ggml's own encoders and decoders, called in this process on numpy arrays: the side that all others are held against.

The library is the one inside xllamacpp, or libggml-base in a folder of shared objects such as bins/linux-x64 of the npm
package @node-llama-cpp/linux-x64. Calls run in the calling thread alone and release the GIL.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant import QuantCodec
from phi4conv.reference.llama_cpp_process import find_library

# Name: (result, *arguments), as in ggml.h and ggml-quants.h.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ggml_version": (ctypes.c_char_p,),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ),
}


class Ggml:
    """The library.

    Raises:
        EngineError: xllamacpp is not installed.
        FileNotFoundError: The folder holds no libggml-base.
        OSError: The library cannot be loaded.
        AttributeError: It lacks a function.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load libggml-base from the folder, or what is inside xllamacpp."""
        if folder is None:
            path, self.source = find_library(), f"xllamacpp {version('xllamacpp')}"
        else:
            path, self.source = split_library(folder, "libggml-base"), str(folder)
        self._library = ctypes.CDLL(str(path))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def __str__(self) -> str:
        return f"ggml {self.version} of {self.source}"

    @property
    def version(self) -> str:
        """Its release, such as "0.25.3"."""
        release: str = self._library.ggml_version().decode()
        return release

    @property
    def clamps_before_rounding(self) -> bool:
        """Whether make_qkx3_quants limits codes before it rounds them, as ggml 0.26 does.

        Until 0.25, to which phi4conv's bytes are equal, it rounds first, by a trick that wraps beyond 2 ** 22.
        Codes get there when importance is zero for the only weights that differ.
        """
        major, minor = map(int, self.version.split(".")[:2])
        return (major, minor) >= (0, 26)

    def encode(self, codec: QuantCodec, weights: Floats, importance: Floats | None = None) -> Bytes:
        """float32 (rows, width), contiguous, to uint8 (rows, row bytes) by ggml_quantize_chunk."""
        rows, width = weights.shape
        data = np.empty((rows, codec.row_bytes(width)), np.uint8)
        factors = None if importance is None else importance.ctypes.data
        size = self._library.ggml_quantize_chunk(
            codec.qtype, weights.ctypes.data, data.ctypes.data, 0, rows, width, factors
        )
        if size != data.nbytes:
            raise ValueError(f"ggml wrote {size} bytes of {codec.name}, not {data.nbytes}")
        return data

    def decode(self, codec: QuantCodec, data: Bytes) -> Floats:
        """uint8 (rows, row bytes), contiguous, to float32 (rows, width) by dequantize_row_TYPE."""
        weights = np.empty((len(data), data.shape[1] // codec.block_bytes * codec.block_weights), np.float32)
        self._decoder(codec.qtype)(data.ctypes.data, weights.ctypes.data, weights.size)
        return weights

    def _decoder(self, qtype: GGMLQuantizationType) -> Any:
        # ggml-quants.h spells q8_0, but q4_K.
        decoder = getattr(self._library, f"dequantize_row_{qtype.name.replace('Q', 'q', 1)}")
        decoder.restype, decoder.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        return decoder


def split_library(folder: Path, name: str) -> Path:
    """A shared object in a folder by the beginning of its name, such as "libggml-base".

    Raises:
        FileNotFoundError: The folder has none.
    """
    found = sorted(path for path in folder.glob(f"{name}.*") if {".so", ".dylib"} & set(path.suffixes))
    if not found:
        raise FileNotFoundError(f"no {name}.so in {folder}; expected bins/linux-x64 of @node-llama-cpp/linux-x64")
    return found[0]
