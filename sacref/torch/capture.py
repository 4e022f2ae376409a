"""CUDA graphs: the host launches all that a function does at once."""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from sacref.algorithm.tree import Tree, map_leaves
from sacref.torch.optim import State

_CAPTURING = threading.Lock()
"""Held during a warm-up and its capture: a process may have one under way, and each waits for the whole device before it begins."""


def capture_on_cuda(function: Callable[[], Tree], generators: Sequence[torch.Generator], warm_up: Callable[[], None]) -> Callable[[], Tree]:
    """Capture `function` as a CUDA graph, after `warm_up` on the same stream; the result replays it.

    Registered generators go on from replay to replay, each of which writes into the same results.
    """
    device = generators[0].device
    # All of it: a graph keeps the states of generators on the device that is current when they are registered.
    with _CAPTURING, torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # A stream of the agent's device: torch's default one for captures lies on the device that was current first.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            warm_up()
        torch.cuda.current_stream(device).wait_stream(stream)
        # Of this thread: others may train agents of their own meanwhile.
        with _uncollected(), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = function()

    def replay() -> Tree:
        with torch.cuda.device(device):  # whose current stream it is launched on
            graph.replay()
        return output

    return replay


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect garbage, and none meanwhile: an older agent's graph that is destroyed during a capture would invalidate it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Captured:
    """A function that draws random numbers and writes into its arguments, as one graph on the device.

    Args:
        function: `(state, memory, moments, streams) -> results`. In a population the last three are tuples.
        generators: those that it draws from beside the streams.
        drawn: names of the streams that it draws from.
    """

    WARM_UP = 3
    """Calls before the capture, on copies: libraries allocate their workspaces in the first ones."""

    def __init__(
        self,
        function: Callable[[State, Tree, Tree, Tree], Tree],
        generators: tuple[torch.Generator, ...] = (),
        drawn: Sequence[str] = ("noise", "sampling"),
    ) -> None:
        self.function, self.generators, self.drawn = function, generators, drawn
        self._captured_of: list[Tree] = []
        self._replay: Callable[[], Tree] | None = None

    def __call__(self, state: State, memory: Tree, moments: Tree, streams: Tree) -> Tree:
        """Do what the function does; return copies of its results."""
        replay = self.prepare(state, memory, moments, streams)
        return map_leaves(torch.clone, replay())

    def prepare(self, state: State, memory: Tree, moments: Tree, streams: Tree) -> Callable[[], Tree]:
        """Capture the function where that was not done of these very arguments; return what replays it."""
        given = [state, *_each(memory), *_each(moments)]
        if self._replay is None or any(a is not b for a, b in zip(given, self._captured_of, strict=True)):
            self._replay = capture_on_cuda(
                lambda: self.function(state, memory, moments, streams),
                self._drawn_from(streams),
                lambda: self._warm_up(state, memory, moments, streams),
            )
            self._captured_of = given
        return self._replay

    def _drawn_from(self, streams: object) -> tuple[torch.Generator, ...]:
        return (*(getattr(each, name) for each in _each(streams) for name in self.drawn), *self.generators)

    def _warm_up(self, state: State, memory: object, moments: object, streams: object) -> None:
        generators = self._drawn_from(streams)
        before = [generator.get_state() for generator in generators]
        copied = map_leaves(torch.clone, state)
        for _ in range(self.WARM_UP):
            self.function(copied, memory, moments, streams)
        for generator, state_before in zip(generators, before, strict=True):
            generator.set_state(state_before)


def _each(given: object) -> tuple[Tree, ...]:
    """Return what each member of a population gave, or the one agent."""
    return given if type(given) is tuple else (given,)
