"""Times every quantized type, encoded and decoded, beside ggml in the same run, on one core and on two.

    python -m benchmarks.codecs [--types Q4_K,Q6_K] [--cores 1,2] [--rounds 5] [--weights 4000000] [--json FILE]

Four programs take turns: ggml's functions (as in tests/support/ggml.py), the codecs in numpy, those compiled by numba,
and for decoding gguf-py. All work on the same weights, N(0, 0.02), in chunks of the size that a conversion uses; with
two cores each has a thread and half of the rows. Every round times each program on each number of cores; ratios
are taken within a round, and printed as median (least-most). A short pass is repeated until it takes a tenth of a
second. Memory for the result is part of the time on every side.

Before anything is timed, all programs must agree with ggml on every byte; otherwise this exits with 1.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from ggml import Ggml

from benchmarks.machine import cores_in_words, described, last_cores, pin
from phi4conv.arrays import Floats
from phi4conv.quant import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_0, QuantCodec, fast
from phi4conv.stream import CHUNK_WEIGHTS

Array = npt.NDArray[Any]
Program = Callable[[Array], Array]

TYPES = {codec.name: codec for codec in (Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K)}
DIRECTIONS = ("encode", "decode")
PACKAGES = ("phi4conv", "numpy", "numba", "gguf")
REFERENCE = "ggml"
LEAST_SECONDS = 0.1
QUIET_SHARE = 0.97


@dataclass(frozen=True)
class Case:
    """What is timed together: one type in one direction, by every program."""

    codec: QuantCodec
    direction: str
    rows: Array
    weights: int
    importance: Floats | None
    programs: dict[str, Program]

    @property
    def title(self) -> str:
        """The type, and whether an importance matrix is used."""
        return f"{self.codec.name}{'' if self.importance is None else ' imatrix'}"


@dataclass(frozen=True)
class Timing:
    """One program on one number of cores.

    Attributes:
        program: Its name.
        cores: How many it had.
        rates: Weights a second, for each round.
        shares: How much of its cores it was given in each round, by processor time: 1 on a quiet machine.
    """

    program: str
    cores: int
    rates: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def cases(codecs: Sequence[QuantCodec], ggml: Ggml, weights: Floats, importance: Floats) -> Iterator[Case]:
    """Every type encoded, with an importance matrix too where that changes the bytes, and decoded."""
    for codec in codecs:
        for given in (None, importance) if codec.uses_importance else (None,):
            programs: dict[str, Program] = {
                REFERENCE: partial(ggml.encode, codec, importance=given),
                codec.path: partial(codec.encode, importance=given),
            }
            twin = fast.encoder(codec, announce)
            if twin is not codec:
                programs[twin.path] = partial(twin.encode, importance=given)
            yield Case(codec, "encode", weights, weights.size, given, programs)
    for codec in codecs:
        programs = {REFERENCE: partial(ggml.decode, codec), codec.path: codec.decode}
        twin = fast.decoder(codec, announce)
        if twin is not codec:
            programs[twin.path] = twin.decode
        programs["gguf-py"] = partial(gguf.quants.dequantize, qtype=codec.qtype)
        yield Case(codec, "decode", ggml.encode(codec, weights), weights.size, None, programs)


def announce(text: str) -> None:
    """Say what takes time before the first figure."""
    print(text, file=sys.stderr)


def parts(rows: Array, weights: int, count: int) -> list[list[Array]]:
    """The rows cut into equal parts for so many threads, each in the chunks of a conversion."""
    chunks = math.ceil(weights / count / CHUNK_WEIGHTS)
    return [np.array_split(part, chunks) for part in np.array_split(rows, count)]


def check(case: Case) -> None:
    """Hold every program's result against ggml's; all are then compiled and warm, too.

    Raises:
        SystemExit: One differs.
    """
    for chunk in parts(case.rows, case.weights, 1)[0]:
        expected = case.programs[REFERENCE](chunk)
        for name, program in case.programs.items():
            if not np.array_equal(program(chunk), expected):
                sys.exit(f"{case.direction} {case.title}: {name} differs from ggml; benchmarks.exactness finds where")


def timed_pass(
    workers: Sequence[Executor], work: Sequence[list[Array]], program: Program, repeats: int
) -> tuple[float, float]:
    """Seconds that the workers take for their parts, each done so many times; and the share of its core each had."""
    started = time.perf_counter()
    running = [worker.submit(work_through, part, program, repeats) for worker, part in zip(workers, work, strict=True)]
    shares = [each.result() for each in running]
    return time.perf_counter() - started, min(shares)


def work_through(chunks: list[Array], program: Program, repeats: int) -> float:
    """One thread's part; returns its processor time as a share of the time that it took."""
    started, used = time.perf_counter(), time.thread_time()
    for _ in range(repeats):
        for chunk in chunks:
            program(chunk)
    return (time.thread_time() - used) / (time.perf_counter() - started)


