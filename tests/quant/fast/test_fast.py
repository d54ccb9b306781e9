"""The fast path: when it runs, when it does not, and that its bytes are those of the numpy codecs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY
from golden import GoldenCase, assert_decodes, assert_encodes, golden_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import phi4conv
from phi4conv.arrays import Floats
from phi4conv.quant import CODECS, F16, Q4_K, Q8_0, QuantCodec, decode, encode, fast

numba = pytest.importorskip("numba")

BY_NAME = {codec.name: codec for codec in CODECS.values()}
COMPILED = [codec for codec in CODECS.values() if codec.name in fast.COMPILED_TYPES]

weights_like_a_models = arrays.arrays(np.float32, (3, 256), elements=st.floats(-100, 100, width=32))
importances = arrays.arrays(np.float32, 256, elements=st.floats(0, 100, width=32)).filter(np.any)


def by_name(codec: QuantCodec) -> str:
    return codec.name


@pytest.fixture
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "chosen", {})
    monkeypatch.setattr(fast, "reasons", {})


@pytest.mark.parametrize("codec", COMPILED, ids=by_name)
def test_every_compiled_type_is_compiled_here(codec: QuantCodec) -> None:
    assert (fast.encoder(codec).path, fast.decoder(codec).path) == ("numba", "numba"), fast.why_not(codec)
    assert fast.why_not(codec) is None


@pytest.mark.parametrize("case", golden_cases(*fast.COMPILED_TYPES), ids=str)
def test_bytes_are_ggmls(case: GoldenCase) -> None:
    assert_encodes(fast.encoder(BY_NAME[case.type_name]), case)


@pytest.mark.parametrize("case", golden_cases(*fast.COMPILED_TYPES, importance=False), ids=str)
def test_decoded_weights_are_ggmls(case: GoldenCase) -> None:
    assert_decodes(fast.decoder(BY_NAME[case.type_name]), case)


def test_types_that_need_no_search_stay_in_numpy() -> None:
    assert fast.encoder(F16) is F16
    assert fast.why_not(F16) is None


@pytest.mark.parametrize("codec", COMPILED, ids=by_name)
@given(weights=weights_like_a_models, importance=st.none() | importances)
@settings(max_examples=40)
def test_bytes_equal_those_of_numpy(codec: QuantCodec, weights: Floats, importance: Floats | None) -> None:
    assert np.array_equal(encode(codec, weights, importance), codec.encode(weights, importance))


@pytest.mark.parametrize("codec", COMPILED, ids=by_name)
@given(data=st.data())
@settings(max_examples=40)
def test_any_bytes_decode_alike(codec: QuantCodec, data: st.DataObject) -> None:
    blocks = data.draw(arrays.arrays(np.uint8, (2, 3 * codec.block_bytes)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(decode(codec, blocks), codec.decode(blocks))  # NaN equals NaN


@pytest.mark.parametrize("codec", COMPILED, ids=by_name)
@pytest.mark.parametrize("rows", [1, 5, 16, 17, 33])
def test_a_row_does_not_depend_on_its_batch(codec: QuantCodec, rows: int) -> None:
    weights = np.random.default_rng(rows).standard_normal((rows, 512)).astype(np.float32)
    importance = np.linspace(0, 3, 512, dtype=np.float32)
    together = encode(codec, weights, importance)
    alone = np.concatenate([encode(codec, weights[i : i + 1], importance) for i in range(rows)])
    assert np.array_equal(together, alone)


def test_no_rows_are_no_bytes() -> None:
    assert encode(Q4_K, np.empty((0, 256), np.float32)).shape == (0, 144)
    assert decode(Q4_K, np.empty((0, 144), np.uint8)).shape == (0, 256)


def test_arrays_that_cannot_be_written_are_encoded_too() -> None:
    weights = np.ones((2, 256), np.float32)
    weights.flags.writeable = False
    assert np.array_equal(encode(Q4_K, weights), encode(Q4_K, weights.copy()))


@pytest.mark.usefixtures("nothing_chosen")
def test_threads_may_ask_at_once() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: encode(Q8_0, weights).tobytes(), range(32)))
    assert set(results) == {Q8_0.encode(weights).tobytes()}


@pytest.mark.usefixtures("nothing_chosen")
def test_a_compiled_codec_with_other_bytes_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from phi4conv.quant.fast import twins  # noqa: PLC0415  # loads numba

    def wrong_twin(codec: QuantCodec) -> QuantCodec:
        return replace(codec, encode_rows=lambda rows, importance=None: ~codec.encode_rows(rows, importance), path="numba")

    monkeypatch.setattr(twins, "compiled_twin", wrong_twin)
    assert fast.encoder(Q4_K) is Q4_K
    assert fast.why_not(Q4_K) == "numba does not work here: its bytes are not those of numpy"


@pytest.mark.usefixtures("nothing_chosen")
def test_without_numba_the_numpy_codec_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("phi4conv.quant.fast.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert fast.encoder(Q4_K) is Q4_K
    assert fast.why_not(Q4_K) == "numba is not installed"


def test_machine_code_is_not_kept_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import FunctionCache  # noqa: PLC0415  # loads numba

    from phi4conv.quant.fast.compiler import kernel  # noqa: PLC0415

    monkeypatch.setattr(FunctionCache._impl_class, "_locator_classes", [])
    double: Callable[[int], int] = kernel(lambda number: 2 * number)
    assert double(21) == 42


def run_python(code: str, folder: Path, **environment: str) -> str:
    """What a fresh Python prints; it looks for modules in its current folder first."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_codecs_neither_loads_numba_nor_compiles(tmp_path: Path) -> None:
    assert run_python("import sys, phi4conv.quant; print('numba' in sys.modules)", tmp_path) == "False"


