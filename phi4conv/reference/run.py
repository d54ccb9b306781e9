"""Runs a model whose weights stay on disk: every matrix is read in chunks of rows while it is used.

Memory is that of the hidden states and of a few chunks, whatever the model's size. Each call of Runner.layer reads
the layer's weights once, for all tokens of x together: batch the prompts. On the CPU each core reads, decodes and
multiplies chunks of its own, so that the numbers do not depend on how many there are. Left out: training, sampling,
more than one device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from phi4conv.arrays import Floats
from phi4conv.errors import EngineError, Problem
from phi4conv.machine import usable_cores
from phi4conv.reference.model import Attention, Layer, Stretch, rms_norm, run_layer
from phi4conv.reference.parts import EMBEDDING, OUTPUT_NORM, Model, Part
from phi4conv.rows import RowSource, StackedRows, row_count

Result = TypeVar("Result")

# Weights a chunk: 8 MB as float32. At Phi-4's width that is 409 rows, whose product is as fast as that of more.
CHUNK_WEIGHTS = 1 << 21

# llama.cpp's contexts are multiples of it (llama-context.cpp).
CONTEXT_STEP = 256


@dataclass(frozen=True)
class RunSettings:
    """What a run leaves to choose.

    Attributes:
        device: Where torch computes: "cpu", "cuda", "cuda:1", "mps".
        apply_window: Attend within the sliding window, as transformers does; llama.cpp turns it off for phi3.
        n_ctx: The context for which LongRoPE factors are chosen, as llama.cpp does, which rounds it up to a multiple of
            256; None takes each prompt's own length, as transformers does.
    """

    device: str = "cpu"
    apply_window: bool = False
    n_ctx: int | None = None

    def stretch(self, count: int, context_length: int | None = None) -> Stretch:
        """The beginning of a sequence of count tokens, in a context of so many if that is known to be longer."""
        return Stretch(count, llama_context(self.n_ctx) if self.n_ctx else context_length or count)


def llama_context(n_ctx: int) -> int:
    """The context that llama.cpp makes of a wish (llama_init_from_model pads it).

    >>> llama_context(1), llama_context(256), llama_context(4097)
    (256, 256, 4352)
    """
    return -(-n_ctx // CONTEXT_STEP) * CONTEXT_STEP


class Runner:
    """One model at work, in float32.

    Attributes:
        model: What runs.
        settings: How.
    """

    def __init__(
        self,
        model: Model,
        settings: RunSettings | None = None,
        *,
        held_bytes: int = 0,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        """Check the device; nothing is read yet.

        Args:
            model: What to run.
            settings: How; by default on the CPU, as llama.cpp would.
            held_bytes: How many bytes of decoded weights may stay in memory from one call to the next.
            on_read: Told of weights as they are read, how many each time.

        Raises:
            EngineError: torch has no such device.
        """
        self.model = model
        self.settings = settings or RunSettings()
        self._device = checked_device(self.settings.device)
        self._held: dict[str, Tensor] = {}
        self._room = held_bytes
        self._on_read = on_read or (lambda _: None)
        shape = model.hyperparameters
        self._attention = Attention(
            head_count=shape.head_count,
            kv_head_count=shape.kv_head_count,
            head_size=shape.head_size,
            rope=shape.rope,
            window=shape.sliding_window if self.settings.apply_window else None,
        )

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The embedding's rows: (tokens, hidden).

        Raises:
            ValueError: The embedding has no such row.
        """
        rows = self.model.parts[EMBEDDING].rows
        found = {token: torch.from_numpy(rows.rows(token, token + 1)) for token in sorted(set(ids))}
        return torch.cat([found[token] for token in ids]).to(self._device)

    def layer(self, index: int, x: Tensor, stretches: Sequence[Stretch]) -> Tensor:
        """One block of the model: x (tokens, hidden) -> (tokens, hidden); see model.run_layer."""
        parts = self.model.layer(index)
        layer = Layer(
            attn_norm=self._vector(parts["attn_norm"]),
            attn_qkv=self._matrix(parts["attn_q"], parts["attn_k"], parts["attn_v"]),
            attn_output=self._matrix(parts["attn_output"]),
            ffn_norm=self._vector(parts["ffn_norm"]),
            ffn_gate_up=self._matrix(parts["ffn_gate"], parts["ffn_up"]),
            ffn_down=self._matrix(parts["ffn_down"]),
        )
        with torch.inference_mode():
            return run_layer(x, layer, self._attention, self.model.hyperparameters.rms_norm_eps, stretches)

    def logits(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The final norm and the head, for chunks of the vocabulary in order.

        Yields:
            The first id of the chunk, and its logits: (tokens, ids of the chunk).
        """
        norm = self._vector(self.model.parts[OUTPUT_NORM])
        with torch.inference_mode():
            x = rms_norm(x, norm, self.model.hyperparameters.rms_norm_eps)
        yield from self._products(x, (self.model.head,))

    def _vector(self, part: Part) -> Tensor:
        self._on_read(part.shape[0])
        return torch.from_numpy(part.rows.rows(0, 1)[0]).to(self._device)

    def _matrix(self, *parts: Part) -> Callable[[Tensor], Tensor]:
        """The linear map of parts stacked one above the other."""

        def apply(x: Tensor) -> Tensor:
            out = x.new_empty(len(x), sum(part.shape[0] for part in parts))
            with one_thread():
                for start, chunk in self._products(x, parts):
                    out[:, start : start + chunk.shape[1]] = chunk
            return out

        return apply

    def _products(self, x: Tensor, parts: Sequence[Part]) -> Iterator[tuple[int, Tensor]]:
        """What the stacked parts make of x, rows of weights in order: the first row's number, and (tokens, rows)."""
        name = parts[0].name
        if name in self._held:
            yield 0, product(x, self._held[name])
            return
        rows = parts[0].rows if len(parts) == 1 else StackedRows(tuple(part.rows for part in parts))
        height, width = row_count(rows.shape), rows.shape[-1]
        held = torch.empty(height, width, device=self._device) if 4 * height * width <= self._room else None
        for start, chunk in self._read_products(x, rows, held):
            self._on_read(chunk.shape[1] * width)
            yield start, chunk
        if held is not None:
            self._room -= 4 * height * width
            self._held[name] = held

    def _read_products(self, x: Tensor, rows: RowSource, held: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """As _products, of weights that are read meanwhile, and kept in held if there is one."""

        def keep(start: int, weights: Tensor) -> Tensor:
            if held is not None:
                with torch.inference_mode():  # which workers are not in, and held was perhaps made in
                    held[start : start + len(weights)] = weights
            return weights

        def read_product(start: int, stop: int) -> Tensor:
            return product(x, keep(start, torch.from_numpy(rows.rows(start, stop))))

        step = max(1, CHUNK_WEIGHTS // rows.shape[-1])
        if self._device.type == "cpu":
            try:
                yield from ahead(read_product, row_count(rows.shape), step, lambda: torch.set_num_threads(1))
            finally:
                # The last number set holds for threads to come, too: back to this one's.
                torch.set_num_threads(torch.get_num_threads())
            return
        # A device takes its work from one thread.
        for start, chunk in read_ahead(rows, step):
            yield start, product(x, keep(start, torch.from_numpy(chunk).to(self._device)))


def product(x: Tensor, weights: Tensor) -> Tensor:
    """The linear map of weights (outputs, inputs): x (tokens, inputs) -> (tokens, outputs).

    In this order because MKL multiplies up to a sixth faster so, by a few hundred rows of weights.
    """
    with torch.inference_mode():
        return (weights @ x.T).T


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone: for what is done while workers keep all cores busy.

    A thread of torch's that has to wait for its turn on a core keeps the others waiting for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def read_ahead(rows: RowSource, height: int) -> Iterator[tuple[int, Floats]]:
    """All rows in chunks of height, in order, decoded on every core while the caller works on the one before."""
    return ahead(rows.rows, row_count(rows.shape), height)


def ahead(
    work: Callable[[int, int], Result], count: int, height: int, initializer: Callable[[], None] | None = None
) -> Iterator[tuple[int, Result]]:
    """What work makes of rows start to stop, for count rows in chunks of height: start and result, in order.

    All cores work while the caller is busy with the result before. Every worker calls the initializer first.
    """
    starts = iter(range(0, count, height))
    workers = usable_cores()
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:

        def submit(start: int) -> tuple[int, Future[Result]]:
            return start, pool.submit(work, start, min(start + height, count))

        waiting = deque(submit(start) for start in islice(starts, workers + 1))
        while waiting:
            start, future = waiting.popleft()
            result = future.result()
            waiting.extend(submit(start) for start in islice(starts, 1))
            yield start, result


def checked_device(name: str) -> torch.device:
    """The device of that name, tried out.

    Raises:
        EngineError: torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineError(
            Problem(
                "torch cannot compute on this device",
                where=f"--device {name}",
                expected=f"one of {', '.join(devices())}",
                found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                next_step="leave --device out to run on the CPU",
            )
        ) from error
    if device.type == "meta":
        raise EngineError(Problem("torch's meta device computes nothing", f"--device {name}", ", ".join(devices())))
    return device


def devices() -> list[str]:
    """The kinds of device that torch has here."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found
