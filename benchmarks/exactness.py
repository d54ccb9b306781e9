"""Compares every quantized type with ggml, byte for byte, on a hundred million fresh random weights and more.

    python -m benchmarks.exactness [--types Q4_K] [--weights 100000000] [--numpy-share 0.05] [--seed S]

Each type gets so many weights without importance and, where importance changes the bytes, as many with it: normal ones,
heavy tails, a bf16 grid, nearly constant groups, sparse and one-signed rows, many magnitudes, and weights that were
quantized before, whose ties are hard to round alike. What the fast path encodes must equal ggml's bytes; what it
decodes must equal ggml's floats; the numpy codec does the same for a random share of the chunks.

Every chunk has its own random numbers, made from the printed seed and the chunk's number, so one chunk can be made
again alone: --types T --seed S --chunk N. Exits with 1 when anything differs, with such a command.

ggml is the release that phi4conv is equal to. Where that cannot be fetched, the one inside xllamacpp stands in, and
where that is 0.26 or later a few superblocks with importance differ; docs/quants.md says which.
"""

from __future__ import annotations

import argparse
import math
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ggml import Ggml

from benchmarks.codecs import PACKAGES, TYPES, announce, chosen_codecs
from benchmarks.machine import described
from phi4conv.arrays import Bytes, Floats
from phi4conv.machine import usable_cores
from phi4conv.quant import QuantCodec, fast

