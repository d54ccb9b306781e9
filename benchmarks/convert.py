"""Times a full-width conversion, its memory and what it reads and writes, beside llama.cpp's programs in the same run.

    python -m benchmarks.convert MODEL_DIR [--types BF16,Q8_0,Q4_K_M] [--cores 2] [--runs 3]
        [--peer PATH/convert_hf_to_gguf.py] [--first-run] [--json FILE]

MODEL_DIR comes from benchmarks/make_model.py. phi4conv writes every type in one pass. llama.cpp writes F32, F16, BF16
and Q8_0 with its converter; every other type takes a bf16 file from the converter, which llama_model_quantize reads
again, with as many threads. The two sides run in turn; ratios are llama.cpp / phi4conv, pair by pair.

The converter is the script of llama.cpp's source, as it lies in vendor/llama.cpp of the source distribution of
llama-cpp-python; it needs torch and transformers. llama_model_quantize is that of the tests, which
tests/support/llama_quantize.py fetches. Without --peer only phi4conv is timed.

Figures are whole processes, from a model in the page cache to finished files, in a temporary folder on the model's
disk. Memory is that of the larger step. Written is what went to write calls; read is the size of the input files,
since most of them are mapped, which no counter sees. Machine code is compiled before anything is timed: --first-run
also times a run that finds none. At the end the files of the last run are compared tensor by tensor; exits with 1
when one differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from ggml import Ggml
from llama_quantize import LlamaQuantize, Settings, UnavailableError, available

from benchmarks.machine import Run, cores_in_words, described, last_cores, measured, pinned
from phi4conv.files import PositionedReader
from phi4conv.gguf_file.read import read_gguf
from phi4conv.machine import usable_cores
from phi4conv.quant.mix import FILE_TYPES, FileType

PACKAGES = ("phi4conv", "numpy", "numba", "gguf", "tokenizers", "torch", "transformers")
OF_THE_CONVERTER = ("F32", "F16", "BF16", "Q8_0")
COMPARED_AT_ONCE = 1 << 24

# What the first conversion on a machine would have to do: every compiled encoder, made and kept.
COMPILE = "from phi4conv.quant import CODECS, fast\nfor codec in CODECS.values(): fast.encoder(codec)"

# The steps of one side, each with its name.
Steps = dict[str, Run]


@dataclass(frozen=True)
class Peer:
    """llama.cpp's programs.

    Attributes:
        converter: convert_hf_to_gguf.py.
        engine: llama_model_quantize; None when only the converter is there.
    """

    converter: Path
    engine: LlamaQuantize | None

    def makes(self, file_type: FileType) -> bool:
        """Whether these programs write this type: phi4conv's presets have no equal."""
        quantized = self.engine is not None and file_type.embeddings is None
        return file_type.name in OF_THE_CONVERTER or quantized

    def run(self, model: Path, out: Path, file_type: FileType, threads: int) -> Steps:
        """Make the file, in one step or two."""
        if self.engine is None or file_type.name in OF_THE_CONVERTER:
            return {"convert_hf_to_gguf.py": self.convert(model, out, file_type.name)}
        middle = out.with_name("middle-BF16.gguf")
        first = self.convert(model, middle, "BF16")
        second = measured(self.engine.command(middle, out, Settings(file_type.number, threads=threads)), [middle])
        middle.unlink()
        return {"convert_hf_to_gguf.py": first, "llama_model_quantize": second}

    def convert(self, model: Path, out: Path, name: str) -> Run:
        """The converter's step."""
        command = [sys.executable, str(self.converter), str(model), "--outfile", str(out), "--outtype", name.lower()]
        return measured(command, model.glob("*.safetensors"))


def peer_with(converter: Path) -> Peer:
    """That converter, and llama_model_quantize where it can be had."""
    try:
        return Peer(converter, available())
    except UnavailableError as reason:
        print(f"llama.cpp is timed for {', '.join(OF_THE_CONVERTER)} alone: {reason}", file=sys.stderr)
        return Peer(converter, None)


def converted(model: Path, out: Path, file_type: FileType, environment: dict[str, str] | None = None) -> Run:
    """One pass of phi4conv, which starts a thread for each core that it may use."""
    command = [sys.executable, "-m", "phi4conv", "convert", str(model), str(out), "--type", file_type.name, "--quiet"]
    return measured(command, model.glob("*.safetensors"), environment)


def described_runs(name: str, runs: Sequence[Run]) -> str:
    """One line: medians, with the spread of the time."""
    seconds = sorted(run.seconds for run in runs)
    spread = f"({seconds[0]:.1f}-{seconds[-1]:.1f})"
    cpu = statistics.median(run.cpu_seconds for run in runs)
    peak = max(run.peak_bytes for run in runs)
    written = runs[-1].written_bytes
    disk = f"read {runs[-1].read_bytes / 1e9:.2f} GB, written {'?' if written is None else f'{written / 1e9:.2f}'} GB"
    memory = f"peak memory {peak / 1e6:5.0f} MB"
    return f"  {name:<24}{statistics.median(seconds):7.1f} s {spread:<15} cpu {cpu:6.1f} s, {memory}, {disk}"


