"""A Hugging Face model folder as tensors whose rows are read on demand.

Opening reads every header and no weights, and reports everything that is wrong with the folder in one error.
What the tensors are for is not known here, nor is config.json read: see phi4conv.phi3 and phi4conv.hf.config.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, Problem
from phi4conv.files import PositionedReader
from phi4conv.hf.folder_problems import (
    ADAPTER_NAME,
    DOWNLOAD_FOLDER,
    GET_MODEL,
    INDEX_NAME,
    SINGLE_NAME,
    Headers,
    Placement,
    file_instead_of_folder,
    held_twice,
    how_to_get,
    merged,
    misplaced,
    missing_shards,
    no_weights,
    unfinished_downloads,
    unusable_tensors,
)
from phi4conv.hf.json_file import listed, read_json_object, shortened, unreadable
from phi4conv.hf.safetensors import TensorInfo, read_header
from phi4conv.rows import row_count

SHARD_NAME = re.compile(r".*-\d{5}-of-(\d{5})\.safetensors")

# The dtypes that float32 holds exactly, as numpy spells what the file holds.
WEIGHT_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class TensorRows:
    """One tensor of a safetensors file, a RowSource. Picklable: a copy opens the file again."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    reader: PositionedReader
    offset: int

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's own name."""
        return (self.name,)

    @property
    def stored_bytes(self) -> int:
        """How many bytes of its file the tensor takes."""
        return math.prod(self.shape) * np.dtype(WEIGHT_DTYPES[self.dtype]).itemsize

    def rows(self, start: int, stop: int) -> Floats:
        """Rows start to stop, only their bytes read: float32 (stop - start, width), exactly as stored.

        Raises ValueError when the tensor has no such rows, FormatError when the file has become shorter and
        CheckpointError when it cannot be read.
        """
        if not 0 <= start <= stop <= row_count(self.shape):
            raise ValueError(f"{self.name} has {row_count(self.shape)} rows, not {start} to {stop}")
        width = self.shape[-1] if self.shape else 1
        stored = np.empty((stop - start, width), dtype=WEIGHT_DTYPES[self.dtype])
        offset = self.offset + start * width * stored.itemsize
        if stored.size:
            try:
                self.reader.read_into(stored.reshape(-1).view(np.uint8).data, offset)
            except OSError as error:
                raise CheckpointError(unreadable(self.reader.path, error)) from error
        if self.dtype == "BF16":  # the upper half of a float32
            bits = stored.astype(np.uint32)
            bits <<= np.uint32(16)
            return bits.view(np.float32)
        return stored.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Checkpoint:
    """A model folder: tensors in the order of the files, and every file that was read to find them."""

    folder: Path
    tensors: Mapping[str, TensorRows]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of a folder's safetensors files; no weights are read.

        The files are those that model.safetensors.index.json lists, or model.safetensors, or the only
        .safetensors file there is. Raises CheckpointError with every problem found.
        """
        names = folder_names(folder)
        placement, shards, problems = _find_weights(folder, names)
        readers = {name: PositionedReader(folder / name) for name in shards if name in names}
        headers, header_problems = _read_headers(readers)
        problems += missing_shards(folder, [name for name in shards if name not in names])
        problems += header_problems
        problems += misplaced(folder, placement, headers)
        problems += held_twice(folder, headers)
        problems += unusable_tensors(folder, headers, WEIGHT_DTYPES)
        if not problems and not any(headers.values()):
            problems.append(Problem("no tensors in the weight files", str(folder), next_step=DOWNLOAD_FOLDER))
        if problems:
            raise CheckpointError(*merged(problems), *unfinished_downloads(folder, names))
        tensors = {
            name: TensorRows(name, info.dtype, info.shape, readers[shard], info.offset)
            for shard, header in headers.items()
            for name, info in header.items()
        }
        index = [folder / INDEX_NAME] if INDEX_NAME in names else []
        return cls(folder, tensors, (*index, *(folder / name for name in shards)))

    @property
    def dtype(self) -> str:
        """The dtype of most weights: "BF16", "F16" or "F32"."""
        weights = Counter[str]()
        for tensor in self.tensors.values():
            weights[tensor.dtype] += math.prod(tensor.shape)
        return weights.most_common(1)[0][0]

    @property
    def parameter_count(self) -> int:
        """How many weights the checkpoint holds."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def folder_names(folder: Path) -> frozenset[str]:
    """The names in a model folder; raises CheckpointError when there is no such folder or nothing in it."""
    try:
        names = frozenset(entry.name for entry in folder.iterdir())
    except FileNotFoundError as error:
        raise CheckpointError(Problem("no such folder", str(folder), next_step=how_to_get(folder))) from error
    except NotADirectoryError as error:
        raise CheckpointError(file_instead_of_folder(folder)) from error
    except OSError as error:
        raise CheckpointError(unreadable(folder, error)) from error
    if not names:
        raise CheckpointError(Problem("an empty folder", str(folder), next_step=GET_MODEL))
    return names


