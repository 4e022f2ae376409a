"""The three losses of Soft Actor-Critic and the target of the critics. Elements in, elements out.

Nothing here draws, reduces or stops a gradient: the caller passes the noise's result in, takes the mean, and chooses by what
it differentiates. `critic` is a leading axis; `*batch` is `(batch,)` or `(time, batch)`.
"""

from jaxtyping import Float

from sacref.spec.arrays import ArrayT, require_critic_axis, require_one_dtype, require_scalar_or_batch, require_shape


def td_target(
    reward: Float[ArrayT, "*batch"],
    discount: Float[ArrayT, "*batch"],
    next_q: Float[ArrayT, "critic *batch"],
    next_log_prob: Float[ArrayT, "*batch"],
    alpha: Float[ArrayT, "..."],
) -> Float[ArrayT, "*batch"]:
    """Return the soft Bellman target: y = r + discount * (min_critic Q' - alpha log pi').

    Haarnoja et al. 2018b (arXiv:1812.05905), equations 3 and 5, with the minimum over the target critics of Fujimoto et al. 2018
    (arXiv:1802.09477). `discount` is data: gamma (1 - terminated), so a terminated transition is worth its reward, and a
    truncated one bootstraps.

    Args:
        reward: shape `(*batch,)`.
        discount: gamma (1 - terminated), shape `(*batch,)`.
        next_q: target critics at the next observation and a fresh action, shape `(critic, *batch)`.
        next_log_prob: log-density of that action in nats, shape `(*batch,)`.
        alpha: temperature, shape `()` or `(*batch,)`.

    Returns:
        Target, shape `(*batch,)`, in units of return.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the batch shapes differ.
    """
    xp = require_one_dtype("td_target", reward=reward, discount=discount, next_q=next_q, next_log_prob=next_log_prob, alpha=alpha)
    batch = tuple(reward.shape)
    require_shape("td_target", "discount", discount, batch, "*batch, as reward")
    require_critic_axis("td_target", "next_q", next_q, batch, "reward")
    require_shape("td_target", "next_log_prob", next_log_prob, batch, "*batch, as reward")
    require_scalar_or_batch("td_target", "alpha", alpha, batch)
    target: ArrayT = reward + discount * (xp.min(next_q, axis=0) - alpha * next_log_prob)
    return target


def critic_loss(q: Float[ArrayT, "critic *batch"], target: Float[ArrayT, "*batch"]) -> Float[ArrayT, "critic *batch"]:
    """Return half the squared Bellman error of each critic: 1/2 (Q - y)^2.

    Haarnoja et al. 2018b (arXiv:1812.05905), equation 5. The agent takes the mean over the batch and the sum over critics.

    Args:
        q: shape `(critic, *batch)`.
        target: `td_target`, shape `(*batch,)`.

    Returns:
        Loss, shape `(critic, *batch)`.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the batch shapes differ.
    """
    require_one_dtype("critic_loss", q=q, target=target)
    require_critic_axis("critic_loss", "q", q, tuple(target.shape), "target")
    error = q - target[None, ...]
    loss: ArrayT = 0.5 * error * error
    return loss


def actor_loss(
    q: Float[ArrayT, "critic *batch"],
    log_prob: Float[ArrayT, "*batch"],
    alpha: Float[ArrayT, "..."],
) -> Float[ArrayT, "*batch"]:
    """Return the loss of the policy: alpha log pi - min_critic Q.

    Haarnoja et al. 2018b (arXiv:1812.05905), equations 7 and 9.

    Args:
        q: critics at a fresh action, shape `(critic, *batch)`.
        log_prob: log-density of that action in nats, shape `(*batch,)`.
        alpha: temperature, shape `()` or `(*batch,)`.

    Returns:
        Loss, shape `(*batch,)`.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the batch shapes differ.
    """
    xp = require_one_dtype("actor_loss", q=q, log_prob=log_prob, alpha=alpha)
    batch = tuple(log_prob.shape)
    require_critic_axis("actor_loss", "q", q, batch, "log_prob")
    require_scalar_or_batch("actor_loss", "alpha", alpha, batch)
    loss: ArrayT = alpha * log_prob - xp.min(q, axis=0)
    return loss


def temperature_loss(
    log_alpha: Float[ArrayT, "..."],
    log_prob: Float[ArrayT, "*batch"],
    target_entropy: float | Float[ArrayT, "..."],
) -> Float[ArrayT, "*batch"]:
    """Return the loss of the temperature: -log_alpha (log pi + target_entropy).

    Haarnoja et al. 2018b (arXiv:1812.05905), equation 18, with log alpha instead of alpha as in the authors' code: the same
    sign of the gradient, and alpha stays positive by itself.

    Args:
        log_alpha: shape `()` or `(*batch,)`.
        log_prob: log-density of the policy's own action in nats, shape `(*batch,)`.
        target_entropy: in nats; -dim(A) unless chosen otherwise.

    Returns:
        Loss, shape `(*batch,)`.

    Raises:
        TypeError: if the dtypes differ. ValueError: if the batch shapes differ.
    """
    require_one_dtype("temperature_loss", log_alpha=log_alpha, log_prob=log_prob)
    batch = tuple(log_prob.shape)
    require_scalar_or_batch("temperature_loss", "log_alpha", log_alpha, batch)
    if isinstance(target_entropy, float | int):
        target_entropy = float(target_entropy)  # a NumPy scalar is a float too, but would promote float32 to its own type
    else:
        require_one_dtype("temperature_loss", log_prob=log_prob, target_entropy=target_entropy)
        require_scalar_or_batch("temperature_loss", "target_entropy", target_entropy, batch)
    loss: ArrayT = -log_alpha * (log_prob + target_entropy)
    return loss
