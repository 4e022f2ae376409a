"""A function in several threads at once, which must all end."""

import threading
from collections.abc import Callable


def in_threads(count: int, function: Callable[[int], None], seconds: float) -> None:
    """Call `function` with each number below `count`, in a thread each; one that has not ended after so many seconds fails the test."""
    threads = [threading.Thread(target=function, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads)
