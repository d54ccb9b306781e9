"""Greedy generation: always the likeliest token, with the keys and values of all layers kept between tokens.

Left out: sampling, several sequences at once, and where text ends but for a set of tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi4conv.errors import FormatError, Problem
from phi4conv.reference.model import Stretch
from phi4conv.reference.parts import Model, Part
from phi4conv.reference.run import Runner

# Tokens of a prompt that go through a layer at once: the widest state of Phi-4, (1024, 35840), takes 0.15 GB.
MOST_TOKENS = 1024


@dataclass(frozen=True)
class Pace:
    """How long generation is expected to take, in seconds: until the first token is there, and for each later one."""

    first_token: float
    later_token: float

    def total(self, count: int) -> float:
        """Seconds for count tokens."""
        return self.first_token + max(0, count - 1) * self.later_token


def generate(
    runner: Runner,
    ids: Sequence[int],
    count: int,
    stop: Collection[int],
    *,
    suppressed: Collection[int] = (),
    context_length: int | None = None,
    on_layer: Callable[[int], None] = lambda _: None,
) -> Iterator[int]:
    """Up to count tokens that follow ids, each the likeliest at its place; of equal ones that of the lowest id.

    A token of stop ends it, and is the last one yielded. The prompt passes through each layer once, and every token
    but the last one costs one more pass over the weights.

    Args:
        runner: The model at work.
        ids: The prompt, at least one token.
        count: The most tokens to yield.
        stop: Tokens that end a text.
        suppressed: Tokens that are never yielded.
        context_length: For how many tokens LongRoPE factors are chosen, unless the runner's settings say it; by
            default as many as there can be in the end, so that the factors stay the same throughout.
        on_layer: Told the index of each layer when it has run.

    Raises:
        ValueError: There is no prompt, or the embedding has no row for one of its tokens.
        FormatError: The model computes NaN or infinity; or its weights cannot be read.
    """
    if not ids:
        raise ValueError("generation needs at least one token to start from")
    layer_count = runner.model.hyperparameters.layer_count
    room = context_length or len(ids) + count
    stretches = [runner.settings.stretch(0, room) for _ in range(layer_count)]
    new = list(ids)
    for number in range(count):
        token = likeliest(runner, run_layers(runner, new, stretches, on_layer)[-1:], suppressed)
        yield token
        if token in stop or number + 1 == count:
            return
        new = [token]


def run_layers(
    runner: Runner, ids: Sequence[int], stretches: Sequence[Stretch], on_layer: Callable[[int], None]
) -> Tensor:
    """Tokens through all layers, after those that the stretches, one a layer, hold: (tokens, hidden)."""
    x = runner.embed(ids)
    for index, stretch in enumerate(stretches):
        x = torch.cat([run_slice(runner, index, part, stretch) for part in torch.split(x, MOST_TOKENS)])
        on_layer(index)
    return x


def run_slice(runner: Runner, index: int, x: Tensor, stretch: Stretch) -> Tensor:
    """Some tokens through one layer, behind those that the stretch holds: (tokens, hidden)."""
    stretch.count = len(x)
    return runner.layer(index, x, [stretch])


def likeliest(runner: Runner, x: Tensor, suppressed: Collection[int]) -> int:
    """The token with the highest logit, of equal ones the first: x (1, hidden).

    Raises:
        FormatError: A logit is no finite number, or all tokens are suppressed.
    """
    best, best_logit = -1, -torch.inf
    for start, chunk in runner.logits(x):
        logits = chunk[0]
        if not bool(torch.isfinite(logits).all()):
            raise no_numbers(runner.model, start + int(torch.isfinite(logits).logical_not().nonzero()[0]))
        out = [token - start for token in suppressed if start <= token < start + len(logits)]
        if out:
            logits = logits.clone()
            logits[out] = -torch.inf
        # Not argmax alone: among equal values it may give any.
        highest = float(logits.max())
        if highest > best_logit:
            best, best_logit = start + int((logits == highest).nonzero()[0]), highest
    if best < 0:
        raise FormatError(
            Problem(
                "no token is left to generate: the file suppresses all of them",
                where="tokenizer.ggml.suppress_tokens",
                expected="a few tokens, or no such key",
                found=f"{len(suppressed):,} tokens",
            )
        )
    return best


def no_numbers(model: Model, token: int) -> FormatError:
    """The error for a model that does not compute numbers."""
    return FormatError(
        Problem(
            "the model computes NaN or infinity: it can say nothing",
            where=f"the logit of token {token}, by {model.head.tensor}",
            expected="a finite number for every token",
            next_step="`phi4conv verify MODEL_DIR FILE` names the tensor at fault; then make the file again",
        )
    )


def measured_pace(runner: Runner, ids: Sequence[int], *, cached: bool) -> Pace:
    """What generation after this prompt will take, from running one layer or two ahead of it.

    cached tells that what was read once need not come from the disk again: the runner holds the weights, or the system
    has memory for the whole file.
    """
    model = runner.model
    warm_up(model)
    slices = -(-len(ids) // MOST_TOKENS)
    prompt_layer = slices * seconds_of_layer(runner, 0, ids[: -(-len(ids) // slices)])
    # The quicker of two: whatever else the machine does comes and goes.
    layer_count = model.hyperparameters.layer_count
    token_layer = min(seconds_of_layer(runner, 0 if cached else index % layer_count, ids[-1:]) for index in (1, 2))
    head = token_layer * part_weights(model.head) / layer_weights(model, 0)
    return Pace(layer_count * prompt_layer + head, layer_count * token_layer + head)


def warm_up(model: Model) -> None:
    """Decode a row of every type: a codec's first use loads its machine code, or makes it."""
    some = {part.qtype: part for part in model.parts.values()}
    for part in some.values():
        part.rows.rows(0, 1)


def seconds_of_layer(runner: Runner, index: int, ids: Sequence[int]) -> float:
    """How long a layer takes for these tokens."""
    x = runner.embed(ids)
    started = time.perf_counter()
    # The sum waits for a device that works on its own.
    float(runner.layer(index, x, [runner.settings.stretch(len(ids))]).sum())
    return time.perf_counter() - started


def layer_weights(model: Model, index: int) -> int:
    """How many weights a layer has."""
    return sum(map(part_weights, model.layer(index).values()))


def total_weights(model: Model) -> int:
    """How many weights a pass reads: all layers and the head."""
    layers = sum(layer_weights(model, index) for index in range(model.hyperparameters.layer_count))
    return layers + part_weights(model.head)


def part_weights(part: Part) -> int:
    """How many weights a part has."""
    return math.prod(part.shape)
