"""How large a layer's own error may be, given what the types of its tensors cost."""

from __future__ import annotations

import math
from collections.abc import Iterable

from phi4conv.reference.tensor_error import PartError

# A layer's own error is at most so many times the root of the sum of its parts' squared relative errors. On good files
# of all types it was 0.3 to 0.45 times that for trained weights, and 1.2 times for random ones (docs/verify.md).
MARGIN = 2.0

# What float32 arithmetic in another order makes of equal weights, with room: 1e-6 was measured.
ROUNDING = 1e-4


def explained_error(errors: Iterable[PartError]) -> float:
    """The most that a layer's own error may be, relative to what the layer adds."""
    return ROUNDING + MARGIN * math.sqrt(sum(error.expected_relative**2 for error in errors))
