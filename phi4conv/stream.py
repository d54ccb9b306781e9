"""The streaming pass: a plan's tensors from their sources to the file.

Row chunks of a few megabytes go through a bounded pool. Each is read, encoded and written at its own
offset, so that memory does not grow with the model and any number of workers gives the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from phi4conv.arrays import Bytes, Floats
from phi4conv.errors import ConversionError, Problem
from phi4conv.files import AtomicFile, PositionedWriter, leftover_warnings
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import GGUFRows, decoded
from phi4conv.machine import peak_memory, usable_cores
from phi4conv.plan import ConversionPlan, TensorPlan
from phi4conv.progress import Progress, Silent
from phi4conv.quant import CODECS, QuantCodec, fast
from phi4conv.rows import RowSource, locate, row_count

# Weights a chunk: 4 MB as float32, enough to keep numpy busy and few enough to keep memory small.
CHUNK_WEIGHTS = 1 << 20

# A worker holds about 13 MB, measured at full width; with more of them the disk is what waits.
MOST_WORKERS_UNASKED = 16

# Chunks waiting or running for each worker: one at work, one ready.
CHUNKS_PER_WORKER = 2


@dataclass(frozen=True)
class Chunk:
    """Rows start to stop of one tensor, encoded as qtype by importance and written at offset. Picklable."""

    name: str
    source: RowSource
    start: int
    stop: int
    qtype: GGMLQuantizationType
    importance: Floats | None = field(compare=False, repr=False)
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
        paths: Which path encoded each type that has a fast one: "numba" or "numpy".
        warnings: The plan's, and those about the target's folder.
    """

    plan: ConversionPlan
    target: Path
    seconds: float
    peak_memory: int | None
    workers: int
    paths: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def tensors_by_type(self) -> dict[str, int]:
        """How many tensors have each type, most first."""
        counts = Counter(tensor.qtype.name for tensor in self.plan.tensors)
        return dict(counts.most_common())


def write_plan(
    plan: ConversionPlan,
    target: Path,
    *,
    allow_non_finite: bool = False,
    force: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    started: float | None = None,
) -> ConversionResult:
    """Write the file that a plan describes.

    Args:
        plan: What to write; it is checked first.
        target: The file to make; its folder must exist.
        allow_non_finite: Write NaN, Inf and weights beyond the range of F32, F16 and BF16 as they come.
        force: Replace target when it exists.
        workers: Threads that encode; by default one for each usable core, up to MOST_WORKERS_UNASKED.
        executor: Runs the chunks instead of a pool of threads; it stays open.
        progress: Told of tensor bytes as they are written, and of compilation when there is any.
        started: time.monotonic() at the beginning of the work, planning included; by default now.

    Raises:
        CheckpointError, FormatError: A source cannot be read.
        ConversionError: The plan breaks a rule, or weights are NaN, Inf or beyond their type's range.
        OutputError: The target cannot be written. In every case target is as it was before.
    """
    started = time.monotonic() if started is None else started
    workers = workers or min(usable_cores(), MOST_WORKERS_UNASKED)
    progress = progress or Silent()
    plan.check()
    file = AtomicFile(target, plan.size_bytes, force=force, inputs=plan.inputs)
    warnings = (*plan.warnings, *leftover_warnings(target))
    compare_copies(plan)
    paths = prepare_codecs(plan, progress)
    with file:
        file.writer.write_at(memoryview(plan.header.data), 0)
        chunks = plan_chunks(plan, file.writer, allow_non_finite=allow_non_finite)
        with pool(executor, workers) as active:
            run_chunks(chunks, active, workers, plan.tensor_bytes, progress)
        file.writer.extend_to(plan.size_bytes)
        file.flush()
        check_written(plan, file.path)
        file.commit()
    return ConversionResult(plan, target, time.monotonic() - started, peak_memory(), workers, paths, warnings)


