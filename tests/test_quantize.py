"""A GGUF quantized: the bytes that convert gives, the metadata that were there, and every refusal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, copy_of_tiny, edit_json, replace_tensors, tiny_tensors
from gguf import GGMLQuantizationType, GGUFValueType

from phi4conv import stream
from phi4conv.arrays import Bytes, Floats
from phi4conv.convert import convert
from phi4conv.errors import ConversionError, FormatError, OutputError, Phi4ConvError
from phi4conv.gguf_file.layout import GGUFFile, MetadataPair, f32, text, u32
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.rows import gguf_rows
from phi4conv.gguf_file.write import encode_header
from phi4conv.imatrix import ImportanceMatrix, write_imatrix
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant import CODECS, Q8_0, decode, encode
from phi4conv.quant.mix import FILE_TYPES
from phi4conv.quantize import QuantizeOptions, plan, quantize
from phi4conv.reference.llama_cpp import LlamaCpp
from phi4conv.rows import row_count
from phi4conv.stream import ConversionResult

Tensor = tuple[str, tuple[int, ...], GGMLQuantizationType, Bytes]


def run(source: Path, target: Path, file_type: str, **options: Any) -> ConversionResult:
    return quantize(source, target, QuantizeOptions(file_type=file_type, **options))


def data_of(path: Path) -> bytes:
    return path.read_bytes()[read_gguf(path).data_offset :]


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as BF16.gguf, F16.gguf and so on."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_K_M"):
        convert(TINY, folder / f"{name}.gguf", ConversionOptions(file_type=name))
    return folder


def contents(path: Path) -> tuple[list[MetadataPair], list[Tensor]]:
    """Everything in a GGUF."""
    file = read_gguf(path)
    tensors = [(rows.name, rows.shape, rows.qtype, rows.stored(0, row_count(rows.shape))) for rows in rows_of(file)]
    return list(file.metadata.values()), tensors


def rows_of(file: GGUFFile) -> Sequence[Any]:
    return list(gguf_rows(file).values())


def write(path: Path, pairs: Sequence[MetadataPair], tensors: Sequence[Tensor], alignment: int = 32) -> Path:
    """A GGUF of these parts."""
    header = encode_header(pairs, [tensor[:3] for tensor in tensors], alignment)
    data = bytearray(header.size_bytes)
    data[: len(header.data)] = header.data
    for entry, tensor in zip(header.tensors, tensors, strict=True):
        start = header.position(entry)
        data[start : start + entry.size_bytes] = tensor[3].tobytes()
    path.write_bytes(data)
    return path


def with_pairs(source: Path, path: Path, *pairs: MetadataPair, without: Sequence[str] = ()) -> Path:
    """The source with some pairs more, replaced in place, or left out."""
    old, tensors = contents(source)
    by_key = {pair.key: pair for pair in (*old, *pairs)}
    return write(path, [pair for key, pair in by_key.items() if key not in without], tensors)


def with_weight(source: Path, path: Path, name: str, place: tuple[int, int], value: float) -> Path:
    """The source, in F32, with one weight replaced."""
    pairs, tensors = contents(source)
    for tensor, _, qtype, data in tensors:
        if tensor == name:
            assert qtype == GGMLQuantizationType.F32
            data.view("<f4")[place] = value
    return write(path, pairs, tensors)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_from_bf16_the_tensors_are_those_of_convert(tmp_path: Path, folder: Path, file_type: str) -> None:
    ours = run(folder / "BF16.gguf", tmp_path / "ours.gguf", file_type)
    direct = convert(TINY, tmp_path / "direct.gguf", ConversionOptions(file_type=file_type))
    for one, other in zip(ours.plan.tensors, direct.plan.tensors, strict=True):
        assert (one.name, one.shape, one.qtype) == (other.name, other.shape, other.qtype)
    assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "direct.gguf")


@pytest.mark.parametrize("source", ["F32", "F16", "Q8_0"])
def test_other_sources_give_what_their_own_weights_encode_to(tmp_path: Path, folder: Path, source: str) -> None:
    result = run(folder / f"{source}.gguf", tmp_path / "out.gguf", "Q4_K_M")
    rows, written = (gguf_rows(read_gguf(path)) for path in (folder / f"{source}.gguf", tmp_path / "out.gguf"))
    for tensor in result.plan.tensors:
        count = row_count(tensor.shape)
        expected = encode(CODECS[tensor.qtype], rows[tensor.name].rows(0, count))
        assert np.array_equal(written[tensor.name].stored(0, count), expected), tensor.name


def test_metadata_stay_pair_by_pair_and_the_types_come_last(tmp_path: Path, folder: Path) -> None:
    run(folder / "BF16.gguf", tmp_path / "out.gguf", "Q6_K")
    kept = [
        pair
        for key, pair in read_gguf(folder / "BF16.gguf").metadata.items()
        if key not in {"general.file_type", "general.quantization_version"}
    ]
    written = list(read_gguf(tmp_path / "out.gguf").metadata.values())
    assert written == [*kept, u32("general.quantization_version", 2), u32("general.file_type", 18)]


def test_pairs_that_phi4conv_does_not_know_stay_too(tmp_path: Path, folder: Path) -> None:
    odd = MetadataPair("odd.numbers", GGUFValueType.ARRAY, [1, 2], GGUFValueType.INT16)
    pairs = (text("empty", ""), f32("odd.float", 0.1), odd, text("bytes", "\udcff"))
    source = with_pairs(folder / "BF16.gguf", tmp_path / "in.gguf", *pairs)
    result = run(source, tmp_path / "out.gguf", "Q8_0")
    written = read_gguf(tmp_path / "out.gguf").metadata
    assert [written[pair.key] for pair in pairs] == list(pairs)
    assert [warning for warning in result.warnings if "bad-utf8" in warning]


def test_what_was_said_of_another_importance_matrix_or_of_parts_goes(tmp_path: Path, folder: Path) -> None:
    pairs = (text("quantize.imatrix.file", "old.dat"), u32("quantize.imatrix.chunks_count", 9), u32("split.count", 1))
    source = with_pairs(folder / "BF16.gguf", tmp_path / "in.gguf", *pairs)
    run(source, tmp_path / "out.gguf", "Q8_0")
    assert not [key for key in read_gguf(tmp_path / "out.gguf").metadata if key.startswith(("quantize.", "split."))]


def test_a_tensor_that_has_its_type_is_copied_bit_for_bit(tmp_path: Path, folder: Path) -> None:
    pairs, tensors = contents(folder / "Q8_0.gguf")
    name, shape, qtype, data = tensors[0]
    # Codes without a 127 among them: the encoder would never write such a block.
    data[:, 2:34] = np.arange(32)
    assert not np.array_equal(encode(Q8_0, decode(Q8_0, data)), data)
    source = write(tmp_path / "in.gguf", pairs, [(name, shape, qtype, data), *tensors[1:]])
    result = run(source, tmp_path / "out.gguf", "Q8_0")
    assert data_of(tmp_path / "out.gguf") == data_of(source)
    assert result.warnings == ()
    assert {tensor.reason for tensor in result.plan.tensors} == {
        "Q8_0: every matrix; copied as it is",
        "norms and vectors stay F32; copied as it is",
    }


def test_a_k_quant_is_copied_but_never_encoded_again(tmp_path: Path, folder: Path) -> None:
    source = folder / "Q4_K_M.gguf"
    run(source, tmp_path / "same.gguf", "Q4_K_M")
    assert data_of(tmp_path / "same.gguf") == data_of(source)
    with pytest.raises(ConversionError, match=r"quantized already(.|\n)*more tensors(.|\n)*of Q4_K"):
        run(source, tmp_path / "out.gguf", "Q5_K_M")


@pytest.mark.parametrize(
    ("source", "file_type", "warned"),
    [("BF16", "Q8_0", False), ("F32", "Q8_0", False), ("F16", "Q8_0", True), ("Q8_0", "Q6_K", True)],
)
def test_weights_that_were_rounded_before_are_a_warning(
    folder: Path, source: str, file_type: str, *, warned: bool
) -> None:
    warnings = plan(folder / f"{source}.gguf", QuantizeOptions(file_type=file_type)).warnings
    assert [f"18 of 27 tensors as {source}" in warning for warning in warnings] == ([True] if warned else [])


def test_the_order_of_the_source_does_not_matter(tmp_path: Path, folder: Path) -> None:
    pairs, tensors = contents(folder / "BF16.gguf")
    np.random.default_rng(0).shuffle(tensors)
    run(write(tmp_path / "in.gguf", pairs, tensors), tmp_path / "shuffled.gguf", "Q8_0")
    run(folder / "BF16.gguf", tmp_path / "out.gguf", "Q8_0")
    assert (tmp_path / "shuffled.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_another_alignment_is_kept(tmp_path: Path, folder: Path) -> None:
    pairs, tensors = contents(folder / "BF16.gguf")
    source = write(tmp_path / "in.gguf", [*pairs, u32("general.alignment", 1024)], tensors, 1024)
    run(source, tmp_path / "out.gguf", "Q8_0")
    file = read_gguf(tmp_path / "out.gguf")
    assert (file.alignment, file.defects) == (1024, ())
    assert {entry.offset % 1024 for entry in file.tensors} == {0}


def test_a_tied_embedding_has_the_type_of_the_output(tmp_path: Path) -> None:
    model = copy_of_tiny(tmp_path / "model")
    edit_json(model / "config.json", lambda data: data.update(tie_word_embeddings=True))
    tensors = tiny_tensors()
    del tensors["lm_head.weight"]
    replace_tensors(model, tensors)
    convert(model, tmp_path / "BF16.gguf", ConversionOptions())
    planned = plan(tmp_path / "BF16.gguf", QuantizeOptions(file_type="Q4_K_M"))
    types = {tensor.name: tensor.qtype.name for tensor in planned.tensors}
    assert types["token_embd.weight"] == "Q6_K"  # noqa: S105  # a tensor's name
    assert "output.weight" not in types


def test_options_choose_types_as_in_convert(folder: Path) -> None:
    options: dict[str, Any] = {
        "file_type": "Q6_K",
        "overrides": (("ffn_down", GGMLQuantizationType.Q8_0),),
        "token_embedding": GGMLQuantizationType.F16,
        "output": GGMLQuantizationType.BF16,
    }
    types = {tensor.name: tensor.qtype.name for tensor in plan(folder / "F32.gguf", QuantizeOptions(**options)).tensors}
    assert (types["token_embd.weight"], types["output.weight"], types["output_norm.weight"]) == ("F16", "BF16", "F32")
    assert (types["blk.3.ffn_down.weight"], types["blk.3.ffn_up.weight"]) == ("Q8_0", "Q6_K")
    with pytest.raises(ConversionError, match="matches no tensor"):
        plan(folder / "F32.gguf", QuantizeOptions(file_type="Q6_K", overrides=(("ffn_dwn", GGMLQuantizationType.F16),)))


@pytest.mark.parametrize("mix", ["current", "pre-2026"])
def test_mixes_read_the_heads_from_the_metadata(folder: Path, tmp_path: Path, mix: str) -> None:
    planned = plan(folder / "BF16.gguf", QuantizeOptions(file_type="Q2_K", mix=mix))
    one_head_each = with_pairs(folder / "BF16.gguf", tmp_path / "in.gguf", u32("phi3.attention.head_count_kv", 4))
    other = plan(one_head_each, QuantizeOptions(file_type="Q2_K", mix=mix))
    types = [{tensor.name: tensor.qtype.name for tensor in each.tensors} for each in (planned, other)]
    expected = {"current": ["Q4_K", "Q3_K"], "pre-2026": ["Q2_K", "Q2_K"]}[mix]
    assert [each["blk.0.attn_qkv.weight"] for each in types] == expected


@pytest.mark.parametrize("chunk_weights", [256, 1 << 16])
@pytest.mark.parametrize("workers", [1, 3])
def test_chunks_and_threads_do_not_change_a_byte(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, chunk_weights: int, workers: int
) -> None:
    run(folder / "F16.gguf", tmp_path / "expected.gguf", "Q6_K")
    monkeypatch.setattr(stream, "CHUNK_WEIGHTS", chunk_weights)
    quantize(folder / "F16.gguf", tmp_path / "out.gguf", QuantizeOptions(file_type="Q6_K"), workers=workers)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def importance(path: Path, source: Path, seed: int = 0) -> dict[str, Floats]:
    """An importance matrix for the layers' matrices, as llama-imatrix without --process-output makes it."""
    generator = np.random.default_rng(seed)
    weights = {
        rows.name: generator.random(rows.shape[-1], np.float32) ** 4
        for rows in rows_of(read_gguf(source))
        if rows.name.startswith("blk.") and len(rows.shape) == 2
    }
    write_imatrix(ImportanceMatrix(path, weights, ("calibration.txt",), 25))
    return weights


