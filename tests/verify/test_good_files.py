"""A good file raises no finding, not even a warning, and no layer of it is called wrong, whatever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY, resaved_by_transformers_5
from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import LlamaFileType
from good_files import llamafied_folder, mini_folder, scratch
from llama_quantize import LlamaQuantize, Settings, engine_or_skip
from other_models import FAMILIES, IMPORTANCE, MEASURED, Shape, finer, random_checkpoint, tiny_with, write_importance
from weight_files import read_weight_file, write_weight_file

from phi4conv.arrays import Bytes, Floats
from phi4conv.convert import convert
from phi4conv.errors import FormatError
from phi4conv.imatrix import read_imatrix
from phi4conv.phi3 import ConversionOptions
from phi4conv.quant import Q4_K, decode
from phi4conv.quant.mix import FILE_TYPES
from phi4conv.quant.mix_table import CURRENT, PRE_2026
from phi4conv.quantize import QuantizeOptions, quantize
from phi4conv.verify import Verification, VerifyOptions, verify
from phi4conv.verify.prompts import PromptOptions

pytest.importorskip("torch", reason="verify runs models with torch")

pytestmark = pytest.mark.slow  # together they take a minute; a fault of each kind is in test_blame.py

MIXES = tuple(name for name, file_type in FILE_TYPES.items() if file_type.qtype.name.endswith("_K"))
ONE_OF_EACH = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
IMPORTANCE_KINDS = (*IMPORTANCE, MEASURED)

# What llama-quantize makes and phi4conv does not; pure, for else output.weight becomes Q6_K.
OLDER_TYPES = ("MOSTLY_Q4_0", "MOSTLY_Q4_1", "MOSTLY_Q5_0", "MOSTLY_Q5_1")

SHAPES = {
    "one layer": Shape(layers=1),
    "rows that fit no superblock": Shape(hidden=288, feed_forward=352, heads=9, kv_heads=3),
    "rows that fit no block": Shape(hidden=144, feed_forward=100, heads=6, kv_heads=2),
    "one head of keys": Shape(heads=8, kv_heads=1),
    "as many keys as queries": Shape(heads=4, kv_heads=4),
    "a padded vocabulary": Shape(vocabulary=1088),
}

# Models of so large weights or logits that any rounding changes most answers.
UNBEARABLE = ("heavy tails", "norms of all sizes")

TEXT = """The quick brown fox jumps over the lazy dog. A model is a function of its weights, and a file that holds
them in fewer bits is another function, which should answer nearly alike: how nearly, is what is measured here."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> VerifyOptions:
    """A text, for which no template has to be rendered."""
    path = tmp_path_factory.mktemp("asked") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return VerifyOptions(asked=PromptOptions(text=path, window=48, max_tokens=96))


@pytest.fixture(scope="module")
def engine() -> LlamaQuantize:
    """Real llama_model_quantize."""
    return engine_or_skip()


@pytest.fixture(scope="module")
def f32() -> Path:
    """The tiny checkpoint as a file of type F32."""
    path = scratch() / "good-files-F32.gguf"
    convert(TINY, path, ConversionOptions(file_type="F32"))
    return path


def alarms(outcome: Verification) -> list[str]:
    """Findings of any severity, and wrong layers."""
    found = [f"{finding.severity.name} {finding.code} {finding.where}" for finding in outcome.findings]
    return [*found, *(f"layer {index}" for index in outcome.outcome.wrong_layers)]


def alarms_of(folder: Path, path: Path, asked: VerifyOptions, options: ConversionOptions) -> list[str]:
    """What verify says of the file that convert makes."""
    convert(folder, path, options, force=True)
    return alarms(verify(folder, path, asked))


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_type_is_good(name: str, tmp_path: Path, asked: VerifyOptions) -> None:
    assert alarms_of(TINY, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name)) == []


@pytest.mark.parametrize("kind", IMPORTANCE_KINDS)
@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K"])
def test_every_importance_matrix_is_good(name: str, kind: str, tmp_path: Path, f32: Path, asked: VerifyOptions) -> None:
    matrix = write_importance(tmp_path / "imatrix.gguf", kind, f32)
    options = ConversionOptions(file_type=name, imatrix=matrix)
    assert alarms_of(TINY, tmp_path / "a.gguf", asked, options) == []


