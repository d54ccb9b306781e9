"""Real llama-quantize: llama_model_quantize of a llama.cpp release, fetched once and run in a child process.

    python tests/support/llama_quantize.py      # fetches it

xllamacpp, which the other tests ask, leaves that function out. The npm package of node-llama-cpp has it, in shared
libraries that need no Node.js: llama.cpp v0.5.0 for Linux on x86-64, the build that fixtures/golden is made by.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType, LlamaFileType

REPOSITORY = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("llama_quantize_child.py")

PACKAGE = "@node-llama-cpp/linux-x64"
VERSION = "3.22.1"
# What `npm view PACKAGE@VERSION dist.integrity` says, without the name of the hash.
SHA512 = "5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg=="
MEMBERS = "package/bins/linux-x64/"
LIBRARIES = ("libggml-base.so", "libggml.v0.5.0.so", "libllama.v0.5.0.so")

# Beside what else `make` sets up, ignored by git and removed by `make clean`.
CACHE = REPOSITORY / ".venv" / f"llama-quantize-{VERSION}"

FETCH_SECONDS = 300
QUANTIZE_SECONDS = 300

# Set where the tests must not pass unseen because the engine is missing, as in CI.
REQUIRED = "PHI4CONV_REQUIRE_LLAMA_QUANTIZE"

# What llama_model_quantize says of one tensor: its name, its type and, where that changes, the new one.
TENSOR_LINE = re.compile(r"\] (\S+) +- \[[^\]]*\], type = +(\w+), size = [^\n(]*(?:\((\w+)\))?\n")


class UnavailableError(Exception):
    """llama_model_quantize is not here and cannot be had; the message says why."""


class QuantizeError(Exception):
    """llama_model_quantize refused, or brought its process down; the message has its last words."""


@dataclass(frozen=True)
class Settings:
    """llama-quantize's options.

    Attributes:
        file_type: Which mix.
        pure: No mix.
        token_embedding: --token-embedding-type.
        output: --output-tensor-type.
        patterns: --tensor-type: a regular expression over tensor names and the type of those that it finds.
        allow_requantize: Take weights that are quantized already.
        importance: By tensor name, float32 (width,), as llama-quantize hands it on from an importance matrix.
        metadata: Pairs to add; whole numbers become UINT32.
        threads: How many to quantize with.
    """

    file_type: LlamaFileType
    pure: bool = False
    token_embedding: GGMLQuantizationType | None = None
    output: GGMLQuantizationType | None = None
    patterns: Mapping[str, GGMLQuantizationType] = field(default_factory=dict)
    allow_requantize: bool = False
    importance: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    metadata: Mapping[str, int | str] = field(default_factory=dict)
    threads: int = 1

    def parameters(self) -> dict[str, int]:
        """The fields of llama_model_quantize_params that are plain values and not left as they are by default."""
        types = {"token_embedding_type": self.token_embedding, "output_tensor_type": self.output}
        return {
            "ftype": int(self.file_type),
            "nthread": self.threads,
            "pure": self.pure,
            "allow_requantize": self.allow_requantize,
            **{name: int(qtype) for name, qtype in types.items() if qtype is not None},
        }


@dataclass(frozen=True)
class LlamaQuantize:
    """llama_model_quantize of the libraries in a folder."""

    folder: Path

    def quantize(self, source: Path, target: Path, settings: Settings) -> None:
        """Write the GGUF source, a model that llama.cpp can load, again as target; one that exists is replaced.

        Raises:
            QuantizeError: llama.cpp did not write the file.
        """
        with tempfile.TemporaryDirectory() as work:
            arrays = Path(work) / "importance.npz"
            if settings.importance:
                np.savez(arrays, allow_pickle=False, **settings.importance)
            self._run(source, self.command(source, target, settings, arrays if settings.importance else None))

    def types(self, source: Path, settings: Settings) -> dict[str, GGMLQuantizationType]:
        """The type that each tensor of source would have: a dry run, which reads no weights.

        Raises:
            QuantizeError: llama.cpp refused.
        """
        log = self._run(source, self.command(source, None, settings))
        found = {name: GGMLQuantizationType[(new or old).upper()] for name, old, new in TENSOR_LINE.findall(log)}
        if not found:
            raise QuantizeError(f"llama_model_quantize lists no tensor of {source}:\n{log}")
        return found

    def command(
        self, source: Path, target: Path | None, settings: Settings, importance: Path | None = None
    ) -> list[str]:
        """Program and arguments that do it: a process whose time and memory are llama.cpp's own.

        Args:
            source: The model.
            target: What to write; None for a dry run.
            settings: All of them are used but the importance.
            importance: That, as a .npz file.
        """
        request = {
            "source": str(source),
            "target": str(target or ""),
            "parameters": {**settings.parameters(), "dry_run": target is None},
            "patterns": dict(settings.patterns),
            "importance": importance and str(importance),
            "metadata": dict(settings.metadata),
        }
        return [sys.executable, str(CHILD), str(self.folder / LIBRARIES[-1]), json.dumps(request)]

    @staticmethod
    def _run(source: Path, command: Sequence[str]) -> str:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=QUANTIZE_SECONDS,
            # Without this ggml starts a debugger on itself when it aborts.
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
            check=False,
        )
        if finished.returncode:
            code = finished.returncode
            ending = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            last_words = "\n".join(finished.stdout.splitlines()[-10:])
            raise QuantizeError(f"llama_model_quantize ended with {ending} on {source}:\n{last_words}")
        return finished.stdout


def engine_or_skip() -> LlamaQuantize:
    """What available() gives, for a test: skipped with the reason where there is none, or failed if so demanded."""
    import pytest  # noqa: PLC0415  # benchmarks and scripts use this module, too

    try:
        return available()
    except UnavailableError as reason:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason} ({REQUIRED} is set)")
        pytest.skip(str(reason))


def available() -> LlamaQuantize:
    """The engine, fetched if it is not here yet.

    Raises:
        UnavailableError: This is another system, or the package cannot be fetched or is not the one expected.
    """
    system = (sys.platform, platform.machine(), platform.libc_ver()[0])
    if system != ("linux", "x86_64", "glibc"):
        raise UnavailableError(f"{PACKAGE} runs under Linux with glibc on x86-64 only, and this is {' '.join(system)}")
    if not CACHE.is_dir():
        with tempfile.TemporaryDirectory() as work:
            unpack(download(Path(work)), CACHE)
    return LlamaQuantize(CACHE)


def download(folder: Path) -> Path:
    """The package's archive, from the registry that npm is set up for.

    Raises:
        UnavailableError: There is no npm, or it does not get the package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError(f"{PACKAGE} {VERSION} is fetched with npm, which is not installed")
    command = [npm, "pack", "--loglevel=error", f"{PACKAGE}@{VERSION}"]
    try:
        finished = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"npm did not fetch {PACKAGE} {VERSION} within {FETCH_SECONDS} s") from error
    archives = list(folder.glob("*.tgz"))
    if finished.returncode or len(archives) != 1:
        raise UnavailableError(f"npm could not fetch {PACKAGE} {VERSION}: {finished.stderr.strip()[:500]}")
    return archives[0]


def unpack(archive: Path, folder: Path, sha512: str = SHA512) -> None:
    """Put the libraries of a verified archive into a new folder, all at once.

    Raises:
        UnavailableError: The archive has another hash.
    """
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != sha512:
        raise UnavailableError(f"{archive.name} is not {PACKAGE} {VERSION}: sha512 {found}, expected {sha512}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work, tarfile.open(archive) as tar:
        new = Path(work) / folder.name
        new.mkdir()
        for name in LIBRARIES:
            member = tar.extractfile(MEMBERS + name)
            assert member is not None
            (new / name).write_bytes(member.read())
        if not folder.exists():  # another process may have been faster
            new.rename(folder)


if __name__ == "__main__":
    try:
        print(f"{PACKAGE} {VERSION} is in {available().folder}")  # noqa: T201  # what the script is for
    except UnavailableError as reason:
        sys.exit(f"error: {reason}")
