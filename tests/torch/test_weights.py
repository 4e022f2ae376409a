"""Random state of models on PyTorch: which is refused, and which travels with the agent."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from sacref.agent.model_checks import HiddenStateError
from sacref.torch.weights import functional, generators, refuse_draws, refuse_hidden_state


class Noisy(nn.Module):
    """A layer that draws from a generator of its own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.stream = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.stream)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Dropout(0.1),
        lambda: nn.AlphaDropout(0.1),
        lambda: nn.RReLU(),
        lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
        lambda: nn.GRU(3, 4, num_layers=2, dropout=0.1),
    ],
)
def test_layers_that_draw_from_the_global_generator_are_refused(layer: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 3), layer())
    message = r"model 'critic_2' has a \w+ at '1', which draws from torch's global generator: use sacref\.torch\.models\.Dropout"
    with pytest.raises(ValueError, match=message):
        refuse_hidden_state("critic_2", model)


def test_layers_that_draw_nothing_are_allowed() -> None:
    refuse_hidden_state("policy", nn.Sequential(nn.GRU(3, 4, num_layers=2), nn.MultiheadAttention(4, 2), nn.LayerNorm(4), Noisy(0)))


def test_operations_that_draw_from_the_global_generator_are_refused_while_they_run() -> None:
    x, cell, noisy = torch.zeros(1, 2, 4), nn.GRU(4, 4, num_layers=2), Noisy(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    draws: tuple[Callable[[], Tensor], ...] = (
        lambda: torch.nn.functional.dropout(x, 0.1),
        lambda: torch.randn_like(x),
        lambda: x.bernoulli_(0.5),
    )
    with refuse_draws(), torch.no_grad():
        cell(x)
        attention(x, x, x, need_weights=False)
        noisy(x)
        for draw in draws:
            with pytest.raises(HiddenStateError, match=r"calls aten\.\S+, which draws from torch's global generator, expected draws from"):
                draw()
    torch.randn_like(x)


def test_the_generators_of_a_model_are_found_by_their_paths() -> None:
    noisy = Noisy(1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(noisy, Noisy(2)))
    found = generators(model)
    assert {path: generator.initial_seed() for path, generator in found.items()} == {"1.0.stream": 1, "1.1.stream": 2}
    assert list(generators(Noisy(3))) == ["stream"]
    # They are the model's own: what is set in them is what the next call draws.
    state = found["1.0.stream"].get_state()
    x = torch.zeros(1, 3)
    first = noisy(x)
    assert not torch.equal(noisy(x), first)
    found["1.0.stream"].set_state(state)
    assert torch.equal(noisy(x), first)


def test_a_recurrent_layer_leaves_the_parameters_it_is_called_with_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA it would move them, which a graph repeats at each replay: what was learned in between would be lost."""
    model = nn.GRU(3, 4)
    moved: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: moved.append(layer))
    parameters = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    x = torch.zeros(2, 1, 3)
    torch.func.functional_call(model, parameters, (x,))
    assert moved == [model]
    outputs, _ = functional(model)(parameters, x)
    assert moved == [model]
    # All weights and biases 1: h' = (1 - z) tanh(1 + r) + z h with r = z = sigmoid(2).
    gate = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(outputs[0, 0], ((1 - gate) * torch.tanh(1 + gate)).expand(4))
    assert "flatten_parameters" not in vars(model)