@pytest.mark.parametrize(
    "options",
    [
        ConversionOptions(file_type="Q6_K", token_embedding=Type.F16),
        ConversionOptions(file_type="Q6_K", token_embedding=Type.Q2_K),
        ConversionOptions(file_type="Q8_0", output=Type.Q2_K),
        ConversionOptions(file_type="Q2_K", pure=True),
        ConversionOptions(file_type="Q3_K_L", mix=PRE_2026),
        ConversionOptions(file_type="Q4_K_M", overrides=(("ffn_down", Type.Q2_K), (r"blk\.1\.", Type.F16))),
        ConversionOptions(file_type="Q4_K_M", overrides=(("ffn_up", Type.Q5_0), ("attn", Type.Q4_1))),
    ],
    ids=str,
)
def test_every_choice_of_types_is_good(options: ConversionOptions, tmp_path: Path, asked: VerifyOptions) -> None:
    assert alarms_of(TINY, tmp_path / "a.gguf", asked, options) == []


def test_other_spellings_of_the_checkpoint_are_good(tmp_path: Path, asked: VerifyOptions) -> None:
    for folder in (resaved_by_transformers_5(tmp_path / "transformers-5"), llamafied_folder(), mini_folder()):
        options = ConversionOptions(file_type="Q4_K_M")
        assert alarms_of(folder, tmp_path / "a.gguf", asked, options) == [], folder.name


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [("F32",), ("F16",), ("BF16", "F32", "F16")], ids="/".join)
def test_weights_that_are_stored_in_other_types_are_good(
    dtypes: tuple[str, ...], tmp_path: Path, asked: VerifyOptions
) -> None:
    folder = tiny_with(tmp_path / "model", finer, dtypes=dtypes)
    for name in ONE_OF_EACH:
        assert alarms_of(folder, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name)) == [], name


@pytest.mark.parametrize(
    ("first", "second"), [("F16", "Q8_0"), ("BF16", "Q4_K_M"), ("Q8_0", "Q4_K_M"), ("Q8_0", "Q2_K")]
)
def test_a_file_that_was_quantized_twice_from_nearly_lossless_types_is_good_or_warned_of(
    first: str, second: str, tmp_path: Path, asked: VerifyOptions
) -> None:
    """Q8_0 on the way changes a tenth of what Q4_K does: the file answers as one made from the checkpoint."""
    convert(TINY, tmp_path / "first.gguf", ConversionOptions(file_type=first))
    quantize(tmp_path / "first.gguf", tmp_path / "second.gguf", QuantizeOptions(file_type=second))
    outcome = verify(TINY, tmp_path / "second.gguf", asked)
    assert outcome.is_right
    assert {finding.code for finding in outcome.findings} <= ({"moved-codes"} if first == "Q8_0" else set())


def test_a_file_whose_codes_another_tool_has_adjusted_is_right_with_a_word_about_it(
    tmp_path: Path, f32: Path, asked: VerifyOptions
) -> None:
    """As auto-round does it: one code in five is the second best one."""
    convert(TINY, tmp_path / "a.gguf", ConversionOptions(file_type="Q4_K_S", pure=True))
    file = read_weight_file(tmp_path / "a.gguf", f32)
    generator = np.random.default_rng(3)
    for name, tensor in list(file.tensors.items()):
        if tensor.qtype == Type.Q4_K:
            moved = second_best(tensor.data, file.exact[name], generator)
            file = file.with_tensor(name, replace(tensor, data=moved))
    write_weight_file(tmp_path / "b.gguf", file.pairs.values(), file.tensors)
    outcome = verify(TINY, tmp_path / "b.gguf", asked)
    assert outcome.is_right
    assert [finding.code for finding in outcome.findings] == ["moved-codes"]


