"""What the actor sees of the critics, against numbers by hand."""

from typing import TYPE_CHECKING

import numpy as np

from sacref.spec.losses import actor_loss
from sacref.spec.policy_value import POLICY_VALUES

if TYPE_CHECKING:
    from tests.conftest import Backend

Q = np.array([[1.0, -2.0], [4.0, 6.0], [1.0, 2.0]])


def test_min_shows_all_values_and_mean_their_mean_as_that_of_one_critic(xp: "Backend") -> None:
    shown = {name: xp.numpy(show(xp.asarray(Q))) for name, show in POLICY_VALUES.items()}
    assert shown.keys() == {"min", "mean"}
    np.testing.assert_array_equal(shown["min"], Q)
    np.testing.assert_array_equal(shown["mean"], [[2.0, 2.0]])


def test_the_actor_is_judged_by_the_smallest_value_or_by_the_mean(xp: "Backend") -> None:
    nothing = xp.asarray(np.zeros(2))
    losses = {name: xp.numpy(actor_loss(show(xp.asarray(Q)), nothing, xp.asarray(0.0))) for name, show in POLICY_VALUES.items()}
    np.testing.assert_array_equal(losses["min"], [-1.0, 2.0])
    np.testing.assert_array_equal(losses["mean"], [-2.0, -2.0])
