"""Lets a GGUF speak: its own template and tokenizer, its weights on the reference path, the likeliest token each time.

What comes out is what the file says, without a program that helps it along. Left out: sampling, conversations of
several turns, and speed: a big model's weights are decoded anew for every token.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from phi4conv.errors import Phi4ConvError, Problem
from phi4conv.gguf_file.read import read_gguf
from phi4conv.machine import available_memory
from phi4conv.progress import Progress
from phi4conv.reference.detokenize import HIDDEN
from phi4conv.reference.file_prompt import chat_ids, plain_ids
from phi4conv.reference.parts import Model
from phi4conv.reference.tokenizer import FileTokenizer, file_tokenizer
from phi4conv.runnable import (
    is_out_of_memory,
    out_of_memory,
    require_torch,
    require_whole_model,
    runnable_model,
    stored_bytes,
)

if TYPE_CHECKING:
    from phi4conv.reference.generate import Pace
    from phi4conv.reference.run import Runner

# Decoded weights that may stay in memory, and how much of what the machine has free they may take.
MOST_HELD_BYTES = 2 << 30
HELD_SHARE = 0.5

# From how many seconds on people are told of them first.
LONG = 20.0


class Ending(Enum):
    """Why generation stopped."""

    END_OF_GENERATION = "end-of-generation"
    COUNT = "count"
    CONTEXT = "context"


@dataclass(frozen=True)
class RunOptions:
    """What is asked, and how.

    Attributes:
        prompt: The user's message with chat, else the text to go on with.
        chat: Put the prompt into the file's own chat template.
        count: The most tokens to generate.
        n_ctx: The room for tokens, by which LongRoPE factors are chosen, as llama.cpp does. By default no more than
            prompt and count take. Beyond the model's own context length it gives no room.
        device: Where torch computes: "cpu", "cuda", "mps".
    """

    prompt: str
    chat: bool = False
    count: int = 128
    n_ctx: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Answer:
    """What a file said.

    Attributes:
        prompt_ids: The prompt's tokens.
        ids: The tokens that followed, with the one that ended them.
        text: Those as text; control tokens give none.
        ending: Why it stopped.
        seconds: From the prompt's first layer to the last token.
        seconds_to_first: From there to the first token.
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    ending: Ending
    seconds: float
    seconds_to_first: float

    @property
    def tokens_per_second(self) -> float | None:
        """The pace after the first token; None when there was no other."""
        later = self.seconds - self.seconds_to_first
        return (len(self.ids) - 1) / later if len(self.ids) > 1 and later > 0 else None


def run(path: Path, options: RunOptions, progress: Progress, show: Callable[[str], None]) -> Answer:
    """Generate what follows a prompt, and show every piece of text as soon as its characters are whole.

    progress is told how long it will take, if it is long, and of the layers until the first token.

    Raises:
        EngineError: torch is missing, has no such device, or runs out of memory; or templates cannot be rendered.
        FormatError: The file is damaged, is no whole model, or is none that llama.cpp would run.
        Phi4ConvError: The prompt is empty, no text, or longer than the context.
    """
    require_torch()
    file = read_gguf(path)
    require_whole_model(file)
    tokenizer = file_tokenizer(file)
    model = runnable_model(file)
    ids = (chat_ids if options.chat else plain_ids)(file, options.prompt, tokenizer)
    speech = Speech(model, tokenizer, ids, options)
    require_room(speech)
    try:
        return answer(speech, progress, show)
    except RuntimeError as error:  # torch's
        if is_out_of_memory(error):
            raise out_of_memory(options.device) from error
        raise


@dataclass(frozen=True)
class Speech:
    """All that an answer follows from."""

    model: Model
    tokenizer: FileTokenizer
    ids: tuple[int, ...]
    options: RunOptions

    @property
    def room(self) -> int:
        """How many tokens the context takes after the prompt."""
        longest = self.model.hyperparameters.context_length
        return min(longest, self.options.n_ctx or longest) - len(self.ids)

    @property
    def count(self) -> int:
        """The most tokens to generate."""
        return min(self.options.count, self.room)


def answer(speech: Speech, progress: Progress, show: Callable[[str], None]) -> Answer:
    """What the model says; see run."""
    from phi4conv.reference.run import Runner, RunSettings  # noqa: PLC0415  # torch takes seconds to load

    free = available_memory()
    held = held_bytes(speech.model, free)
    settings = RunSettings(device=speech.options.device, n_ctx=speech.options.n_ctx)
    runner = Runner(speech.model, settings, held_bytes=held)
    cached = held > 0 or stored_bytes(speech.model.parts.values()) < free
    pace = expected_pace(runner, speech, progress, cached=cached)
    text = TextSoFar(speech.tokenizer, show)
    generated: list[int] = []
    started = time.perf_counter()
    seconds = [0.0]
    for token in tokens_of(runner, speech, pace, progress):
        generated.append(token)
        seconds.append(time.perf_counter() - started)
        text.add(token)
    text.end()
    return Answer(
        prompt_ids=speech.ids,
        ids=tuple(generated),
        text="".join(text.shown),
        ending=ending_of(generated[-1], speech),
        seconds=seconds[-1],
        seconds_to_first=seconds[1],
    )


