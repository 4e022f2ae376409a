"""Gradient steps as CUDA graphs: the host launches draw and step together, once for each step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sacref.algorithm.tree import Tree, map_leaves
from sacref.torch.optim import State


def capture_on_cuda(
    function: Callable[[], Tensor], generators: Sequence[torch.Generator], warm_up: Callable[[], None]
) -> Callable[[], Tensor]:
    """Capture `function` as a CUDA graph, after `warm_up` on the same stream; the result replays it.

    Registered generators go on from replay to replay.
    """
    device = generators[0].device
    # All of it: a graph keeps the states of generators on the device that is current when they are registered.
    with torch.cuda.device(device):
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
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = function()

    def replay() -> Tensor:
        with torch.cuda.device(device):  # whose current stream it is launched on
            graph.replay()
        return output

    return replay


class Captured:
    """Draw and step as one graph on the device.

    Args:
        draw_and_step: `(state, memory, moments, streams) -> metrics`. It writes into the state. In a population the others are tuples.
        generators: those that it draws from beside the streams.
    """

    WARM_UP = 3
    """Calls before the capture, on copies: libraries allocate their workspaces in the first ones."""

    def __init__(self, draw_and_step: Callable[[State, Tree, Tree, Tree], Tensor], generators: tuple[torch.Generator, ...] = ()) -> None:
        self.draw_and_step = draw_and_step
        self.generators = generators
        self._captured_of: list[Tree] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, state: State, memory: Tree, moments: Tree, streams: Tree) -> Tensor:
        given = [state, *_each(memory), *_each(moments)]
        if self._replay is None or any(a is not b for a, b in zip(given, self._captured_of, strict=True)):
            self._replay = capture_on_cuda(
                lambda: self.draw_and_step(state, memory, moments, streams),
                self._drawn_from(streams),
                lambda: self._warm_up(state, memory, moments, streams),
            )
            self._captured_of = given
        return self._replay().clone()

    def _drawn_from(self, streams: object) -> tuple[torch.Generator, ...]:
        return (*(generator for each in _each(streams) for generator in (each.noise, each.sampling)), *self.generators)

    def _warm_up(self, state: State, memory: object, moments: object, streams: object) -> None:
        generators = self._drawn_from(streams)
        before = [generator.get_state() for generator in generators]
        copied = map_leaves(torch.clone, state)
        for _ in range(self.WARM_UP):
            self.draw_and_step(copied, memory, moments, streams)
        for generator, state_before in zip(generators, before, strict=True):
            generator.set_state(state_before)


def _each(given: object) -> tuple[Tree, ...]:
    """Return what each member of a population gave, or the one agent."""
    return given if type(given) is tuple else (given,)
