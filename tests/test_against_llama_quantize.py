"""Files are, tensor for tensor, those of llama.cpp's two steps: convert to BF16, then the real llama_model_quantize."""

from __future__ import annotations

import base64
import filecmp
import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_quantize
import numpy as np
import pytest
from checkpoints import REPOSITORY, TINY, Words, copy_of_tiny, edit_json, replace_tensors, tiny_tensors
from gguf.constants import GGMLQuantizationType
from llama_quantize import (
    LIBRARIES,
    MEMBERS,
    REQUIRED,
    LlamaQuantize,
    QuantizeError,
    Settings,
    UnavailableError,
    engine_or_skip,
    unpack,
)
from programs import script

from phi4conv.arrays import Floats
from phi4conv.convert import convert
from phi4conv.gguf_file.layout import MetadataPair, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant import fast
from phi4conv.quant.codec import QuantCodec
from phi4conv.quant.mix import FILE_TYPES
from phi4conv.quantize import QuantizeOptions, quantize
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.stream import ConversionResult

# One file type for each main type.
MAIN_TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
QUANTIZED_TYPES = MAIN_TYPES[2:]
# Name and whether pure. The variants of one main type have the same tensors when pure.
CASES = [*((name, False) for name in FILE_TYPES), *((name, True) for name in (*MAIN_TYPES, "Q4_K_L"))]
# Those that an importance matrix changes; presets are mixes of these with Q8_0.
CASES_WITH_IMPORTANCE = [
    (name, pure)
    for name, pure in CASES
    if FILE_TYPES[name].qtype.name.endswith("_K") and not FILE_TYPES[name].embeddings
]
# Two mixes that hold every K-quant between them, and the one whose search depends most on the whole block.
MIXES_OF_ALL_TYPES = ("Q2_K", "Q5_K_M", "Q3_K_M")

# What llama-quantize moves to the end of the metadata.
MOVED = ("general.quantization_version", "general.file_type")


@pytest.fixture(scope="module")
def engine() -> LlamaQuantize:
    """Real llama_model_quantize."""
    return engine_or_skip()


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as BF16.gguf, F16.gguf and Q8_0.gguf, and one with float32 weights as F32.gguf."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("BF16", "F16", "Q8_0"):
        convert(TINY, folder / f"{name}.gguf", ConversionOptions(file_type=name))
    convert(with_float32_weights(folder / "float32"), folder / "F32.gguf", ConversionOptions(file_type="F32"))
    return folder


def with_float32_weights(folder: Path) -> Path:
    """The tiny checkpoint with weights that use all bits of float32."""
    generator = np.random.default_rng(7)
    tensors: dict[str, tuple[str, Words]] = {}
    for name, (_, words) in tiny_tensors().items():
        weights = (words.astype(np.uint32) << 16).view(np.float32)
        noise = generator.uniform(0.999, 1.001, weights.shape)
        tensors[name] = ("F32", (weights * noise).astype(np.float32))
    replace_tensors(copy_of_tiny(folder), tensors)
    edit_json(folder / "config.json", lambda data: data.update(torch_dtype="float32"))
    return folder


def ours(source: Path, target: Path, file_type: str, **options: Any) -> ConversionResult:
    return quantize(source, target, QuantizeOptions(file_type=file_type, **options))


def theirs(engine: LlamaQuantize, source: Path, target: Path, name: str, **options: Any) -> None:
    """What llama-quantize makes; a preset is its mix with two more options."""
    file_type = FILE_TYPES[name]
    embeddings = file_type.embeddings
    settings = Settings(file_type.number, token_embedding=embeddings, output=embeddings, **options)
    engine.quantize(source, target, settings)


def tensors(path: Path) -> list[tuple[str, tuple[int, ...], object, int, str]]:
    """Name, shape, type, offset and a hash of every tensor."""
    file = read_gguf(path)
    assert file.defects == ()
    data = memoryview(path.read_bytes())[file.data_offset :]
    return [
        (
            entry.name,
            entry.shape,
            entry.qtype,
            entry.offset,
            hashlib.sha256(data[entry.offset : entry.offset + entry.size_bytes]).hexdigest(),
        )
        for entry in file.tensors
    ]


def pairs(path: Path) -> list[MetadataPair]:
    return list(read_gguf(path).metadata.values())


