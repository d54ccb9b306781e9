"""phi4conv quantize as a user meets it, and --imatrix in both commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY
from programs import phi4conv

from phi4conv.imatrix import ImportanceMatrix, write_imatrix


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny-BF16.gguf"
    assert phi4conv("convert", TINY, path).returncode == 0
    return path


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Entries for two matrices of the first layer, and one of no tensor."""
    path = tmp_path_factory.mktemp("imatrix") / "im.gguf"
    names = ("blk.0.attn_qkv.weight", "blk.0.ffn_up.weight", "blk.99.ffn_up.weight")
    weights = {name: np.linspace(1, 2, 256, dtype=np.float32) for name in names}
    write_imatrix(ImportanceMatrix(path, weights, ("calibration.txt",), 4))
    return path


def test_the_name_says_the_type_and_the_summary_what_was_written(tmp_path: Path, source: Path) -> None:
    finished = phi4conv("quantize", source, tmp_path / "tiny-Q8_0.gguf")
    assert (finished.returncode, finished.stderr) == (0, "")
    for words in ("tiny-Q8_0.gguf", "27 tensors: 18 Q8_0, 9 F32", "2.83 MiB", "8.52 bits per weight"):
        assert words in finished.stdout
    assert "importance" not in finished.stdout


def test_a_type_must_be_chosen(tmp_path: Path, source: Path) -> None:
    finished = phi4conv("quantize", source, tmp_path / "out.gguf")
    assert finished.returncode == 2
    assert "--type is missing, and the name out.gguf says none" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_option_is_a_json_document_too(tmp_path: Path, source: Path) -> None:
    for arguments in (["--type", "Q9"], ["--tensor-type", "ffn"], ["--imatrix", "none.dat", "--type", "Q2_K"], []):
        finished = phi4conv("quantize", source, tmp_path / "out.gguf", *arguments, "--json")
        assert finished.returncode == 2
        document = json.loads(finished.stdout)
        assert document["schema"] == "phi4conv.error/1"
        assert len(document["error"]["problems"]) == 1


def test_json_is_one_document_and_nothing_else(tmp_path: Path, source: Path, imatrix: Path) -> None:
    finished = phi4conv("quantize", source, tmp_path / "tiny-Q4_K_M.gguf", "--imatrix", imatrix, "--json")
    document = json.loads(finished.stdout)
    assert (document["schema"], document["command"]) == ("phi4conv.quantize/1", "quantize")
    assert document["dry_run"] is False
    assert document["size_bytes"] == (tmp_path / "tiny-Q4_K_M.gguf").stat().st_size
    with_importance = [tensor["name"] for tensor in document["tensors"] if tensor["importance"]]
    assert with_importance == ["blk.0.attn_qkv.weight", "blk.0.ffn_up.weight"]
    assert document["metadata"]["quantize.imatrix.file"] == {"type": "STRING", "value": "im.gguf"}
    assert len(document["warnings"]) == 2


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_dry_run_shows_the_plan_and_writes_nothing(tmp_path: Path, source: Path, imatrix: Path, command: str) -> None:
    model = TINY if command == "convert" else source
    arguments = (command, model, tmp_path / "out.gguf", "--type", "q4_k_m", "--imatrix", imatrix, "--dry-run")
    finished = phi4conv(*arguments)
    lines = finished.stdout.splitlines()
    assert finished.returncode == 0
    assert len(lines) == 28
    assert lines[0].startswith("output.weight")
    assert lines[-1].endswith("importance for 2 tensors")
    assert "no entry for 14 tensors" in finished.stderr
    assert "match no tensor of this model: 1 tensor (blk.99.ffn_up.weight)" in finished.stderr
    assert json.loads(phi4conv(*arguments, "--json").stdout)["schema"] == f"phi4conv.{command}/1"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_the_summary_counts_the_tensors_with_importance(
    tmp_path: Path, source: Path, imatrix: Path, command: str
) -> None:
    model = TINY if command == "convert" else source
    finished = phi4conv(command, model, tmp_path / "tiny-Q6_K.gguf", "--imatrix", imatrix)
    assert finished.returncode == 0
    assert "27 tensors: 18 Q6_K, 9 F32, importance for 2 tensors" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "Q9_X"], "Q9_X"),
        (["--tensor-type", "ffn_down"], "expected REGEX=TYPE"),
        (["--type", "Q8_0", "--tensor-type", "ffn_dwn=F16"], "matches no tensor"),
        (["--type", "Q8_0", "--imatrix", "no-such-file.dat"], "no-such-file.dat"),
        (["--type", "Q8_0", "--imatrix", __file__], "not a usable importance matrix"),
        (["--type", "Q8_0", "--name", "x"], "--name"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, source: Path, arguments: list[str], words: str) -> None:
    finished = phi4conv("quantize", source, tmp_path / "out.gguf", *arguments)
    assert finished.returncode == 2
    assert words in finished.stderr
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_model_given_as_importance_matrix_is_told(tmp_path: Path, source: Path) -> None:
    finished = phi4conv("quantize", source, tmp_path / "tiny-Q4_K_M.gguf", "--imatrix", source)
    assert finished.returncode == 2
    assert "a model, of architecture phi3" in finished.stderr


def test_the_source_is_not_overwritten_and_an_existing_file_only_with_force(tmp_path: Path, source: Path) -> None:
    same = phi4conv("quantize", source, source, "--type", "Q8_0", "--force")
    assert same.returncode == 2
    assert "one of the inputs" in same.stderr
    (tmp_path / "tiny-Q8_0.gguf").write_bytes(b"precious")
    assert "--force" in phi4conv("quantize", source, tmp_path / "tiny-Q8_0.gguf").stderr
    assert (tmp_path / "tiny-Q8_0.gguf").read_bytes() == b"precious"
    assert phi4conv("quantize", source, tmp_path / "tiny-Q8_0.gguf", "--force", "--quiet").returncode == 0


def test_a_checkpoint_instead_of_a_gguf_is_told(tmp_path: Path) -> None:
    finished = phi4conv("quantize", TINY, tmp_path / "tiny-Q8_0.gguf", "--json")
    assert finished.returncode == 2
    assert json.loads(finished.stdout)["schema"] == "phi4conv.error/1"
    assert "a folder" in finished.stderr


def test_quiet_says_nothing(tmp_path: Path, source: Path, imatrix: Path) -> None:
    finished = phi4conv("quantize", source, tmp_path / "out.gguf", "--type", "Q4_K_M", "--imatrix", imatrix, "--quiet")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
