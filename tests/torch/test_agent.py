"""Random streams of PyTorch's agents, which are put back whole or not at all."""

import pytest

pytest.importorskip("torch")

import torch

from sacref.torch.agent import _set_state


class HalfSet(torch.Generator):
    """As CUDA's, takes the seed of a state whose offset it refuses."""

    def set_state(self, state: torch.Tensor) -> "HalfSet":
        if state.numel() < self.get_state().numel():
            self.manual_seed(int(state[0]))
            raise RuntimeError("offset must be a multiple of 4")
        super().set_state(state)
        return self


def test_a_generator_that_refuses_a_state_is_as_it_was_before() -> None:
    generator = HalfSet()
    generator.manual_seed(3)
    before = generator.get_state()
    with pytest.raises(ValueError, match=r"none of a cpu generator's \(offset must be a multiple of 4\)"):
        _set_state(generator, torch.tensor([5], dtype=torch.uint8))
    assert torch.equal(generator.get_state(), before)