def test_importance_gives_ggmls_bytes(tmp_path: Path, folder: Path, llama: LlamaCpp) -> None:
    source = folder / "BF16.gguf"
    weights = importance(tmp_path / "im.gguf", source)
    result = run(source, tmp_path / "out.gguf", "Q4_K_M", imatrix=tmp_path / "im.gguf")
    rows, written = (gguf_rows(read_gguf(path)) for path in (source, tmp_path / "out.gguf"))
    changed = 0
    for tensor in result.plan.tensors:
        count = row_count(tensor.shape)
        matrix = rows[tensor.name].rows(0, count)
        ours = written[tensor.name].stored(0, count)
        assert np.array_equal(ours, llama.quantize(matrix, tensor.qtype, weights.get(tensor.name))), tensor.name
        assert (tensor.importance is not None) == (tensor.name in weights)
        changed += not np.array_equal(ours, llama.quantize(matrix, tensor.qtype))
    assert changed == len(weights) == 16
    assert result.warnings == ()


def test_importance_reaches_other_processes(tmp_path: Path, folder: Path) -> None:
    importance(tmp_path / "im.gguf", folder / "BF16.gguf")
    options = QuantizeOptions(file_type="Q4_K_M", imatrix=tmp_path / "im.gguf")
    quantize(folder / "BF16.gguf", tmp_path / "expected.gguf", options)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        quantize(folder / "BF16.gguf", tmp_path / "out.gguf", options, workers=2, executor=executor)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_convert_and_quantize_agree_about_an_importance_matrix(tmp_path: Path, folder: Path) -> None:
    importance(tmp_path / "im.gguf", folder / "BF16.gguf")
    run(folder / "BF16.gguf", tmp_path / "ours.gguf", "Q5_K_M", imatrix=tmp_path / "im.gguf")
    options = ConversionOptions(file_type="Q5_K_M", imatrix=tmp_path / "im.gguf")
    convert(TINY, tmp_path / "direct.gguf", options)
    assert data_of(tmp_path / "ours.gguf") == data_of(tmp_path / "direct.gguf")
    for name in ("ours", "direct"):
        assert list(read_gguf(tmp_path / f"{name}.gguf").metadata.values())[-4:] == [
            text("quantize.imatrix.file", "im.gguf"),
            text("quantize.imatrix.dataset", "calibration.txt"),
            u32("quantize.imatrix.entries_count", 16),
            u32("quantize.imatrix.chunks_count", 25),
        ]


