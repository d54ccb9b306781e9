"""Which tensor gets which type: a file type's rule, the caller's overrides, and the fall-backs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105  # a tensor's name
OUTPUT = "output.weight"


@dataclass(frozen=True)
class FileType:
    """What `--type` names: the number in general.file_type, and the type that most weights get."""

    name: str
    number: LlamaFileType
    qtype: GGMLQuantizationType


FILE_TYPES = {
    file_type.name: file_type
    for file_type in (
        FileType("F32", LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
        FileType("F16", LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
        FileType("BF16", LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16),
        FileType("Q8_0", LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0),
    )
}

# How file names spell types, ours or not, between characters that are no letters or digits.
TYPE_IN_NAME = re.compile(
    r"(?<![A-Z0-9])(?:BF16|FP?16|FP?32|FP8|INT[48]|MXFP4|NVFP4|TQ[12]_0"
    r"|I?Q[1-8](?:_(?:[01]|K(?:_(?:XS|S|M|L|XL))?|XXS|XS|S|M|NL))?)(?![A-Z0-9])"
)
OTHER_SPELLINGS = {"FP16": "F16", "FP32": "F32"}


def file_type_in_name(file_name: str) -> str | None:
    """The type that a file's name announces, the last if there are several; None when it announces none.

    >>> file_type_in_name("phi-4-Q4_K_M.gguf"), file_type_in_name("phi4_fp16.gguf"), file_type_in_name("phi-4.gguf")
    ('Q4_K_M', 'F16', None)
    """
    words = TYPE_IN_NAME.findall(file_name.upper())
    return OTHER_SPELLINGS.get(words[-1], words[-1]) if words else None


@dataclass(frozen=True)
class Choice:
    """A tensor's type and why it has it."""

    qtype: GGMLQuantizationType
    reason: str


@dataclass(frozen=True)
class TypeRules:
    """The type of every tensor, from its name and shape alone.

    Attributes:
        file_type: The rule.
        overrides: Pairs of a pattern and a type, as llama-quantize's --tensor-type: the pattern is an
            unanchored regular expression over GGUF tensor names, in either case; the first match decides.
        token_embedding: The type of token_embd.weight, before any pattern.
        output: The type of output.weight, before any pattern; with tied embeddings, of token_embd.weight
            unless token_embedding is given.
        tied: Whether token_embd.weight serves as the output too.
    """

    file_type: FileType
    overrides: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    token_embedding: GGMLQuantizationType | None = None
    output: GGMLQuantizationType | None = None
    tied: bool = False

    def choose(self, name: str, shape: tuple[int, ...]) -> Choice:
        """The type of the tensor called name (GGUF) with this shape (numpy order)."""
        if not is_quantizable(name, shape):
            return Choice(GGMLQuantizationType.F32, "norms and vectors stay F32")
        choice = self._wanted(name)
        block = GGML_QUANT_SIZES[choice.qtype][0]
        if shape[-1] % block:
            reason = f"rows of {shape[-1]} do not fill {choice.qtype.name} blocks of {block}; {choice.reason}"
            return Choice(GGMLQuantizationType.F16, reason)
        return choice

    def _wanted(self, name: str) -> Choice:
        if name == TOKEN_EMBEDDING:
            if self.token_embedding is not None:
                return Choice(self.token_embedding, "asked for by --token-embedding-type")
            if self.tied and self.output is not None:
                return Choice(self.output, "tied to the output; asked for by --output-tensor-type")
        if name == OUTPUT and self.output is not None:
            return Choice(self.output, "asked for by --output-tensor-type")
        for pattern, qtype in self.overrides:
            if matches(pattern, name):
                return Choice(qtype, f"asked for by --tensor-type {pattern}")
        return Choice(self.file_type.qtype, f"{self.file_type.name}: every matrix")


def matches(pattern: str, name: str) -> bool:
    """Whether a --tensor-type pattern matches a GGUF tensor name."""
    return re.search(pattern, name, re.IGNORECASE) is not None


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor may have any type but F32: matrices that are no norm (llama-quant.cpp)."""
    return len(shape) >= 2 and not name.endswith("_norm.weight")
