"""Quantizes a GGUF: the same metadata, tensors of other types.

Everything else is as llama-quantize does it: the order of the tensors, where general.file_type and
general.quantization_version go, and which types may be encoded again. Left out: architectures other than phi3,
files in several parts, and what phi4conv has no encoder for.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGMLQuantizationType, GGUFType, Keys

from phi4conv.errors import ConversionError, Problem
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import GGUFRows, gguf_rows
from phi4conv.imatrix import QUANTIZE_KEYS, ImportanceMatrix, importance_pairs, read_imatrix, weigh
from phi4conv.phi3.metadata import ARCHITECTURE
from phi4conv.phi3.planner import check_overrides, compile_patterns
from phi4conv.plan import ConversionPlan, TensorPlan
from phi4conv.progress import Progress
from phi4conv.quant.mix import OUTPUT, FileType, TypeRules, file_type_named, type_warnings
from phi4conv.quant.mix_table import CURRENT
from phi4conv.stream import ConversionResult, write_plan

# Types whose weights are encoded again; those below 8 bits have lost too much.
SOURCE_TYPES = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q8_0,
)

SPLIT_KEYS = frozenset(
    {Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT, Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT}
)

# Keys that the new file has of its own, or that would be wrong in it.
REPLACED_KEYS = QUANTIZE_KEYS | SPLIT_KEYS | {Keys.General.QUANTIZATION_VERSION, Keys.General.FILE_TYPE}


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """What the user may choose.

    Attributes:
        file_type: A name of quant.mix.FILE_TYPES.
        overrides: Pairs of a pattern over GGUF tensor names and a type; the first match decides.
        token_embedding: The type of token_embd.weight.
        output: The type of output.weight.
        mix: Which of llama.cpp's rules a mix follows, "current" or "pre-2026".
        pure: No mix: one type for every matrix that no other option names.
        imatrix: A file that says how much each column of a tensor matters; see phi4conv.imatrix.
        allow_non_finite: Write NaN, Inf and weights beyond the range of F32, F16 and BF16 as they come.
    """

    file_type: str
    overrides: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    token_embedding: GGMLQuantizationType | None = None
    output: GGMLQuantizationType | None = None
    mix: str = CURRENT
    pure: bool = False
    imatrix: Path | None = None
    allow_non_finite: bool = False


def quantize(
    source: Path,
    target: Path,
    options: QuantizeOptions,
    *,
    force: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Write the GGUF source again as target, with tensors of other types.

    Args:
        source: A phi3 GGUF of F32, F16, BF16 or Q8_0.
        target: The file to make; its folder must exist.
        options: Types and importance matrix.
        force: Replace target when it exists.
        workers: Threads that encode; by default one for each usable core, up to stream.MOST_WORKERS_UNASKED.
        executor: Runs the chunks instead of a pool of threads; it stays open.
        progress: Told of tensor bytes as they are written.

    Raises:
        FormatError: The source or the importance matrix cannot be read, or is damaged.
        ConversionError: The source is nothing that can be quantized, options cannot be met, or weights are NaN,
            Inf or beyond their type's range.
        ValueError: There is no such file type or mix.
        OutputError: The target cannot be written. In every case target is as it was before.
    """
    started = time.monotonic()
    return write_plan(
        plan(source, options),
        target,
        allow_non_finite=options.allow_non_finite,
        force=force,
        workers=workers,
        executor=executor,
        progress=progress,
        started=started,
    )


def plan(source: Path, options: QuantizeOptions) -> ConversionPlan:
    """Read the header of the GGUF source and decide the whole file.

    A tensor that has its type already is copied bit for bit.

    Raises:
        FormatError: The source or the importance matrix cannot be read, or is damaged.
        ConversionError: The source is nothing that can be quantized, or the options cannot be met.
        ValueError: There is no such file type or mix.
    """
    compile_patterns(options.overrides)
    matrix = read_imatrix(options.imatrix) if options.imatrix else None
    file = read_gguf(source)
    sources = gguf_rows(file)
    check_kind(file)
    file_type = file_type_named(options.file_type)
    tensors, warnings = plan_tensors(file, sources, file_type, options)
    check_source_types(file, tensors, sources)
    check_overrides(options.overrides, tensors)
    warnings += tuple(source_warnings(file, tensors, sources))
    if matrix:
        copied = [tensor.name for tensor in tensors if sources[tensor.name].qtype == tensor.qtype]
        tensors, importance_warnings = weigh(matrix, tensors, copied)
        warnings += importance_warnings
    return ConversionPlan(
        file_type=file_type.name,
        metadata=metadata_pairs(file, file_type, matrix),
        tensors=tensors,
        source_names=tuple(sources),
        inputs=(source, options.imatrix) if options.imatrix else (source,),
        warnings=warnings,
    )


def check_kind(file: GGUFFile) -> None:
    """Refuse a GGUF that is no whole phi3 model.

    Raises:
        ConversionError: It is a part of one, of another architecture, or has no tensors.
    """
    where = str(file.path)
    parts = file.number(Keys.Split.LLM_KV_SPLIT_COUNT) or 0
    if parts > 1:
        number = (file.number(Keys.Split.LLM_KV_SPLIT_NO) or 0) + 1
        raise ConversionError(
            Problem(
                "one part of a split GGUF",
                where=where,
                expected="a whole file",
                found=f"part {number:g} of {parts:g}",
                next_step="join the parts first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf",
            )
        )
    kind = file.text(Keys.General.TYPE) or GGUFType.MODEL
    if kind != GGUFType.MODEL or file.architecture != ARCHITECTURE:
        raise ConversionError(
            Problem(
                "not a GGUF that phi4conv can quantize",
                where=where,
                expected=f"a model of architecture {ARCHITECTURE}",
                found=f"general.type {kind}, general.architecture {file.architecture}",
                next_step="convert the original checkpoint with `phi4conv convert`, which makes Phi-4 of the llama "
                "architecture phi3 too; other models are llama-quantize's",
            )
        )
    if not file.tensors:
        raise ConversionError(Problem("a GGUF without tensors", where=where, next_step="there is nothing to quantize"))