def test_the_importance_matrix_is_an_input_that_is_never_overwritten(tmp_path: Path, folder: Path) -> None:
    importance(tmp_path / "im.gguf", folder / "BF16.gguf")
    before = (tmp_path / "im.gguf").read_bytes()
    options = QuantizeOptions(file_type="Q4_K_M", imatrix=tmp_path / "im.gguf")
    with pytest.raises(OutputError, match="one of the inputs"):
        quantize(folder / "BF16.gguf", tmp_path / "im.gguf", options, force=True)
    assert (tmp_path / "im.gguf").read_bytes() == before


def test_llama_cpp_answers_from_a_quantized_file(
    tmp_path: Path, folder: Path, llama: LlamaCpp, chats: list[tuple[str, str]]
) -> None:
    run(folder / "BF16.gguf", tmp_path / "out.gguf", "Q6_K")
    llama.load(tmp_path / "out.gguf")
    prompt, answer = chats[0]
    (ids,) = llama.tokenize([prompt])
    assert b"".join(llama.pieces(llama.generate(ids, 60))).decode() == answer + "<|im_end|>"


def truncated(source: Path, path: Path) -> Path:
    path.write_bytes(source.read_bytes()[:-100_000])
    return path


def imatrix_instead(source: Path, path: Path) -> Path:
    importance(path, source)
    return path


