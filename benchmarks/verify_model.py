"""Times `phi4conv verify` on full-width models of several depths, beside transformers and llama.cpp in the same run.

    python -m benchmarks.verify_model MODEL_DIR... [--files FOLDER] [--runs 1]
        [--peers transformers-float32,transformers-bfloat16,llama.cpp] [--json FILE]

The folders come from benchmarks/make_model.py, with 2, 4 and 8 layers for example. Each is converted to Q4_K_M once,
into a temporary folder beside it or into --files, where a file that is there already is used again.

Figures are whole processes on verify's built-in conversations. phi4conv runs both sides, the file's twice over,
compares every weight, and judges; a peer loads one side and makes the same tokens' logits (benchmarks/verify_peers.py).
What would need more memory than is free is left out, and said so. The bytes read are those that verify counts itself,
or the size of what a peer loads. With several depths, the seconds that a layer more takes are printed: equal ones show
that the cost grows linearly.

Random weights answer at random, so that thresholds mean nothing: they are set wide. Exits with 1 when verify finds
a tensor or a key that is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import Run, described, measured

PACKAGES = ("phi4conv", "torch", "transformers", "xllamacpp", "numpy", "numba")
TYPE = "Q4_K_M"
FLOAT32, BFLOAT16, LLAMA_CPP = "transformers-float32", "transformers-bfloat16", "llama.cpp"
PEERS = (FLOAT32, BFLOAT16, LLAMA_CPP)

# Random weights: no divergence and no disagreement is too large.
NO_THRESHOLDS = ("--max-kl", "1000", "--min-top1", "0")


@dataclass(frozen=True)
class Depth:
    """One model.

    Attributes:
        model: Its folder.
        layers: How many it has.
        tokens: How many tokens were run.
        ours: verify's runs.
        peers: The runs of the others by name.
        left_out: Peers that would need more memory than is free.
        right: Whether verify found nothing wrong.
    """

    model: str
    layers: int
    tokens: int
    ours: list[Run]
    peers: dict[str, list[Run]]
    left_out: list[str]
    right: bool

    @property
    def seconds(self) -> float:
        """The median of verify's times."""
        return statistics.median(run.seconds for run in self.ours)

    @property
    def cpu_seconds(self) -> float:
        """The median of verify's processor times."""
        return statistics.median(run.cpu_seconds for run in self.ours)

    def lines(self) -> Iterator[str]:
        """The figures as text."""
        yield f"{self.model}: {self.layers} layers, {self.tokens} tokens"
        yield described_runs("phi4conv verify", self.ours)
        for name, runs in self.peers.items():
            yield described_runs(name, runs)
            pairs = list(zip(self.ours, runs, strict=True))
            seconds = statistics.median(own.seconds / other.seconds for own, other in pairs)
            cpu = statistics.median(own.cpu_seconds / other.cpu_seconds for own, other in pairs)
            peak = statistics.median(own.peak_bytes / other.peak_bytes for own, other in pairs)
            yield f"    phi4conv / {name}: time {seconds:.2f}, cpu {cpu:.2f}, peak memory {peak:.2f}"
        yield from (f"  {name:<24}left out: it needs more memory than is free" for name in self.left_out)
        if not self.right:
            yield "  verify found the file WRONG"


def described_runs(name: str, runs: Sequence[Run]) -> str:
    """One line: medians, with the spread of the time."""
    seconds = sorted(run.seconds for run in runs)
    cpu = statistics.median(run.cpu_seconds for run in runs)
    peak, read = max(run.peak_bytes for run in runs), runs[-1].read_bytes
    spread = f"({seconds[0]:.1f}-{seconds[-1]:.1f})"
    return (
        f"  {name:<24}{statistics.median(seconds):7.1f} s {spread:<15} cpu {cpu:6.1f} s, "
        f"peak memory {peak / 1e6:6.0f} MB, read {read / 1e9:.2f} GB"
    )


def growth(depths: Sequence[Depth]) -> Iterator[str]:
    """What each layer more costs, from one depth to the next."""
    for less, more in pairwise(depths):
        layers = more.layers - less.layers
        seconds, cpu = more.seconds - less.seconds, more.cpu_seconds - less.cpu_seconds
        yield (
            f"  from {less.layers} to {more.layers} layers: {seconds / layers:.1f} s and {cpu / layers:.1f} s of "
            "processor time a layer"
        )


