from __future__ import annotations

import ctypes.util
import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as QType

from phi4conv.arrays import Floats
from phi4conv.errors import EngineError, FormatError
from phi4conv.reference import llama_cpp_abi
from phi4conv.reference.llama_cpp import LlamaCpp, TokenAttribute
from phi4conv.reference.llama_cpp_process import Child, find_library

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
GOLDEN = ROOT / "fixtures" / "golden" / "quants.npz"

needs_xllamacpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or not sys.platform.startswith(("linux", "darwin")),
    reason="needs xllamacpp (the extra llama-cpp) under Linux or macOS",
)

# The tiny vocabulary: 256 byte characters, two merges, and two control tokens.
HE, HEL, END_OF_TEXT, IM_END = 256, 257, 258, 259
VOCAB_SIZE = 260
WIDTH = 32


def byte_characters() -> list[str]:
    """The gpt2 alphabet in byte order: printable bytes are themselves, the others follow from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def write_tiny(path: Path, tensors: dict[str, Floats] | None = None, *, im_end: int = IM_END) -> Path:
    """A one-layer phi3 file of 260 tokens; without tensors it is good for its vocabulary only."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_name("Tiny")
    writer.add_context_length(1024)
    writer.add_rope_scaling_orig_ctx_len(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("dbrx")
    writer.add_token_list([*byte_characters(), "he", "hel", "<|endoftext|>", "<|im_end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 258 + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(["h e", "he l"])
    writer.add_bos_token_id(END_OF_TEXT)
    writer.add_eos_token_id(im_end)
    writer.add_eot_token_id(im_end)
    writer.add_add_bos_token(False)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(seed: int = 0, *, layer_scale: float = 0.3) -> dict[str, Floats]:
    """Weights for write_tiny(); layer_scale 0 makes the layer add nothing to what flows through it."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, scale: float = 0.3) -> Floats:
        return random.normal(0, scale, (rows, WIDTH)).astype(np.float32)

    ones = np.ones(WIDTH, dtype=np.float32)
    return {
        "token_embd.weight": matrix(VOCAB_SIZE, 1.0),
        "output_norm.weight": np.linspace(0.5, 1.5, WIDTH, dtype=np.float32),
        "output.weight": matrix(VOCAB_SIZE),
        "blk.0.attn_norm.weight": ones,
        "blk.0.attn_qkv.weight": matrix(WIDTH + 2 * (WIDTH // 2)),
        "blk.0.attn_output.weight": matrix(WIDTH, layer_scale),
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_up.weight": matrix(2 * WIDTH),
        "blk.0.ffn_down.weight": matrix(WIDTH, layer_scale),
    }


@pytest.fixture
def llama() -> Iterator[LlamaCpp]:
    with LlamaCpp(threads=1, timeout=120) as llama:
        yield llama


@pytest.fixture
def tiny(llama: LlamaCpp, tmp_path: Path) -> LlamaCpp:
    llama.load(write_tiny(tmp_path / "tiny.gguf"), vocab_only=True)
    return llama


@pytest.fixture
def tiny_model(llama: LlamaCpp, tmp_path: Path) -> LlamaCpp:
    llama.load(write_tiny(tmp_path / "tiny.gguf", random_tensors()))
    return llama


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} in the folder `shared/data` beside the checkout")
    return path


@needs_xllamacpp
class TestVocabulary:
    def test_tokenizes_a_batch(self, tiny: LlamaCpp) -> None:
        assert tiny.tokenize(["hello", "", "he\0"]) == [[HEL, ord("l"), ord("o")], [], [HE, 0]]

    def test_special_tokens_are_read_only_when_asked(self, tiny: LlamaCpp) -> None:
        assert tiny.tokenize(["a<|im_end|>"]) == [[ord("a"), IM_END]]
        assert tiny.tokenize(["<|im_end|>"], parse_special=False) == [list(b"<|im_end|>")]

    def test_invalid_utf8_becomes_replacement_characters(self, tiny: LlamaCpp) -> None:
        # One byte in, three out: more tokens than the text has bytes.
        assert tiny.tokenize([b"\xff" * 20]) == [list("\ufffd".encode() * 20)]

    def test_lone_surrogates_are_the_callers_mistake(self, tiny: LlamaCpp) -> None:
        with pytest.raises(ValueError, match="surrogates not allowed"):
            tiny.tokenize(["\ud800"])
        assert tiny.tokenize(["h"]) == [[ord("h")]]

    def test_decodes(self, tiny: LlamaCpp) -> None:
        ids = [HEL, ord("l"), ord("o"), ord(" "), IM_END]
        assert tiny.detokenize(ids) == b"hello <|im_end|>"
        assert tiny.detokenize(ids, unparse_special=False) == b"hello "
        assert tiny.pieces(ids) == [b"hel", b"l", b"o", b" ", b"<|im_end|>"]
        assert tiny.pieces(np.arange(256).tolist()) == [bytes([byte]) for byte in range(256)]
        assert tiny.detokenize([HEL] * 1000) == b"hel" * 1000

    def test_ids_outside_of_the_vocabulary_are_refused(self, tiny: LlamaCpp) -> None:
        for call in (tiny.pieces, tiny.detokenize):
            with pytest.raises(ValueError, match=r"vocabulary of 260: \[260, -1\]"):
                call([1, 260, -1])

    def test_special_ids(self, tiny: LlamaCpp) -> None:
        ids = tiny.special_ids()
        assert (ids["bos"], ids["eos"], ids["eot"], ids["nl"]) == (END_OF_TEXT, IM_END, IM_END, 10)
        assert "fim_pre" not in ids
        assert tiny.end_of_generation() == {END_OF_TEXT, IM_END}

    def test_token_table(self, tiny: LlamaCpp) -> None:
        texts, attributes = tiny.token_texts(), tiny.token_attributes()
        assert len(texts) == len(attributes) == VOCAB_SIZE
        assert (texts[HEL], texts[ord(" ")]) == ("hel", "Ġ")
        assert attributes[HEL] == TokenAttribute.NORMAL
        assert attributes[IM_END] == TokenAttribute.CONTROL

    def test_metadata(self, tiny: LlamaCpp) -> None:
        metadata = tiny.metadata()
        assert metadata["general.architecture"] == "phi3"
        assert metadata["phi3.embedding_length"] == str(WIDTH)
        assert "tokenizer.ggml.tokens" not in metadata

    def test_weights_are_needed_for_logits(self, tiny: LlamaCpp) -> None:
        with pytest.raises(ValueError, match="only the vocabulary is loaded"):
            tiny.logits([1])

    def test_closed_model(self, tiny: LlamaCpp) -> None:
        tiny.close_model()
        with pytest.raises(ValueError, match="no model is loaded"):
            tiny.tokenize(["a"])


@needs_xllamacpp
class TestModel:
    def test_logits_of_a_model_whose_layer_adds_nothing(self, llama: LlamaCpp, tmp_path: Path) -> None:
        tensors = random_tensors(layer_scale=0)
        llama.load(write_tiny(tmp_path / "flat.gguf", tensors))
        ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, 700).tolist()  # more than one pass of 512
        state = tensors["token_embd.weight"][ids]
        normed = state / np.sqrt((state**2).mean(axis=1, keepdims=True) + 1e-5) * tensors["output_norm.weight"]
        logits = llama.logits(ids)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, normed @ tensors["output.weight"].T, atol=1e-4)

    def test_a_position_does_not_see_what_follows(self, tiny_model: LlamaCpp) -> None:
        ids = [5, 80, 7, 200, 31]
        logits = tiny_model.logits(ids)
        assert logits.shape == (5, VOCAB_SIZE)
        np.testing.assert_allclose(tiny_model.logits(ids[:3]), logits[:3], atol=1e-4)
        assert np.abs(tiny_model.logits([6, *ids[1:]])[-1] - logits[-1]).max() > 1e-3

    def test_no_tokens_no_logits(self, tiny_model: LlamaCpp) -> None:
        assert tiny_model.logits([]).shape == (0, VOCAB_SIZE)

    def test_generates_the_likeliest_tokens(self, tiny_model: LlamaCpp) -> None:
        ids = [5, 80, 7]
        expected = list(ids)
        for _ in range(12):  # each token by a pass over the whole text, without the cache of generate()
            expected.append(int(tiny_model.logits(expected)[-1].argmax()))
        assert tiny_model.generate(ids, 12) == expected[3:]
        assert tiny_model.generate(ids, 0) == []

    def test_generation_ends_after_an_end_of_generation_token(self, llama: LlamaCpp, tmp_path: Path) -> None:
        llama.load(write_tiny(tmp_path / "endless.gguf", random_tensors()))
        endless = llama.generate([5, 80, 7], 8)
        last = next(index for index in range(1, 8) if endless[index] not in endless[:index])
        llama.load(write_tiny(tmp_path / "ending.gguf", random_tensors(), im_end=endless[last]))
        assert llama.generate([5, 80, 7], 8) == endless[: last + 1]

    def test_generates_past_one_pass(self, tiny_model: LlamaCpp) -> None:
        ids = np.random.default_rng(2).integers(0, 256, 600).tolist()
        assert tiny_model.generate(ids, 1) == [int(tiny_model.logits(ids)[-1].argmax())]

    def test_context_must_hold_the_tokens(self, tiny_model: LlamaCpp) -> None:
        with pytest.raises(ValueError, match="12 tokens do not fit into a context of 8"):
            tiny_model.generate([1, 2], 10, n_ctx=8)
        np.testing.assert_allclose(tiny_model.logits([1, 2], n_ctx=512), tiny_model.logits([1, 2]), atol=1e-4)

    def test_generation_starts_from_something(self, tiny_model: LlamaCpp) -> None:
        with pytest.raises(ValueError, match="at least one token"):
            tiny_model.generate([], 3)

    def test_bad_weights_are_refused(self, llama: LlamaCpp, tmp_path: Path) -> None:
        tensors = random_tensors()
        tensors["output.weight"][3, 4] = np.nan
        path = write_tiny(tmp_path / "nan.gguf", tensors)
        with pytest.raises(FormatError, match=r"output\.weight"):
            llama.load(path)
        llama.load(path, check_tensors=False)
        assert np.isnan(llama.logits([1])[0, 3])


@needs_xllamacpp
class TestCodecs:
    def test_q8_0_bytes_and_values(self, llama: LlamaCpp, golden: dict[str, np.ndarray]) -> None:
        kinds = [name.split("/")[1] for name in golden if name.startswith("Q8_0/") and name.count("/") == 1]
        assert len(kinds) == 22
        for kind in kinds:
            encoded = llama.quantize(golden[f"input/{kind}"], QType.Q8_0)
            np.testing.assert_array_equal(encoded, golden[f"Q8_0/{kind}"], err_msg=kind)
            decoded = llama.dequantize(encoded, QType.Q8_0, 512)
            digest = hashlib.sha256(decoded.tobytes()).digest()
            assert digest == golden[f"Q8_0/{kind}/decoded"].tobytes(), kind

    @pytest.mark.parametrize(
        "qtype", [QType.Q2_K, QType.Q4_K, QType.Q6_K, QType.Q4_0, QType.IQ4_XS], ids=lambda qtype: qtype.name
    )
    def test_importance_reaches_ggml(self, llama: LlamaCpp, golden: dict[str, np.ndarray], qtype: QType) -> None:
        encoded = llama.quantize(golden["input/heavy"], qtype, golden["imatrix/extreme"])
        np.testing.assert_array_equal(encoded, golden[f"{qtype.name}/heavy/extreme"])
        assert not np.array_equal(llama.quantize(golden["input/heavy"], qtype), encoded)

    def test_plain_types(self, llama: LlamaCpp) -> None:
        weights = np.array([[1.0, -2.5, 3.140625, 65504.0], [0.0, 2.0**-24, -0.0, 1.0]], dtype=np.float32)
        halves = llama.quantize(weights, QType.F16)
        np.testing.assert_array_equal(halves, weights.astype(np.float16).view(np.uint8))
        np.testing.assert_array_equal(llama.dequantize(halves, QType.F16, 4), weights)
        np.testing.assert_array_equal(llama.quantize(weights, QType.F32), weights.view(np.uint8))
        np.testing.assert_array_equal(llama.dequantize(weights.view(np.uint8), QType.F32, 4), weights)

    def test_bf16_rounds_to_even(self, llama: LlamaCpp) -> None:
        bits = np.array([[0x3F808000, 0x3F818000, 0x3F808001, 0xBF80FFFF]], dtype=np.uint32)
        encoded = llama.quantize(bits.view(np.float32), QType.BF16)
        np.testing.assert_array_equal(encoded.view(np.uint16), [[0x3F80, 0x3F82, 0x3F81, 0xBF81]])
        decoded = llama.dequantize(encoded, QType.BF16, 4)
        np.testing.assert_array_equal(decoded.view(np.uint32) >> 16, encoded.view(np.uint16))

    def test_no_rows(self, llama: LlamaCpp) -> None:
        assert llama.quantize(np.zeros((0, 256), dtype=np.float32), QType.Q4_K).shape == (0, 144)

    def test_what_ggml_cannot_do_is_the_callers_mistake(self, llama: LlamaCpp) -> None:
        row = np.ones((1, 256), dtype=np.float32)
        with pytest.raises(ValueError, match="does not encode Q8_K"):
            llama.quantize(row, QType.Q8_K)
        with pytest.raises(ValueError, match="blocks of 256"):
            llama.quantize(row[:, :64], QType.Q4_K)
        with pytest.raises(ValueError, match="without importance"):
            llama.quantize(row, QType.IQ2_XXS)
        with pytest.raises(ValueError, match=r"found \(1, 256\), \(32,\)"):
            llama.quantize(row, QType.Q4_K, np.ones(32, dtype=np.float32))
        with pytest.raises(ValueError, match="take 144 bytes as Q4_K, not 143"):
            llama.dequantize(np.zeros((1, 143), dtype=np.uint8), QType.Q4_K, 256)
        with pytest.raises(ValueError, match="no dequantize_row_q8_1"):
            llama.dequantize(np.zeros((1, 36), dtype=np.uint8), QType.Q8_1, 32)


@needs_xllamacpp
class TestTrouble:
    def test_a_file_that_is_no_model_is_refused(self, llama: LlamaCpp, tmp_path: Path) -> None:
        path = tmp_path / "garbage.gguf"
        path.write_bytes(b"PK\x03\x04" * 64)
        with pytest.raises(FormatError) as caught:
            llama.load(path)
        problem = caught.value.problems[0]
        assert problem.where == str(path)
        assert "invalid magic characters" in problem.found
        assert any("invalid magic" in line for line in llama.log)

    def test_a_vocabulary_is_no_model(self, llama: LlamaCpp, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=r"token_embd\.weight"):
            llama.load(write_tiny(tmp_path / "tiny.gguf"))

    def test_the_log_is_that_of_the_last_call(self, tiny: LlamaCpp, tmp_path: Path) -> None:
        with pytest.raises(FormatError):
            tiny.load(tmp_path / "missing.gguf")
        assert tiny.log
        tiny.load(write_tiny(tmp_path / "again.gguf"), vocab_only=True)
        assert not any("missing.gguf" in line for line in tiny.log)

    def test_an_abort_is_reported_and_a_new_child_works(self, tiny: LlamaCpp, tmp_path: Path) -> None:
        # llama.cpp throws above U+10FFFF, through C, which ends its process.
        with pytest.raises(EngineError) as caught:
            tiny.tokenize([b"\xf7\xbf\xbf\xbf"])
        problem = caught.value.problems[0]
        assert problem.what == "llama.cpp ended during tokenize: SIGABRT"
        assert "invalid codepoint" in problem.found
        with pytest.raises(ValueError, match="lost its model"):
            tiny.tokenize(["hello"])
        tiny.load(write_tiny(tmp_path / "again.gguf"), vocab_only=True)
        assert tiny.tokenize(["he"]) == [[HE]]

    def test_an_interrupted_call_leaves_no_answer_behind(self, tiny: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_child: Child, _timeout: float) -> NoReturn:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Child, "receive", interrupt)
            with pytest.raises(KeyboardInterrupt):
                tiny.tokenize(["hello"])
        # The answer to the interrupted call must not be taken for the answer to the next.
        with pytest.raises(ValueError, match="lost its model"):
            tiny.special_ids()

    def test_an_answer_that_takes_too_long(self) -> None:
        with LlamaCpp(timeout=0.001) as llama, pytest.raises(EngineError, match=r"no answer .* within 0\.001 s"):
            llama.tokenize(["a"])

    def test_the_main_module_is_not_run_again(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from phi4conv.reference.llama_cpp import LlamaCpp\n"
            "print('main')\n"
            "with LlamaCpp() as llama:\n"
            "    try:\n"
            "        llama.special_ids()\n"
            "    except ValueError as error:\n"
            "        print(error)\n"
        )
        search = f"import sys; sys.path[:] = {sys.path!r}; import runpy; runpy.run_path({str(script)!r})"
        done = subprocess.run([sys.executable, "-c", search], capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.splitlines()[0] == "main"
        assert done.stdout.count("main") == 1
        assert "no model is loaded" in done.stdout
        assert done.stderr == ""


class TestLayouts:
    @pytest.mark.parametrize(
        ("struct", "defaults"),
        [
            (llama_cpp_abi.ModelParams, llama_cpp_abi.MODEL_DEFAULTS),
            (llama_cpp_abi.ContextParams, llama_cpp_abi.CONTEXT_DEFAULTS),
        ],
    )
    def test_a_new_field_anywhere_is_noticed(self, struct: type[ctypes.Structure], defaults: dict[str, Any]) -> None:
        params = struct(**defaults)
        llama_cpp_abi.check_defaults("params", params, defaults)
        for field in defaults:
            offset = getattr(struct, field).offset
            shifted = bytes(params)[:offset] + bytes(8) + bytes(params)[offset:-8]
            with pytest.raises(llama_cpp_abi.InterfaceError, match="params has another layout"):
                llama_cpp_abi.check_defaults("params", struct.from_buffer_copy(shifted), defaults)

    def test_a_library_that_is_not_llama_cpp(self) -> None:
        with pytest.raises(llama_cpp_abi.InterfaceError, match="does not export llama_log_set"):
            llama_cpp_abi.open_library(ctypes.util.find_library("c") or "libc.dylib")


class TestMissing:
    @pytest.fixture(autouse=True)
    def not_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)

    def test_without_xllamacpp(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with LlamaCpp() as llama, pytest.raises(EngineError) as caught:
            llama.tokenize(["a"])
        problem = caught.value.problems[0]
        assert (problem.found, problem.next_step) == ("no xllamacpp", "pip install 'phi4conv[llama-cpp]'")

    def test_xllamacpp_without_its_library(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        package = tmp_path / "xllamacpp"
        package.mkdir()
        (package / "__init__.py").touch()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(EngineError, match="xllamacpp without its library"):
            find_library()

    def test_a_library_that_does_not_load(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        package = tmp_path / "xllamacpp"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "xllamacpp.abi3.so").write_bytes(b"not an ELF file")
        info = tmp_path / "xllamacpp-1.2.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xllamacpp\nVersion: 1.2.3\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        with LlamaCpp() as llama, pytest.raises(EngineError) as caught:
            llama.tokenize(["a"])
        problem = caught.value.problems[0]
        assert "it cannot be loaded" in problem.what
        assert problem.found == "xllamacpp 1.2.3"


@needs_xllamacpp
class TestPhi4:
    def test_correct_vocabulary(self, llama: LlamaCpp) -> None:
        llama.load(shared("phi-4/vocab-by-llama.cpp.gguf"), vocab_only=True)
        assert llama.tokenize(["Tell me a joke."]) == [[41551, 757, 264, 22380, 13]]
        assert llama.tokenize(["x\n<|im_end|>\ny"]) == [[87, 198, 100265, 198, 88]]
        special = llama.special_ids()
        assert (special["bos"], special["eos"], special["eot"], special["pad"]) == (100257, 100265, 100265, 100349)
        assert llama.end_of_generation() == {100257, 100265}
        ids = llama.tokenize(["Hello , world ."])[0]
        assert llama.detokenize(ids) == b"Hello, world."
        assert b"".join(llama.pieces(ids)) == b"Hello , world ."

    def test_broken_vocabulary(self, llama: LlamaCpp) -> None:
        llama.load(shared("broken/phi4-vocab-broken-spm.gguf"), vocab_only=True)
        assert any("newline token not found" in line for line in llama.log)
        joke = llama.tokenize(["Tell me a joke."], add_special=True)
        assert joke == [[100257, 37209, 7499, 173, 501, 1510, 100124]]
        with pytest.raises(EngineError, match="std::out_of_range"):
            llama.tokenize(["a\nb"])
        llama.load(shared("broken/phi4-vocab-broken-spm.gguf"), vocab_only=True)
        assert llama.tokenize(["Tell me a joke."], add_special=True) == joke
