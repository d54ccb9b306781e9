from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from phi4conv.gguf_file import layout
from phi4conv.gguf_file.layout import Defect, GGUFFile, InnerArray, MetadataPair, TensorEntry
from phi4conv.gguf_file.read import read_gguf
from phi4conv.gguf_file.write import encode_header
from phi4conv.inspect import (
    Inspection,
    SpecialToken,
    TensorTypeSummary,
    as_document,
    shown_value,
    summarise,
)

F32, Q4_K, Q5_K, Q6_K = (
    GGMLQuantizationType.F32,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q5_K,
    GGMLQuantizationType.Q6_K,
)


def inspected(
    *pairs: MetadataPair, tensors: tuple[TensorEntry, ...] = (), defects: tuple[Defect, ...] = ()
) -> Inspection:
    file = GGUFFile(
        path=Path("a.gguf"),
        version=3,
        byte_order="little",
        alignment=32,
        metadata={pair.key: pair for pair in pairs},
        tensors=tensors,
        data_offset=64,
        file_size=128,
        defects=defects,
        header_complete=True,
    )
    return summarise(file)


def phi4_tensors() -> tuple[TensorEntry, ...]:
    """Phi-4 in the Q4_K_M mix that llama.cpp made until February 2026."""
    tensors = [("token_embd", (100352, 5120), Q4_K), ("output", (100352, 5120), Q6_K), ("output_norm", (5120,), F32)]
    for layer in range(40):
        more_bits = layer < 5 or layer >= 35 or (layer - 5) % 3 == 2
        tensors += [
            (f"blk.{layer}.attn_norm", (5120,), F32),
            (f"blk.{layer}.ffn_norm", (5120,), F32),
            (f"blk.{layer}.attn_qkv", (7680, 5120), Q5_K),
            (f"blk.{layer}.attn_output", (5120, 5120), Q4_K),
            (f"blk.{layer}.ffn_up", (35840, 5120), Q4_K),
            (f"blk.{layer}.ffn_down", (5120, 17920), Q6_K if more_bits else Q4_K),
        ]
    return encode_header([], [(f"{name}.weight", shape, qtype) for name, shape, qtype in tensors]).tensors


def test_figures_are_those_that_llama_cpp_prints() -> None:
    # From published load logs: 243 tensors, 14.66 B parameters, 8.43 GiB (4.94 BPW).
    inspection = inspected(tensors=phi4_tensors())
    counts = {kind.name: kind.tensor_count for kind in inspection.tensor_types}
    assert counts == {"Q4_K": 101, "Q5_K": 40, "Q6_K": 21, "F32": 81}
    assert round(inspection.weight_count / 1e9, 2) == 14.66
    assert round(inspection.tensor_bytes / 2**30, 2) == 8.43
    assert inspection.bits_per_weight is not None
    assert round(inspection.bits_per_weight, 2) == 4.94


def test_tensors_are_grouped_by_type_largest_first() -> None:
    inspection = inspected(
        tensors=(
            TensorEntry("a", (8,), F32, 0),
            TensorEntry("b", (2, 256), Q6_K, 32),
            TensorEntry("c", (8,), F32, 480),
            TensorEntry("d", (8,), 999, 512),
        )
    )
    assert inspection.tensor_types == (
        TensorTypeSummary("Q6_K", 1, 512, 420),
        TensorTypeSummary("F32", 2, 16, 64),
        TensorTypeSummary("type 999", 1, 8, 0),
    )


def test_without_tensors_there_are_no_bits_per_weight() -> None:
    assert inspected().bits_per_weight is None
    assert inspected().vocabulary is None
    assert inspected().file_type is None


def test_metadata_are_sorted_into_groups() -> None:
    inspection = inspected(
        layout.text("general.architecture", "phi3"),
        layout.u32("general.file_type", 15),
        layout.u32("phi3.block_count", 40),
        layout.text("tokenizer.ggml.model", "gpt2"),
        layout.f32s("tokenizer.ggml.scores", [0.0]),
        layout.u32("phi33.block_count", 1),
    )
    assert inspection.file_type == "Q4_K_M"
    assert [pair.key for pair in inspection.general] == ["general.architecture", "general.file_type"]
    assert [pair.key for pair in inspection.hyperparameters] == ["phi3.block_count"]
    assert [pair.key for pair in inspection.other] == ["tokenizer.ggml.scores", "phi33.block_count"]


