"""What llama.cpp would not load or run: tensors that are missing or of another shape, values that do not go together.

The rules are those of load_arch_tensors in llama.cpp's src/models/phi3.cpp and llama.cpp, create_tensor_qkv and
done_getting_tensors (every tensor of a file must have been asked for), and the assertions that ggml meets when the
graph is built and computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType, Keys

from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.reference.file_hyperparameters import (
    LLAMA,
    PHI3,
    factor_tensors,
    file_architecture,
    hyperparameter_key,
)
from phi4conv.reference.file_model import FUSED_QKV, stripped
from phi4conv.reference.hyperparameters import Hyperparameters
from phi4conv.reference.llama_metadata import string
from phi4conv.reference.parts import EMBEDDING, HEAD, OUTPUT_NORM, Model

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorProblem:
    """A tensor that llama.cpp wants otherwise.

    Attributes:
        tensor: Its name in the file.
        expected: The shape that the hyperparameters call for, numpy order; None where there should be no such tensor.
        found: The shape that it has; None where it is missing.
    """

    tensor: str
    expected: Shape | None
    found: Shape | None


@dataclass(frozen=True)
class TypeProblem:
    """A tensor that llama.cpp loads, and then dies of: it computes with no such type in this place."""

    tensor: str
    expected: GGMLQuantizationType
    found: GGMLQuantizationType


@dataclass(frozen=True)
class KeyProblem:
    """A value that llama.cpp reads, and then refuses or dies of."""

    key: str
    expected: str
    found: str


def file_problems(file: GGUFFile, model: Model) -> tuple[TensorProblem, ...]:
    """Every tensor that is missing, has another shape than model's hyperparameters call for, or is one too many.

    With the file's own hyperparameters these are the reasons for which llama.cpp refuses the file; with mended ones,
    what a right file would have. file_model has refused tensors of names that neither architecture knows.
    """
    found = shapes_of(file)
    expected = dict(expected_shapes(file, model.hyperparameters, found))
    optional = {f"{HEAD}.weight", *factors_of(file)}
    return (
        *(
            TensorProblem(name, shape, found.get(name))
            for name, shape in expected.items()
            if (name in found and stripped(found[name]) != shape) or (name not in found and name not in optional)
        ),
        *(TensorProblem(name, None, shape) for name, shape in found.items() if name not in expected),
    )


def type_problems(file: GGUFFile, model: Model) -> tuple[TypeProblem, ...]:
    """The file's vectors, norms and rope factors, that are not of type F32.

    ggml multiplies an F32 row by an F32 vector alone (ggml-cpu/binary-ops.cpp, binary_op), and ggml_rope_impl in ggml.c
    asserts the same of factors. file_problems tells of vectors that are missing or have another shape.
    """
    found = {entry.name: entry for entry in file.tensors}
    vectors = [name for name, shape in expected_shapes(file, model.hyperparameters, shapes_of(file)) if len(shape) == 1]
    return tuple(
        TypeProblem(name, GGMLQuantizationType.F32, qtype)
        for name in vectors
        if name in found
        and isinstance(qtype := found[name].qtype, GGMLQuantizationType)
        and qtype != GGMLQuantizationType.F32
    )


def shapes_of(file: GGUFFile) -> dict[str, Shape]:
    """The shapes of a file's tensors by name, numpy order."""
    return {entry.name: entry.shape for entry in file.tensors}


def expected_shapes(file: GGUFFile, shape: Hyperparameters, found: Mapping[str, Shape]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes that llama.cpp asks for, the optional ones too, in the order in which it asks."""
    architecture = file_architecture(file)
    vocabulary = vocabulary_size(file, found)
    yield f"{EMBEDDING}.weight", (vocabulary, shape.hidden_size)
    yield f"{OUTPUT_NORM}.weight", (shape.hidden_size,)
    yield f"{HEAD}.weight", (vocabulary, shape.hidden_size)
    for name in factors_of(file):
        yield name, (shape.rope.dimension_count // 2,)
    for index in range(shape.layer_count):
        prefix = f"blk.{index}."
        fused = f"{prefix}{FUSED_QKV}.weight" in found
        separate = f"{prefix}attn_q.weight" in found
        for name, size in layer_shapes(shape, architecture, fused=fused or (architecture == PHI3 and not separate)):
            yield f"{prefix}{name}.weight", size


def layer_shapes(shape: Hyperparameters, architecture: str, *, fused: bool) -> Iterator[tuple[str, Shape]]:
    """The tensors of a layer by their names within it."""
    hidden, ffn = shape.hidden_size, shape.feed_forward_size
    kv = shape.head_size * shape.kv_head_count
    q = shape.head_size * shape.head_count if architecture == LLAMA else hidden
    yield "attn_norm", (hidden,)
    if fused:
        yield FUSED_QKV, (q + 2 * kv, hidden)
    else:
        yield "attn_q", (q, hidden)
        yield "attn_k", (kv, hidden)
        yield "attn_v", (kv, hidden)
    yield "attn_output", (hidden, q)
    yield "ffn_norm", (hidden,)
    if architecture == LLAMA:
        yield "ffn_gate", (ffn, hidden)
    yield "ffn_up", (ffn if architecture == LLAMA else 2 * ffn, hidden)
    yield "ffn_down", (hidden, ffn)


def factors_of(file: GGUFFile) -> tuple[str, ...]:
    """The tensors of rope factors that llama.cpp looks for in this file."""
    architecture = file_architecture(file)
    scaling = string(file, Keys.Rope.SCALING_TYPE.format(arch=architecture)) or "linear"
    return tuple(dict.fromkeys(factor_tensors(architecture, scaling)))


def vocabulary_size(file: GGUFFile, found: Mapping[str, Shape]) -> int:
    """How many tokens there are: by the list of tokens, else by the key, else by the embedding itself."""
    pair = file.metadata.get(Keys.Tokenizer.LIST)
    if pair is not None and pair.item_type is not None:
        return len(pair.value)
    size = file.number(Keys.LLM.VOCAB_SIZE.format(arch=file_architecture(file)))
    return int(size or next(iter(found.get(f"{EMBEDDING}.weight", ())), 0))


def key_problems(file: GGUFFile, shape: Hyperparameters) -> tuple[KeyProblem, ...]:
    """The hyperparameters of a file with which llama.cpp stops, at loading or when it computes."""
    architecture = file_architecture(file)
    problems = []

    def require(condition: bool, field: str, expected: str, found: int) -> None:
        if not condition:
            problems.append(KeyProblem(hyperparameter_key(field, architecture), expected, str(found)))

    heads, kv_heads, size, rotated = (
        shape.head_count,
        shape.kv_head_count,
        shape.head_size,
        shape.rope.dimension_count,
    )
    if architecture == PHI3:
        expected = f"a divisor of the {shape.hidden_size} components"
        require(heads * size == shape.hidden_size, "head_count", expected, heads)
        require(rotated <= size and rotated % 2 == 0, "rope.dimension_count", f"an even number up to {size}", rotated)
    else:
        require(rotated == size and rotated % 2 == 0, "rope.dimension_count", f"{size}, an even number", rotated)
    require(kv_heads > 0 and heads % kv_heads == 0, "kv_head_count", f"a divisor of the {heads} heads", kv_heads)
    return tuple(problems)
