"""Runs a conversion: plan, then one streaming pass from the checkpoint to the file.

Row chunks of a few megabytes go through a bounded pool. Each is read, encoded and written at its own
offset, so that memory does not grow with the model and any number of workers gives the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv import phi3
from phi4conv.arrays import Floats
from phi4conv.errors import ConversionError, Problem
from phi4conv.files import AtomicFile, PositionedWriter, leftover_warnings
from phi4conv.gguf_file.read import read_gguf
from phi4conv.machine import peak_memory, usable_cores
from phi4conv.phi3 import ConversionOptions
from phi4conv.plan import ConversionPlan
from phi4conv.progress import Progress, Silent
from phi4conv.quant import CODECS
from phi4conv.rows import RowSource, locate, row_count

# Weights a chunk: 4 MB as float32, enough to keep numpy busy and few enough to keep memory small.
CHUNK_WEIGHTS = 1 << 20

# A worker holds about 13 MB, measured at full width; with more of them the disk is what waits.
MOST_WORKERS_UNASKED = 16

# Chunks waiting or running for each worker: one at work, one ready.
CHUNKS_PER_WORKER = 2


@dataclass(frozen=True)
class Chunk:
    """Rows start to stop of one tensor, encoded as qtype and written at offset. Picklable."""

    name: str
    source: RowSource
    start: int
    stop: int
    qtype: GGMLQuantizationType
    writer: PositionedWriter
    offset: int
    allow_non_finite: bool


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        plan: What was written.
        target: Where.
        seconds: Wall-clock time, planning included.
        peak_memory: Most memory held at once, in bytes; None where the system does not say.
        workers: Number of workers that encoded.
        warnings: The plan's, and those about the target's folder.
    """

    plan: ConversionPlan
    target: Path
    seconds: float
    peak_memory: int | None
    workers: int
    warnings: tuple[str, ...]

    @property
    def tensors_by_type(self) -> dict[str, int]:
        """How many tensors have each type, most first."""
        counts = Counter(tensor.qtype.name for tensor in self.plan.tensors)
        return dict(counts.most_common())


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
        workers: Threads that encode; by default one for each usable core, up to MOST_WORKERS_UNASKED.
        executor: Runs the chunks instead of a pool of threads; it stays open.
        progress: Told of tensor bytes as they are written.

    Raises:
        CheckpointError: The folder holds no checkpoint that can be converted.
        ConversionError: NaN, Inf or overflowing weights, or options that cannot be met.
        OutputError: The target cannot be written. In every case target is as it was before.
    """
    started = time.monotonic()
    workers = workers or min(usable_cores(), MOST_WORKERS_UNASKED)
    plan = phi3.plan(folder, options)
    plan.check()
    file = AtomicFile(target, plan.size_bytes, force=force, inputs=plan.inputs)
    warnings = (*plan.warnings, *leftover_warnings(target))
    compare_copies(plan)
    with file:
        file.writer.write_at(memoryview(plan.header.data), 0)
        chunks = plan_chunks(plan, file.writer, allow_non_finite=options.allow_non_finite)
        with pool(executor, workers) as active:
            run_chunks(chunks, active, workers, plan.tensor_bytes, progress or Silent())
        file.writer.extend_to(plan.size_bytes)
        file.flush()
        check_written(plan, file.path)
        file.commit()
    return ConversionResult(plan, target, time.monotonic() - started, peak_memory(), workers, warnings)


@contextmanager
def pool(executor: Executor | None, workers: int) -> Iterator[Executor]:
    """The caller's executor, left open, or threads of our own."""
    if executor is not None:
        yield executor
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as threads:
        yield threads


def plan_chunks(plan: ConversionPlan, writer: PositionedWriter, *, allow_non_finite: bool) -> Iterator[Chunk]:
    """Every tensor cut into row chunks, in file order."""
    for tensor, entry in zip(plan.tensors, plan.header.tensors, strict=True):
        row_bytes = CODECS[tensor.qtype].row_bytes(tensor.shape[-1])
        for start, stop in row_steps(tensor.shape):
            offset = plan.header.data_offset + entry.offset + start * row_bytes
            yield Chunk(tensor.name, tensor.source, start, stop, tensor.qtype, writer, offset, allow_non_finite)