def test_a_disabled_compiler_leaves_numpy(tmp_path: Path) -> None:
    code = "from phi4conv.quant import Q8_0, fast; print(fast.encoder(Q8_0).path, fast.why_not(Q8_0))"
    assert (
        run_python(code, tmp_path, NUMBA_DISABLE_JIT="1") == "numpy numba does not work here: NUMBA_DISABLE_JIT is set"
    )


def test_an_interrupt_during_compilation_is_not_lost(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "phi4conv", "convert", str(TINY), str(tmp_path / "tiny-Q2_K.gguf")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("compiling ")
        process.send_signal(signal.SIGINT)
        messages = process.stderr.read()
    assert process.returncode == 130, messages
    assert list(tmp_path.glob("*.gguf*")) == []


ENCODE_WITH_MESSAGES = """
from phi4conv.quant import Q8_0, fast
print(fast.encoder(Q8_0, announce=print).path)
"""


def test_machine_code_is_kept_until_any_source_changes(tmp_path: Path) -> None:
    package = tmp_path / "src" / "phi4conv"
    shutil.copytree(Path(phi4conv.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    folder, cache = package.parent, str(tmp_path / "cache")
    first, second = (run_python(ENCODE_WITH_MESSAGES, folder, NUMBA_CACHE_DIR=cache) for _ in range(2))
    assert first == "compiling Q8_0 for this machine (a few seconds, the first time)\nnumba"
    assert second == "numba"

    for index in (tmp_path / "cache").rglob("*.nbi"):
        index.write_bytes(index.read_bytes()[:40])
    for expected in (first, first, "numba"):  # a damaged cache is cleared by one process and filled by the next
        assert run_python(ENCODE_WITH_MESSAGES, folder, NUMBA_CACHE_DIR=cache) == expected

    # A helper that another module's kernel calls: stale machine code would go on being right.
    helpers = package / "quant" / "fast" / "superblocks.py"
    helpers.write_text(helpers.read_text().replace("out[at] = half & 255", "out[at] = half & 254"))
    assert run_python(ENCODE_WITH_MESSAGES, folder, NUMBA_CACHE_DIR=cache).endswith("numpy")
