"""What the machine offers, as the system tells it."""

from __future__ import annotations

from phi4conv.machine import available_memory


def test_available_memory_is_read_from_the_system() -> None:
    assert 1 << 20 < available_memory() < 1 << 50
