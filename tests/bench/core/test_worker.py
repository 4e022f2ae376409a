"""The worker's end of a pipe: it answers until there are no more requests, or nobody to answer."""

import signal
from multiprocessing import Pipe

import pytest

from bench.core.worker import serve


@pytest.fixture(autouse=True)
def interrupts_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


def test_a_worker_ends_without_a_word_when_its_suite_was_stopped_meanwhile() -> None:
    here, there = Pipe()

    class Slow:
        def twice(self, number: int) -> int:
            if number == 2:
                here.close()
            return 2 * number

        def forget(self) -> None: ...

    here.send(("twice", 1))
    here.send(("twice", 2))
    assert isinstance(serve(there, Slow), Slow)
    there.close()
