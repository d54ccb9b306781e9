"""Makes the plan: configuration, vocabulary, name table and types brought together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gguf.constants import GGMLQuantizationType

from phi4conv.errors import CheckpointError, ConversionError, Problem
from phi4conv.hf.checkpoint import Checkpoint, TensorRows, folder_names
from phi4conv.hf.config import Phi3Config, read_config
from phi4conv.hf.json_file import listed
from phi4conv.hf.model_card import read_model_card
from phi4conv.hf.tokenizer import VocabularyReading, read_vocabulary
from phi4conv.imatrix import importance_pairs, read_imatrix, weigh
from phi4conv.phi3.metadata import metadata_pairs, safe_name
from phi4conv.phi3.tensors import check_tensors, gguf_tensors, left_out
from phi4conv.plan import ConversionPlan, TensorPlan
from phi4conv.quant.mix import FileType, TypeRules, file_type_named, is_quantizable, matches, type_warnings
from phi4conv.quant.mix_table import CURRENT
from phi4conv.rows import RowSource
from phi4conv.vocab import PHI4_SEPARATOR, Vocabulary

T = TypeVar("T")

# Pairs of a pattern over GGUF tensor names and a type.
Overrides = Sequence[tuple[str, GGMLQuantizationType]]


@dataclass(frozen=True)
class ConversionOptions:
    """What the user may choose.

    Attributes:
        file_type: A name of quant.mix.FILE_TYPES; None for the checkpoint's own type.
        overrides: Pairs of a pattern over GGUF tensor names and a type; the first match decides.
        token_embedding: The type of token_embd.weight.
        output: The type of output.weight.
        mix: Which of llama.cpp's rules a mix follows, "current" or "pre-2026".
        pure: No mix: one type for every matrix that no other option names.
        imatrix: A file that says how much each column of a tensor matters; see phi4conv.imatrix.
        name: general.name, instead of what the model card or the folder says.
        metadata_file: A JSON file of GGUF keys that override the model card's.
        vocab_only: Write metadata and vocabulary, and no tensors.
        allow_non_finite: Write NaN, Inf and weights beyond the range of F32, F16 and BF16 as they come.
    """

    file_type: str | None = None
    overrides: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    token_embedding: GGMLQuantizationType | None = None
    output: GGMLQuantizationType | None = None
    mix: str = CURRENT
    pure: bool = False
    imatrix: Path | None = None
    name: str | None = None
    metadata_file: Path | None = None
    vocab_only: bool = False
    allow_non_finite: bool = False


def plan(folder: Path, options: ConversionOptions) -> ConversionPlan:
    """Read everything but the weights of the checkpoint in folder and decide the whole file.

    Raises:
        CheckpointError: The folder holds no checkpoint that can be converted.
        FormatError: The importance matrix cannot be used.
        ConversionError: The options cannot be met.
        ValueError: There is no such file type or mix.
    """
    compile_patterns(options.overrides)
    matrix = read_imatrix(options.imatrix) if options.imatrix else None
    config, reading, checkpoint = read_folder(folder, vocab_only=options.vocab_only)
    check_family(config, reading.vocabulary, folder)
    tensors: tuple[TensorPlan, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, TensorRows] = {}
    if checkpoint is None:
        file_type = file_type_named(options.file_type or "F16")
    else:
        sources = checkpoint.tensors
        file_type = file_type_named(options.file_type or checkpoint.dtype)
        check_tensors(config, sources)
        tensors, warnings = plan_tensors(config, sources, file_type, options)
    check_overrides(options.overrides, tensors)
    if matrix:
        tensors, importance_warnings = weigh(matrix, tensors)
        warnings += importance_warnings
    # The embedding bears vocab_size out by now, so that padding up to it is not a matter of trust.
    vocabulary = reading.vocabulary.padded(config.vocab_size)
    card, renamed = named_card(folder, options, sum(tensor.weight_count for tensor in tensors))
    return ConversionPlan(
        file_type=file_type.name,
        metadata=(*metadata_pairs(config, vocabulary, card, file_type), *importance_pairs(matrix)),
        tensors=tensors,
        source_names=tuple(sources),
        left_out=left_out(config, sources),
        inputs=input_files(folder, options),
        warnings=(*reading.warnings, *renamed, *warnings, *rounding_warnings(tensors, sources, options)),
    )


def read_folder(folder: Path, *, vocab_only: bool) -> tuple[Phi3Config, VocabularyReading, Checkpoint | None]:
    """Configuration, vocabulary and tensor headers; the tensors only when they are to be written.

    Raises:
        CheckpointError: With the problems of all three, so that one attempt shows whatever is wrong.
    """
    problems: list[Problem] = []
    if "config.json" not in folder_names(folder):  # no model folder at all: say what it is instead
        attempt(lambda: Checkpoint.open(folder), problems)
        attempt(lambda: read_config(folder), problems)
        raise CheckpointError(problems[0])
    checkpoint = None if vocab_only else attempt(lambda: Checkpoint.open(folder), problems)
    config = attempt(lambda: read_config(folder), problems)
    # Without the configuration a missing end-of-text token may be a consequence, not a problem of its own.
    reading = attempt(lambda: read_vocabulary(folder, config.special_ids), problems) if config else None
    if config is None or reading is None or problems:
        raise CheckpointError(*problems)
    return config, reading, checkpoint


def attempt(read: Callable[[], T], problems: list[Problem]) -> T | None:
    """What read gives, or None and its problems added to the list."""
    try:
        return read()
    except CheckpointError as error:
        problems += error.problems
        return None


def check_family(config: Phi3Config, vocabulary: Vocabulary, folder: Path) -> None:
    """Refuse a Llama that is not Phi-4 under another name.

    Raises:
        CheckpointError: The vocabulary is not Phi-4's.
    """
    if config.is_llamafied and PHI4_SEPARATOR not in vocabulary.ids:
        raise CheckpointError(
            Problem(
                "this LlamaForCausalLM is not Phi-4",
                where=str(folder),
                expected=f"Phi-4's vocabulary, with the token {PHI4_SEPARATOR}",
                found=f"{len(vocabulary):,} tokens without it",
                next_step="convert Llama models with llama.cpp's own converter",
            )
        )


def input_files(folder: Path, options: ConversionOptions) -> tuple[Path, ...]:
    """Every file of the model folder but GGUFs, read or not, and the user's own: the output must be none of them."""
    files = [path for path in sorted(folder.glob("**/*")) if path.is_file() and path.suffix != ".gguf"]
    return (*files, *(path for path in (options.metadata_file, options.imatrix) if path))


