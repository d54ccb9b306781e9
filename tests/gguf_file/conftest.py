from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from phi4conv.gguf_file.layout import GGUFFile
from phi4conv.gguf_file.read import read_gguf


@pytest.fixture(scope="session")
def read_bytes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], GGUFFile]:
    """Reads bytes as a file. For the whole session, so that hypothesis may call it many times in one test."""
    path = tmp_path_factory.mktemp("gguf") / "file.gguf"

    def read(data: bytes) -> GGUFFile:
        path.write_bytes(data)
        return read_gguf(path)

    return read


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published files that cannot be copied into the project, in a folder beside the checkout."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder shared/data beside the checkout")
    return folder