def verified(model: Path, file: Path, folder: Path) -> tuple[Run, bool]:
    """One run of verify, and whether it found nothing wrong."""
    answer = folder / "answer.json"
    command = [sys.executable, "-m", "phi4conv", "verify", str(model), str(file), "--json", "--quiet", *NO_THRESHOLDS]
    # Exit code 1 is an answer, too; anything else is none.
    script = '"$@" > "$ANSWER" || [ $? = 1 ]'
    run = measured(["sh", "-c", script, "sh", *command], (), {"ANSWER": str(answer)})
    document = json.loads(answer.read_text())
    return replace(run, read_bytes=document["bytes_read"]), bool(document["verdict"]["right"])


def peer_run(name: str, model: Path, file: Path, tokens: Path) -> Run:
    """One run of a peer."""
    command = [sys.executable, "-m", "benchmarks.verify_peers"]
    if name == LLAMA_CPP:
        return measured([*command, "llama.cpp", str(file), str(tokens)], [file])
    dtype = name.removeprefix("transformers-")
    return measured([*command, "transformers", str(model), str(tokens), "--dtype", dtype], weight_files(model))


def fits(name: str, model: Path, file: Path) -> bool:
    """Whether a peer's weights fit into the memory that is free, as far as the system tells; the model is bf16."""
    weights = sum(path.stat().st_size for path in weight_files(model))
    # For float32 the mapped bf16 files come on top.
    needed = {FLOAT32: 3 * weights, BFLOAT16: weights, LLAMA_CPP: file.stat().st_size}[name]
    memory = Path("/proc/meminfo")
    lines = memory.read_text().splitlines() if memory.exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return free is None or needed * 1.1 < free


def weight_files(model: Path) -> list[Path]:
    """A folder's weights."""
    return sorted(model.glob("*.safetensors"))


def timed(model: Path, files: Path, peers: Sequence[str], runs: int) -> Depth:
    """Make the file if it is not there, and time all in turn."""
    file = files / f"{model.name}-{TYPE}.gguf"
    if not file.exists():
        convert = [sys.executable, "-m", "phi4conv", "convert", str(model), str(file), "--type", TYPE, "--quiet"]
        subprocess.run(convert, check=True)
    ours: list[Run] = []
    theirs: dict[str, list[Run]] = {name: [] for name in peers if fits(name, model, file)}
    right = True
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        command = [sys.executable, "-m", "benchmarks.verify_peers", "tokens", str(model), str(file), str(tokens)]
        subprocess.run(command, check=True)
        for _ in range(runs):
            run, good = verified(model, file, Path(folder))
            ours.append(run)
            right &= good
            for name, list_of_it in theirs.items():
                list_of_it.append(peer_run(name, model, file, tokens))
        count = sum(map(len, json.loads(tokens.read_text())))
    left_out = [name for name in peers if name not in theirs]
    return Depth(model.name, layer_count(model), count, ours, theirs, left_out, right)


def layer_count(model: Path) -> int:
    """What config.json says."""
    return int(json.loads((model / "config.json").read_text())["num_hidden_layers"])


@contextmanager
def files_folder(asked: Path | None, beside: Path) -> Iterator[Path]:
    """Where the GGUFs go: the folder asked for, or one on the models' disk that goes away again."""
    if asked:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked
        return
    with tempfile.TemporaryDirectory(dir=beside.parent) as folder:
        yield Path(folder)


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="where the GGUFs stay and are found again")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"default: {','.join(PEERS)}; empty for none")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run's figures here, too")
    arguments = parser.parse_args()
    models = [model.resolve() for model in arguments.models]
    peers = [name for name in arguments.peers.split(",") if name]
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"--peers: no {', '.join(unknown)}; known are {', '.join(PEERS)}")
    if missing := [str(model) for model in models if not weight_files(model)]:
        parser.error(f"no *.safetensors in {', '.join(missing)}; benchmarks/make_model.py makes a model")
    machine = described(PACKAGES)
    print(machine, flush=True)
    depths: list[Depth] = []
    with files_folder(arguments.files, models[0]) as files:
        for model in sorted(models, key=layer_count):
            depths.append(timed(model, files, peers, arguments.runs))
            print("\n".join(depths[-1].lines()), flush=True)
    print("\n".join(growth(depths)))
    if arguments.json:
        facts: dict[str, Any] = {"schema": "phi4conv-bench-verify-model/1", "machine": machine}
        facts["figures"] = [asdict(depth) for depth in depths]
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(depth.right for depth in depths) else 1)


if __name__ == "__main__":
    main()
