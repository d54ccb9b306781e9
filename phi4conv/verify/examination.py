"""One pass over both sides' weights: each layer's tensors are compared, and then the layer is run.

The second reading of a layer comes out of the system's cache, for it follows the first at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gguf.constants import Keys
from torch import Tensor

from phi4conv.arrays import Floats
from phi4conv.errors import CheckpointError, EngineError, FormatError, Problem
from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.progress import Progress
from phi4conv.reference.compare import LogitComparison, LogitFigures
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.reference.parts import EMBEDDING, HEAD, OUTPUT_NORM, Model, Part
from phi4conv.reference.run import CHUNK_WEIGHTS, Runner, RunSettings, checked_device, llama_context, read_ahead
from phi4conv.reference.side_by_side import Comparison, LayerErrors, Passage, compare_runs
from phi4conv.reference.tensor_error import PartError, part_errors
from phi4conv.rows import RowSource
from phi4conv.verify.blame import Blamed, LayerBlame
from phi4conv.verify.explained import explained_error
from phi4conv.verify.prompts import Window
from phi4conv.verify.sides import Sides

# What is compared behind the last layer.
ENDING = (EMBEDDING, OUTPUT_NORM, HEAD)

# How a process ends that a failed assertion ends.
ABORTED = "SIGABRT"


@dataclass(frozen=True)
class Outcome:
    """What an examination gave.

    Attributes:
        tensors: How far every part of the file is from the source's weights.
        comparison: The run: hidden states by layer, and logits.
        blamed: The first layers that are wrong, and what makes them so.
        wrong_layers: All layers that are off by more than their types explain.
        explained: For each layer the most that its types explain of its own error.
        llama_cpp: With real llama.cpp: its logits against the source's, and against those of the file on this page.
        refusal: Why real llama.cpp does not load the file.
        bytes_read: Stored weights that were read on both sides, counting those twice that were read twice.
    """

    tensors: tuple[PartError, ...]
    comparison: Comparison
    blamed: tuple[Blamed, ...]
    wrong_layers: tuple[int, ...]
    explained: Mapping[int, float]
    llama_cpp: tuple[LogitFigures, LogitFigures] | None
    refusal: Problem | None
    bytes_read: int


# Logits of llama.cpp's that are held at once, in float32: 1 GB, for Phi-4 some 2,500 positions.
MOST_LOGITS = 1 << 28


class Meter:
    """Counts weights as they are read, and tells progress of them in bytes as they are stored."""

    def __init__(self, sides: Sides, progress: Progress) -> None:
        self.progress = progress
        self.label = ""
        self.bytes_read = 0
        checkpoint = sides.checkpoint
        stored = sum(tensor.stored_bytes for tensor in checkpoint.tensors.values())
        self.source_rate = stored / checkpoint.parameter_count
        entries = sides.file.tensors
        self.file_rate = sum(entry.size_bytes for entry in entries) / sum(entry.weight_count for entry in entries)

    def source(self, weights: int) -> None:
        """So many weights of the checkpoint have been read."""
        self._advance(weights * self.source_rate)

    def file(self, weights: int) -> None:
        """So many weights of the file have been read."""
        self._advance(weights * self.file_rate)

    def _advance(self, count: float) -> None:
        self.bytes_read += round(count)
        self.progress.advance(round(count), self.label)

    def total(self, sides: Sides) -> int:
        """The bytes of a whole examination: every weight is compared once and run once."""
        both = ((sides.source, self.source_rate), (sides.found, self.file_rate))
        return round(sum(2 * rate * weight_count(model) for model, rate in both))


def weight_count(model: Model) -> int:
    """How many weights a model has."""
    return sum(math.prod(part.shape) for part in model.parts.values())


def examine(
    sides: Sides, windows: Sequence[Window], settings: RunSettings, progress: Progress, *, llama_cpp: bool
) -> Outcome:
    """Compare all weights, run both sides on the windows, and look into layers that are wrong.

    Raises:
        EngineError: torch has no such device; or llama.cpp is asked for and is missing, or dies of something else
            than the file.
        FormatError: The file becomes shorter meanwhile, or cannot be read.
        CheckpointError: So does the checkpoint; or its own states or logits are not finite.
    """
    checked_device(settings.device)
    passages = [Passage(window.ids, window.scored) for window in windows]
    third, refusal = ask_llama_cpp(sides.file, passages, settings, progress) if llama_cpp else (None, None)
    meter = Meter(sides, progress)
    source = Runner(sides.source, settings, on_read=meter.source)
    file = Runner(sides.found, settings, on_read=meter.file)
    tensors: list[PartError] = []
    explained: dict[int, float] = {}
    suspects: set[str] = set()
    blame = LayerBlame(sides.source, sides.found, passages, settings, explained=explained, suspects=suspects)
    layer_count = sides.source.hyperparameters.layer_count

    def before_layer(index: int) -> None:
        meter.label = f"layer {index + 1} of {layer_count}" if index < layer_count else "embedding and head"
        names = [f"blk.{index}.{name}" for name in sides.source.layer(index)] or ending(sides.source)
        parts = sides.found.parts
        pairs = [(parts[name], sides.source.parts[name]) for name in names if name in parts]
        errors = part_errors(pairs, on_found=meter.file, on_expected=meter.source)
        tensors.extend(errors)
        suspects.update(error.tensor for error in errors if not error.good)
        explained[index] = explained_error(errors)

    def after_layer(before: Tensor, expected: Tensor, errors: LayerErrors) -> None:
        if not expected.isfinite().all():
            # What one layer hands on the next one has from the layer before, or from the embedding.
            parts = {EMBEDDING: sides.source.parts[EMBEDDING], **sides.source.layer(errors.index)}
            raise not_finite(sides, f"the hidden state after layer {errors.index}", parts)
        blame.after_layer(before, expected, errors)

    columns = None if third is None else ThirdColumn(third, passages)
    progress.begin(meter.total(sides))
    try:
        comparison = compare_runs(
            source,
            file,
            passages,
            before_layer=before_layer,
            after_layer=after_layer,
            on_logits=columns.add if columns else lambda *_: None,
        )
    finally:
        progress.end()
    if comparison.logits.base_not_finite:
        raise not_finite(sides, "the logits", {name: sides.source.parts[name] for name in ending(sides.source)})
    return Outcome(
        tensors=tuple(tensors),
        comparison=comparison,
        blamed=tuple(blame.blamed),
        wrong_layers=tuple(blame.wrong),
        explained={index: explained[index] for index in range(layer_count)},
        llama_cpp=columns.figures() if columns else None,
        refusal=refusal,
        bytes_read=meter.bytes_read,
    )


def require_room(file: GGUFFile, passages: Sequence[Passage]) -> None:
    """Refuse to ask llama.cpp for more logits than should be held in memory at once.

    Raises:
        EngineError: With what fits.
    """
    positions = sum(len(passage.scored) for passage in passages)
    vocabulary = len(file.strings(Keys.Tokenizer.LIST))
    most = MOST_LOGITS // max(1, vocabulary)
    if positions > most:
        raise EngineError(
            Problem(
                "llama.cpp would be asked for too many logits at once",
                where="--runtime llama.cpp",
                expected=f"at most {most:,} positions that are compared",
                found=f"{positions:,}",
                next_step=f"take --max-tokens {2 * most // 512 * 512}, of which one half is compared",
            )
        )


def ask_llama_cpp(
    file: GGUFFile, passages: Sequence[Passage], settings: RunSettings, progress: Progress
) -> tuple[Floats | None, Problem | None]:
    """Real llama.cpp's logits at every scored position: float32 (positions, vocabulary), or why it refuses the file.

    It loads the whole file. Raises EngineError as examine does.
    """
    require_room(file, passages)
    progress.note(f"asking llama.cpp, which loads the whole file ({file.file_size / 1e9:.1f} GB) ...")
    n_ctx = llama_context(settings.n_ctx) if settings.n_ctx else None
    with LlamaCpp() as llama:
        try:
            llama.load(file.path)
            rows = [
                llama.logits(passage.ids, n_ctx=n_ctx)[passage.scored.start : passage.scored.stop]
                for passage in passages
            ]
        except FormatError as error:
            return None, error.problems[0]
        except EngineError as error:
            # An assertion of ggml's fails on what is in the file; killed it is for other reasons.
            if ABORTED in error.problems[0].what:
                return None, error.problems[0]
            raise
    return np.concatenate(rows), None


def not_finite(sides: Sides, what: str, parts: Mapping[str, Part]) -> CheckpointError:
    """The error for a source that computes NaN or infinity, to which nothing can be compared."""
    broken = next((part for part in parts.values() if not all_finite(part.rows)), None)
    return CheckpointError(
        Problem(
            f"the checkpoint itself makes {what} NaN or infinite: no file can be held against it",
            where=str(sides.folder) if broken is None else f"{sides.folder}: {broken.tensor}",
            expected="finite weights" if broken is not None else "finite numbers",
            found="NaN or infinity among the weights" if broken is not None else "weights that are too large",
            next_step="download the folder again; a checkpoint that was made so has to be trained or saved again",
        )
    )


def all_finite(rows: RowSource) -> bool:
    """Whether all weights are numbers."""
    return all(np.isfinite(chunk).all() for _, chunk in read_ahead(rows, max(1, CHUNK_WEIGHTS // rows.shape[-1])))


def ending(model: Model) -> tuple[str, ...]:
    """The parts behind the layers."""
    return tuple(name for name in ENDING if name in model.parts)


class ThirdColumn:
    """llama.cpp's logits held against the source's, and against the file's on the reference path."""

    def __init__(self, logits: Floats, passages: Sequence[Passage]) -> None:
        targets = [target for passage in passages for target in passage.targets]
        self.logits = torch.from_numpy(logits)
        self.from_source, self.from_file = LogitComparison(targets), LogitComparison(targets)

    def add(self, start: int, source: Tensor, file: Tensor) -> None:
        """Both sides' logits for some ids."""
        third = self.logits[:, start : start + source.shape[1]].to(source.device)
        self.from_source.add(start, source, third)
        self.from_file.add(start, file, third)

    def figures(self) -> tuple[LogitFigures, LogitFigures]:
        """Against the source, and against the file."""
        return self.from_source.figures(), self.from_file.figures()
