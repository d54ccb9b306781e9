"""Folders of safetensors files that hold next to nothing, for the reading of checkpoints."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4247\n"

Arrays = Mapping[str, npt.NDArray[Any]]


def content_of(tensors: Arrays) -> bytes:
    """A safetensors file; uint16 arrays hold the bits of BF16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    names = {"uint16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int32": "I32", "uint8": "U8"}
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": names[array.dtype.name], "shape": array.shape, "data_offsets": [len(data), end]}
        data += array.tobytes()
    return file_of(header, data)


def file_of(header: Mapping[str, Any], data: bytes) -> bytes:
    """A safetensors file of this header, whether or not it fits the data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def bf16(*shape: int) -> npt.NDArray[np.uint16]:
    """The bits of different weights, from 1.0 upwards."""
    start = 0x3F80  # 1.0
    return np.arange(start, start + math.prod(shape), dtype=np.uint16).reshape(shape)


FIRST = {"model.embed_tokens.weight": bf16(6, 4), "model.norm.weight": bf16(4)}
SECOND = {"lm_head.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}


def write(folder: Path, files: Mapping[str, Arrays | bytes]) -> Path:
    """The folder with these files put into it."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content_of(content))
    return folder


def write_index(folder: Path, weight_map: Any) -> Path:
    """The folder with this index put into it."""
    folder.mkdir(exist_ok=True)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    return folder


def sharded(folder: Path) -> Path:
    """A good folder: an index, FIRST in the first shard and SECOND in the second."""
    write(folder, dict(zip(SHARDS, (FIRST, SECOND), strict=True)))
    places = dict.fromkeys(FIRST, SHARDS[0]) | dict.fromkeys(SECOND, SHARDS[1])
    return write_index(folder, places)
