"""What makes a model folder unusable, in words that say what to do about it.

The functions are given a folder's file names, or the headers of its files, and return the Problems that they see in
them; those that return a list return an empty one when all is well. Finding and reading the files is the work of
phi4conv.hf.checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from phi4conv.errors import Problem
from phi4conv.hf.json_file import listed
from phi4conv.hf.safetensors import TensorInfo

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"

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

Placement = Mapping[str, str]  # tensor name → file name, as the index says
Headers = Mapping[str, Mapping[str, TensorInfo]]  # file name → tensor name → place


def how_to_get(folder: Path) -> str:
    """What to do about a missing folder: "microsoft/phi-4" is a path, and may be meant as a repository's name."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", folder.as_posix(), re.ASCII):
        name = folder.as_posix()
        return f"check the path; if it names a repository on the Hub: `hf download {name} --local-dir {folder.name}`"
    return GET_MODEL


def file_instead_of_folder(path: Path) -> Problem:
    """A file where the folder should be."""
    next_step = "name the folder that holds config.json, the tokenizer and the weights"
    if path.suffix == ".gguf":
        next_step = "name the Hugging Face folder that the GGUF was made from"
    return Problem("not a folder", str(path), "a Hugging Face model folder", "a file", next_step)


def no_weights(folder: Path, names: Collection[str]) -> Problem:
    """No safetensors file among the names in the folder, but perhaps something that explains why."""
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
        next_step = "name the Hugging Face folder that the GGUF was made from"
        return problem("only GGUF files; a conversion starts from the Hugging Face folder", ggufs, next_step)
    patterns = ("*/*.safetensors", "snapshots/*/*.safetensors")
    if below := {path.parent for pattern in patterns for path in folder.glob(pattern)}:
        inside = sorted(str(path.relative_to(folder)) for path in below)
        return problem("no weights in this folder, but in one inside it", inside, f"name {folder / inside[0]} instead")
    return problem("no weights in the folder", names, GET_MODEL)


def missing_shards(folder: Path, missing: Sequence[str]) -> list[Problem]:
    """Files that the index lists and the folder lacks."""
    if not missing:
        return []
    found = f"{len(missing)} not there: {listed(missing)}"
    return [Problem("files missing that the index lists", str(folder), found=found, next_step="download them")]


def misplaced(folder: Path, placement: Placement | None, headers: Headers) -> list[Problem]:
    """Where the index and the files that could be read disagree; placement is None when there is no index."""
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


def held_twice(folder: Path, headers: Headers) -> list[Problem]:
    """Tensors that two of the checkpoint's own files hold; other files in the folder are nobody's concern."""
    holder: dict[str, str] = {}
    twice: dict[tuple[str, str], list[str]] = {}
    for file, header in headers.items():
        for tensor in header:
            first = holder.setdefault(tensor, file)
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


def unusable_tensors(folder: Path, headers: Headers, readable: Collection[str]) -> list[Problem]:
    """Quantized weights, dtypes beyond the readable ones, and tensors without elements."""
    tensors = {name: info for header in headers.values() for name, info in header.items()}
    problems = []
    if quantized := _quantization(folder, tensors):
        problems.append(quantized)
    else:
        dtypes = sorted({info.dtype for info in tensors.values()} - set(readable))
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


def unfinished_downloads(folder: Path, names: Collection[str]) -> list[Problem]:
    """A hint beside other problems: downloads that stopped, here or where `hf download` keeps them."""
    unfinished = {name for name in names if name.endswith(UNFINISHED_SUFFIXES)}
    unfinished |= {path.name for path in (folder / ".cache/huggingface/download").glob("**/*.incomplete")}
    if folder.absolute().parent.name == "snapshots":
        unfinished |= {path.name for path in folder.absolute().parents[1].glob("blobs/*.incomplete")}
    if not unfinished:
        return []
    found = listed(sorted(unfinished))
    return [Problem("unfinished downloads", str(folder), found=found, next_step="run the download again; it resumes")]


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Problems that differ only in their place as one that names every place."""
    places: dict[Problem, list[str]] = {}
    for problem in problems:
        places.setdefault(replace(problem, where=""), []).append(problem.where)
    return [replace(problem, where=", ".join(where)) for problem, where in places.items()]
