"""A model's weights in the smallest pieces that have a meaning, the same for a GGUF and for its source.

Fused matrices are seen as their parts (q, k, v; gate, up), and the q and k of a `llama` GGUF in the order that they
have in the checkpoint, so that two sides can be compared and exchanged part by part. The names are GGUF's, without
".weight": "token_embd", "output_norm", "output", and in layer 3 "blk.3.attn_norm", "blk.3.attn_q", "blk.3.attn_k",
"blk.3.attn_v", "blk.3.attn_output", "blk.3.ffn_norm", "blk.3.ffn_gate", "blk.3.ffn_up", "blk.3.ffn_down".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType

from phi4conv.reference.hyperparameters import Hyperparameters
from phi4conv.rows import RowSource

# What a layer is made of, in the order in which it is used.
LAYER_PARTS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
EMBEDDING, OUTPUT_NORM, HEAD = "token_embd", "output_norm", "output"


@dataclass(frozen=True)
class Part:
    """One matrix (rows are outputs) or norm.

    Attributes:
        name: The part's name, "blk.3.ffn_gate".
        rows: Its weights.
        tensor: The tensor that holds it, as its file spells it: "blk.3.ffn_up.weight".
        first_row: The row of that tensor at which the part begins.
        qtype: The tensor's type, in a GGUF; None in a checkpoint.
    """

    name: str
    rows: RowSource
    tensor: str
    first_row: int = 0
    qtype: GGMLQuantizationType | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in numpy order: (outputs, inputs) or (width,)."""
        return self.rows.shape


@dataclass(frozen=True)
class Model:
    """One side of a comparison: hyperparameters, and every part by name. Without "output" the head is tied."""

    hyperparameters: Hyperparameters
    parts: Mapping[str, Part]

    @property
    def head(self) -> Part:
        """The matrix that makes logits: "output", or the embedding where it is tied."""
        return self.parts[HEAD if HEAD in self.parts else EMBEDDING]

    def layer(self, index: int) -> dict[str, Part]:
        """The parts of a layer by their names within it, "ffn_gate"; those that are there."""
        named = {name: self.parts.get(f"blk.{index}.{name}") for name in LAYER_PARTS}
        return {name: part for name, part in named.items() if part is not None}