def plan_tensors(
    file: GGUFFile, sources: Mapping[str, GGUFRows], file_type: FileType, options: QuantizeOptions
) -> tuple[tuple[TensorPlan, ...], tuple[str, ...]]:
    """Every tensor with its type, in llama-quantize's order, and what the user should know about the types.

    Raises:
        ConversionError: The metadata do not say how many layers or heads the model has.
    """
    heads = hyperparameter(file, Keys.Attention.HEAD_COUNT)
    rules = TypeRules(
        file_type=file_type,
        layer_count=hyperparameter(file, Keys.LLM.BLOCK_COUNT),
        head_ratio=heads // hyperparameter(file, Keys.Attention.HEAD_COUNT_KV, default=heads),
        tied=OUTPUT not in sources,
        overrides=options.overrides,
        token_embedding=options.token_embedding,
        output=options.output,
        mix=options.mix,
        pure=options.pure,
    )
    choices = {name: rules.choose(name, sources[name].shape) for name in sorted(sources, key=by_layer_and_name)}
    tensors = []
    for name, choice in choices.items():
        rows = sources[name]
        reason = f"{choice.reason}; copied as it is" if rows.qtype == choice.qtype else choice.reason
        tensors.append(TensorPlan(name, rows, rows.shape, choice.qtype, reason))
    return tuple(tensors), tuple(type_warnings(rules, choices))


def hyperparameter(file: GGUFFile, key: str, default: int | None = None) -> int:
    """A count among the architecture's keys.

    Raises:
        ConversionError: It is no positive number, or absent without a default.
    """
    name = key.format(arch=ARCHITECTURE)
    pair = file.metadata.get(name)
    if pair is None and default is not None:
        return default
    value = file.number(name)
    if not isinstance(value, int) or value < 1:
        found = "nothing" if pair is None else f"{pair.type.name} {str(pair.value)[:40]}"
        raise ConversionError(
            Problem(
                "the metadata do not say what the types depend on",
                where=f"{file.path}, {name}",
                expected="a whole number above 0",
                found=found,
                next_step="make the file again from its checkpoint, with `phi4conv convert`",
            )
        )
    return value


def by_layer_and_name(name: str) -> tuple[int, str]:
    """Sorts tensors as llama-quantize does: those of no layer first, then by layer and name.

    >>> sorted(["blk.10.a", "blk.9.b", "token_embd.weight", "output.weight"], key=by_layer_and_name)
    ['output.weight', 'token_embd.weight', 'blk.9.b', 'blk.10.a']
    """
    match = re.match(r"blk\.(\d{1,9})\.", name, re.ASCII)
    return int(match[1]) if match else -1, name


def check_source_types(file: GGUFFile, tensors: Sequence[TensorPlan], sources: Mapping[str, GGUFRows]) -> None:
    """Refuse to encode again what is quantized already, as llama-quantize does.

    Raises:
        ConversionError: With the types and the first tensor of them.
    """
    again = [tensor.name for tensor in tensors if sources[tensor.name].qtype not in {*SOURCE_TYPES, tensor.qtype}]
    if not again:
        return
    types = Counter(sources[name].qtype.name for name in again)
    quantized = any(GGML_QUANT_SIZES[sources[name].qtype][0] > 1 for name in again)
    raise ConversionError(
        Problem(
            "the GGUF is quantized already; to quantize it again would lose much more than once from the original"
            if quantized
            else "the GGUF holds matrices of a type that phi4conv does not quantize",
            where=f"{file.path}, {again[0]}{f' and {len(again) - 1} more tensors' if len(again) > 1 else ''}",
            expected=f"{', '.join(qtype.name for qtype in SOURCE_TYPES)}",
            found=", ".join(f"{count} of {name}" for name, count in types.most_common()),
            next_step="start from a BF16 file, or from the checkpoint with `phi4conv convert`",
        )
    )


def source_warnings(file: GGUFFile, tensors: Sequence[TensorPlan], sources: Mapping[str, GGUFRows]) -> Iterator[str]:
    """What the user should know about the source: rounded weights that are rounded again, flaws of its format."""
    rounded = Counter(
        sources[tensor.name].qtype.name
        for tensor in tensors
        if sources[tensor.name].qtype in {GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0}
        and sources[tensor.name].qtype != tensor.qtype
    )
    for name, count in rounded.items():
        yield (
            f"{file.path.name} holds {count} of {len(tensors)} tensors as {name}, perhaps rounded from the original "
            "weights: the result may differ from that of a BF16 file or of the checkpoint itself"
        )
    if file.defects:
        codes = ", ".join(sorted({defect.code for defect in file.defects}))
        yield f"{file.path.name} breaks rules of its format that the weights do not depend on: {codes}"


def metadata_pairs(file: GGUFFile, file_type: FileType, matrix: ImportanceMatrix | None) -> tuple[MetadataPair, ...]:
    """The source's pairs in their order, then those of the new types, where llama-quantize puts them.

    What the source says of an importance matrix of its own, or of parts, is not true of the new file and left out.
    """
    kept = [pair for key, pair in file.metadata.items() if key not in REPLACED_KEYS]
    return (
        *kept,
        u32(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION),
        u32(Keys.General.FILE_TYPE, file_type.number),
        *importance_pairs(matrix),
    )