CHUNK_WEIGHTS = 1 << 19
# Phi-4's widths, and small ones whose rows begin anew more often under an importance matrix.
WIDTHS = (5120, 17920, 1280, 256)
LEAST_CHUNK = min(CHUNK_WEIGHTS // width * width for width in WIDTHS)
SHOWN = 5

Random = np.random.Generator
Shape = tuple[int, int]
Importance = Callable[[Random, int], Floats]


def normal(generator: Random, shape: Shape) -> Floats:
    """N(0, 0.02), as trained weights roughly are."""
    weights: Floats = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    return weights


def heavy_tails(generator: Random, shape: Shape) -> Floats:
    """Cauchy, cut off where float16 scales would overflow."""
    over, under = generator.standard_normal((2, *shape), dtype=np.float32)
    under[under == 0] = 1
    weights: Floats = np.clip(over / under, -1000, 1000)
    return weights


def bf16_grid(generator: Random, shape: Shape) -> Floats:
    """Normal ones on the grid of bf16, as checkpoints hold them."""
    weights: Floats = (normal(generator, shape).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return weights


def nearly_constant(generator: Random, shape: Shape) -> Floats:
    """Groups of 16 that differ in their last bits, or not at all."""
    base = np.repeat(normal(generator, (shape[0], shape[1] // 16)), 16, axis=1)
    noise = np.exp2(generator.integers(-26, -14, (shape[0], 1)).astype(np.float32))
    return base + base * noise * generator.standard_normal(shape, dtype=np.float32)


def sparse(generator: Random, shape: Shape) -> Floats:
    """One weight in ten, the others zero, and so are whole groups."""
    weights: Floats = normal(generator, shape) * (generator.random(shape, dtype=np.float32) < np.float32(0.1))
    return weights


def one_signed(generator: Random, shape: Shape) -> Floats:
    """Rows of positive and rows of negative weights."""
    signs = generator.choice(np.array([-1, 1], np.float32), (shape[0], 1))
    weights: Floats = np.abs(normal(generator, shape)) * signs
    return weights


def many_magnitudes(generator: Random, shape: Shape) -> Floats:
    """Groups of 16 from 1e-10 to 1e3: scales that float16 holds exactly, as subnormals, or not at all."""
    exponents = generator.integers(-33, 11, (shape[0], shape[1] // 16)).astype(np.float32)
    weights: Floats = generator.standard_normal(shape, dtype=np.float32) * np.repeat(np.exp2(exponents), 16, axis=1)
    return weights


def quantized_before(generator: Random, shape: Shape) -> Floats:
    """Groups of 32 with integer codes times a scale: ties, and candidates that fit without error."""
    codes = generator.integers(-8, 8, shape).astype(np.float32)
    scales = np.abs(normal(generator, (shape[0], shape[1] // 32))).astype(np.float16).astype(np.float32)
    return codes * np.repeat(scales, 32, axis=1)


FAMILIES = (
    *(normal, heavy_tails, bf16_grid, nearly_constant),
    *(sparse, one_signed, many_magnitudes, quantized_before),
)


def even(generator: Random, width: int) -> Floats:
    """Uniform."""
    importance: Floats = generator.random(width, dtype=np.float32) + np.float32(1e-6)
    return importance


def uneven(generator: Random, width: int) -> Floats:
    """From 1e-5 to 1e5: a few columns matter far more than the others."""
    importance: Floats = np.exp2(generator.standard_normal(width, dtype=np.float32) * 4)
    return importance


def with_zeros(generator: Random, width: int) -> Floats:
    """Half of the columns, in runs of 16, do not matter at all."""
    seen = np.repeat(generator.random(width // 16) < 0.5, 16)
    seen[0] = True
    importance: Floats = uneven(generator, width) * seen.astype(np.float32)
    return importance


IMPORTANCES = (even, uneven, with_zeros)


@dataclass(frozen=True)
class Chunk:
    """Weights that a seed and a number make.

    Attributes:
        number: The number.
        kind: What they are like, in words.
        weights: float32 (rows, width).
        importance: float32 (width,), or None.
        draw: A random number below 1, which decides whether the numpy codec is compared.
    """

    number: int
    kind: str
    weights: Floats
    importance: Floats | None
    draw: float


def make_chunk(seed: int, number: int, importances: Sequence[Importance]) -> Chunk:
    """The chunk of this number, with one of these kinds of importance, or without when there are none."""
    generator = np.random.default_rng([seed, number, len(importances)])
    family = FAMILIES[number % len(FAMILIES)]
    width = int(generator.choice(WIDTHS))
    kind, importance = family.__name__, None
    weights = family(generator, (CHUNK_WEIGHTS // width, width))
    if importances:
        made = importances[int(generator.integers(len(importances)))]
        kind, importance = f"{kind}, importance {made.__name__}", made(generator, width)
    return Chunk(number, kind, weights, importance, float(generator.random()))


@dataclass(frozen=True)
class Outcome:
    """What a chunk has shown: how many weights each path was compared on, and in words where one differs."""

    compared: dict[str, int]
    differences: list[str]


def compare(codec: QuantCodec, ggml: Ggml, numpy_share: float, chunk: Chunk) -> Outcome:
    """Hold the fast path, or the numpy one, or both, against ggml on one chunk."""
    data = ggml.encode(codec, chunk.weights, chunk.importance)
    decoded = ggml.decode(codec, data).view(np.uint8)
    encoder, decoder = fast.encoder(codec), fast.decoder(codec)
    pairs = {encoder.path: (encoder, decoder)}
    if chunk.draw < numpy_share:
        pairs[codec.path] = (codec, codec)
    differences = []
    for path, (one, other) in pairs.items():
        found = {
            "encodes": first_difference(one.encode(chunk.weights, chunk.importance), data, codec.block_bytes),
            "decodes": first_difference(other.decode(data).view(np.uint8), decoded, 4 * codec.block_weights),
        }
        differences += [
            f"{codec.name}, {path} {verb} otherwise: chunk {chunk.number} ({chunk.kind}), {place}"
            for verb, place in found.items()
            if place
        ]
    return Outcome(dict.fromkeys(pairs, chunk.weights.size), differences)


def first_difference(ours: Bytes, theirs: Bytes, block_bytes: int) -> str:
    """How many blocks differ and where the first one is, in words; empty when all bytes are the same."""
    if np.array_equal(ours, theirs):
        return ""
    unequal = (ours != theirs).reshape(len(ours), -1, block_bytes)  # (rows, blocks, bytes)
    row, block, byte = np.argwhere(unequal)[0]
    count = int(unequal.any(axis=2).sum())
    return f"{count} blocks of {unequal.shape[0] * unequal.shape[1]}, first row {row}, block {block}, byte {byte}"


@dataclass(frozen=True)
class Trial:
    """What is compared: a codec, with these kinds of importance or without any, on the chunks of these numbers."""

    codec: QuantCodec
    importances: Sequence[Importance]
    numbers: Sequence[int]
    seed: int
    numpy_share: float

    def outcomes(self, ggml: Ggml) -> Iterator[Outcome]:
        """Every chunk compared, one at a time on each core, so that memory stays small."""

        def one(number: int) -> Outcome:
            return compare(self.codec, ggml, self.numpy_share, make_chunk(self.seed, number, self.importances))

        with ThreadPoolExecutor(usable_cores()) as pool:
            yield from pool.map(one, self.numbers)


def passes(trial: Trial, ggml: Ggml, options: str) -> bool:
    """Compare and print a line; True when nothing differs. options: what a command to see it again needs as well."""
    started = time.monotonic()
    compared: Counter[str] = Counter()
    differences: list[tuple[int, str]] = []
    for number, outcome in zip(trial.numbers, trial.outcomes(ggml), strict=True):
        compared.update(outcome.compared)
        differences += [(number, difference) for difference in outcome.differences]
    name = trial.codec.name
    title = f"{name}{' imatrix' if trial.importances else ''}"
    counts = ", ".join(f"{count / 1e6:.1f} M by {path}" for path, count in sorted(compared.items()))
    verdict = f"{len(differences)} chunks DIFFER" if differences else "identical"
    print(f"{title:<13} {counts:<36} {time.monotonic() - started:6.1f} s  {verdict}", flush=True)
    for number, difference in differences[:SHOWN]:
        print(f"  {difference}")
        again = f"--types {name} --seed {trial.seed} --chunk {number}{options}"
        print(f"  again: python -m benchmarks.exactness {again}")
    return not differences


def main() -> None:
    """Parse, compare, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES), help="default: all")
    parser.add_argument("--weights", type=int, default=100_000_000, help="for each type, without importance and with")
    parser.add_argument("--numpy-share", type=float, default=0.05, help="share of the chunks that numpy does, too")
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--chunk", type=int, help="only the chunk of this number, in numpy, too")
    parser.add_argument(
        "--ggml", type=Path, metavar="FOLDER", help="libggml-base from here, not the one that the tests use"
    )
    arguments = parser.parse_args()
    codecs = chosen_codecs(parser, arguments.types)
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    numbers = range(math.ceil(arguments.weights / LEAST_CHUNK)) if arguments.chunk is None else [arguments.chunk]
    numpy_share = arguments.numpy_share if arguments.chunk is None else 1.0
    ggml = Ggml(arguments.ggml)
    print(f"{described(PACKAGES, str(ggml))}\nseed {seed}", flush=True)
    options = f" --ggml {arguments.ggml}" if arguments.ggml else ""
    good = True
    for codec in codecs:
        for twin in (fast.encoder(codec, announce), fast.decoder(codec, announce)):
            if twin is codec:
                print(f"{codec.name} has no compiled path: {fast.why_not(codec)}")
        for kinds in ((), IMPORTANCES) if codec.uses_importance else ((),):
            good &= passes(Trial(codec, kinds, numbers, seed, numpy_share), ggml, options)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
