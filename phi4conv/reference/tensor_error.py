"""How far every part of a file is from the source's weights, beside what its type should give, and where it stands out.

Each part is read once on both sides, in row chunks on all cores (tensor_screen.py). Then some rows, evenly spread, and
those with the blocks that stand out are read again: phi4conv's own encoder says what the type gives for these very
weights, and the codes in the file whether the blocks were made from them (code_grid.py). So a heavy tail or an
importance matrix raises no alarm, and a single bad block does.

What F32, F16 and BF16 hold is compared weight by weight, with allowance for rounding on the way.

    relative error (root mean square over root mean square) of normal weights, ggml's encoders
    Q2_K   Q3_K   Q4_K    Q5_K    Q6_K    Q8_0     F16      BF16
    0.297  0.151  0.0715  0.0362  0.0178  0.00536  0.00021  0.0017      without importance
    0.284  0.150  0.0742  0.0366  0.0182                                importance spread e-fold (log-normal)
    0.335  0.173  0.0823  0.0400  0.0213                                importance spread e^3-fold

Left out: what happened to a part that does not correspond; see phi4conv.verify.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from gguf.constants import GGMLQuantizationType

from phi4conv.machine import usable_cores
from phi4conv.quant import CODECS, fast
from phi4conv.reference.parts import Part
from phi4conv.reference.suspects import Evidence, Expectation, Region, find_bad_weights, find_suspects
from phi4conv.reference.tensor_screen import FLOAT_TYPES, Place, Screen, Sums, joined, row_steps, screen_rows
from phi4conv.rows import row_count

TYPE = GGMLQuantizationType

# Rows of a part that are encoded to see what its type gives.
SAMPLE_ROWS = 16

# Relative error on normal weights, for types that phi4conv cannot encode: measured on 262,144 weights with
# ggml_quantize_chunk, without importance.
TYPICAL_ERROR: Mapping[GGMLQuantizationType, float] = {
    TYPE.IQ2_S: 0.265,
    TYPE.IQ3_XXS: 0.213,
    TYPE.IQ3_S: 0.166,
    TYPE.IQ4_NL: 0.0762,
    TYPE.IQ4_XS: 0.0768,
    TYPE.IQ1_M: 0.582,
    TYPE.TQ1_0: 0.81,
    TYPE.TQ2_0: 0.81,
    TYPE.MXFP4: 0.114,
}

# Chunks waiting or running for each worker.
CHUNKS_PER_WORKER = 2

Verdict = Literal["good", "rounded", "shape", "non-finite", "region", "everywhere"]


@dataclass(frozen=True)
class PartError:
    """A part of the file against the source's weights. Figures are over weights finite on both sides.

    Attributes:
        part: The part's name, "blk.3.ffn_gate".
        tensor: The file's tensor that holds it.
        qtype: Its type there; F32 for a part that has none.
        shape: Its shape in the file.
        expected_shape: Its shape in the source. Rows that both have are compared, and none if the widths differ.
        weights: How many weights were compared.
        rmse: Root mean square of the errors.
        largest: The largest magnitude of an error.
        largest_at: Where it is, in the part; None where there is no error.
        signal: Root mean square of the source's weights.
        cosine: Of the angle between the two sides; None where one of them is zero.
        slope: The factor by which the source's weights come nearest to the file's; None where they are zero.
        non_finite: How many weights are NaN or infinite in the file and finite in the source.
        first_non_finite: Where the first of them is.
        expectation: What the type should give.
        suspects: Where the file does not hold the source's weights, in order; when there are many, the first ones.
        suspect_weights: How many weights lie in such places; of those that were looked at, which may not be all.
        verdict: "good"; "rounded" (a float type with weights rounded otherwise, or more than once); "shape";
            "non-finite"; "region" (a part of it does not correspond); "everywhere" (most of it does not, or all
            is scaled).
    """

    part: str
    tensor: str
    qtype: GGMLQuantizationType
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    weights: int
    rmse: float
    largest: float
    largest_at: Place | None
    signal: float
    cosine: float | None
    slope: float | None
    non_finite: int
    first_non_finite: Place | None
    expectation: Expectation
    suspects: tuple[Region, ...]
    suspect_weights: int
    verdict: Verdict

    @property
    def good(self) -> bool:
        """Whether the part holds the source's weights, as well as its type can."""
        return self.verdict in {"good", "rounded"}

    @property
    def relative(self) -> float:
        """Error over signal, both root mean square; infinite for errors where the source is zero."""
        return ratio(self.rmse, self.signal)

    @property
    def expected_relative(self) -> float:
        """What `relative` is for the type: on the rows that phi4conv encoded, or typically; 0 where nobody knows."""
        return self.expectation.relative

    @property
    def snr_db(self) -> float | None:
        """Signal over noise in decibels; None without an error, or without a signal."""
        return -20 * math.log10(self.relative) if self.rmse > 0 and self.signal > 0 else None


def ratio(part: float, whole: float) -> float:
    """Part over whole; 0 over 0 is 0."""
    if not part:
        return 0.0
    return part / whole if whole else math.inf


def part_error(
    found: Part,
    expected: Part,
    *,
    sample_rows: int = SAMPLE_ROWS,
    workers: int | None = None,
    on_found: Callable[[int], None] = lambda _: None,
    on_expected: Callable[[int], None] = lambda _: None,
) -> PartError:
    """One part of the file against the source's; see part_errors."""
    pairs = [(found, expected)]
    return part_errors(pairs, sample_rows=sample_rows, workers=workers, on_found=on_found, on_expected=on_expected)[0]


