"""llama.cpp's llama-quantize as a process of its own, from the libraries of an npm package.

    python benchmarks/llama_quantize.py LIBRARIES IN.gguf OUT.gguf FILE_TYPE_NUMBER THREADS

LIBRARIES is bins/linux-x64 of @node-llama-cpp/linux-x64. Imports nothing but ctypes, so that its time and memory are
llama.cpp's.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


class Parameters(ctypes.Structure):
    """llama_model_quantize_params of llama.h, with room for the fields behind those that matter here."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("room", ctypes.c_uint8 * 512),
    )


def quantize(libraries: Path, source: Path, target: Path, file_type: int, threads: int) -> None:
    """Run llama_model_quantize with its defaults.

    Raises:
        RuntimeError: llama.cpp failed, or its defaults are not where Parameters has them.
    """
    loaded = [
        ctypes.CDLL(str(min(libraries.glob(f"{name}*so*"))), mode=ctypes.RTLD_GLOBAL)
        for name in ("libggml-base", "libggml.", "libllama.")
    ]
    loaded[1].ggml_backend_load_all_from_path(os.fsencode(libraries))
    llama = loaded[2]
    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters))
    llama.llama_model_quantize.restype = ctypes.c_uint32
    parameters = llama.llama_model_quantize_default_params()
    if not parameters.quantize_output_tensor or parameters.pure or parameters.only_copy:
        raise RuntimeError("these libraries have another llama_model_quantize_params; see their llama.h")
    parameters.ftype, parameters.nthread = file_type, threads
    status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