def test_vocabulary() -> None:
    vocabulary = inspected(
        layout.text("tokenizer.ggml.model", "gpt2"),
        layout.text("tokenizer.ggml.pre", "dbrx"),
        layout.texts("tokenizer.ggml.tokens", ["a", "b", "ab", "<|x|>"]),
        layout.i32s("tokenizer.ggml.token_type", [1, 1, 9, 3]),
        layout.texts("tokenizer.ggml.merges", ["a b"]),
        layout.u32("tokenizer.ggml.eos_token_id", 3),
        layout.u32("tokenizer.ggml.padding_token_id", 4),
        layout.i32("tokenizer.ggml.bos_token_id", -1),
        layout.boolean("tokenizer.ggml.add_bos_token", False),
        layout.text("tokenizer.chat_template", "{{ x }}"),
        layout.text("tokenizer.chat_template.tool_use", "{{ y }}"),
    ).vocabulary
    assert vocabulary is not None
    assert (vocabulary.model, vocabulary.pre, vocabulary.token_count, vocabulary.merge_count) == ("gpt2", "dbrx", 4, 1)
    assert vocabulary.token_types == {"NORMAL": 2, "CONTROL": 1, "type 9": 1}
    assert vocabulary.special == (
        SpecialToken("eos", 3, "<|x|>"),
        SpecialToken("padding", 4, None),
        SpecialToken("bos", -1, None),
    )
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, None)
    assert (vocabulary.chat_template_length, vocabulary.extra_templates) == (7, ("tool_use",))


@pytest.mark.parametrize(
    ("pair", "shown"),
    [
        (layout.boolean("k", True), "true"),
        (layout.u32("k", 16384), "16384"),
        (layout.f32("k", 0.1), "0.1"),
        (MetadataPair("k", GGUFValueType.FLOAT64, 0.1), "0.1"),
        (layout.text("k", ""), ""),
        (layout.i32s("k", range(1000)), "[1,000] 0, 1, 2, 3, 4, 5, 6, 7, …"),
        (
            MetadataPair("k", GGUFValueType.ARRAY, [InnerArray(GGUFValueType.INT32, [1, 2])], GGUFValueType.ARRAY),
            "[1] [2]",
        ),
    ],
)
def test_values_for_people(pair: MetadataPair, shown: str) -> None:
    assert shown_value(pair) == shown


def test_document_is_json_whatever_the_file_holds() -> None:
    inspection = inspected(
        layout.text("k\udcff", "\udcff"),
        layout.f32("nan", float("nan")),
        layout.f32s("infinite", [float("inf"), float("-inf")]),
        layout.texts("many", [str(number) for number in range(100)]),
        MetadataPair("deep", GGUFValueType.ARRAY, [InnerArray(GGUFValueType.INT32, [1, 2])], GGUFValueType.ARRAY),
        tensors=(TensorEntry("t", (2, 256), Q6_K, 32),),
        defects=(Defect("gap", "12 unused bytes", "t", 96),),
    )
    document = json.loads(json.dumps(as_document(inspection), allow_nan=False, ensure_ascii=False).encode("utf-8"))
    assert document["metadata"] == {
        "k\ufffd": {"type": "STRING", "value": "\ufffd"},
        "nan": {"type": "FLOAT32", "value": "nan"},
        "infinite": {"type": "ARRAY", "item_type": "FLOAT32", "length": 2, "value": ["inf", "-inf"]},
        "many": {"type": "ARRAY", "item_type": "STRING", "length": 100, "first": list("01234567")},
        "deep": {
            "type": "ARRAY",
            "item_type": "ARRAY",
            "length": 1,
            "value": [{"item_type": "INT32", "length": 2, "first": [1, 2]}],
        },
    }
    assert document["tensors"] == [{"name": "t", "shape": [2, 256], "type": "Q6_K", "offset": 32, "size_bytes": 420}]
    assert document["defects"] == [{"code": "gap", "message": "12 unused bytes", "where": "t", "offset": 96}]


def test_document_of_a_file_read_from_disk(tmp_path: Path) -> None:
    header = encode_header(
        [
            layout.text("tokenizer.ggml.model", "gpt2"),
            layout.texts("tokenizer.ggml.tokens", ["a", "b"]),
            layout.i32s("tokenizer.ggml.token_type", [1, 3]),
        ],
        [("t", (2, 256), Q6_K)],
    )
    path = tmp_path / "file.gguf"
    path.write_bytes(header.data + bytes(448))
    document = as_document(summarise(read_gguf(path)))
    assert json.loads(json.dumps(document)) == document
    assert document["file"] == str(path)
    assert (document["weights"], document["tensor_bytes"], document["bits_per_weight"]) == (512, 420, 6.5625)
    assert document["metadata"]["tokenizer.ggml.tokens"]["value"] == ["a", "b"]
    assert document["vocabulary"]["token_types"] == {"NORMAL": 1, "CONTROL": 1}
    assert document["defects"] == []
