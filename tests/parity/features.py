"""One problem per feature of the update, small: what the oracle is held against by the tests, and the backends against the oracle."""

from dataclasses import replace

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
RECURRENT = replace(PLAIN, hidden=(16,), recurrent="gru", recurrent_size=6, sequence_length=5, burn_in=3)
FEATURES = {
    "states, dict observations": replace(PLAIN, states=3, dict_observations=True),
    "n-step, mask": replace(PLAIN, n_step=3, masked=True),
    "layer norm, dropout, subset, mean": replace(PLAIN, layer_norm=True, dropout=0.1, critics=3, target_subset=2, policy_value="mean"),
    "policy delay, warm-up, piecewise, linear": replace(
        PLAIN,
        policy_delay=3,
        schedule=("warm_up", "piecewise", "linear"),
        schedule_kwargs=({"steps": 7}, {"boundaries": (4, 50), "factors": (1.0, 0.5, 2.0)}, {"steps": 60, "end": 0.25}),
    ),
    "adaptive, cosine, exponential": replace(
        PLAIN,
        schedule=("kl_adaptive", "cosine", "exponential"),
        schedule_kwargs=({"kl_threshold": 4e-4}, {"steps": 80, "end": 0.1}, {"decay": 0.98}),
    ),
    "simba": replace(PLAIN, network="simba", hidden=(8,), critic_hidden=(12, 12)),
    "rnn": replace(RECURRENT, recurrent="rnn"),
    "gru": RECURRENT,
    "recurrent with everything": replace(
        RECURRENT,
        recurrent="lstm",
        states=4,
        dict_observations=True,
        target_subset=1,
        policy_value="mean",
        policy_delay=2,
        layer_norm=True,
        dropout=0.1,
        grad_norm_clip=0.5,
        feed_previous=("actions", "rewards"),
        schedule=("kl_adaptive", "cosine", "linear"),
        schedule_kwargs=({"kl_threshold": 4e-4}, {"steps": 100, "end": 0.1}, {"steps": 100, "end": 0.1}),
    ),
}
"""What both backends are held to: few, since JAX compiles each."""
ALONE = {
    "states": replace(PLAIN, states=7),
    "dict observations": replace(PLAIN, dict_observations=True),
    "n-step": replace(PLAIN, n_step=3),
    "mask": replace(PLAIN, masked=True),
    "subset of five critics": replace(PLAIN, critics=5, target_subset=2),
    "mean of three critics": replace(PLAIN, critics=3, policy_value="mean"),
    "layer norm": replace(PLAIN, layer_norm=True),
    "dropout": replace(PLAIN, dropout=0.3),
    "critics of their own widths": replace(PLAIN, critic_hidden=(7, 9, 5), dropout=0.3),
    "simba above a cell": replace(RECURRENT, network="simba", hidden=(8, 8)),
    "policy delay": replace(PLAIN, policy_delay=3),
    "clipped": replace(PLAIN, grad_norm_clip=0.2),
    "fixed temperature": replace(PLAIN, learn_entropy=False),
    "adaptive rates": replace(
        PLAIN,
        schedule=("kl_adaptive", "kl_adaptive", "kl_adaptive"),
        schedule_kwargs=({"kl_threshold": 4e-4}, {"kl_threshold": 5e-4}, {"kl_threshold": 1e-3}),
    ),
    "lstm": replace(RECURRENT, recurrent="lstm"),
    "fed rewards": replace(RECURRENT, feed_previous=("actions", "rewards")),
    "fed nothing": replace(RECURRENT, feed_previous=()),
}
"""What the oracle is held to beside them."""
