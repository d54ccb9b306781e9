"""Both sides run by the forward pass of phi4conv.reference; a test that runs one is skipped without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from phi4conv.arrays import Floats
from phi4conv.gguf_file.read import read_gguf
from phi4conv.hf.checkpoint import Checkpoint
from phi4conv.reference.file_model import file_model
from phi4conv.reference.parts import Model
from phi4conv.reference.source_model import source_model

if TYPE_CHECKING:
    from phi4conv.reference.run import Runner


def model_of_folder(folder: Path) -> Model:
    """The source's side."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return source_model(config, Checkpoint.open(folder).tensors)


def model_of_file(path: Path) -> Model:
    """The file's side."""
    return file_model(read_gguf(path))


def runner_of(model: Model, *, apply_window: bool = False, n_ctx: int | None = None) -> Runner:
    """The model at work on the CPU."""
    pytest.importorskip("torch", reason="the forward pass needs torch")
    from phi4conv.reference.run import Runner, RunSettings  # noqa: PLC0415  # loads torch

    return Runner(model, RunSettings(apply_window=apply_window, n_ctx=n_ctx))


def logits_of(model: Model, ids: Sequence[int], *, apply_window: bool = False, n_ctx: int | None = None) -> Floats:
    """Logits of every position: float32 (tokens, vocabulary)."""
    return logits_of_pieces(runner_of(model, apply_window=apply_window, n_ctx=n_ctx), [ids])


def logits_of_pieces(runner: Runner, pieces: Sequence[Sequence[int]], context_length: int | None = None) -> Floats:
    """As logits_of, but the tokens go through the model piece after piece, with keys and values kept.

    context_length chooses LongRoPE's factors, by default that of the first piece.
    """
    layer_count = runner.model.hyperparameters.layer_count
    stretches = [runner.settings.stretch(len(pieces[0]), context_length) for _ in range(layer_count)]
    found = []
    for ids in pieces:
        x = runner.embed(ids)
        for index, stretch in enumerate(stretches):
            stretch.count = len(ids)
            x = runner.layer(index, x, [stretch])
        found.append(np.concatenate([chunk.numpy() for _, chunk in runner.logits(x)], axis=1))
    return np.concatenate(found)


def relative_error(found: Floats, expected: Floats) -> float:
    """The norm of the difference as a share of the norm of what is expected."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
