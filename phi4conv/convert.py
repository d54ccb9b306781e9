"""Converts a Hugging Face checkpoint to a GGUF: the plan of phi4conv.phi3, written by phi4conv.stream."""

from __future__ import annotations

import time
from concurrent.futures import Executor
from pathlib import Path

from phi4conv import phi3
from phi4conv.check.planned import prove_plan
from phi4conv.phi3 import ConversionOptions
from phi4conv.progress import Progress
from phi4conv.stream import ConversionResult, write_plan


def convert(
    folder: Path,
    target: Path,
    options: ConversionOptions,
    *,
    force: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Convert the Hugging Face checkpoint in folder to a GGUF file.

    Args:
        folder: The model folder.
        target: The file to make; its folder must exist.
        options: Types, name and metadata.
        force: Replace target when it exists.
        workers: Threads that encode; by default one for each usable core, up to stream.MOST_WORKERS_UNASKED.
        executor: Runs the chunks instead of a pool of threads; it stays open.
        progress: Told of tensor bytes as they are written.

    Raises:
        CheckpointError: The folder holds no checkpoint that can be converted.
        FormatError: An importance matrix that cannot be read.
        ConversionError: NaN, Inf or overflowing weights, options that cannot be met, or a vocabulary that would
            tokenize otherwise in the file than in the folder.
        ValueError: There is no such file type or mix.
        OutputError: The target cannot be written. In every case target is as it was before.
    """
    started = time.monotonic()
    plan = phi3.plan(folder, options)
    prove_plan(plan, folder)
    return write_plan(
        plan,
        target,
        allow_non_finite=options.allow_non_finite,
        force=force,
        workers=workers,
        executor=executor,
        progress=progress,
        started=started,
    )
