"""The fast path: codecs compiled by numba, with the same bytes as those in numpy.

Importing this package loads no numba and compiles nothing. The first request for a codec does, says so, and
holds the compiled functions against the numpy ones on a sample. Where numba is missing, does not work or
gives other bytes, the numpy codec stays in use, and why_not() tells the reason.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from phi4conv.arrays import Floats
from phi4conv.quant.codec import QuantCodec

COMPILED_TYPES: Final = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")

Announce = Callable[[str], None]

logger = logging.getLogger(__name__)
lock = threading.RLock()
chosen: dict[tuple[str, str], QuantCodec] = {}
reasons: dict[str, str] = {}


def encoder(codec: QuantCodec, announce: Announce = logger.warning) -> QuantCodec:
    """The codec to encode with: compiled where that works, else the codec itself.

    Args:
        codec: A codec in numpy.
        announce: Told, in a sentence, when there is something to wait for: compilation takes seconds.
    """
    return choose(codec, "encode", encodes_alike, announce)


def decoder(codec: QuantCodec, announce: Announce = logger.warning) -> QuantCodec:
    """The codec to decode with; see encoder."""
    return choose(codec, "decode", decodes_alike, announce)


def why_not(codec: QuantCodec) -> str | None:
    """Why a type that has compiled functions runs in numpy; None where it does not, or was not asked for yet."""
    return reasons.get(codec.name)


def choose(
    codec: QuantCodec, direction: str, alike: Callable[[QuantCodec, QuantCodec], bool], announce: Announce
) -> QuantCodec:
    """The compiled twin if it works, remembered."""
    if codec.name not in COMPILED_TYPES or codec.path != "numpy":
        return codec
    found = chosen.get((codec.name, direction))
    if found is None:
        with lock:
            found = chosen.get((codec.name, direction)) or checked_twin(codec, alike, announce)
            chosen[codec.name, direction] = found
    return found


def checked_twin(codec: QuantCodec, alike: Callable[[QuantCodec, QuantCodec], bool], announce: Announce) -> QuantCodec:
    """The compiled twin, or the codec itself and a reason."""

    def twin() -> QuantCodec:
        return working_twin(codec, alike, announce)

    try:
        # LLVM calls back into Python, where a KeyboardInterrupt would be lost; the main thread waits and can be
        # interrupted.
        with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
            return thread.submit(twin).result()
    except ModuleNotFoundError as error:
        reasons[codec.name] = f"{error.name} is not installed"
    except Exception as error:  # noqa: BLE001  # whatever stops numba, numpy can do the work
        reasons[codec.name] = f"numba does not work here: {str(error).strip() or type(error).__name__}".splitlines()[0]
    logger.info("%s runs in numpy: %s", codec.name, reasons[codec.name])
    return codec


def working_twin(codec: QuantCodec, alike: Callable[[QuantCodec, QuantCodec], bool], announce: Announce) -> QuantCodec:
    """The compiled twin.

    Raises:
        ArithmeticError: Its bytes are not those of the codec.
        Exception: Whatever stops numba.
    """
    from phi4conv.quant.fast.compiler import announced  # noqa: PLC0415  # loads numba
    from phi4conv.quant.fast.twins import compiled_twin, forget_machine_code  # noqa: PLC0415

    twin = compiled_twin(codec)
    with announced(lambda: announce(f"compiling {codec.name} for this machine (a few seconds, the first time)")):
        try:
            good = alike(codec, twin)
        except Exception:  # noqa: BLE001  # a cache that is damaged, or a disk that is full
            forget_machine_code(codec)
            good = alike(codec, twin)
    if not good:
        raise ArithmeticError("its bytes are not those of numpy")
    return twin


def encodes_alike(one: QuantCodec, other: QuantCodec) -> bool:
    """Whether two codecs give the same bytes for a sample, with and without importance."""
    weights = sample()
    importance = np.linspace(0, 1, weights.shape[-1], dtype=np.float32)
    return all(np.array_equal(one.encode(weights, given), other.encode(weights, given)) for given in (None, importance))


def decodes_alike(one: QuantCodec, other: QuantCodec) -> bool:
    """Whether two codecs read the same weights from the bytes of a sample."""
    data = one.encode(sample())
    return one.decode(data).tobytes() == other.decode(data).tobytes()


def sample() -> Floats:
    """Seventeen superblocks, so that a batch of sixteen and a rest run: random ones and special ones. (1, 4352)."""
    blocks = np.random.default_rng(4).standard_normal((17, 256)).astype(np.float32)
    blocks[1] *= 1e-7  # scales that are subnormal in float16
    blocks[2, 7] = 300  # one outlier
    blocks[3] = 0
    blocks[4] = np.abs(blocks[4])
    blocks[5] = -1.5
    return blocks.reshape(1, -1)