def no_tensors(source: Path, path: Path) -> Path:
    return write(path, contents(source)[0], [])


# What is made of the BF16 file, the error, and words of the message that tell a stranger what to do.
REFUSALS: dict[str, tuple[Callable[[Path, Path], Path], type[Phi4ConvError], str]] = {
    "missing": (lambda _, path: path, FormatError, "nothing of that name"),
    "a part": (
        lambda source, path: with_pairs(source, path, u32("split.count", 3), u32("split.no", 1)),
        ConversionError,
        r"part 2 of 3(.|\n)*llama-gguf-split --merge",
    ),
    "another architecture": (
        lambda source, path: with_pairs(source, path, text("general.architecture", "llama")),
        ConversionError,
        r"architecture phi3(.|\n)*architecture llama(.|\n)*phi4conv convert",
    ),
    "an adapter": (
        lambda source, path: with_pairs(source, path, text("general.type", "adapter")),
        ConversionError,
        "general.type adapter",
    ),
    "an importance matrix": (imatrix_instead, ConversionError, "general.type imatrix"),
    "no tensors": (no_tensors, ConversionError, "without tensors"),
    "truncated": (truncated, FormatError, r"truncated-data(.|\n)*phi4conv inspect"),
    "no layer count": (
        lambda source, path: with_pairs(source, path, without=["phi3.block_count"]),
        ConversionError,
        r"phi3\.block_count(.|\n)*found: +nothing",
    ),
    "no heads": (
        lambda source, path: with_pairs(source, path, u32("phi3.attention.head_count_kv", 0)),
        ConversionError,
        r"head_count_kv(.|\n)*above 0(.|\n)*UINT32 0",
    ),
    "heads that are text": (
        lambda source, path: with_pairs(source, path, text("phi3.attention.head_count", "many")),
        ConversionError,
        r"head_count(.|\n)*STRING many",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_quantized_is_one_clear_error(tmp_path: Path, folder: Path, case: str) -> None:
    make, error, words = REFUSALS[case]
    source = make(folder / "BF16.gguf", tmp_path / "in.gguf")
    with pytest.raises(error, match=words) as caught:
        run(source, tmp_path / "out.gguf", "Q8_0")
    assert str(source) in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_without_a_count_of_key_and_value_heads_every_head_has_its_own(tmp_path: Path, folder: Path) -> None:
    source = with_pairs(folder / "BF16.gguf", tmp_path / "in.gguf", without=["phi3.attention.head_count_kv"])
    types = {tensor.name: tensor.qtype.name for tensor in plan(source, QuantizeOptions(file_type="Q2_K")).tensors}
    assert types["blk.0.attn_qkv.weight"] == "Q3_K"


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_overwritten(tmp_path: Path, folder: Path, *, link: bool) -> None:
    source = tmp_path / "in.gguf"
    shutil.copy(folder / "BF16.gguf", source)
    target = source
    if link:
        target = tmp_path / "link.gguf"
        target.hardlink_to(source)
    before = source.read_bytes()
    with pytest.raises(OutputError, match="one of the inputs"):
        quantize(source, target, QuantizeOptions(file_type="Q8_0"), force=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize("file_type", ["F32", "BF16", "Q8_0", "Q4_K_M"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_stop_it_whether_copied_or_encoded(
    tmp_path: Path, folder: Path, file_type: str, value: float
) -> None:
    source = with_weight(folder / "F32.gguf", tmp_path / "in.gguf", "blk.2.ffn_up.weight", (7, 9), value)
    with pytest.raises(ConversionError, match=r"blk\.2\.ffn_up\.weight, row 7, column 9"):
        run(source, tmp_path / "out.gguf", file_type)
    assert not list(tmp_path.glob("out*"))
    if file_type in {"F32", "BF16"}:
        run(source, tmp_path / "out.gguf", file_type, allow_non_finite=True)


def test_a_block_whose_scale_overflows_is_named(tmp_path: Path, folder: Path) -> None:
    source = with_weight(folder / "F32.gguf", tmp_path / "in.gguf", "blk.2.ffn_up.weight", (700, 9), -1e7)
    words = r"a block of Q4_K has a scale(.|\n)*blk\.2\.ffn_up\.weight, row 700\), block 0 of 256(.|\n)*--tensor-type"
    with pytest.raises(ConversionError, match=words):
        run(source, tmp_path / "out.gguf", "Q4_K_M")
    run(source, tmp_path / "out.gguf", "Q4_K_M", overrides=((r"blk\.2\.ffn_up", GGMLQuantizationType.BF16),))


@pytest.mark.parametrize("file_type", ["Q8_0", "Q6_K", "Q4_K_M", "Q2_K"])
def test_a_weight_that_no_block_can_hold_is_named(tmp_path: Path, folder: Path, file_type: str) -> None:
    source = with_weight(folder / "F32.gguf", tmp_path / "in.gguf", "blk.2.ffn_up.weight", (700, 9), 1e30)
    with pytest.raises(ConversionError, match=r"too large for Q(.|\n)*blk\.2\.ffn_up\.weight, row 700, column 9"):
        run(source, tmp_path / "out.gguf", file_type)


def test_a_broken_block_of_the_source_is_named_when_it_is_copied(tmp_path: Path, folder: Path) -> None:
    pairs, tensors = contents(folder / "Q8_0.gguf")
    name, _, _, data = tensors[0]
    data[5, 2 * 34 : 2 * 34 + 2] = (0x00, 0x7C)  # the third block's scale: infinity
    source = write(tmp_path / "in.gguf", pairs, tensors)
    with pytest.raises(ConversionError, match=rf"{name}, row 5\), block 2(.|\n)*the input is damaged"):
        run(source, tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(ConversionError, match=rf"{name}, row 5, column 6[4-9]"):
        run(source, tmp_path / "out.gguf", "BF16")


def test_a_source_cut_while_it_is_read_is_an_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.gguf"
    shutil.copy(folder / "BF16.gguf", source)
    plan_chunks = stream.plan_chunks

    def cut_then_plan(*arguments: Any, **options: Any) -> Any:
        with source.open("r+b") as file:
            file.truncate(source.stat().st_size // 2)
        return plan_chunks(*arguments, **options)

    monkeypatch.setattr(stream, "plan_chunks", cut_then_plan)
    with pytest.raises(FormatError, match="ends early"):
        run(source, tmp_path / "out.gguf", "Q8_0")
    assert not list(tmp_path.glob("out*"))
