"""The child process of llama_quantize: llama.cpp quantizes one file here, and may end the process while it does.

    python llama_quantize_child.py LIBRARY REQUEST

LIBRARY is libllama, its other libraries beside it. REQUEST is a JSON object: `source` and `target`, fields of
llama_model_quantize_params under `parameters`, `patterns` (numbers of types by regular expression over tensor names),
`importance` (a .npz file of float32 arrays by tensor name, or null) and `metadata` (what to put into the file, whole
numbers and texts by key). Exits with 0 when the target is written. Imports numpy for importance alone, so that a
benchmark that runs this measures llama.cpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping
from ctypes import POINTER, c_bool, c_char, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint8, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# enum llama_model_kv_override_type, llama.h
INTEGER, TEXT = 0, 3


class ImportanceEntry(ctypes.Structure):
    """`struct llama_model_imatrix_data`; a list of them ends with a null name."""

    _fields_ = (("name", c_char_p), ("data", POINTER(c_float)), ("size", c_size_t))


class MetadataValue(ctypes.Union):
    """The value in `struct llama_model_kv_override`."""

    _fields_ = (("integer", c_int64), ("text", c_char * 128))


class MetadataOverride(ctypes.Structure):
    """`struct llama_model_kv_override`; a list of them ends with an empty key."""

    _anonymous_ = ("value",)
    _fields_ = (("tag", c_int), ("key", c_char * 128), ("value", MetadataValue))


class PatternOverride(ctypes.Structure):
    """`struct llama_model_tensor_override`; a list of them ends with a null pattern."""

    _fields_ = (("pattern", c_char_p), ("type", c_int))


class Parameters(ctypes.Structure):
    """`struct llama_model_quantize_params`, with room to spare at its end, where it grows."""

    _fields_ = (
        ("nthread", c_int32),
        ("ftype", c_int),
        ("output_tensor_type", c_int),
        ("token_embedding_type", c_int),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("keep_split", c_bool),
        ("dry_run", c_bool),
        ("imatrix", POINTER(ImportanceEntry)),
        ("kv_overrides", POINTER(MetadataOverride)),
        ("tt_overrides", POINTER(PatternOverride)),
        ("prune_layers", c_void_p),
        ("max_buf_size", c_size_t),
        ("room", c_uint8 * 256),
    )


# llama_model_quantize_default_params(), src/llama-quant.cpp. The two types that nobody asked for are
# GGML_TYPE_COUNT there, which grows with every new type.
DEFAULTS = {
    "nthread": 0,
    "ftype": 7,
    "allow_requantize": False,
    "quantize_output_tensor": True,
    "only_copy": False,
    "pure": False,
    "keep_split": False,
    "dry_run": False,
    "imatrix": None,
    "kv_overrides": None,
    "tt_overrides": None,
    "prune_layers": None,
    "max_buf_size": 8 << 30,
}
LAST_KNOWN_TYPE = 39


def open_library(path: str) -> ctypes.CDLL:
    """llama.cpp in this process; ends it when the library's structs are not those above."""
    library = ctypes.CDLL(path)
    library.llama_backend_init.restype = None
    library.llama_model_quantize_default_params.restype = Parameters
    library.llama_model_quantize.argtypes = (c_char_p, c_char_p, POINTER(Parameters))
    defaults = library.llama_model_quantize_default_params()
    for name, expected in DEFAULTS.items():
        value = getattr(defaults, name)
        found = value or None if expected is None else value
        if found != expected:
            sys.exit(f"llama_model_quantize_params has another layout: {name} is {found} by default, not {expected}")
    types = (defaults.output_tensor_type, defaults.token_embedding_type)
    if types[0] != types[1] or types[0] <= LAST_KNOWN_TYPE:
        sys.exit(f"llama_model_quantize_params has another layout: by default the types are {types}")
    library.llama_backend_init()
    return library


def read_importance(path: str) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of a .npz file."""
    import numpy as np  # noqa: PLC0415  # see above

    with np.load(path) as file:
        return {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}


def importance_entries(arrays: Mapping[str, npt.NDArray[np.float32]]) -> ctypes.Array[ImportanceEntry]:
    """The arrays as llama.cpp takes them; they must live as long."""
    entries = (ImportanceEntry * (len(arrays) + 1))()
    for entry, (name, array) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(POINTER(c_float))
    return entries


def metadata_overrides(pairs: Mapping[str, int | str]) -> ctypes.Array[MetadataOverride]:
    """The pairs as llama.cpp takes them; a whole number becomes a UINT32 there."""
    overrides = (MetadataOverride * (len(pairs) + 1))()
    for override, (key, value) in zip(overrides, pairs.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag, override.text = TEXT, value.encode()
        else:
            override.tag, override.integer = INTEGER, value
    return overrides


def pattern_overrides(types: Mapping[str, int]) -> ctypes.Array[PatternOverride]:
    """The patterns as llama.cpp takes them."""
    overrides = (PatternOverride * (len(types) + 1))()
    for override, (pattern, number) in zip(overrides, types.items(), strict=False):
        override.pattern, override.type = pattern.encode(), number
    return overrides


def main(library_path: str, request_text: str) -> int:
    """Quantize; returns the exit code."""
    library = open_library(library_path)
    request: dict[str, Any] = json.loads(request_text)
    parameters = library.llama_model_quantize_default_params()
    for name, value in request["parameters"].items():
        if not hasattr(Parameters, name):
            sys.exit(f"llama_model_quantize_params has no {name}")
        setattr(parameters, name, value)
    arrays = read_importance(request["importance"]) if request["importance"] else {}
    if arrays:
        parameters.imatrix = importance_entries(arrays)
    if request["metadata"]:
        parameters.kv_overrides = metadata_overrides(request["metadata"])
    if request["patterns"]:
        parameters.tt_overrides = pattern_overrides(request["patterns"])
    source, target = (os.fsencode(request[name]) for name in ("source", "target"))
    return 1 if library.llama_model_quantize(source, target, ctypes.byref(parameters)) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
