"""ggml's own encoders and decoders, called in this process on numpy arrays: the side that all others are held against.

The library is libggml-base of the release that llama_quantize fetches, the build that fixtures/golden is made by.
Calls run in the calling thread alone and release the GIL.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from llama_quantize import PACKAGE, VERSION, UnavailableError, available

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
        FileNotFoundError: The folder holds none.
        EngineError: No folder is named, the release cannot be had, and xllamacpp is not installed.
        OSError: The library cannot be loaded.
        AttributeError: It lacks a function.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load libggml-base from the folder, or from the release, or else what is inside xllamacpp."""
        path, self.source = (in_folder(folder), str(folder)) if folder else release_or_xllamacpp()
        self._library = ctypes.CDLL(str(path))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def __str__(self) -> str:
        return f"ggml {self.version} of {self.source}"

    @property
    def version(self) -> str:
        """Its release, such as "0.25.1"."""
        release: str = self._library.ggml_version().decode()
        return release

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


def in_folder(folder: Path) -> Path:
    """libggml-base, however it is numbered."""
    found = sorted(path for path in folder.glob("libggml-base.*") if {".so", ".dylib"} & set(path.suffixes))
    if not found:
        raise FileNotFoundError(f"no libggml-base in {folder}; expected llama.cpp's shared libraries")
    return found[0]


def release_or_xllamacpp() -> tuple[Path, str]:
    """The library to use when none is named, and in words where it comes from."""
    try:
        return in_folder(available().folder), f"{PACKAGE} {VERSION}"
    except UnavailableError:
        return find_library(), f"xllamacpp {version('xllamacpp')}"
