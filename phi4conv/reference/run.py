"""Runs a model whose weights stay on disk: every matrix is read in chunks of rows while it is used.

Memory is that of the hidden states and of a few chunks, whatever the model's size. Each call of Runner.layer reads
the layer's weights once, for all tokens of x together: batch the prompts. Left out: training, sampling, more than one
device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from phi4conv.arrays import Floats
from phi4conv.errors import EngineError, Problem
from phi4conv.machine import usable_cores
from phi4conv.reference.model import Attention, Layer, Stretch, rms_norm, run_layer
from phi4conv.reference.parts import EMBEDDING, OUTPUT_NORM, Model, Part
from phi4conv.rows import RowSource, StackedRows, row_count

# Weights a chunk: 16 MB as float32, so that a matrix product is long enough to keep all cores busy.
CHUNK_WEIGHTS = 1 << 22

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
        for start, weights in self._chunks((self.model.head,)):
            with torch.inference_mode():
                chunk = x @ weights.T
            yield start, chunk

    def _vector(self, part: Part) -> Tensor:
        self._on_read(part.shape[0])
        return torch.from_numpy(part.rows.rows(0, 1)[0]).to(self._device)

    def _matrix(self, *parts: Part) -> Callable[[Tensor], Tensor]:
        """The linear map of parts stacked one above the other."""

        def apply(x: Tensor) -> Tensor:
            out = x.new_empty(len(x), sum(part.shape[0] for part in parts))
            for start, weights in self._chunks(parts):
                out[:, start : start + len(weights)] = x @ weights.T
            return out

        return apply

    def _chunks(self, parts: Sequence[Part]) -> Iterator[tuple[int, Tensor]]:
        """Rows of the stacked parts in order: the first row's number, and float32 (rows, inputs) on the device."""
        name = parts[0].name
        if name in self._held:
            yield 0, self._held[name]
            return
        rows = parts[0].rows if len(parts) == 1 else StackedRows(tuple(part.rows for part in parts))
        height, width = row_count(rows.shape), rows.shape[-1]
        held = torch.empty(height, width, device=self._device) if 4 * height * width <= self._room else None
        for start, chunk in read_ahead(rows, max(1, CHUNK_WEIGHTS // width)):
            weights = torch.from_numpy(chunk).to(self._device)
            if held is not None:
                held[start : start + len(weights)] = weights
            self._on_read(chunk.size)
            yield start, weights
        if held is not None:
            self._room -= 4 * height * width
            self._held[name] = held


def read_ahead(rows: RowSource, height: int) -> Iterator[tuple[int, Floats]]:
    """All rows in chunks of height, in order, decoded on every core while the caller works on the one before."""
    starts = iter(range(0, row_count(rows.shape), height))
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as pool:

        def submit(start: int) -> tuple[int, Future[Floats]]:
            return start, pool.submit(rows.rows, start, min(start + height, row_count(rows.shape)))

        waiting = deque(submit(start) for start in islice(starts, workers + 1))
        while waiting:
            start, future = waiting.popleft()
            chunk = future.result()
            waiting.extend(submit(start) for start in islice(starts, 1))
            yield start, chunk


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
