"""Runs a file beside the checkpoint that it was made from, and says where the two part, and why.

Tokens first; then, layer by layer, every tensor against the source's weights and the layer's work on the same hidden
state; at the end the logits. Weights are read in chunks, so that memory does not grow with the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from phi4conv.check.model import Finding, Severity, worst
from phi4conv.errors import FormatError, Problem
from phi4conv.machine import peak_memory
from phi4conv.progress import Progress, Silent
from phi4conv.runnable import require_torch
from phi4conv.verify.prompts import PromptOptions, PromptReading, read_windows
from phi4conv.verify.sides import Sides, open_sides
from phi4conv.verify.thresholds import Thresholds, default_thresholds

if TYPE_CHECKING:
    from phi4conv.reference.run import RunSettings
    from phi4conv.verify.examination import Outcome


@dataclass(frozen=True)
class VerifyOptions:
    """What to run, and how much may differ.

    Attributes:
        asked: Prompts and texts.
        max_kl: The largest mean KL divergence of a good file; None for the default of its type.
        min_top1: The least share of equal likeliest tokens; None for the default of its type.
        llama_cpp: Ask real llama.cpp for its logits, too.
        device: Where torch computes.
        apply_window: Attend within the sliding window, as transformers does; llama.cpp does not.
        n_ctx: The context for which LongRoPE factors are chosen; None for each prompt's own length.
    """

    asked: PromptOptions = field(default_factory=PromptOptions)
    max_kl: float | None = None
    min_top1: float | None = None
    llama_cpp: bool = False
    device: str = "cpu"
    apply_window: bool = False
    n_ctx: int | None = None


@dataclass(frozen=True)
class Verification:
    """What was compared, and what was found.

    Attributes:
        sides: Checkpoint and file.
        reading: What both were asked.
        thresholds: What a good file keeps.
        outcome: Every figure.
        findings: Root findings.
        notes: What the user should know.
        seconds: Wall-clock time.
        peak_memory: Most memory held at once, in bytes; None where the system does not say.
    """

    sides: Sides
    reading: PromptReading
    thresholds: Thresholds
    outcome: Outcome
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: float
    peak_memory: int | None

    @property
    def is_right(self) -> bool:
        """Whether nothing worse than a warning was found."""
        return worst(self.findings) < Severity.FAIL


def verify(
    folder: Path, path: Path, options: VerifyOptions | None = None, progress: Progress | None = None
) -> Verification:
    """Compare a GGUF with the model folder that it was made from.

    Raises:
        ValueError: max_kl is no number from 0, or min_top1 none from 0 to 1.
        CheckpointError: The folder holds no checkpoint that phi4conv understands, or one that computes NaN.
        FormatError: The file cannot be examined, or is of another model altogether; a text cannot be read, or does
            not fit into n_ctx.
        EngineError: torch or, when asked for, llama.cpp is missing, or torch has no such device.
    """
    started = time.monotonic()
    options = options or VerifyOptions()
    progress = progress or Silent()
    require_thresholds(options)
    require_torch()
    sides = open_sides(folder, path)
    reading = read_windows(folder, sides.file, options.asked)
    require_room(reading, options.n_ctx)
    # torch takes seconds to load: what is wrong with the arguments is told before.
    from phi4conv.reference.run import RunSettings  # noqa: PLC0415
    from phi4conv.verify.conclusions import conclude  # noqa: PLC0415
    from phi4conv.verify.examination import examine  # noqa: PLC0415

    settings = RunSettings(options.device, options.apply_window, options.n_ctx)
    outcome = examine(sides, reading.windows, settings, progress, llama_cpp=options.llama_cpp)
    thresholds = default_thresholds(sides.found).or_asked_for(options.max_kl, options.min_top1)
    return Verification(
        sides=sides,
        reading=reading,
        thresholds=thresholds,
        outcome=outcome,
        findings=conclude(sides, reading.findings, outcome, thresholds),
        notes=(
            *sides.notes,
            *reading.notes,
            *behaviour_notes(sides, reading, settings),
            *threshold_notes(outcome, options),
        ),
        seconds=time.monotonic() - started,
        peak_memory=peak_memory(),
    )


def require_thresholds(options: VerifyOptions) -> None:
    """Raise ValueError for a limit that nothing could be held against: NaN is neither above nor below anything."""
    if options.max_kl is not None and not options.max_kl >= 0:
        raise ValueError(f"max_kl is {options.max_kl}, no number from 0")
    if options.min_top1 is not None and not 0 <= options.min_top1 <= 1:
        raise ValueError(f"min_top1 is {options.min_top1}, no number from 0 to 1")


def require_room(reading: PromptReading, n_ctx: int | None) -> None:
    """Raise FormatError for a prompt that is longer than the context for which factors are to be chosen."""
    from phi4conv.reference.run import llama_context  # noqa: PLC0415  # loads torch

    longest = max(reading.windows, key=lambda window: len(window.ids))
    if n_ctx is not None and len(longest.ids) > llama_context(n_ctx):
        raise FormatError(
            Problem(
                "a prompt does not fit into the context",
                where=longest.name,
                expected=f"at most {llama_context(n_ctx):,} tokens, by --n-ctx {n_ctx}",
                found=f"{len(longest.ids):,} tokens",
                next_step="give a larger --n-ctx, or a shorter text",
            )
        )


def behaviour_notes(sides: Sides, reading: PromptReading, settings: RunSettings) -> Iterator[str]:
    """Where llama.cpp and transformers run a model differently on purpose, and which of them was followed."""
    shape = sides.source.hyperparameters
    lengths = [len(window.ids) for window in reading.windows]
    if shape.sliding_window is not None:
        window = f"the model's sliding window of {shape.sliding_window:,} tokens"
        if shape.sliding_window >= max(lengths):
            yield f"{window} is longer than all that was asked, and makes no difference here"
        elif settings.apply_window:
            yield f"{window} was applied, as transformers does and llama.cpp does not (--sliding-window on)"
        else:
            yield f"{window} was left out, as llama.cpp does; transformers applies it (--sliding-window on)"
    if shape.rope.long_factors is not None:
        limit = shape.rope.original_context_length
        contexts = {settings.stretch(length).context_length > limit for length in lengths}
        which = " and its ".join(f"{'long' if is_long else 'short'} factors" for is_long in sorted(contexts))
        if settings.n_ctx is None:
            by = "each prompt's own length, as transformers does; llama.cpp goes by its context size (--n-ctx N)"
        else:
            by = f"a context of {settings.stretch(1).context_length:,} tokens, as llama.cpp does (--n-ctx)"
        yield f"LongRoPE ran with its {which} (the long ones begin beyond {limit:,} tokens), chosen by {by}"


def threshold_notes(outcome: Outcome, options: VerifyOptions) -> Iterator[str]:
    """A limit of the user's that there was nothing to hold against."""
    if options.min_top1 is not None and outcome.comparison.logits.same_top_where_decided is None:
        yield (
            "--min-top1 could not be applied: at no position does the source find one token twice as likely as any "
            "other; ask for more tokens"
        )