def row_steps(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """A tensor's rows in steps of about CHUNK_WEIGHTS weights, each as start and stop."""
    step = max(1, CHUNK_WEIGHTS // shape[-1])
    total = row_count(shape)
    for start in range(0, total, step):
        yield start, min(start + step, total)


def run_chunks(chunks: Iterator[Chunk], executor: Executor, workers: int, total: int, progress: Progress) -> None:
    """Run all chunks with a bounded number in flight; the first failure stops the rest and is raised."""
    waiting: dict[Future[int], str] = {}
    progress.begin(total)
    try:
        while True:
            for chunk in islice(chunks, workers * CHUNKS_PER_WORKER - len(waiting)):
                waiting[executor.submit(convert_chunk, chunk)] = chunk.name
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                progress.advance(future.result(), waiting.pop(future))
    finally:
        for future in waiting:
            future.cancel()
        wait(waiting)  # a running chunk writes to the file that is about to be removed
        progress.end()


def convert_chunk(chunk: Chunk) -> int:
    """Read, check, encode and write one chunk; returns the bytes written."""
    rows = chunk.source.rows(chunk.start, chunk.stop)
    codec = CODECS[chunk.qtype]
    if not chunk.allow_non_finite:
        check_magnitude(chunk, rows, codec.largest)
    data = codec.encode_rows(rows, None)
    chunk.writer.write_at(data.data, chunk.offset)
    return data.nbytes


def check_magnitude(chunk: Chunk, rows: Floats, largest: float) -> None:
    """Refuse NaN, Inf and weights that the type cannot hold, naming the first one.

    Raises:
        ConversionError: With the checkpoint tensor and the weight's place in it.
    """
    # A NaN makes max and min NaN, and every comparison with it false.
    if rows.max() <= largest and rows.min() >= -largest:
        return
    row, column = map(int, np.argwhere(~(np.abs(rows) <= largest))[0])
    name, source_row = locate(chunk.source, chunk.start + row)
    value = float(rows[row, column])
    finite = np.isfinite(value)
    place = f"row {source_row}, column {column}" if len(chunk.source.shape) > 1 else f"element {column}"
    raise ConversionError(
        Problem(
            f"a weight is too large for {chunk.qtype.name}"
            if finite
            else "a weight is not a number that a model can use",
            where=f"{name}, {place}",
            expected=f"magnitude at most {largest:.6g}",
            found=f"{value:.6g}",
            next_step="choose BF16 or F32"
            if finite
            else "the checkpoint is damaged or diverged in training; --allow-non-finite writes the weight as it is",
        )
    )


def compare_copies(plan: ConversionPlan) -> None:
    """Hold tensors that are left out as copies against what they are copies of.

    Raises:
        ConversionError: They differ, so that leaving one out would change the model.
    """
    for left in plan.left_out:
        if left.copy is None:
            continue
        one, other = left.copy
        same = one.shape == other.shape and all(
            np.array_equal(one.rows(start, stop), other.rows(start, stop), equal_nan=True)
            for start, stop in row_steps(one.shape)
        )
        if not same:
            raise ConversionError(
                Problem(
                    "config.json ties the output to the embedding, but the checkpoint holds a different output",
                    where=left.name,
                    expected=f"the same weights as {', '.join(other.names)}",
                    next_step='if the output is a layer of its own, set "tie_word_embeddings": false in config.json',
                )
            )


def check_written(plan: ConversionPlan, path: Path) -> None:
    """Read the finished file back and hold its header against the plan; a difference is a bug of ours."""
    file = read_gguf(path)
    found = [(entry.name, entry.shape, entry.qtype, entry.offset) for entry in file.tensors]
    planned = [(entry.name, entry.shape, entry.qtype, entry.offset) for entry in plan.header.tensors]
    if file.defects or found != planned or file.file_size != plan.size_bytes:
        raise AssertionError(f"the written file differs from its plan: {list(map(str, file.defects))}")
