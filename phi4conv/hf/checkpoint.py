"""A Hugging Face model folder as tensors whose rows are read on demand.

Opening reads every header and no weights, and reports everything that is wrong with the folder in one error.
What the tensors are for is not known here, nor is config.json read: see phi4conv.phi3 and phi4conv.hf.config.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, Problem
from phi4conv.files import PositionedReader
from phi4conv.hf.json_file import listed, read_json_object, shortened, unreadable
from phi4conv.hf.safetensors import TensorInfo, read_header
from phi4conv.rows import row_count

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
SHARD_NAME = re.compile(r".*-\d{5}-of-(\d{5})\.safetensors")

# The dtypes that float32 holds exactly, as numpy spells what the file holds.
WEIGHT_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
UNFINISHED_SUFFIXES = (".incomplete", ".part", ".crdownload", ".aria2")

# The last word of the names that quantized checkpoints use, the telling ones before the shared ones.
QUANTIZED_WORDS = {
    "g_idx": "GPTQ",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "quant_state": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "FP8",
    "weight_packed": "compressed-tensors",
    "weight_scale": "FP8 or compressed-tensors",
    "biases": "MLX",
    "scales": "GPTQ, AWQ or MLX",
}
QUANTIZED_DTYPES = ("F4", "F6_", "F8_")

GET_MODEL = "download the model, for example with `hf download microsoft/phi-4 --local-dir phi-4`"
DOWNLOAD_FOLDER = "download the folder again"
GET_ORIGINAL = "get the checkpoint with BF16, F16 or F32 weights that this one was made from"

Headers = Mapping[str, Mapping[str, TensorInfo]]  # file name → tensor name → place


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
        names = _folder_names(folder)
        placement, shards, problems = _find_weights(folder, names)
        readers = {name: PositionedReader(folder / name) for name in shards if name in names}
        headers, header_problems = _read_headers(readers)
        problems += _missing_shards(folder, [name for name in shards if name not in names])
        problems += header_problems
        problems += _misplaced(folder, placement, headers)
        problems += _held_twice(folder, headers, _spare_headers(folder, names, shards))
        problems += _unusable_tensors(folder, headers)
        if not problems and not any(headers.values()):
            problems.append(Problem("no tensors in the weight files", str(folder), next_step=DOWNLOAD_FOLDER))
        if problems:
            raise CheckpointError(*_merged(problems), *_unfinished_downloads(folder, names))
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


def _folder_names(folder: Path) -> frozenset[str]:
    """The names in a model folder; raises CheckpointError when there is no such folder or nothing in it."""
    try:
        names = frozenset(entry.name for entry in folder.iterdir())
    except FileNotFoundError as error:
        raise CheckpointError(Problem("no such folder", str(folder), next_step=_how_to_get(folder))) from error
    except NotADirectoryError as error:
        raise CheckpointError(_file_instead_of_folder(folder)) from error
    except OSError as error:
        raise CheckpointError(unreadable(folder, error)) from error
    if not names:
        raise CheckpointError(Problem("an empty folder", str(folder), next_step=GET_MODEL))
    return names


def _how_to_get(folder: Path) -> str:
    """The download of what may be meant: "microsoft/phi-4" is a repository's name as well as a path."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", folder.as_posix(), re.ASCII):
        return f"download the model: `hf download {folder.as_posix()} --local-dir {folder.name}`"
    return GET_MODEL


def _file_instead_of_folder(path: Path) -> Problem:
    next_step = "name the folder that holds config.json, the tokenizer and the weights"
    if path.suffix == ".gguf":
        next_step = "name the Hugging Face folder; `phi4conv quantize` reads GGUF files"
    return Problem("not a folder", str(path), "a Hugging Face model folder", "a file", next_step)


Placement = Mapping[str, str]  # tensor name → file name, as the index says


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
        raise CheckpointError(_no_weights(folder, names), *_unfinished_downloads(folder, names))
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


def _no_weights(folder: Path, names: frozenset[str]) -> Problem:
    expected = f"{INDEX_NAME} and the files it lists, or {SINGLE_NAME}"

    def problem(what: str, found: Iterable[str], next_step: str) -> Problem:
        return Problem(what, str(folder), expected, listed(sorted(found)), next_step)

    if ADAPTER_NAME in names:
        return problem("only a LoRA adapter, no model", [ADAPTER_NAME], "merge the adapter into its base model first")
    if pickles := [name for name in names if name.endswith(PICKLE_SUFFIXES)]:
        what = "only pickled weights; phi4conv reads none, because loading a pickle runs the code in it"
        next_step = (
            "get the model's .safetensors files; or, where the files are trusted, load the model with transformers and"
            " save it again with save_pretrained"
        )
        return problem(what, pickles, next_step)
    if ggufs := [name for name in names if name.endswith(".gguf")]:
        next_step = "name the Hugging Face folder; `phi4conv quantize` reads GGUF files"
        return problem("only GGUF files; a conversion starts from the Hugging Face folder", ggufs, next_step)
    patterns = ("*/*.safetensors", "snapshots/*/*.safetensors")
    if below := {path.parent for pattern in patterns for path in folder.glob(pattern)}:
        inside = sorted(str(path.relative_to(folder)) for path in below)
        return problem("no weights in this folder, but in one inside it", inside, f"name {folder / inside[0]} instead")
    return problem("no weights in the folder", names, GET_MODEL)


def _read_headers(readers: Mapping[str, PositionedReader]) -> tuple[Headers, list[Problem]]:
    outcomes = {name: _header_or_problems(reader) for name, reader in readers.items()}
    headers = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, dict)}
    return headers, [problem for outcome in outcomes.values() if isinstance(outcome, tuple) for problem in outcome]