def prepare_codecs(plan: ConversionPlan, progress: Progress) -> dict[str, str]:
    """Have every codec of the plan compiled before workers wait for it; returns the path of each type that has two."""
    for tensor in plan.tensors:
        if isinstance(tensor.source, GGUFRows) and not is_copy(tensor):
            fast.decoder(CODECS[tensor.source.qtype], progress.note)
    used = dict.fromkeys(tensor.qtype for tensor in plan.tensors if not is_copy(tensor))
    codecs = [fast.encoder(CODECS[qtype], progress.note) for qtype in used]
    return {codec.name: codec.path for codec in codecs if codec.name in fast.COMPILED_TYPES}


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
            yield Chunk(
                tensor.name,
                tensor.source,
                start,
                stop,
                tensor.qtype,
                tensor.importance,
                writer,
                offset,
                allow_non_finite,
            )


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
    codec = codec_of(chunk)
    data = copied(chunk, codec) if is_copy(chunk) else encoded(chunk, codec)
    check_blocks(chunk, codec, data)
    chunk.writer.write_at(data.data, chunk.offset)
    return data.nbytes


def codec_of(chunk: Chunk) -> QuantCodec:
    """The codec that encodes a chunk: the one place where it is chosen."""
    return fast.encoder(CODECS[chunk.qtype])


def is_copy(piece: Chunk | TensorPlan) -> bool:
    """Whether the source holds the very bytes that the file needs: decoding and encoding Q8_0 may change them."""
    return isinstance(piece.source, GGUFRows) and piece.source.qtype == piece.qtype


def copied(chunk: Chunk, codec: QuantCodec) -> Bytes:
    """The chunk's bytes as its source has them, checked."""
    assert isinstance(chunk.source, GGUFRows)  # noqa: S101  # is_copy has looked
    data = chunk.source.stored(chunk.start, chunk.stop)
    # Weights of types with scales are finite when their scales are, which check_blocks sees to.
    if not chunk.allow_non_finite and not codec.scale_offsets:
        check_magnitude(chunk, decoded(chunk.source, data), codec.largest)
    return data


def encoded(chunk: Chunk, codec: QuantCodec) -> Bytes:
    """The chunk's rows, read, checked and encoded."""
    rows = chunk.source.rows(chunk.start, chunk.stop)
    # Types with scales cannot hold what is not finite: it would vanish, or take its block with it.
    if codec.scale_offsets or not chunk.allow_non_finite:
        check_magnitude(chunk, rows, codec.largest)
    return codec.encode_rows(rows, chunk.importance if codec.uses_importance else None)


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
            expected=f"magnitude at most {largest:.8g}",
            found=f"{value:.8g}",
            next_step="choose BF16 or F32"
            if finite
            else "the weights are damaged or diverged in training; with --allow-non-finite, F32, F16 and BF16 take "
            "the weight as it is",
        )
    )


def check_blocks(chunk: Chunk, codec: QuantCodec, data: Bytes) -> None:
    """Refuse blocks that no model can use, as llama-quantize does after encoding and llama.cpp when it loads.

    Raises:
        ConversionError: With the tensor and the first block with an infinite or NaN scale.
    """
    broken = codec.broken_block(data)
    if broken is None:
        return
    row, block = broken
    name, source_row = locate(chunk.source, chunk.start + row)
    damaged = is_copy(chunk)
    raise ConversionError(
        Problem(
            f"a block of {chunk.qtype.name} has a scale that is infinite or not a number",
            where=f"{chunk.name} (from {name}, row {source_row}), block {block} of {codec.block_weights} weights",
            expected="finite scales",
            next_step="the input is damaged; make it again"
            if damaged
            else f"its weights are too large for {chunk.qtype.name}: choose another type for this tensor with "
            "--tensor-type, such as BF16",
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
    # Texts that are no UTF-8 in a GGUF that is quantized stay as they are.
    defects = [str(defect) for defect in file.defects if defect.code != "bad-utf8"]
    if defects or found != planned or file.file_size != plan.size_bytes:
        raise AssertionError(f"the written file differs from its plan: {defects}")
