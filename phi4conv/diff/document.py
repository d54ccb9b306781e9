"""A Difference as the content of the `phi4conv.diff/1` document, made of JSON's types only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from phi4conv.diff import Difference
from phi4conv.diff.tensors import TensorDifference
from phi4conv.diff.values import ArrayDifference, PairDifference
from phi4conv.diff.vocabulary import ListDifference, SpecialDifference, VocabularyDifference
from phi4conv.gguf_file.layout import Defect, GGUFFile, MetadataPair, TensorEntry
from phi4conv.inspect import SpecialToken, json_value, metadata_document


def as_document(difference: Difference) -> dict[str, Any]:
    """Everything that differs, item by item; a side that lacks something has null.

    Bytes that are no UTF-8 appear as U+FFFD; NaN and infinities are strings. Indices, ids and places count from 0,
    lines and columns from 1.
    """
    tensors = difference.tensors
    return {
        "verdict": difference.verdict,
        "equal": difference.equal,
        "one_file": difference.one_file,
        "data_compared": difference.data,
        "a": _file(difference.a, difference.defects_a),
        "b": _file(difference.b, difference.defects_b),
        "container": [{"fact": fact.name, "a": fact.a, "b": fact.b} for fact in difference.container],
        "metadata": [_pair_difference(each) for each in difference.metadata],
        "other_key_order": difference.other_key_order,
        "vocabulary": _vocabulary(difference.vocabulary),
        "tensors": [_tensor_difference(each) for each in tensors.different],
        "tensors_equal": tensors.equal,
        "tensors_not_compared": [{"name": json_value(name), "reason": reason} for name, reason in tensors.unread],
        "other_tensor_order": tensors.other_order,
    }


def _file(file: GGUFFile, own_defects: Iterable[Defect]) -> dict[str, Any]:
    return {
        "file": json_value(str(file.path)),
        "size_bytes": file.file_size,
        "version": file.version,
        "byte_order": file.byte_order,
        "alignment": file.alignment,
        "header_complete": file.header_complete,
        "metadata_keys": len(file.metadata),
        "tensors": len(file.tensors),
        "defects": [_defect(defect) for defect in file.defects],
        "defects_only_here": [_defect(defect) for defect in own_defects],
    }


def _defect(defect: Defect) -> dict[str, Any]:
    return {
        "code": defect.code,
        "message": json_value(defect.message),
        "where": json_value(defect.where),
        "offset": defect.offset,
    }


def _pair_difference(difference: PairDifference) -> dict[str, Any]:
    document = {
        "key": json_value(difference.key),
        "kind": difference.kind,
        "a": _pair(difference.a),
        "b": _pair(difference.b),
    }
    if difference.array is not None:
        document["array"] = _array(difference.array)
    if difference.text is not None:
        text = difference.text
        place = {"position": text.position, "line": text.line, "column": text.column}
        document["text"] = {**place, "a": json_value(text.a), "b": json_value(text.b)}
    return document


def _pair(pair: MetadataPair | None) -> Any:
    return None if pair is None else next(iter(metadata_document([pair]).values()))


def _array(difference: ArrayDifference) -> dict[str, Any]:
    return {
        "length_a": len(difference.a),
        "length_b": len(difference.b),
        "differing": len(difference.indices),
        "items": [
            {"index": item.index, "a": json_value(item.a), "b": json_value(item.b)} for item in difference.items()
        ],
    }


def _vocabulary(difference: VocabularyDifference) -> dict[str, Any]:
    return {
        "tokens": _list(difference.tokens),
        "merges": _list(difference.merges),
        "token_types": [
            {"a": change.a, "b": change.b, "count": len(change.ids), "ids": list(change.ids)}
            for change in difference.types
        ],
        "special": [_special_difference(each) for each in difference.special],
    }


def _list(difference: ListDifference | None) -> dict[str, Any] | None:
    """Counts and texts; the items themselves stand with the key among the metadata."""
    if difference is None:
        return None
    array = difference.array
    return {
        "length_a": len(array.a),
        "length_b": len(array.b),
        "differing": len(array.indices),
        "only_a": [json_value(text) for text in difference.only_a],
        "only_b": [json_value(text) for text in difference.only_b],
    }


def _special_difference(difference: SpecialDifference) -> dict[str, Any]:
    return {"role": json_value(difference.role), "a": _special(difference.a), "b": _special(difference.b)}


def _special(token: SpecialToken | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token.id, "text": json_value(token.text)}


def _tensor_difference(difference: TensorDifference) -> dict[str, Any]:
    return {
        "name": json_value(difference.name),
        "a": _tensor(difference.a),
        "b": _tensor(difference.b),
        "first_byte": difference.first_byte,
    }


def _tensor(entry: TensorEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {"shape": list(entry.shape), "type": entry.type_name, "offset": entry.offset, "size_bytes": entry.size_bytes}