def timed(case: Case, core_counts: Sequence[int], rounds: int) -> list[Timing]:
    """Check a case, then time every program on each number of cores, in turn."""
    check(case)
    timings = {(name, count): Timing(name, count) for count in core_counts for name in case.programs}
    with ExitStack() as stack:
        # A thread of its own for each core, so that both halves can never end up on one.
        workers: list[Executor] = [
            stack.enter_context(ThreadPoolExecutor(1, initializer=pin, initargs=([core],)))
            for core in last_cores(max(core_counts))
        ]
        work = {count: parts(case.rows, case.weights, count) for count in core_counts}
        repeats = dict.fromkeys(timings, 1)
        for name, count in timings:
            once, _ = timed_pass(workers[-count:], work[count], case.programs[name], 1)
            repeats[name, count] = math.ceil(LEAST_SECONDS / once)
        for number in range(rounds):
            # Every other round backwards: a machine that slows down or speeds up favours no one.
            for name, count in list(timings)[:: -1 if number % 2 else 1]:
                again = repeats[name, count]
                taken, share = timed_pass(workers[-count:], work[count], case.programs[name], again)
                timings[name, count].rates.append(case.weights * again / taken)
                timings[name, count].shares.append(share)
    return list(timings.values())


def spread(ratios: Sequence[float]) -> str:
    """Ratios of rounds as median (least-most)."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def ratios(one: Timing, other: Timing) -> list[float]:
    """How many times as fast as the other, round by round."""
    return [mine / its for mine, its in zip(one.rates, other.rates, strict=True)]


def table(case: Case, timings: Sequence[Timing], core_counts: Sequence[int]) -> Iterator[str]:
    """The lines of a case: a program each."""
    by_key = {(timing.program, timing.cores): timing for timing in timings}
    for index, name in enumerate(case.programs):
        cells = []
        for count in core_counts:
            timing = by_key[name, count]
            cells.append(f"{statistics.median(timing.rates) / 1e6:10.1f}")
            cells.append(f"{'1' if name == REFERENCE else spread(ratios(timing, by_key[REFERENCE, count])):>20}")
        if len(core_counts) > 1:
            scaling = ratios(by_key[name, core_counts[-1]], by_key[name, core_counts[0]])
            cells.append(f"{spread(scaling):>20}")
        yield f"{case.title if index == 0 else '':<13} {name:<8}{''.join(cells)}"


def heading(direction: str, core_counts: Sequence[int]) -> str:
    """The table's first line."""
    cells = [f"{cores_in_words(count):>10}{'x ggml':>20}" for count in core_counts]
    if len(core_counts) > 1:
        cells.append(f"{f'{core_counts[-1]} / {core_counts[0]} cores':>20}")
    return f"\n{f'{direction}, M/s':<22}{''.join(cells)}"