def rounding_warnings(
    tensors: Sequence[TensorPlan], sources: Mapping[str, TensorRows], options: ConversionOptions
) -> Iterator[str]:
    """What the checkpoint's prevailing type, taken because no other was asked for, does to matrices of another one."""
    rounded = [
        tensor.name
        for tensor in tensors
        if tensor.qtype != GGMLQuantizationType.F32
        and any(sources[name].dtype != tensor.qtype.name for name in tensor.source.names)
    ]
    if rounded and not options.file_type:
        yield (
            f"stored in another type than most matrices, and rounded to theirs: {listed(rounded)}; pass --type F32 to "
            "keep every weight, or another --type to choose"
        )


def plan_tensors(
    config: Phi3Config, sources: Mapping[str, RowSource], file_type: FileType, options: ConversionOptions
) -> tuple[tuple[TensorPlan, ...], tuple[str, ...]]:
    """Every tensor with its type, and what the user should know about the types."""
    rules = TypeRules(
        file_type=file_type,
        layer_count=config.layer_count,
        head_ratio=config.head_count // config.kv_head_count,
        tied=config.tied_embeddings,
        overrides=options.overrides,
        token_embedding=options.token_embedding,
        output=options.output,
        mix=options.mix,
        pure=options.pure,
    )
    tensors, choices = [], {}
    for name, source in gguf_tensors(config, sources):
        choice = choices[name] = rules.choose(name, source.shape)
        tensors.append(TensorPlan(name, source, source.shape, choice.qtype, choice.reason))
    return tuple(tensors), tuple(type_warnings(rules, choices))


def compile_patterns(overrides: Overrides) -> None:
    """Refuse a --tensor-type that is no regular expression.

    Raises:
        ConversionError: With what is wrong with it.
    """
    for pattern, qtype in overrides:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:  # noqa: PERF203  # a loop over a few options
            where = f"--tensor-type {pattern}={qtype.name}"
            raise ConversionError(Problem("not a regular expression", where=where, found=str(error))) from error


def check_overrides(overrides: Overrides, tensors: Sequence[TensorPlan]) -> None:
    """Refuse a --tensor-type that changes nothing, for a typing mistake should not pass in silence.

    Raises:
        ConversionError: A pattern matches no matrix.
    """
    names = [tensor.name for tensor in tensors if is_quantizable(tensor.name, tensor.shape)]
    for pattern, qtype in overrides:
        if not any(matches(pattern, name) for name in names):
            raise ConversionError(
                Problem(
                    "the pattern matches no tensor that may have another type",
                    where=f"--tensor-type {pattern}={qtype.name}",
                    expected=f"a part of a GGUF name such as {names[-1] if names else 'blk.0.ffn_up.weight'}",
                    next_step="see the names with --dry-run"
                    if names
                    else "leave it out: --vocab-only writes no tensors",
                )
            )


def named_card(folder: Path, options: ConversionOptions, weight_count: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of the model card with a safe name, and what the user should know about them."""
    card = read_model_card(folder, parameter_count=weight_count, name=options.name, overrides=options.metadata_file)
    name, warning = safe_name(card.fields["name"], asked_for=options.name is not None)
    return card.fields | {"name": name}, (*card.warnings, warning) if warning else card.warnings
