from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from checkpoints import TINY
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType

from phi4conv.cli.convert import convert
from phi4conv.cli.inspect import inspect, parameters
from phi4conv.gguf_file import layout
from phi4conv.gguf_file.write import encode_header


@pytest.fixture
def model(tmp_path: Path) -> Path:
    header = encode_header(
        [
            layout.text("general.architecture", "phi3"),
            layout.text("general.name", "\x1b[31mred\nname [bold]"),
            layout.u32("general.file_type", 18),
            layout.u32("phi3.block_count", 40),
            layout.f32("phi3.attention.layer_norm_rms_epsilon", 1e-5),
            layout.text("tokenizer.ggml.model", "gpt2"),
            layout.texts("tokenizer.ggml.tokens", ["a", "<|im_end|>"]),
            layout.u32("tokenizer.ggml.eos_token_id", 1),
            layout.text("tokenizer.chat_template", "{{ messages }}" * 100),
            layout.text("long.value", "0123456789" * 50),
        ],
        [
            ("output.weight", (64, 512), GGMLQuantizationType.Q6_K),
            ("output_norm.weight", (512,), GGMLQuantizationType.F32),
        ],
    )
    path = tmp_path / "phi-4-Q6_K.gguf"
    path.write_bytes(header.data + bytes(header.size_bytes - header.data_offset))
    return path


def run(*arguments: str, columns: int = 80, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": str(columns), **environment}).invoke(inspect, [*arguments])


def test_summary_for_people(model: Path) -> None:
    result = run(str(model))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[:7] == [
        "phi-4-Q6_K.gguf",
        "  format      GGUF version 3, little-endian, aligned to 32 bytes",
        f"  file size   {model.stat().st_size:,} bytes, {model.stat().st_size / 1024:.2f} KiB",
        "  tensors     28.25 KiB (6.95 BPW)",
        "  parameters  33.28 K in 2 tensors",
        "  file type   Q6_K",
        "",
    ]
    for line in [
        "  block_count                       40",
        "  attention.layer_norm_rms_epsilon  1e-05",
        "  eos            1  <|im_end|>",
        "  chat template  1,400 characters",
        "  type  tensors  weights       size",
        "  Q6_K        1   32,768  26.25 KiB",
        "  F32         1      512   2.00 KiB",
        "no defects in the format",
    ]:
        assert line in result.output.splitlines()


@pytest.mark.parametrize("columns", [0, 80])
def test_what_is_piped_has_no_colour_and_is_neither_wrapped_nor_cut(model: Path, columns: int) -> None:
    lines = run(str(model), columns=columns).output.splitlines()
    assert "\x1b" not in "".join(lines)
    assert "  long.value  " + "0123456789" * 50 in lines


def on_a_terminal(*arguments: str, columns: int, **environment: str) -> str:
    """What inspect prints on a terminal of so many columns."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    variables = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "TERM"}}
    command = [sys.executable, "-m", "phi4conv", "inspect", *arguments]
    with subprocess.Popen(command, stdout=other, env={**variables, **environment}) as process:
        os.close(other)
        parts = []
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while part := os.read(main, 4096):
                parts.append(part)
    os.close(main)
    assert process.returncode == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "environment", "width"),
    [(80, {}, 80), (100, {}, 100), (80, {"COLUMNS": "60"}, 60), (90, {"COLUMNS": "0"}, 90), (0, {"COLUMNS": "0"}, 80)],
)
def test_lines_are_cut_to_the_terminal(model: Path, columns: int, environment: dict[str, str], width: int) -> None:
    lines = on_a_terminal(str(model), columns=columns, NO_COLOR="1", **environment).splitlines()
    assert max(map(len, lines)) == width
    assert "  long.value  " + ("0123456789" * 50)[: width - 15] + "…" in lines


def test_colours_are_for_terminals_that_want_them(model: Path) -> None:
    assert "\x1b[1mno defects in the format\x1b[0m" in on_a_terminal(str(model), columns=80)
    assert "\x1b" not in on_a_terminal(str(model), columns=80, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(str(model), columns=80, TERM="dumb")


def test_text_of_the_file_reaches_no_terminal_as_an_order(model: Path) -> None:
    output = run(str(model), FORCE_COLOR="1").output
    assert "\x1b[1m" in output  # headings are bold
    assert r"\x1b[31mred\nname [bold]" in output


def test_a_header_of_many_keys_and_a_long_text_takes_a_moment(tmp_path: Path) -> None:
    pairs = [layout.u32(f"key.{number}", number) for number in range(50_000)]
    header = encode_header([*pairs, layout.text("long." + "k" * 60_000, "line\n" * 2_000_000)], [])
    path = tmp_path / "large.gguf"
    path.write_bytes(header.data)
    started = time.process_time()
    result = run(str(path))
    assert time.process_time() - started < 3
    assert result.exit_code == 0
    assert "  key.49999" in result.output
    assert len(result.output) < 20_000_000  # one long key does not widen every row


def test_json_is_one_document(model: Path) -> None:
    result = run(str(model), "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["schema"], document["command"]) == ("phi4conv.inspect/1", "inspect")
    assert document["metadata"]["general.name"] == {"type": "STRING", "value": "\x1b[31mred\nname [bold]"}
    assert [entry["name"] for entry in document["tensors"]] == ["output.weight", "output_norm.weight"]
    assert result.stderr == ""


def test_convert_shows_metadata_in_the_same_form(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    converted = CliRunner().invoke(convert, [str(TINY), str(path), "--vocab-only", "--json"])
    assert converted.exit_code == 0, converted.output
    metadata = json.loads(run(str(path), "--json").stdout)["metadata"]
    assert json.loads(converted.stdout)["metadata"] == metadata
    assert metadata["tokenizer.ggml.tokens"]["length"] == 1024
    assert len(metadata["tokenizer.ggml.tokens"]["first"]) == 8


def test_quiet_still_shows_the_result(model: Path) -> None:
    assert run(str(model), "--quiet").output == run(str(model)).output


def test_defects_are_listed_and_do_not_change_the_exit_code(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    result = run(str(model))
    assert result.exit_code == 0
    lines = result.output.splitlines()
    start = lines.index("1 defect in the format")
    assert lines[start + 1].startswith("  truncated-data  output_norm.weight (byte ")
    assert "1 of 2 tensors are cut or missing" in lines[start + 2]
    defects = json.loads(run(str(model), "--json").stdout)["defects"]
    assert [defect["code"] for defect in defects] == ["truncated-data"]


def test_a_header_that_was_cut_is_said_to_be_incomplete(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:120])
    result = run(str(model))
    assert result.exit_code == 0
    assert "  header     incomplete: only what could be read is shown" in result.output.splitlines()


def test_no_gguf_gives_2(tmp_path: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<!DOCTYPE html>")
    result = run(str(path))
    assert result.exit_code == 2
    assert "not a GGUF file" in result.stderr
    assert "a web page" in result.stderr
    assert result.stdout == ""


def test_parameters_in_llama_cpp_units() -> None:
    assert [parameters(count) for count in (999, 10**6, 10**9, 10**12)] == ["1.00 K", "1.00 M", "1.00 B", "1.00 T"]