def part_errors(
    pairs: Iterable[tuple[Part, Part]],
    *,
    sample_rows: int = SAMPLE_ROWS,
    workers: int | None = None,
    on_found: Callable[[int], None] = lambda _: None,
    on_expected: Callable[[int], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> list[PartError]:
    """Parts of the file, each against the source's, in the order given. Any number of workers gives the same.

    Memory is that of a few chunks of half a million weights for each worker, and of one part's marks, 9 bytes for every
    256 weights.

    Args:
        pairs: What the file has and what the source has.
        sample_rows: How many rows of each part are encoded to see what the type gives.
        workers: Threads; by default one for each usable core.
        on_found: Told of the file's weights as they are read, how many each time; no two calls come at once.
        on_expected: Told of the source's.
        on_note: Told, in a sentence, when there is something to wait for.

    Raises:
        FormatError, CheckpointError: A file cannot be read, or its type not be decoded.
    """
    pairs = list(pairs)
    workers = workers or usable_cores()
    prepare_codecs(pairs, on_note)
    finished: dict[int, Future[PartError]] = {}
    screens: dict[int, list[Screen]] = {}
    chunks = all_chunks(pairs)
    waiting: deque[tuple[int, int, bool, Future[Screen]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="compare") as pool:

        def submit(count: int) -> None:
            for _, (index, start, stop, last) in zip(range(count), chunks, strict=False):
                found, expected = pairs[index]
                future = pool.submit(screen_rows, found.rows, expected.rows, type_of(found), start, stop)
                waiting.append((index, (stop - start) * found.shape[-1], last, future))

        try:
            submit(workers * CHUNKS_PER_WORKER)
            while waiting:
                index, count, last, future = waiting.popleft()
                screens.setdefault(index, []).append(future.result())
                on_found(count)
                on_expected(count)
                if last:
                    finished[index] = pool.submit(finish, *pairs[index], joined(screens.pop(index)), sample_rows)
                submit(1)
            return [
                finished[index].result() if index in finished else uncomparable(*pair)
                for index, pair in enumerate(pairs)
            ]
        finally:
            pool.shutdown(cancel_futures=True)


def prepare_codecs(pairs: Sequence[tuple[Part, Part]], note: Callable[[str], None]) -> None:
    """Have the codecs of all types compiled before workers wait for them."""
    for qtype in dict.fromkeys(type_of(found) for found, _ in pairs):
        if qtype in CODECS and qtype not in FLOAT_TYPES:
            fast.decoder(CODECS[qtype], note)
            fast.encoder(CODECS[qtype], note)


def all_chunks(pairs: Sequence[tuple[Part, Part]]) -> Iterator[tuple[int, int, int, bool]]:
    """The chunks of all pairs that can be compared: the pair's number, start and stop row, whether it is the last."""
    for index, (found, expected) in enumerate(pairs):
        rows = min(row_count(found.shape), row_count(expected.shape))
        if found.shape[-1] == expected.shape[-1]:
            for start, stop in row_steps(rows, found.shape[-1]):
                yield index, start, stop, stop == rows


def type_of(part: Part) -> GGMLQuantizationType:
    """The type of the tensor that holds a part; F32 for parts that have none."""
    return TYPE.F32 if part.qtype is None else part.qtype


def uncomparable(found: Part, expected: Part) -> PartError:
    """What is said of a part whose rows have another width, or of one without rows."""
    same = found.shape == expected.shape
    return as_error(found, expected, Sums(), Evidence(Expectation("none")), "good" if same else "shape")


def finish(found: Part, expected: Part, screen: Screen, sample_rows: int) -> PartError:
    """What a screen says of a part, once the rows that stand out have been looked at."""
    qtype = type_of(found)
    if qtype in FLOAT_TYPES:
        evidence = find_bad_weights(found.rows, expected.rows, qtype, screen, sample_rows)
    else:
        evidence = find_suspects(found.rows, expected.rows, qtype, screen, sample_rows)
    expectation = evidence.expectation
    if expectation.basis == "none" and qtype in TYPICAL_ERROR:
        expectation = Expectation("typical", relative=TYPICAL_ERROR[qtype])
    if screen.sums.non_finite:
        verdict: Verdict = "non-finite"
    elif evidence.everywhere:
        verdict = "everywhere"
    elif evidence.suspects:
        verdict = "region"
    elif (row_count(found.shape), found.shape[-1]) != (row_count(expected.shape), expected.shape[-1]):
        verdict = "shape"
    else:
        verdict = "rounded" if screen.rounded else "good"
    return as_error(found, expected, screen.sums, replace(evidence, expectation=expectation), verdict)


def as_error(
    found: Part,
    expected: Part,
    sums: Sums,
    evidence: Evidence,
    verdict: Verdict,
) -> PartError:
    """The figures that follow from the sums."""
    count = max(1, sums.weights)
    alike = None
    if sums.signal > 0 and sums.energy > 0:
        cosine = (sums.signal + sums.drift) / math.sqrt(sums.signal) / math.sqrt(sums.energy)
        alike = min(1.0, max(-1.0, cosine))
    return PartError(
        part=found.name,
        tensor=found.tensor,
        qtype=type_of(found),
        shape=found.shape,
        expected_shape=expected.shape,
        weights=sums.weights,
        rmse=math.sqrt(sums.noise / count),
        largest=sums.largest,
        largest_at=sums.largest_at,
        signal=math.sqrt(sums.signal / count),
        cosine=alike,
        slope=1 + sums.drift / sums.signal if sums.signal > 0 else None,
        non_finite=sums.non_finite,
        first_non_finite=sums.first_non_finite,
        expectation=evidence.expectation,
        suspects=evidence.suspects,
        suspect_weights=evidence.suspect_weights,
        verdict=verdict,
    )
