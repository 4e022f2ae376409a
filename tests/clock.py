"""Time that passes where a test says so: what is measured then does not depend on how busy the machine is."""

import time

import pytest


class Clock:
    """Stands in for the clocks of `time`, and for its `sleep`."""

    now = 0.0
    cpu = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass in which this process does nothing."""
        self.now += seconds

    def work(self, seconds: float) -> None:
        """Let time pass in which it computes."""
        self.now += seconds
        self.cpu += seconds

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu)
        monkeypatch.setattr(time, "sleep", self.sleep)
