"""The child process that holds llama.cpp, as its parent sees it: found, started, asked, ended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from phi4conv.errors import EngineError, Problem

# The release that llama_cpp_abi describes; pyproject.toml pins the same one.
TESTED_VERSION = "2026.10.11549"
INSTALL = "pip install 'phi4conv[llama-cpp]'"

# The child gets the parent's sys.path, so that both see the same phi4conv and numpy wherever they are started.
CHILD_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:];"
    "from phi4conv.reference.llama_cpp_child import serve; serve(int(sys.argv[1]), sys.argv[2])"
)


class Child:
    """The child process, the pipe to it, and the file that takes its stderr."""

    def __init__(self, library: Path) -> None:
        ours, theirs = Pipe()
        self._connection: Connection[Any, Any] = ours
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by stop()
        descriptor = theirs.fileno()
        # sys.executable, fixed text and this process's own module path: nothing comes from outside.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", CHILD_PROGRAM, str(descriptor), str(library), *sys.path],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            # Without this ggml starts a debugger on itself when it aborts.
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()

    def ask(self, call: tuple[str, Sequence[Any]], timeout: float) -> tuple[str, Any]:
        """The answer to a call; raises EOFError or OSError when the child dies, TimeoutError when it stays silent."""
        self._connection.send(call)
        return self.receive(timeout)

    def receive(self, timeout: float) -> tuple[str, Any]:
        """The next answer, as ask()."""
        if not self._connection.poll(timeout):
            raise TimeoutError
        answer: tuple[str, Any] = self._connection.recv()
        return answer

    def read_log(self) -> list[str]:
        """The lines on stderr since the last time."""
        self._stderr.seek(0)
        text = self._stderr.read().decode("utf-8", "replace")
        # Both processes share the position, so the child writes on from the start.
        self._stderr.seek(0)
        self._stderr.truncate()
        return [line for line in text.splitlines() if line.strip()]

    def ending(self) -> str:
        """How a child whose pipe is closed ended: a signal's name, or an exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.poll()
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"exit code {code}"
        return next((known.name for known in signal.Signals if known == -code), f"signal {-code}")

    def stop(self) -> None:
        """End the process, by force if it is busy, and close what belongs to it."""
        self._connection.close()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


def find_library() -> Path:
    """The shared object of the installed xllamacpp.

    Raises EngineError when there is none, or when this system is not one where it exports llama.cpp.
    """
    if not sys.platform.startswith(("linux", "darwin")):
        raise EngineError(
            Problem(
                "real llama.cpp can be used under Linux and macOS only",
                expected="linux or darwin",
                found=sys.platform,
                next_step="run this under Linux, macOS or WSL, or do without the llama.cpp runtime",
            )
        )
    spec = importlib.util.find_spec("xllamacpp")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    libraries = [library for folder in folders for library in sorted(folder.glob("xllamacpp*.so"))]
    if not libraries:
        raise EngineError(
            Problem(
                "real llama.cpp is not installed",
                where=", ".join(map(str, folders)),
                expected=f"the Python package xllamacpp {TESTED_VERSION} and its shared library",
                found="xllamacpp without its library" if folders else "no xllamacpp",
                next_step=INSTALL,
            )
        )
    return libraries[0]