def document(case: Case, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """A case's figures for --json."""
    return [
        {
            "direction": case.direction,
            "type": case.codec.name,
            "importance": case.importance is not None,
            "program": timing.program,
            "cores": timing.cores,
            "weights_per_second": [round(rate) for rate in timing.rates],
            "share_of_cores": [round(share, 3) for share in timing.shares],
        }
        for timing in timings
    ]


def disturbance(timings: Sequence[Timing]) -> str:
    """A sentence on how quiet the machine was."""
    shares = [share for timing in timings for share in timing.shares]
    disturbed = sum(share < QUIET_SHARE for share in shares)
    if not disturbed:
        return "no timing was disturbed by other work on the machine"
    return (
        f"{disturbed} of {len(shares)} timings had less than {QUIET_SHARE:.0%} of their cores: other work ran on "
        "this machine, and the figures are lower and spread more than they should"
    )


def parsed() -> argparse.Namespace:
    """The command line: codecs and core_counts in place of the texts that name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default=",".join(TYPES), help="default: all")
    parser.add_argument("--directions", default=",".join(DIRECTIONS), help="encode, decode; default: both")
    parser.add_argument("--cores", default="1,2", help="numbers of cores, default 1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=int, default=4_000_000, help="weights of a pass")
    parser.add_argument("--width", type=int, default=5120, help="weights of a row, a multiple of 256")
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument(
        "--ggml", type=Path, metavar="FOLDER", help="libggml-base from here, not the one that the tests use"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures here, too")
    arguments = parser.parse_args()
    arguments.codecs = chosen_codecs(parser, arguments.types)
    arguments.core_counts = sorted(map(int, arguments.cores.split(",")))
    try:
        last_cores(arguments.core_counts[-1])
    except ValueError as error:
        parser.error(f"--cores: {error}")
    if arguments.width % Q4_K.block_weights:
        parser.error(f"--width must be a multiple of {Q4_K.block_weights}, not {arguments.width}")
    return arguments


def chosen_codecs(parser: argparse.ArgumentParser, names: str) -> list[QuantCodec]:
    """The types of a comma-separated list; ends with a message of the parser's when one is unknown."""
    unknown = [name for name in names.split(",") if name not in TYPES]
    if unknown:
        parser.error(f"--types: no type {', '.join(unknown)}; known are {', '.join(TYPES)}")
    return [TYPES[name] for name in names.split(",")]


def main() -> None:
    """Time and print."""
    arguments = parsed()
    core_counts = arguments.core_counts
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    ggml = Ggml(arguments.ggml)
    generator = np.random.default_rng(seed)
    row_count = max(core_counts[-1], arguments.weights // arguments.width)
    weights = generator.standard_normal((row_count, arguments.width), dtype=np.float32)
    weights *= np.float32(0.02)
    importance = generator.standard_normal(arguments.width, dtype=np.float32) ** 2
    machine = described(PACKAGES, str(ggml))
    settings = f"{weights.size:,} weights in rows of {arguments.width}, {arguments.rounds} rounds, seed {seed}"
    print(f"{machine}\n{settings}", flush=True)
    figures: list[dict[str, Any]] = []
    every: list[Timing] = []
    shown = ""
    for case in cases(arguments.codecs, ggml, weights, importance):
        if case.direction not in arguments.directions.split(","):
            continue
        if case.direction != shown:
            shown = case.direction
            print(heading(shown, core_counts))
        timings = timed(case, core_counts, arguments.rounds)
        print("\n".join(table(case, timings, core_counts)), flush=True)
        figures += document(case, timings)
        every += timings
    print(f"\n{disturbance(every)}")
    for codec in arguments.codecs:
        if fast.why_not(codec):
            print(f"{codec.name} has no compiled path: {fast.why_not(codec)}")
    if arguments.json:
        facts = {"schema": "phi4conv-bench-codecs/1", "machine": machine, "settings": settings, "figures": figures}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