def _header_or_problems(reader: PositionedReader) -> dict[str, TensorInfo] | tuple[Problem, ...]:
    try:
        return read_header(reader)
    except CheckpointError as error:
        return error.problems


def _spare_headers(folder: Path, names: frozenset[str], shards: Sequence[str]) -> Headers:
    """The headers of the files beside the checkpoint's own; what is unreadable there is nobody's concern."""
    spare = sorted(name for name in names if _is_weights(name) and name not in shards)
    if INDEX_NAME in names and SINGLE_NAME in spare:
        spare.remove(SINGLE_NAME)  # a problem already, with words of its own
    return _read_headers({name: PositionedReader(folder / name) for name in spare})[0]


def _missing_shards(folder: Path, missing: Sequence[str]) -> list[Problem]:
    if not missing:
        return []
    found = f"{len(missing)} not there: {listed(missing)}"
    return [Problem("files missing that the index lists", str(folder), found=found, next_step="download them")]


def _misplaced(folder: Path, placement: Placement | None, headers: Headers) -> list[Problem]:
    """Where the index and the files that could be read disagree."""
    if placement is None:
        return []
    absent = [name for name, shard in placement.items() if shard in headers and name not in headers[shard]]
    unlisted = [name for header in headers.values() for name in header if name not in placement]
    problems = []
    for what, tensors in (
        ("the index places tensors in files that do not hold them", absent),
        ("the files hold tensors that the index does not list", unlisted),
    ):
        if tensors:
            found = f"{len(tensors)}: {listed(tensors)}"
            problems.append(Problem(what, str(folder / INDEX_NAME), found=found, next_step=DOWNLOAD_FOLDER))
    return problems


def _held_twice(folder: Path, headers: Headers, spare: Headers) -> list[Problem]:
    """Tensors of the checkpoint that a second file holds as well, whether or not it is part of the checkpoint."""
    holder: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    for file, header in (*headers.items(), *spare.items()):
        for tensor in header:
            first = holder.setdefault(tensor, file) if file in headers else holder.get(tensor, file)
            if first != file:
                twice.setdefault((first, file), []).append(tensor)
    return [
        Problem(
            "two files hold the same tensors",
            where=", ".join(str(folder / name) for name in files),
            found=f"{len(tensors)}: {listed(tensors)}",
            next_step="find out which file is meant, and move the other out of the folder",
        )
        for files, tensors in twice.items()
    ]


def _unusable_tensors(folder: Path, headers: Headers) -> list[Problem]:
    """Quantized weights, dtypes that float32 cannot hold, and tensors without elements."""
    tensors = {name: info for header in headers.values() for name, info in header.items()}
    problems = []
    if quantized := _quantization(folder, tensors):
        problems.append(quantized)
    else:
        dtypes = sorted({info.dtype for info in tensors.values()} - WEIGHT_DTYPES.keys())
        problems += [_unusable_dtype(folder, dtype, tensors) for dtype in dtypes]
    if empty := [f"{name} {list(info.shape)}" for name, info in tensors.items() if 0 in info.shape]:
        problems.append(
            Problem("tensors without elements", str(folder), found=listed(empty), next_step=DOWNLOAD_FOLDER)
        )
    return problems


def _quantization(folder: Path, tensors: Mapping[str, TensorInfo]) -> Problem | None:
    by_word: dict[str, list[str]] = {}
    for name in tensors:
        word = "quant_state" if ".quant_state." in name else name.rpartition(".")[2]
        by_word.setdefault(word, []).append(name)
    signs = [(scheme, by_word[word]) for word, scheme in QUANTIZED_WORDS.items() if word in by_word]
    if small := [f"{name} ({info.dtype})" for name, info in tensors.items() if info.dtype.startswith(QUANTIZED_DTYPES)]:
        signs.append(("FP8 or smaller", small))
    if not signs:
        return None
    scheme, telling = signs[0]
    return Problem(
        f"a checkpoint that is quantized already ({scheme})",
        where=str(folder),
        expected="BF16, F16 or F32 weights",
        found=f"{len(telling)} tensors such as {listed(telling[:2])}",
        next_step=GET_ORIGINAL,
    )


def _unusable_dtype(folder: Path, dtype: str, tensors: Mapping[str, TensorInfo]) -> Problem:
    names = [name for name, info in tensors.items() if info.dtype == dtype]
    rounds = "; F64 does not fit float32: save the model as F32" if dtype == "F64" else ""
    return Problem(
        f"tensors of type {dtype}",
        where=str(folder),
        expected="BF16, F16 or F32 weights",
        found=f"{len(names)}: {listed(names)}",
        next_step=GET_ORIGINAL + rounds,
    )


def _unfinished_downloads(folder: Path, names: frozenset[str]) -> list[Problem]:
    """A hint beside other problems: downloads that stopped, here or where `hf download` keeps them."""
    unfinished = {name for name in names if name.endswith(UNFINISHED_SUFFIXES)}
    unfinished |= {path.name for path in (folder / ".cache/huggingface/download").glob("**/*.incomplete")}
    if folder.absolute().parent.name == "snapshots":
        unfinished |= {path.name for path in folder.absolute().parents[1].glob("blobs/*.incomplete")}
    if not unfinished:
        return []
    found = listed(sorted(unfinished))
    return [Problem("unfinished downloads", str(folder), found=found, next_step="run the download again; it resumes")]


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """Problems that differ only in their place as one that names every place."""
    places: dict[Problem, list[str]] = {}
    for problem in problems:
        places.setdefault(replace(problem, where=""), []).append(problem.where)
    return [replace(problem, where=", ".join(where)) for problem, where in places.items()]