def second_best(data: Bytes, weights: Floats, generator: np.random.Generator) -> Bytes:
    """Rows of Q4_K with every fifth code moved by one towards the other side of its weight."""
    blocks = data.reshape(-1, 144)
    low, high = blocks[:, 16:] & 15, blocks[:, 16:] >> 4
    # Bytes 32 j + i of a block hold weights 64 j + i, below, and 64 j + 32 + i, above.
    codes = np.stack([low.reshape(-1, 4, 32), high.reshape(-1, 4, 32)], axis=2).reshape(data.shape[0], -1).astype(int)
    towards = np.sign(weights - decode(Q4_K, data)).astype(int)
    codes = np.clip(codes + towards * (generator.random(codes.shape) < 0.2), 0, 15).reshape(-1, 4, 2, 32)
    moved = blocks.copy()
    moved[:, 16:] = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    return np.asarray(moved.reshape(data.shape), np.uint8)


def test_a_type_without_decoder_is_refused_in_one_problem(tmp_path: Path, engine: LlamaQuantize, f32: Path) -> None:
    engine.quantize(f32, tmp_path / "a.gguf", Settings(LlamaFileType.MOSTLY_IQ4_XS, pure=True))
    with pytest.raises(FormatError, match="no decoder for IQ4_XS") as raised:
        verify(TINY, tmp_path / "a.gguf")
    assert len(raised.value.problems) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mix", [CURRENT, PRE_2026])
@pytest.mark.parametrize("name", MIXES)
def test_every_mix_with_every_importance_matrix_is_good(
    name: str, mix: str, tmp_path: Path, f32: Path, asked: VerifyOptions
) -> None:
    for pure in (False, True):
        assert alarms_of(TINY, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name, mix=mix, pure=pure)) == []
    for kind in IMPORTANCE_KINDS:
        matrix = write_importance(tmp_path / f"{kind}.gguf", kind, f32)
        options = ConversionOptions(file_type=name, mix=mix, imatrix=matrix)
        assert alarms_of(TINY, tmp_path / "a.gguf", asked, options) == [], kind


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNBEARABLE])
def test_weights_of_every_kind_are_good(family: str, tmp_path: Path, asked: VerifyOptions) -> None:
    folder = tiny_with(tmp_path / "model", FAMILIES[family])
    for name in ONE_OF_EACH:
        assert alarms_of(folder, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name)) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("family", UNBEARABLE)
def test_a_model_that_bears_no_rounding_has_no_wrong_weights(family: str, tmp_path: Path, asked: VerifyOptions) -> None:
    folder = tiny_with(tmp_path / "model", FAMILIES[family])
    for name in set(ONE_OF_EACH) - {"F16"}:  # in which heavy tails do not fit
        convert(folder, tmp_path / "a.gguf", ConversionOptions(file_type=name), force=True)
        outcome = verify(folder, tmp_path / "a.gguf", asked)
        assert [error.part for error in outcome.outcome.tensors if not error.good] == [], name


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_models_of_every_shape_are_good(shape: Shape, tmp_path: Path, asked: VerifyOptions) -> None:
    folder = random_checkpoint(tmp_path / "model", shape)
    for name in ("F32", "Q8_0", "Q6_K", "Q4_K_M"):
        assert alarms_of(folder, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name)) == [], name


@pytest.mark.slow
def test_a_model_of_many_layers_is_good(tmp_path: Path, asked: VerifyOptions) -> None:
    folder = random_checkpoint(tmp_path / "model", Shape(layers=17))
    for name in ("BF16", "Q8_0", "Q6_K", "Q4_K_M"):
        assert alarms_of(folder, tmp_path / "a.gguf", asked, ConversionOptions(file_type=name)) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OLDER_TYPES, "MOSTLY_Q8_0", "MOSTLY_Q6_K", "MOSTLY_Q4_K_M", "MOSTLY_Q2_K"])
def test_what_real_llama_quantize_writes_is_good(
    name: str, tmp_path: Path, engine: LlamaQuantize, f32: Path, asked: VerifyOptions
) -> None:
    for kind in (None, "log-normal", "with zeros", MEASURED):
        matrix = read_imatrix(write_importance(tmp_path / f"{kind}.gguf", kind, f32)).weights if kind else {}
        for pure in (False, True):
            settings = Settings(LlamaFileType[name], pure=pure, importance=matrix)
            engine.quantize(f32, tmp_path / "a.gguf", settings)
            assert alarms(verify(TINY, tmp_path / "a.gguf", asked)) == [], kind
