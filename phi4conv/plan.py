"""A conversion as values: every pair and tensor of the file to be, decided before any weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, Keys

from phi4conv.arrays import Floats
from phi4conv.errors import ConversionError, Problem
from phi4conv.gguf_file.layout import MetadataPair
from phi4conv.gguf_file.write import Header, encode_header
from phi4conv.rows import RowSource

# ggml's limit for a tensor's name, its closing NUL included (GGML_MAX_NAME).
NAME_LIMIT = 64


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the file to be.

    Attributes:
        name: Its GGUF name, "blk.0.attn_qkv.weight".
        source: Where its rows come from.
        shape: In numpy order; the last axis is the row.
        qtype: Its type in the file.
        reason: Why it has this type, in a phrase.
        importance: How much each column matters to the encoder, float32 (width,); None when all matter alike.
    """

    name: str
    source: RowSource
    shape: tuple[int, ...]
    qtype: GGMLQuantizationType
    reason: str
    importance: Floats | None = field(default=None, compare=False, repr=False)

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class LeftOut:
    """A source tensor that the file does not need, and why.

    Attributes:
        copy: Its rows and those of the tensor that it must be a copy of, to be compared before it is left out.
    """

    name: str
    reason: str
    copy: tuple[RowSource, RowSource] | None = None


@dataclass(frozen=True)
class ConversionPlan:
    """The whole file to be. Pure: made from names, shapes and configuration.

    Attributes:
        file_type: The name that --type has for it, "Q8_0".
        metadata: Every pair, in file order.
        tensors: Every tensor, in file order.
        source_names: Every tensor of the checkpoint, or of the GGUF that is quantized.
        left_out: Those that are not used, on purpose.
        inputs: The files that are read, which the output must not be.
        warnings: What the user should know, in sentences.
    """

    file_type: str
    metadata: tuple[MetadataPair, ...]
    tensors: tuple[TensorPlan, ...]
    source_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    inputs: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def header(self) -> Header:
        """The encoded header, with every tensor's offset."""
        tensors = [(tensor.name, tensor.shape, tensor.qtype) for tensor in self.tensors]
        return encode_header(self.metadata, tensors, self.alignment)

    @property
    def alignment(self) -> int:
        """What the data of every tensor are aligned to, in bytes."""
        told = (int(pair.value) for pair in self.metadata if pair.key == Keys.General.ALIGNMENT)
        return next(told, GGUF_DEFAULT_ALIGNMENT)

    @property
    def size_bytes(self) -> int:
        """The exact size of the file."""
        return self.header.size_bytes

    @property
    def weight_count(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.weight_count for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without header and padding."""
        return sum(entry.size_bytes for entry in self.header.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Tensor bits for each weight, as llama.cpp counts them; 0 without tensors."""
        return 8 * self.tensor_bytes / self.weight_count if self.tensors else 0.0

    def check(self) -> None:
        """Hold the plan against the rules that every correct conversion keeps.

        Raises:
            ConversionError: A source tensor is not used exactly once, a shape differs from its source,
                or a name is too long or given twice. With a sound planner this does not happen; a wrong
                table must not become a wrong file.
        """
        problems = [*self._usage_problems(), *self._name_problems()]
        problems += [
            Problem("a shape differs from its source", tensor.name, str(tensor.source.shape), str(tensor.shape))
            for tensor in self.tensors
            if tensor.shape != tensor.source.shape
        ]
        if problems:
            raise ConversionError(*problems)

    def _usage_problems(self) -> Sequence[Problem]:
        used = Counter(name for tensor in self.tensors for name in tensor.source.names)
        used.update(left.name for left in self.left_out)
        names = sorted({*used, *self.source_names})
        return [
            Problem("a source tensor must be used exactly once", where=name, found=f"{used[name]} times")
            for name in names
            if used[name] != 1 or name not in self.source_names
        ]

    def _name_problems(self) -> Sequence[Problem]:
        counts = Counter(tensor.name for tensor in self.tensors)
        doubled = [Problem("two tensors of one name", where=name) for name, count in counts.items() if count > 1]
        too_long = [
            Problem("a tensor's name is too long for ggml", where=name, expected=f"under {NAME_LIMIT} bytes")
            for name in counts
            if len(name.encode()) >= NAME_LIMIT
        ]
        return doubled + too_long
