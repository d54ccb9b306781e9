"""What happened to tensors that do not correspond to the source, each fault once however many tensors it touches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from phi4conv.reference.parts import Model
from phi4conv.verify.recognize_one import Recognition, recognize

__all__ = ["Recognition", "recognize", "recognize_all"]

LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")

# So many tensors in a row that nothing explains, or that are other weights: the rest is not searched row by row.
ENOUGH_UNRELATED = 6

# What is said once for all tensors, though the figures differ, when so many have it.
ALIKE_EVERYWHERE = ("other-checkpoint", "unrelated", "requantized")
MANY = 3

UNEXPLAINED = "its weights differ from the source's by more than its type explains, in no way that is known by name"


def recognize_all(tensors: Sequence[str], found: Model, source: Model) -> list[Recognition]:
    """What happened to these tensors of the file, each fault once; every tensor that both sides have is in one of them.

    Raises:
        FormatError, CheckpointError: A side cannot be read.
    """
    recognitions, unrelated = [], 0
    for tensor in dict.fromkeys(tensors):
        recognition = recognize(tensor, found, source, thorough=unrelated < ENOUGH_UNRELATED)
        recognition = recognition or Recognition("unexplained", UNEXPLAINED, tensors=(tensor,))
        unrelated = unrelated + 1 if recognition.code == "unrelated" else 0
        recognitions.append(recognition)
    whole = list(whole_layers(recognitions))
    told = {tensor for recognition in whole for tensor in recognition.tensors}
    remaining = pairs(recognition for recognition in recognitions if recognition.tensors[0] not in told)
    return [*whole, *alike(remaining)]


def layer_and_role(tensor: str) -> tuple[int, str] | None:
    """A tensor's layer, and what it is there.

    >>> layer_and_role("blk.3.ffn_up.weight")
    (3, 'ffn_up.weight')
    """
    match = LAYER_TENSOR.fullmatch(tensor)
    return None if match is None else (int(match[1]), match[2])


def whole_layers(recognitions: Sequence[Recognition]) -> Iterator[Recognition]:
    """Layers all of whose tensors hold those of one other layer: exchanged, copied, or moved up or down."""
    held = held_layers(recognitions)
    exchanged = {layer: other for layer, other in held.items() if held.get(other) == layer}
    for layer, other in exchanged.items():
        if layer < other:
            yield joined("exchanged", "all their tensors are exchanged", (layer, other), recognitions)
    moved = {layer: other for layer, other in held.items() if layer not in exchanged}
    for layers in runs(moved):
        step = moved[layers[0]] - layers[0]
        if len(layers) == 1:
            sentence = f"all its tensors are those of layer {layers[0] + step}"
            code = next(each.code for each in recognitions if belongs(each, layers))
        else:
            first, last = layers[0] + step, layers[-1] + step
            sentence, code = f"their tensors are those of layers {first} to {last}", "layers-shifted"
        yield joined(code, sentence, layers, recognitions)


def held_layers(recognitions: Iterable[Recognition]) -> dict[int, int]:
    """For each layer that is another one throughout, as far as its tensors are wrong, which one."""
    others: dict[int, set[int | None]] = {}
    counts: dict[int, int] = {}
    for recognition in recognitions:
        place = layer_and_role(recognition.tensors[0])
        if place is None:
            continue
        layer, role = place
        there = layer_and_role(recognition.other_tensor or "")
        others.setdefault(layer, set()).add(there[0] if there is not None and there[1] == role else None)
        counts[layer] = counts.get(layer, 0) + 1
    return {
        layer: other
        for layer, found in others.items()
        if len(found) == 1 and counts[layer] >= MANY and (other := next(iter(found))) is not None
    }


def runs(moved: dict[int, int]) -> Iterator[tuple[int, ...]]:
    """Layers next to each other that moved alike."""
    run: list[int] = []
    for layer in sorted(moved):
        if run and (layer != run[-1] + 1 or moved[layer] - layer != moved[run[-1]] - run[-1]):
            yield tuple(run)
            run = []
        run.append(layer)
    if run:
        yield tuple(run)


def belongs(recognition: Recognition, layers: Sequence[int]) -> bool:
    """Whether it is about a tensor of these layers."""
    place = layer_and_role(recognition.tensors[0])
    return place is not None and place[0] in layers


def joined(code: str, sentence: str, layers: Sequence[int], recognitions: Iterable[Recognition]) -> Recognition:
    """One recognition for all tensors of some layers."""
    tensors = tuple(each.tensors[0] for each in recognitions if belongs(each, layers))
    if len(layers) == 1:
        words = f"layer {layers[0]}"
    elif len(layers) == 2:
        words = f"layers {layers[0]} and {layers[1]}"
    else:
        words = f"layers {layers[0]} to {layers[-1]}"
    return Recognition(code, sentence, tensors=tensors, words=words)


def pairs(recognitions: Iterable[Recognition]) -> Iterator[Recognition]:
    """Two tensors that hold each other's weights as one."""
    remaining = {recognition.tensors[0]: recognition for recognition in recognitions}
    while remaining:
        tensor, recognition = next(iter(remaining.items()))
        del remaining[tensor]
        other = remaining.get(recognition.other_tensor or "")
        if other is not None and other.other_tensor == tensor and other.code == recognition.code:
            del remaining[other.tensors[0]]
            recognition = replace(recognition, tensors=(tensor, other.tensors[0]), words=tensor)
        yield recognition


def alike(recognitions: Iterable[Recognition]) -> Iterator[Recognition]:
    """The same fault of the same tensor in several layers as one, and that of all weights as one."""
    groups: dict[tuple[str, ...], list[Recognition]] = {}
    remaining = list(recognitions)
    codes = [each.code for each in remaining]
    for recognition in remaining:
        place = layer_and_role(recognition.tensors[0])
        key: tuple[str, ...] = (recognition.code, place[1] if place else recognition.tensors[0], recognition.sentence)
        if recognition.code in ALIKE_EVERYWHERE and codes.count(recognition.code) >= MANY:
            key = (recognition.code,)
        groups.setdefault(key, []).append(recognition)
    for key, group in groups.items():
        tensors = tuple(tensor for each in group for tensor in each.tensors)
        first = replace(group[0], tensors=tensors)
        if len(group) == 1:
            yield first
        elif len(key) > 1:
            yield replace(first, share=max(each.share for each in group))
        else:
            worst = min(group, key=lambda each: each.share)
            sentence = f"not made from this checkpoint; of {group[0].tensors[0]}: {group[0].sentence}"
            yield replace(first, sentence=sentence, share=worst.share)