def assert_same_file(ours: Path, theirs: Path) -> None:
    # Parts first: they tell where a difference is.
    assert pairs(ours) == pairs(theirs)
    assert tensors(ours) == tensors(theirs)
    assert filecmp.cmp(ours, theirs, shallow=False)


def assert_same_model(ours: Path, theirs: Path) -> None:
    """The same tensors, and the same metadata but for the order of what llama-quantize moves."""
    assert tensors(ours) == tensors(theirs)
    assert sorted(pairs(ours), key=lambda pair: pair.key) == sorted(pairs(theirs), key=lambda pair: pair.key)
    stay, are = ([pair for pair in pairs(path) if pair.key not in MOVED] for path in (ours, theirs))
    assert stay == are


def assert_answers(llama: LlamaCpp, path: Path, chats: list[tuple[str, str]]) -> None:
    """The likeliest token leads the second by 1.9 or more in every chat and type; measured, and hence no luck."""
    llama.load(path)
    assert llama.log == []
    for prompt, answer in chats:
        (ids,) = llama.tokenize([prompt])
        assert b"".join(llama.pieces(llama.generate(ids, 60))).decode() == answer + "<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize(("file_type", "pure"), CASES)
def test_one_pass_gives_the_model_of_two_steps_and_llama_cpp_runs_it(
    tmp_path: Path,
    engine: LlamaQuantize,
    llama: LlamaCpp,
    sources: Path,
    chats: list[tuple[str, str]],
    *,
    file_type: str,
    pure: bool,
) -> None:
    theirs(engine, sources / "BF16.gguf", tmp_path / "theirs.gguf", file_type, pure=pure)
    ours(sources / "BF16.gguf", tmp_path / "quantized.gguf", file_type, pure=pure)
    convert(TINY, tmp_path / "converted.gguf", ConversionOptions(file_type=file_type, pure=pure))
    assert_same_file(tmp_path / "quantized.gguf", tmp_path / "theirs.gguf")
    assert_same_model(tmp_path / "converted.gguf", tmp_path / "theirs.gguf")
    assert u32("general.file_type", FILE_TYPES[file_type].number) in pairs(tmp_path / "theirs.gguf")
    assert_answers(llama, tmp_path / "converted.gguf", chats)


@pytest.mark.slow
@pytest.mark.parametrize("file_type", MAIN_TYPES)
@pytest.mark.parametrize("source", ["F32", "F16", "Q8_0"])
def test_other_sources_give_llama_quantizes_file_too(
    tmp_path: Path, engine: LlamaQuantize, sources: Path, source: str, file_type: str
) -> None:
    path = sources / f"{source}.gguf"
    theirs(engine, path, tmp_path / "theirs.gguf", file_type, allow_requantize=source == "Q8_0")
    ours(path, tmp_path / "ours.gguf", file_type)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("file_type", MAIN_TYPES)
