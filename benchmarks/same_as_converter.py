"""Converts a model with phi4conv and with llama.cpp's own converter and compares the files key by key, byte by byte.

    python benchmarks/same_as_converter.py MODEL_DIR path/to/convert_hf_to_gguf.py [--types F32,F16,BF16,Q8_0]

The converter is the one in vendor/llama.cpp of the source distribution of llama-cpp-python; it needs torch
and transformers, and knows real tokenizers only (it refuses the tiny fixture's). The files go to a temporary
folder on the model's disk. Exits with 1 when anything differs but what docs/decisions/0004-metadata.md lists.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf

CHOSEN = {"tokenizer.ggml.eot_token_id"}


def tensor_bytes(file: GGUFFile) -> dict[str, tuple[object, ...]]:
    """Name -> shape, type and bytes, mapped and not read."""
    data = np.memmap(file.path, np.uint8, mode="r")
    starts = {entry.name: file.data_offset + entry.offset for entry in file.tensors}
    return {
        entry.name: (entry.shape, entry.qtype, data[starts[entry.name] : starts[entry.name] + entry.size_bytes])
        for entry in file.tensors
    }


def differences(ours: GGUFFile, theirs: GGUFFile) -> list[str]:
    """Everything in which two files differ, the order of tensors aside."""
    found = [defect.message for file in (ours, theirs) for defect in file.defects]
    found += [
        key
        for key in {**ours.metadata, **theirs.metadata}
        if ours.metadata.get(key) != theirs.metadata.get(key) and key not in CHOSEN
    ]
    if [key for key in ours.metadata if key not in CHOSEN] != list(theirs.metadata):
        found.append("order of keys")
    mine, other = tensor_bytes(ours), tensor_bytes(theirs)
    for name in sorted({*mine, *other}):
        same = name in mine and name in other and mine[name][:2] == other[name][:2]
        if not same or not np.array_equal(np.asarray(mine[name][2]), np.asarray(other[name][2])):
            found.append(name)
    return found


def compare(model: Path, converter: Path, file_type: str) -> bool:
    """Convert both ways and print the verdict."""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        ours, theirs = Path(folder) / f"ours-{file_type}.gguf", Path(folder) / f"theirs-{file_type}.gguf"
        for command in (
            ["-m", "phi4conv", "convert", str(model), str(ours), "--quiet"],
            [str(converter), str(model), "--outfile", str(theirs), "--outtype", file_type.lower()],
        ):
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
        files = read_gguf(ours), read_gguf(theirs)
        found = differences(*files)
    print(f"{file_type}: {len(files[0].metadata)} keys, {len(files[0].tensors)} tensors, {found or 'identical'}")
    return not found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("converter", type=Path)
    parser.add_argument("--types", default="F32,F16,BF16,Q8_0")
    arguments = parser.parse_args()
    good = [compare(arguments.model, arguments.converter, name) for name in arguments.types.split(",")]
    sys.exit(0 if all(good) else 1)
