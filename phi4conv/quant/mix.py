"""Which tensor gets which type: a file type's rule, the caller's overrides, and the fall-backs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from phi4conv.quant.mix_table import CURRENT, MIX_NAMES, MIXES, Place, lines_for

TOKEN_EMBEDDING = "token_embd.weight"  # noqa: S105  # a tensor's name
OUTPUT = "output.weight"
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)\.weight")

BY_OUTPUT_OPTION = "asked for by --output-tensor-type"


@dataclass(frozen=True)
class FileType:
    """What `--type` names.

    Attributes:
        name: "Q4_K_L".
        number: What general.file_type says.
        qtype: The type that most weights get.
        embeddings: A preset's type for token_embd.weight and output.weight.
    """

    name: str
    number: LlamaFileType
    qtype: GGMLQuantizationType
    embeddings: GGMLQuantizationType | None = None

    @property
    def rule(self) -> str:
        """Whose mix it follows: its own, or that of the file type which a preset varies."""
        return self.number.name.partition("_")[2]


FILE_TYPES = {
    file_type.name: file_type
    for file_type in (
        FileType("F32", LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
        FileType("F16", LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
        FileType("BF16", LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16),
        FileType("Q8_0", LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0),
        FileType("Q6_K", LlamaFileType.MOSTLY_Q6_K, GGMLQuantizationType.Q6_K),
        FileType("Q5_K_M", LlamaFileType.MOSTLY_Q5_K_M, GGMLQuantizationType.Q5_K),
        FileType("Q5_K_S", LlamaFileType.MOSTLY_Q5_K_S, GGMLQuantizationType.Q5_K),
        FileType("Q4_K_M", LlamaFileType.MOSTLY_Q4_K_M, GGMLQuantizationType.Q4_K),
        FileType("Q4_K_S", LlamaFileType.MOSTLY_Q4_K_S, GGMLQuantizationType.Q4_K),
        FileType("Q3_K_L", LlamaFileType.MOSTLY_Q3_K_L, GGMLQuantizationType.Q3_K),
        FileType("Q3_K_M", LlamaFileType.MOSTLY_Q3_K_M, GGMLQuantizationType.Q3_K),
        FileType("Q3_K_S", LlamaFileType.MOSTLY_Q3_K_S, GGMLQuantizationType.Q3_K),
        FileType("Q2_K", LlamaFileType.MOSTLY_Q2_K, GGMLQuantizationType.Q2_K),
        # Presets that publishers list; llama.cpp has no names or numbers for them.
        FileType("Q6_K_L", LlamaFileType.MOSTLY_Q6_K, GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q8_0),
        FileType("Q5_K_L", LlamaFileType.MOSTLY_Q5_K_M, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q8_0),
        FileType("Q4_K_L", LlamaFileType.MOSTLY_Q4_K_M, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q8_0),
        FileType("Q3_K_XL", LlamaFileType.MOSTLY_Q3_K_L, GGMLQuantizationType.Q3_K, GGMLQuantizationType.Q8_0),
    )
}

# How file names spell types, ours or not, between characters that are no letters or digits.
TYPE_IN_NAME = re.compile(
    r"(?<![A-Z0-9])(?:BF16|FP?16|FP?32|FP8|INT[48]|MXFP4|NVFP4|TQ[12]_0"
    r"|I?Q[1-8](?:_(?:[01]|K(?:_(?:XS|S|M|L|XL))?|XXS|XS|S|M|NL))?)(?![A-Z0-9])"
)
# The last three are llama-quantize's aliases.
OTHER_SPELLINGS = {"FP16": "F16", "FP32": "F32", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type_name(text: str) -> str:
    """A file type's name from any spelling of it; a text that is none comes back in capitals.

    >>> file_type_name("q4_k_m"), file_type_name("fp16"), file_type_name("Q4_K"), file_type_name("q9")
    ('Q4_K_M', 'F16', 'Q4_K_M', 'Q9')
    """
    return OTHER_SPELLINGS.get(text.upper(), text.upper())


def file_type_named(text: str) -> FileType:
    """The file type of that name, in any spelling.

    Raises:
        ValueError: There is none.
    """
    name = file_type_name(text)
    if name not in FILE_TYPES:
        raise ValueError(f"no file type is called {text!r}; known are {', '.join(FILE_TYPES)}")
    return FILE_TYPES[name]


def file_type_in_name(file_name: str) -> str | None:
    """The type that a file's name announces, the last if there are several; None when it announces none.

    >>> file_type_in_name("phi-4-Q4_K_M.gguf"), file_type_in_name("phi4_fp16.gguf"), file_type_in_name("phi-4.gguf")
    ('Q4_K_M', 'F16', None)
    """
    words = TYPE_IN_NAME.findall(file_name.upper())
    return file_type_name(words[-1]) if words else None


@dataclass(frozen=True)
class Choice:
    """A tensor's type and why it has it.

    Attributes:
        qtype: The type.
        reason: Why, in a phrase: "Q4_K_M: ffn_down, first eighth of the layers".
        wanted: The type that it fell back from; None when it did not.
    """

    qtype: GGMLQuantizationType
    reason: str
    wanted: GGMLQuantizationType | None = None


@dataclass(frozen=True, kw_only=True)
class TypeRules:
    """The type of every tensor, from its name and shape alone.

    What is asked for decides before what a preset says, and that before the mix. A tensor's layer is the number
    in its name: an override never shifts the types of other tensors.

    Attributes:
        file_type: The rule.
        layer_count: How many layers the model has.
        head_ratio: How many attention heads share one key and value head, rounded down.
        tied: Whether token_embd.weight serves as the output too.
        overrides: Pairs of a pattern and a type, as llama-quantize's --tensor-type: the pattern is an
            unanchored regular expression over GGUF tensor names, in either case; the first match decides.
        token_embedding: The type of token_embd.weight, before any pattern.
        output: The type of output.weight, before any pattern. With tied embeddings, the type that the mix gives
            to token_embd.weight: after any pattern, and without effect when pure.
        mix: Which of llama.cpp's rules, one of mix_table.MIX_NAMES.
        pure: Every matrix has the file type's main type, but for what is asked for and for a preset's embeddings.

    Raises:
        ValueError: The mix is unknown.
    """

    file_type: FileType
    layer_count: int
    head_ratio: int
    tied: bool = False
    overrides: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    token_embedding: GGMLQuantizationType | None = None
    output: GGMLQuantizationType | None = None
    mix: str = CURRENT
    pure: bool = False

    def __post_init__(self) -> None:
        if self.mix not in MIX_NAMES:
            raise ValueError(f"no mix is called {self.mix!r}; known are {', '.join(MIX_NAMES)}")

    def choose(self, name: str, shape: tuple[int, ...]) -> Choice:
        """The type of the tensor called name (GGUF) with this shape (numpy order)."""
        if not is_quantizable(name, shape):
            return Choice(GGMLQuantizationType.F32, "norms and vectors stay F32")
        choice = self._asked_for(name) or self._by_preset(name) or self._by_rule(name)
        return fitted(choice, shape[-1])

    def _asked_for(self, name: str) -> Choice | None:
        if name == TOKEN_EMBEDDING and self.token_embedding is not None:
            return Choice(self.token_embedding, "asked for by --token-embedding-type")
        if name == OUTPUT and self.output is not None:
            return Choice(self.output, BY_OUTPUT_OPTION)
        for pattern, qtype in self.overrides:
            if matches(pattern, name):
                return Choice(qtype, f"asked for by --tensor-type {pattern}")
        if name == TOKEN_EMBEDDING and self.output is not None and self.tied and not self.pure:
            return Choice(self.output, f"tied to the output; {BY_OUTPUT_OPTION}")
        return None

    def _by_preset(self, name: str) -> Choice | None:
        if self.file_type.embeddings is None or name not in {TOKEN_EMBEDDING, OUTPUT}:
            return None
        return Choice(self.file_type.embeddings, f"{self.file_type.name}: {name.removesuffix('.weight')}")

    def _by_rule(self, name: str) -> Choice:
        main, title = self.file_type.qtype, self.file_type.name
        if self.pure or self.file_type.rule not in MIXES:
            return Choice(main, f"{title}{' --pure' if self.pure else ''}: every matrix")
        layer, role = layer_and_role(name)
        if self.tied and name == TOKEN_EMBEDDING:
            role, title = "output", f"{title}: token_embd is tied to the output"
        else:
            title = f"{title}: {role}"
        place = Place(layer, self.layer_count, self.head_ratio)
        lines = lines_for(self.file_type.rule, role, self.mix)
        for line in lines:
            if line.condition.holds(place):
                words = line.condition.words
                return Choice(line.qtype, f"{title}, {words}" if words else title)
        return Choice(main, f"{title}, other layers" if lines else title)


def layer_and_role(name: str) -> tuple[int, str]:
    """A tensor's layer, 0 when it belongs to none, and its role.

    >>> layer_and_role("blk.7.ffn_down.weight"), layer_and_role("output.weight")
    ((7, 'ffn_down'), (0, 'output'))
    """
    match = LAYER_TENSOR.fullmatch(name)
    return (int(match[1]), match[2]) if match else (0, name.removesuffix(".weight"))


# What llama-quantize takes when a row is no whole number of blocks (llama-quant.cpp, tensor_type_fallback).
FALL_BACKS = {
    GGMLQuantizationType.Q2_K: GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q3_K: GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_K: GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}


def fitted(choice: Choice, width: int) -> Choice:
    """The choice, or its fall-back when rows of this width do not fill its blocks: F16 when none fits."""
    wanted = choice.qtype
    qtype = next(
        qtype
        for qtype in (wanted, FALL_BACKS.get(wanted, wanted), GGMLQuantizationType.F16)
        if width % GGML_QUANT_SIZES[qtype][0] == 0
    )
    if qtype is wanted:
        return choice
    block = GGML_QUANT_SIZES[wanted][0]
    reason = f"{choice.reason}: {wanted.name}, but rows of {width} do not fill its blocks of {block}"
    return Choice(qtype, reason, wanted)


def type_warnings(rules: TypeRules, choices: Mapping[str, Choice]) -> Iterator[str]:
    """What the user should know of the choices that the rules made, by tensor name."""
    falls = Counter((choice.wanted, choice.qtype) for choice in choices.values() if choice.wanted is not None)
    if falls:
        kinds = ", ".join(f"{count} from {wanted.name} to {qtype.name}" for (wanted, qtype), count in falls.items())
        yield (
            f"{falls.total()} of {len(choices)} tensors fell back to another type, for their rows do not fill the "
            f"blocks of the one meant for them: {kinds}; --dry-run shows which"
        )
    if rules.output is not None and choices and not any(BY_OUTPUT_OPTION in made.reason for made in choices.values()):
        yield (
            "--output-tensor-type has no effect: the output is token_embd.weight, whose type is decided otherwise; "
            "choose it with --token-embedding-type"
        )


def matches(pattern: str, name: str) -> bool:
    """Whether a --tensor-type pattern matches a GGUF tensor name."""
    return re.search(pattern, name, re.IGNORECASE) is not None


def is_quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor may have any type but F32: matrices that are no norm (llama-quant.cpp)."""
    return len(shape) >= 2 and not name.endswith("_norm.weight")
