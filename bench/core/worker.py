"""The worker's end of a pipe: it calls the methods that the suite asks for."""

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol, TypeVar

from bench.core import runner


class DoesNotFit(NamedTuple):
    """The answer where a size needs more memory than there is."""


class Worker(Protocol):
    """An object whose methods a suite calls."""

    def forget(self) -> None:
        """Free the agents and the allocations of their sizes."""


WorkerT = TypeVar("WorkerT", bound=Worker)


def serve(connection: Connection, make: Callable[[], WorkerT]) -> WorkerT:
    """Answer requests, each the name of a method with its arguments, until there are no more.

    Args:
        connection: to the suite.
        make: makes the worker, in this process, since it loads the libraries.

    Returns:
        The worker.
    """
    # Ctrl-C is for the suite: it closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = make()
    while True:
        try:
            method, *arguments = connection.recv()
        except EOFError:
            return worker
        try:
            answer = getattr(worker, method)(*arguments)
        except Exception as error:
            if not runner.does_not_fit(error):
                raise
            answer = DoesNotFit()
        # Outside of the handler, whose error holds what did not fit.
        if isinstance(answer, DoesNotFit):
            worker.forget()
        try:
            connection.send(answer)
        except BrokenPipeError:  # the suite was stopped meanwhile
            return worker