def _find_weights(folder: Path, names: frozenset[str]) -> tuple[Placement | None, list[str], list[Problem]]:
    """What the index says, if there is one; the names of the files that hold the weights; what is wrong so far."""
    present = sorted(name for name in names if _is_weights(name) and name != ADAPTER_NAME)
    if INDEX_NAME in names:
        try:
            placement, problems = _read_index(folder / INDEX_NAME)
        except CheckpointError as error:
            return None, present, list(error.problems)
        shards = sorted(set(placement.values()))
        if SINGLE_NAME in names and SINGLE_NAME not in shards:
            problems.append(
                Problem(
                    "two sets of weights: an index, and a model.safetensors that it does not list",
                    where=str(folder),
                    expected="one of the two; transformers reads model.safetensors",
                    next_step=f"move {SINGLE_NAME} or {INDEX_NAME}, whichever is not meant, out of the folder",
                )
            )
        return placement, shards, problems
    if SINGLE_NAME in names:
        return None, [SINGLE_NAME], []
    if not present:
        raise CheckpointError(no_weights(folder, names), *unfinished_downloads(folder, names))
    shard = SHARD_NAME.fullmatch(present[0])
    if len(present) > 1 or (shard and int(shard[1]) > 1):
        problem = Problem(
            f"no {INDEX_NAME}, which says what belongs together",
            where=str(folder),
            expected=f"the index, or {SINGLE_NAME} alone",
            found=listed(present),
            next_step=f"download {INDEX_NAME}; keep one model in one folder",
        )
        return None, present, [problem]
    return None, present, []


def _is_weights(name: str) -> bool:
    # macOS keeps resource forks as hidden files of the same ending.
    return name.endswith(".safetensors") and not name.startswith(".")


def _read_index(path: Path) -> tuple[Placement, list[Problem]]:
    """The index's entries that name a file of its own folder, and a problem for those that do not."""
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        found = shortened(repr(weight_map))
        step = f"download {INDEX_NAME} again"
        raise CheckpointError(Problem("no weight_map in the index", str(path), '{"tensor": "file"}', found, step))
    good = {tensor: name for tensor, name in weight_map.items() if _is_file_name(name)}
    if len(good) == len(weight_map):
        return good, []
    bad = sorted({str(name) for name in weight_map.values() if not _is_file_name(name)})
    problem = Problem(
        "the index names what is no .safetensors file of its own folder",
        where=str(path),
        expected="plain file names, such as model-00001-of-00006.safetensors",
        found=listed(bad),
        next_step="get the index from the model's original page",
    )
    return good, [problem]


def _is_file_name(name: Any) -> bool:
    """Whether an index may name this file: one that cannot lead out of the folder, on Windows either."""
    return isinstance(name, str) and _is_weights(name) and not re.search(r"[/\\:\0]", name)


def _read_headers(readers: Mapping[str, PositionedReader]) -> tuple[Headers, list[Problem]]:
    outcomes = {name: _header_or_problems(reader) for name, reader in readers.items()}
    headers = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, dict)}
    return headers, [problem for outcome in outcomes.values() if isinstance(outcome, tuple) for problem in outcome]


def _header_or_problems(reader: PositionedReader) -> dict[str, TensorInfo] | tuple[Problem, ...]:
    try:
        return read_header(reader)
    except CheckpointError as error:
        return error.problems