def spread_of_ratios(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Their figures by ours, pair by pair, as median (least-most)."""
    ratios = sorted(their / our for their, our in zip(theirs, ours, strict=True))
    return f"{statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f})"


def tensor_difference(ours: Path, theirs: Path) -> str:
    """The first difference between two files' tensors, in words; empty when all are the same bytes."""
    one, other = read_gguf(ours), read_gguf(theirs)
    mine = {entry.name: entry for entry in one.tensors}
    its = {entry.name: entry for entry in other.tensors}
    if {*mine} != {*its}:
        return f"only one file has {', '.join(sorted({*mine} ^ {*its}))}"
    readers = PositionedReader(ours), PositionedReader(theirs)
    for name, entry in mine.items():
        equal = its[name]
        if (entry.shape, entry.qtype) != (equal.shape, equal.qtype):
            return f"{name} is {entry.shape} {entry.qtype!r} here, {equal.shape} {equal.qtype!r} there"
        for start in range(0, entry.size_bytes, COMPARED_AT_ONCE):
            size = min(COMPARED_AT_ONCE, entry.size_bytes - start)
            offsets = one.data_offset + entry.offset + start, other.data_offset + equal.offset + start
            if len({reader.read(offset, size) for reader, offset in zip(readers, offsets, strict=True)}) > 1:
                return f"{name} has other bytes, within {size} from byte {start}"
    return ""


@dataclass(frozen=True)
class Comparison:
    """One type on one number of cores, timed.

    Attributes:
        file_type: The type.
        cores: How many cores each side had.
        ours: phi4conv's runs.
        theirs: llama.cpp's, steps by name; empty without a peer.
        first_run: phi4conv's with nothing compiled yet; None when it was not asked for.
        difference: Where the two files differ, in words; empty when they do not.
    """

    file_type: str
    cores: int
    ours: list[Run]
    theirs: list[Steps]
    first_run: Run | None
    difference: str

    def lines(self) -> list[str]:
        """The figures as text."""
        lines = [f"{self.file_type} on {cores_in_words(self.cores)}", described_runs("phi4conv", self.ours)]
        if self.first_run:
            lines.append(described_runs("phi4conv, first run", [self.first_run]))
        if not self.theirs:
            return lines
        both = [reduce(add, steps.values()) for steps in self.theirs]
        steps = {name: [each[name] for each in self.theirs] for name in self.theirs[0]}
        lines += [described_runs(name, runs) for name, runs in steps.items()]
        if len(steps) > 1:
            lines.append(described_runs("llama.cpp, both steps", both))
        seconds = spread_of_ratios([run.seconds for run in both], [run.seconds for run in self.ours])
        cpu = spread_of_ratios([run.cpu_seconds for run in both], [run.cpu_seconds for run in self.ours])
        peak = spread_of_ratios([run.peak_bytes for run in both], [run.peak_bytes for run in self.ours])
        lines.append(f"  llama.cpp / phi4conv: time {seconds}, cpu {cpu}, peak memory {peak}")
        lines.append(f"  tensors: {f'DIFFERENT: {self.difference}' if self.difference else 'the same bytes'}")
        return lines


def compared(
    model: Path, file_type: FileType, cores: int, runs: int, peer: Peer | None, *, first_run: bool
) -> Comparison:
    """Time one type on so many cores."""
    ours: list[Run] = []
    theirs: list[Steps] = []
    first, difference = None, ""
    with tempfile.TemporaryDirectory(dir=model.parent) as folder, pinned(last_cores(cores)):
        mine, other = Path(folder) / f"phi4conv-{file_type.name}.gguf", Path(folder) / f"peer-{file_type.name}.gguf"
        if first_run:
            first = converted(model, mine, file_type, {"NUMBA_CACHE_DIR": str(Path(folder) / "empty-cache")})
        for _ in range(runs):
            mine.unlink(missing_ok=True)
            other.unlink(missing_ok=True)
            ours.append(converted(model, mine, file_type))
            if peer and peer.makes(file_type):
                theirs.append(peer.run(model, other, file_type, cores))
        if theirs:
            difference = tensor_difference(mine, other)
    return Comparison(file_type.name, cores, ours, theirs, first, difference)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", default="BF16,Q8_0,Q4_K_M", help="default: BF16,Q8_0,Q4_K_M")
    parser.add_argument("--cores", default=str(usable_cores()), help="numbers of cores, such as 1,2; default: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", type=Path, help="convert_hf_to_gguf.py")
    parser.add_argument("--first-run", action="store_true", help="also time a run with nothing compiled yet")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures here, too")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    unknown = [name for name in arguments.types.split(",") if name not in FILE_TYPES]
    if unknown:
        parser.error(f"--types: no type {', '.join(unknown)}; known are {', '.join(FILE_TYPES)}")
    if not any(model.glob("*.safetensors")):
        parser.error(f"no *.safetensors in {model}; benchmarks/make_model.py makes a model")
    peer = peer_with(arguments.peer) if arguments.peer else None
    versions = [str(Ggml())] if peer and peer.engine else []
    machine = described(PACKAGES, *versions)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    ready = measured([sys.executable, "-c", COMPILE])
    print(f"{machine}\n{model.name}: {size:,} bytes of weights")
    print(f"functions compiled, or found compiled, in {ready.seconds:.1f} s", flush=True)
    done: list[Comparison] = []
    for name in arguments.types.split(","):
        for cores in map(int, arguments.cores.split(",")):
            done.append(compared(model, FILE_TYPES[name], cores, arguments.runs, peer, first_run=arguments.first_run))
            print("\n".join(done[-1].lines()), flush=True)
    if arguments.json:
        facts: dict[str, Any] = {"schema": "phi4conv-bench-convert/1", "machine": machine}
        facts["figures"] = [asdict(comparison) for comparison in done]
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(comparison.difference for comparison in done) else 0)


if __name__ == "__main__":
    main()