def require_room(speech: Speech) -> None:
    """Raise Phi4ConvError when the prompt leaves no room for an answer."""
    if speech.room < 1:
        needed, longest = len(speech.ids), speech.room + len(speech.ids)
        limit = "--n-ctx" if longest == speech.options.n_ctx else "the file's context_length"
        raise Phi4ConvError(
            Problem(
                "the prompt does not fit into the context with a token to spare",
                where="--prompt",
                expected=f"fewer than {longest:,} tokens, {limit}",
                found=f"{needed:,} tokens",
                next_step="shorten the prompt",
            )
        )


def tokens_of(runner: Runner, speech: Speech, pace: Pace, progress: Progress) -> Iterator[int]:
    """The generated tokens; progress sees the layers until the first one, if they take long."""
    from phi4conv.reference.generate import generate  # noqa: PLC0415  # torch takes seconds to load

    vocab = speech.tokenizer.vocab
    layers = range(speech.model.hyperparameters.layer_count)
    sizes = [stored_bytes(speech.model.layer(index).values()) for index in layers]
    reading = Reading(progress, sizes) if pace.first_token > LONG else None
    tokens = generate(
        runner,
        speech.ids,
        speech.count,
        vocab.end_of_generation,
        suppressed=vocab.suppressed,
        on_layer=reading.layer if reading else lambda _: None,
    )
    try:
        for token in tokens:
            if reading:
                reading.end()
            yield token
    finally:
        if reading:
            reading.end()


class Reading:
    """The first pass over the weights, as progress shows it."""

    def __init__(self, progress: Progress, sizes: list[int]) -> None:
        """sizes: bytes of every layer."""
        self.progress, self.sizes = progress, sizes
        self.running = True
        progress.begin(sum(sizes))

    def layer(self, index: int) -> None:
        """Another layer has run."""
        if self.running:
            self.progress.advance(self.sizes[index], f"layer {index + 1} of {len(self.sizes)}")

    def end(self) -> None:
        """The first token is there, or never will be."""
        if self.running:
            self.running = False
            self.progress.end()


def expected_pace(runner: Runner, speech: Speech, progress: Progress, *, cached: bool) -> Pace:
    """How long it will take; progress is told when that is long."""
    from phi4conv.reference.generate import measured_pace  # noqa: PLC0415  # torch takes seconds to load

    pace = measured_pace(runner, speech.ids, cached=cached)
    total = pace.total(speech.count)
    if total > LONG:
        progress.note(
            f"about {duration(pace.first_token)} until the first token, then {duration(pace.later_token)} a token: "
            f"up to {duration(total)} for {speech.count:,} tokens; Ctrl-C stops it"
        )
    return pace


def duration(seconds: float) -> str:
    """A time for people, as exact as an estimate is.

    >>> duration(0.31), duration(14.2), duration(880), duration(9000)
    ('0.31 s', '14 s', '15 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def held_bytes(model: Model, free: int) -> int:
    """How many bytes of decoded weights to keep: those of the whole model if there is room, else none.

    A part of a big model would hardly make it faster. free is the memory that the machine has left, in bytes.
    """
    from phi4conv.reference.generate import total_weights  # noqa: PLC0415  # torch takes seconds to load

    room = min(MOST_HELD_BYTES, int(HELD_SHARE * free))
    needed = 4 * total_weights(model)
    return needed if needed <= room else 0


def ending_of(token: int, speech: Speech) -> Ending:
    """Why generation stopped after its last token."""
    if token in speech.tokenizer.vocab.end_of_generation:
        return Ending.END_OF_GENERATION
    return Ending.CONTEXT if speech.count < speech.options.count else Ending.COUNT


@dataclass
class TextSoFar:
    """Generated tokens as text, shown once its characters are whole.

    As in llama.cpp's programs control tokens give no text, and spaces stay as the tokens have them. Bytes that are no
    UTF-8 read U+FFFD.
    """

    tokenizer: FileTokenizer
    show: Callable[[str], None]
    shown: list[str] = field(default_factory=list)
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def add(self, token: int) -> None:
        """Another token."""
        if not self.tokenizer.vocab.attributes[token] & HIDDEN:
            self._show(self.decoder.decode(self.tokenizer.pieces([token])[0]))

    def end(self) -> None:
        """No more tokens: half a character is shown as U+FFFD."""
        self._show(self.decoder.decode(b"", final=True))

    def _show(self, text: str) -> None:
        if text:
            self.shown.append(text)
            self.show(text)
