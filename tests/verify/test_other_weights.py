"""A file that was quantized from slightly other weights, as of a fine-tune, is told from a good one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from good_files import good_file, good_weights
from weight_files import write_weight_file

from phi4conv.check.model import Severity
from phi4conv.verify import VerifyOptions, verify
from phi4conv.verify.prompts import PromptOptions

pytest.importorskip("torch", reason="verify runs models with torch")

ASKED = VerifyOptions(asked=PromptOptions(prompts=("Tell me a joke.",)))


@pytest.mark.parametrize("size", [0.005, 0.01])
@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q4_K_M"])
def test_a_small_low_rank_change_of_all_matrices_is_noticed(kind: str, size: float, tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    good, file = good_file(kind), good_weights(kind)
    for name, weights in file.exact.items():
        if name.startswith("blk.") and "norm" not in name:
            rows, width = weights.shape
            change = generator.standard_normal((rows, 4)) @ generator.standard_normal((4, width))
            scale = size * np.linalg.norm(weights) / np.linalg.norm(change)
            file = file.with_values(name, (weights + scale * change).astype(np.float32))
    outcome = verify(good.folder, write_weight_file(tmp_path / "other.gguf", file.pairs.values(), file.tensors), ASKED)
    assert outcome.findings
    if outcome.is_right:
        (finding,) = outcome.findings
        assert (finding.severity, finding.code) == (Severity.WARN, "moved-codes")