def test_one_pass_loses_nothing_of_float32_weights(
    tmp_path: Path, engine: LlamaQuantize, sources: Path, file_type: str
) -> None:
    theirs(engine, sources / "F32.gguf", tmp_path / "theirs.gguf", file_type)
    convert(sources / "float32", tmp_path / "ours.gguf", ConversionOptions(file_type=file_type))
    assert_same_model(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.slow
@pytest.mark.parametrize(
    "types",
    [{"token_embedding": "F16"}, {"output": "Q4_K"}, {"token_embedding": "Q2_K", "output": "BF16"}],
    ids=" ".join,
)
def test_types_of_embedding_and_output_are_chosen_as_in_llama_quantize(
    tmp_path: Path, engine: LlamaQuantize, sources: Path, types: Mapping[str, str]
) -> None:
    chosen: dict[str, Any] = {role: GGMLQuantizationType[name] for role, name in types.items()}
    settings = Settings(FILE_TYPES["Q6_K"].number, **chosen)
    engine.quantize(sources / "BF16.gguf", tmp_path / "theirs.gguf", settings)
    ours(sources / "BF16.gguf", tmp_path / "ours.gguf", "Q6_K", **chosen)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


@pytest.mark.slow
def test_patterns_choose_types_as_in_llama_quantize(tmp_path: Path, engine: LlamaQuantize, sources: Path) -> None:
    patterns = {
        r"blk\.[02]\.ffn_down": GGMLQuantizationType.Q8_0,
        "ffn_|attn_qkv": GGMLQuantizationType.Q3_K,
        "output": GGMLQuantizationType.F16,
    }
    settings = Settings(FILE_TYPES["Q6_K"].number, patterns=patterns)
    engine.quantize(sources / "BF16.gguf", tmp_path / "theirs.gguf", settings)
    ours(sources / "BF16.gguf", tmp_path / "ours.gguf", "Q6_K", overrides=tuple(patterns.items()))
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    written = {entry.name: entry.qtype for entry in read_gguf(tmp_path / "theirs.gguf").tensors}
    assert engine.types(sources / "BF16.gguf", settings) == written


NOT_MEASURED = "blk.1.ffn_up.weight"
ZERO_COUNT = "blk.2.attn_output.weight"
DATASET, CHUNKS, ACTIVATIONS = "calibration.txt", 9, 4608


@pytest.fixture(scope="module")
def importance(sources: Path) -> dict[str, Floats]:
    """An importance matrix as file im.gguf, written by gguf-py, and what llama-quantize makes of it.

    Some columns have no importance; one tensor has no entry, and one an entry that counts no activations.
    """
    generator = np.random.default_rng(11)
    writer = gguf.GGUFWriter(sources / "im.gguf", "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [DATASET])
    writer.add_uint32("imatrix.chunk_count", CHUNKS)
    writer.add_uint32("imatrix.chunk_size", 512)
    handed_on = {}
    for entry in read_gguf(sources / "BF16.gguf").tensors:
        if len(entry.shape) == 1 or entry.name == NOT_MEASURED:
            continue
        width = entry.shape[-1]
        sums = (generator.exponential(1e4, width) ** 2).astype(np.float32)
        sums[generator.integers(width, size=width // 8)] = 0
        count = 0 if entry.name == ZERO_COUNT else ACTIVATIONS
        writer.add_tensor(f"{entry.name}.in_sum2", sums.reshape(1, -1))
        writer.add_tensor(f"{entry.name}.counts", np.array([[count]], np.float32))
        # load_imatrix, tools/quantize/quantize.cpp
        handed_on[entry.name] = sums / np.float32(count) if count else np.ones(width, np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return handed_on


def said_of(importance: Mapping[str, Floats]) -> dict[str, int | str]:
    """The metadata that llama-quantize's main function asks for; the function that it calls writes them."""
    return {
        "quantize.imatrix.file": "im.gguf",
        "quantize.imatrix.dataset": DATASET,
        "quantize.imatrix.entries_count": len(importance),
        "quantize.imatrix.chunks_count": CHUNKS,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("file_type", "pure"), CASES_WITH_IMPORTANCE)
def test_an_importance_matrix_has_llama_quantizes_effect(
    tmp_path: Path, engine: LlamaQuantize, sources: Path, importance: dict[str, Floats], file_type: str, *, pure: bool
) -> None:
    source, matrix = sources / "BF16.gguf", sources / "im.gguf"
    said = said_of(importance)
    theirs(engine, source, tmp_path / "theirs.gguf", file_type, pure=pure, importance=importance, metadata=said)
    ours(source, tmp_path / "quantized.gguf", file_type, pure=pure, imatrix=matrix)
    convert(TINY, tmp_path / "converted.gguf", ConversionOptions(file_type=file_type, pure=pure, imatrix=matrix))
    assert_same_file(tmp_path / "quantized.gguf", tmp_path / "theirs.gguf")
    assert_same_model(tmp_path / "converted.gguf", tmp_path / "theirs.gguf")

    theirs(engine, source, tmp_path / "without.gguf", file_type, pure=pure)
    both = zip(tensors(tmp_path / "without.gguf"), tensors(tmp_path / "theirs.gguf"), strict=True)
    same = {one[0] for one, other in both if one[-1] == other[-1] and len(one[1]) > 1}
    assert same == {NOT_MEASURED}


@pytest.fixture(params=["numba", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Encoders by that path alone."""
    if request.param == "numba":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(fast, "encoder", only_numpy)
    return str(request.param)


def only_numpy(codec: QuantCodec, _announce: object = None) -> QuantCodec:
    return codec


@pytest.mark.slow
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("file_type", MIXES_OF_ALL_TYPES)
def test_numba_and_numpy_both_give_llama_quantizes_file(
    tmp_path: Path,
    engine: LlamaQuantize,
    sources: Path,
    importance: dict[str, Floats],
    *,
    path: str,
    file_type: str,
    weighed: bool,
) -> None:
    source = sources / "F32.gguf"
    matrix: dict[str, Any] = {"importance": importance, "metadata": said_of(importance)} if weighed else {}
    theirs(engine, source, tmp_path / "theirs.gguf", file_type, **matrix)
    result = ours(source, tmp_path / "ours.gguf", file_type, imatrix=sources / "im.gguf" if weighed else None)
    assert set(result.paths.values()) == {path}
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def random_model(folder: Path, layers: int, **sizes: int) -> Path:
    tiny = copy_of_tiny(folder.with_name("tiny"))
    edit_json(tiny / "config.json", lambda data: data.update(sizes))
    script(REPOSITORY / "benchmarks" / "make_model.py").make_model(tiny, folder, layers)
    return folder


def tied_model(folder: Path) -> Path:
    copy_of_tiny(folder)
    edit_json(folder / "config.json", lambda data: data.update(tie_word_embeddings=True))
    replace_tensors(folder, {name: each for name, each in tiny_tensors().items() if name != "lm_head.weight"})
    return folder


def widths(hidden: int, inner: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3,
    }


OTHER_MODELS: dict[str, Callable[[Path], Path]] = {
    "tied head": tied_model,
    "17 layers": lambda folder: random_model(folder, 17),
    "rows of 288 and 352": lambda folder: random_model(folder, 2, **widths(288, 352, 9)),
    "rows of 144": lambda folder: random_model(folder, 2, **widths(144, 144, 9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHER_MODELS)
def test_other_models_give_llama_quantizes_files_too(
    tmp_path: Path, engine: LlamaQuantize, llama: LlamaCpp, model: str
) -> None:
    folder = OTHER_MODELS[model](tmp_path / "model")
    convert(folder, tmp_path / "BF16.gguf", ConversionOptions(file_type="BF16"))
    for file_type in QUANTIZED_TYPES:
        made = [tmp_path / f"{maker}-{file_type}.gguf" for maker in ("converted", "quantized", "theirs")]
        convert(folder, made[0], ConversionOptions(file_type=file_type))
        ours(tmp_path / "BF16.gguf", made[1], file_type)
        theirs(engine, tmp_path / "BF16.gguf", made[2], file_type)
        assert_same_file(made[1], made[2])
        assert_same_model(made[0], made[2])
        llama.load(made[0])
        assert np.isfinite(llama.logits([1, 2, 3])).all()


@pytest.mark.slow
def test_a_file_that_llama_quantize_refuses_is_an_error_with_its_words(tmp_path: Path, engine: LlamaQuantize) -> None:
    (tmp_path / "in.gguf").write_bytes(b"no GGUF")
    with pytest.raises(QuantizeError, match=r"exit code 1 on (.|\n)*in\.gguf"):
        theirs(engine, tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_M")


def archive_of(path: Path, names: list[str]) -> str:
    """A package with these files; returns its sha512 as npm writes it."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_of_a_package_only_the_libraries_are_unpacked(tmp_path: Path) -> None:
    names = [MEMBERS + name for name in LIBRARIES]
    sha512 = archive_of(tmp_path / "package.tgz", ["package/package.json", "../outside", *names])
    unpack(tmp_path / "package.tgz", tmp_path / "cache" / "engine", sha512)
    files = [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert files == [*(f"cache/engine/{name}" for name in LIBRARIES), "package.tgz"]


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    archive_of(tmp_path / "package.tgz", [MEMBERS + name for name in LIBRARIES])
    with pytest.raises(UnavailableError, match=r"package\.tgz is not @node-llama-cpp/linux-x64"):
        unpack(tmp_path / "package.tgz", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_without_the_engine_a_test_is_skipped_or_where_it_is_required_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_quantize, "CACHE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="@node-llama-cpp/linux-x64"):
        engine_or_skip()
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=f"{REQUIRED} is set"):
        engine_or_skip()
