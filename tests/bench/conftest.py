"""What the tests of the benchmarks share."""

import pytest

from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """In the place of the clocks of this process, for the length of the test."""
    clock = Clock()
    clock.install(monkeypatch)
    return clock
