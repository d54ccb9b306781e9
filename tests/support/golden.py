"""The vectors that llama.cpp made, fixtures/golden/quants.npz, one case for each array of encoded rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phi4conv.arrays import Bytes, Floats
from phi4conv.quant.codec import QuantCodec

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden" / "quants.npz"


@cache
def vectors() -> Mapping[str, npt.NDArray[Any]]:
    """Every array by name."""
    with np.load(GOLDEN) as file:
        return dict(file)


@dataclass(frozen=True)
class GoldenCase:
    """Rows of one kind of data, encoded with an importance matrix or without."""

    type_name: str
    kind: str
    importance_name: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.type_name, self.kind, self.importance_name)))

    @property
    def weights(self) -> Floats:
        """The rows, float32 (4, 512)."""
        return vectors()[f"input/{self.kind}"]

    @property
    def importance(self) -> Floats | None:
        """The importance matrix, float32 (512,)."""
        return vectors()[f"imatrix/{self.importance_name}"] if self.importance_name else None

    @property
    def encoded(self) -> Bytes:
        """What ggml_quantize_chunk makes of them, uint8 (4, row bytes)."""
        return vectors()["/".join(filter(None, (self.type_name, self.kind, self.importance_name)))]

    @property
    def decoded_digest(self) -> bytes:
        """The sha256 of the float32 that ggml decodes; there is one for each case without an importance matrix."""
        return vectors()[f"{self.type_name}/{self.kind}/decoded"].tobytes()


def golden_cases(*type_names: str, importance: bool = True) -> list[GoldenCase]:
    """Every case of these types; without the importance matrices if not wanted."""
    cases = []
    for name in vectors():
        type_name, *rest = name.split("/")
        if type_name in type_names and rest[-1] != "decoded" and (importance or len(rest) == 1):
            cases.append(GoldenCase(type_name, *rest))
    return cases


def assert_encodes(codec: QuantCodec, case: GoldenCase) -> None:
    """The codec's bytes are ggml's."""
    np.testing.assert_array_equal(codec.encode(case.weights, case.importance), case.encoded)


def assert_decodes(codec: QuantCodec, case: GoldenCase) -> None:
    """The codec decodes ggml's bytes to the floats that ggml does; for a case without importance."""
    assert hashlib.sha256(codec.decode(case.encoded).tobytes()).digest() == case.decoded_digest
