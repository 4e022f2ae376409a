"""One problem per feature of the update, small: what the oracle is held against by the tests, and the backends against the oracle."""

from dataclasses import replace
from typing import Any

from sacref.parity.drivers import Problem

PLAIN = Problem(
    observation=5,
    action=2,
    hidden=(16, 16),
    batch_size=8,
    replay_size=64,
    initial_entropy_value=0.5,
    learning_rate=(3e-3, 2e-3, 1e-3),
    discount_factor=0.9,
    polyak=0.05,
)
RECURRENT = replace(PLAIN, recurrent="gru", recurrent_size=6, sequence_length=5, burn_in=3)
Kwargs = dict[str, Any]
FACTORS: dict[str, tuple[tuple[str | None, str | None, str | None], tuple[Kwargs, Kwargs, Kwargs]]] = {
    "linear, cosine, exponential": (
        ("linear", "cosine", "exponential"),
        ({"steps": 60, "end": 0.25}, {"steps": 80, "end": 0.1}, {"decay": 0.98}),
    ),
    "warm_up, piecewise, none": (("warm_up", "piecewise", None), ({"steps": 7}, {"boundaries": (4, 50), "factors": (1.0, 0.5, 2.0)}, {})),
    "none, constant, linear": ((None, "constant", "linear"), ({}, {}, {"steps": 40, "end": 0.0})),
}
FEATURES = {
    "states": replace(PLAIN, states=7),
    "dict observations": replace(PLAIN, dict_observations=True),
    "dict observations and states": replace(PLAIN, dict_observations=True, states=3),
    "n-step": replace(PLAIN, n_step=3),
    "subset of five critics": replace(PLAIN, critics=5, target_subset=2),
    "mean of three critics": replace(PLAIN, critics=3, policy_value="mean"),
    "layer norm": replace(PLAIN, layer_norm=True),
    "dropout": replace(PLAIN, dropout=0.3),
    "layer norm and dropout": replace(PLAIN, layer_norm=True, dropout=0.1, critics=3, target_subset=2, policy_value="mean"),
    "policy delay": replace(PLAIN, policy_delay=3),
    "clipped": replace(PLAIN, grad_norm_clip=0.2),
    "fixed temperature": replace(PLAIN, learn_entropy=False),
    "mask": replace(PLAIN, masked=True),
    **{name: replace(PLAIN, schedule=names, schedule_kwargs=kwargs) for name, (names, kwargs) in FACTORS.items()},
    "adaptive rates": replace(
        PLAIN,
        schedule=("kl_adaptive", "kl_adaptive", None),
        schedule_kwargs=({"kl_threshold": 2e-3}, {"kl_threshold": 5e-4}, {}),
        learning_rate=(1e-3, 1e-3, 1e-3),
    ),
    **{kind: replace(RECURRENT, recurrent=kind) for kind in ("rnn", "gru", "lstm")},
    "fed rewards": replace(RECURRENT, feed_previous=("actions", "rewards")),
    "fed nothing": replace(RECURRENT, feed_previous=()),
    "recurrent with everything": replace(
        RECURRENT,
        recurrent="lstm",
        states=4,
        dict_observations=True,
        critics=3,
        target_subset=2,
        policy_value="mean",
        policy_delay=2,
        layer_norm=True,
        dropout=0.1,
        grad_norm_clip=0.5,
        feed_previous=("actions", "rewards"),
        schedule=("kl_adaptive", "cosine", "linear"),
        schedule_kwargs=({"kl_threshold": 2e-3}, {"steps": 100, "end": 0.1}, {"steps": 100, "end": 0.1}),
    ),
}
