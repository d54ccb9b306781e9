"""phi4conv as a process of its own, and scripts of the repository as modules."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from phi4conv.quant import CODECS, fast


@cache
def compiled() -> None:
    """Have the machine code of every codec kept, so that no command compiles, and says so, at a moment of its own."""
    for codec in CODECS.values():
        fast.encoder(codec)
        fast.decoder(codec)


def phi4conv(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code; options are subprocess.run's."""
    compiled()
    command = [sys.executable, "-m", "phi4conv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def script(path: Path) -> ModuleType:
    """A Python file that lies in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
