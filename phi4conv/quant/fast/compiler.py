"""How the functions of the fast path are compiled, and how their machine code is kept.

numba keeps machine code beside the source or, where that folder is read-only, in the user's cache folder.
By itself it would go on using stale code when a helper in another module changes, so what is kept is
stamped with a digest of every source file of the fast path. Where no folder can be written, every process
compiles anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from numba import config, njit
from numba.core.caching import NullCache
from numba.core.event import Listener, install_listener

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set")

F = TypeVar("F", bound=Callable[..., Any])

# Never fastmath: it would reassociate and fuse. With numpy's error model a division by zero gives infinity.
OPTIONS = {"nogil": True, "error_model": "numpy"}


def helper(function: F) -> F:
    """Compile a function that kernels call; it is inlined into them."""
    compiled: F = njit(**OPTIONS, forceinline=True)(function)
    return compiled


def kernel(function: F) -> F:
    """Compile a function on its first call, or load its machine code if it is kept. It runs without the GIL."""
    compiled = njit(**OPTIONS)(function)
    keep_machine_code(compiled)
    return compiled  # type: ignore[no-any-return]  # numba is untyped


def keep_machine_code(compiled: Any) -> None:
    """Have numba keep a kernel's machine code if there is a folder for it."""
    try:
        compiled.enable_caching()
    except RuntimeError:  # no folder can be written
        return
    # The stamp is no public name of numba's. Without it stale code could run, so then nothing is kept.
    index: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        index._source_stamp = source_digest(Path(__file__).parent)
    else:
        do_not_keep(compiled)


def do_not_keep(compiled: Any) -> None:
    """Have numba neither load nor keep a kernel's machine code in this process."""
    compiled._cache = NullCache()


def forget(compiled: Any) -> None:
    """Throw away what is kept of a kernel, as it cannot be loaded or added to."""
    with suppress(OSError):
        compiled._cache.flush()
    do_not_keep(compiled)


@cache
def source_digest(folder: Path) -> str:
    """A digest of the source files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def announced(announce: Callable[[], None]) -> Iterator[None]:
    """Call announce before the first compilation within; loading machine code that was kept is none."""
    listener = FirstCompilation(announce)
    with install_listener("numba:compile", listener):
        yield


class FirstCompilation(Listener):  # type: ignore[misc]  # numba is untyped
    """Calls back at the first event of numba's that tells of a compilation."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self.announce: Callable[[], None] | None = announce

    def on_start(self, _event: Any) -> None:
        """A function is about to be compiled."""
        if self.announce is not None:
            self.announce()
            self.announce = None

    def on_end(self, _event: Any) -> None:
        """It is compiled."""
