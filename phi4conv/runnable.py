"""Whether a GGUF is a whole model that llama.cpp would run, and whether the reference path can run it here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator

from gguf.constants import GGMLQuantizationType, Keys

from phi4conv.errors import EngineError, FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.rows import require_sound
from phi4conv.quant import CODECS
from phi4conv.reference.file_model import file_model
from phi4conv.reference.file_problems import file_problems, key_problems, type_problems
from phi4conv.reference.parts import Model, Part
from phi4conv.rows import row_count

# More problems say no more than the first ones.
SHOWN_PROBLEMS = 5

CONVERT_AGAIN = "make the file again from its checkpoint, with `phi4conv convert`"


def require_torch() -> None:
    """Raise EngineError where torch is not installed, or does not start."""
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a library that torch needs is missing
        raise EngineError(
            Problem(
                "torch cannot be loaded, and the reference path computes with it",
                expected="torch 2.4 or later",
                found=" ".join(str(error).split()),
                next_step="pip install 'phi4conv[torch]'",
            )
        ) from error


def require_whole_model(file: GGUFFile) -> None:
    """Refuse what has not all of a model in it.

    Raises:
        FormatError: A part of a split file, a vocabulary alone, or a damaged file.
    """
    number, count = file.number(Keys.Split.LLM_KV_SPLIT_NO), file.number(Keys.Split.LLM_KV_SPLIT_COUNT)
    if (count or 0) > 1 or number:
        raise FormatError(
            Problem(
                "the model is split over several files",
                where=str(file.path),
                expected="one whole file",
                found=f"part {int(number or 0) + 1} of {int(count) if count else 'several'}",
                next_step="merge the parts first: `llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf`",
            )
        )
    require_sound(file)
    if not file.tensors:
        raise FormatError(
            Problem(
                "the file has a vocabulary and no weights",
                where=str(file.path),
                expected="a whole model",
                found="no tensors",
                next_step="convert the model without --vocab-only",
            )
        )


def runnable_model(file: GGUFFile) -> Model:
    """The file's model, when llama.cpp would run it and the reference path can. No weights are read.

    Raises:
        FormatError: With the first reasons why not.
    """
    model = file_model(file)
    problems = [
        *key_reasons(file, model),
        *tensor_reasons(file, model),
        *vector_reasons(file, model),
        *type_reasons(file, model),
    ]
    if len(problems) > SHOWN_PROBLEMS:
        more = Problem(f"and {len(problems) - SHOWN_PROBLEMS} more such problems", where=str(file.path))
        problems = [*problems[:SHOWN_PROBLEMS], more]
    if problems:
        raise FormatError(*problems)
    return model


def key_reasons(file: GGUFFile, model: Model) -> Iterator[Problem]:
    """Hyperparameters with which llama.cpp stops."""
    for problem in key_problems(file, model.hyperparameters):
        yield Problem(
            "llama.cpp does not run the model with this value",
            where=f"{file.path}: {problem.key}",
            expected=problem.expected,
            found=problem.found,
            next_step=CONVERT_AGAIN,
        )


def tensor_reasons(file: GGUFFile, model: Model) -> Iterator[Problem]:
    """Tensors for which llama.cpp refuses the file."""
    for problem in file_problems(file, model):
        if problem.found is None:
            what = "llama.cpp refuses the file: a tensor is missing"
        elif problem.expected is None:
            what = "llama.cpp refuses the file: a tensor that the model has no use for"
        else:
            what = "llama.cpp refuses the file: a tensor is not of the shape that the metadata call for"
        yield Problem(
            what,
            where=f"{file.path}: {problem.tensor}",
            expected="no such tensor" if problem.expected is None else f"shape {problem.expected}",
            found="no such tensor" if problem.found is None else f"shape {problem.found}",
            next_step=CONVERT_AGAIN,
        )


def vector_reasons(file: GGUFFile, model: Model) -> Iterator[Problem]:
    """Norms and rope factors of a type with which llama.cpp stops."""
    for problem in type_problems(file, model):
        yield Problem(
            "llama.cpp loads the file, and stops: it computes with no tensor of this type in this place",
            where=f"{file.path}: {problem.tensor}",
            expected=problem.expected.name,
            found=problem.found.name,
            next_step=CONVERT_AGAIN,
        )


def type_reasons(file: GGUFFile, model: Model) -> Iterator[Problem]:
    """Types that phi4conv cannot decode, each with its first tensor."""
    first: dict[GGMLQuantizationType | None, str] = {}
    for part in model.parts.values():
        first.setdefault(part.qtype, part.tensor)
    for qtype, tensor in first.items():
        if qtype is not None and qtype not in CODECS:
            yield Problem(
                f"phi4conv has no decoder for {qtype.name}",
                where=f"{file.path}: {tensor}",
                expected=f"one of {', '.join(known.name for known in CODECS)}",
                next_step="give a file of another type, made with `phi4conv convert`",
            )


def stored_bytes(parts: Iterable[Part]) -> int:
    """How many bytes of a file parts take."""
    return sum(
        row_count(part.shape) * CODECS[part.qtype].row_bytes(part.shape[-1]) for part in parts if part.qtype is not None
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch means that memory is short: on the CPU it has no class of its own for that."""
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error)


def out_of_memory(device: str) -> EngineError:
    """The error for a run that does not fit."""
    return EngineError(
        Problem(
            "out of memory",
            where=f"--device {device}",
            next_step="close other programs, or shorten the prompt"
            + ("" if device == "cpu" else "; or leave --device out to run on the CPU"),
        )
    )
