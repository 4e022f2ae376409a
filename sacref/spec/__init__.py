"""Soft Actor-Critic as equations on arrays. The same call runs on NumPy, PyTorch and JAX arrays, float32 or float64.

Papers: [1] Haarnoja et al. 2018b, arXiv:1812.05905; [2] Fujimoto et al. 2018, arXiv:1802.09477;
[3] Lillicrap et al. 2016, arXiv:1509.02971; [4] Schulman et al. 2017, arXiv:1707.06347; [5] Ni et al. 2022, arXiv:2110.05038;
[6] Loshchilov & Hutter 2017, arXiv:1608.03983; [7] Goyal et al. 2017, arXiv:1706.02677; [8] Chan, Golub & LeVeque 1983;
[9] Chen et al. 2021, arXiv:2101.05982; [10] Hiraoka et al. 2022, arXiv:2110.02034; [11] Kapturowski et al. 2019 (R2D2, ICLR);
[12] Micikevicius et al. 2018, arXiv:1710.03740; [13] Bjorck et al. 2021, arXiv:2102.13565.
Peers are named as they were read: Stable-Baselines3 (SB3) 2.9.2, skrl 2.1.1, and CleanRL, Brax, Spinning Up, Stoix and rejax.

Symbols
-------
`*batch` is `(batch,)` or, for recurrent agents, `(time, batch)`. `critic` is a leading axis. All arrays of a call share one dtype.

=============  ==============  ======================  =========================================================
paper          name            shape                   meaning
=============  ==============  ======================  =========================================================
mu(s)          mean            (*batch, action)        mean of the Gaussian before the tanh
log sigma(s)   log_std         (*batch, action)        its log standard deviation in nats, after `bound_log_std`
epsilon        noise           (*batch, action)        a standard normal draw, passed in
u              pre_tanh        (*batch, action)        mean + e^log_std noise
a              action          (*batch, action)        tanh u, in (-1, 1)
log pi(a|s)    log_prob        (*batch,)               log-density of a over (-1, 1)^action, in nats
Q(s, a)        q               (critic, *batch)        the critics; Q' = `next_q` are the target critics
r              reward          (*batch,)               after any shaping, in units of return
gamma (1 - d)  discount        (*batch,)               discount factor, 0 where the transition terminated
y              target          (*batch,)               what the critics regress on
alpha          alpha           () or (*batch,)         temperature; `log_alpha` is what is learned
H-bar          target_entropy  float, () or (*batch,)  in nats, -dim(A) unless chosen otherwise
tau            tau             float or ()             share of the online parameter in the target's step
=============  ==============  ======================  =========================================================

Equations
---------
Each returns elements: no mean, no random number, no stopped gradient inside. The caller draws, reduces and differentiates.

==================  =====================================================================  ========================
call                equation                                                               source
==================  =====================================================================  ========================
bound_log_std       min(max(raw, low), high)                                               the authors' code
squash              u = mean + e^log_std noise; a = tanh u;                                [1] appendix C, eq. 21
                    log pi = sum[log N(u) - 2 (log 2 - u - softplus(-2u))]
log_prob            the same log pi, of a given u                                          [1] appendix C, eq. 21
td_target           y = r + discount (min_critic Q' - alpha log pi')                       [1] eq. 3, 5; [2]
critic_loss         1/2 (Q - y)^2                                                          [1] eq. 5
actor_loss          alpha log pi - min_critic Q                                            [1] eq. 7, 9; [2]
temperature_loss    -log_alpha (log pi + target_entropy)                                   [1] eq. 18
polyak              tau online + (1 - tau) target                                          [3] algorithm 1
kl_divergence       sum[log sigma' - log sigma + (sigma^2 + (mu - mu')^2) / 2 sigma'^2     [4] section 4
                    - 1/2], of the Gaussians before the tanh, from old to new
==================  =====================================================================  ========================

Reductions
----------
Over elements of which some rows do not count: padding of sequences, steps that warm up a carry. [5]

==================  ==========================================================
call                result, over the axes of the mask
==================  ==========================================================
masked_mean         sum(where(mask, values, 0)) / max(count, 1)
masked_max          max(where(mask, values, -inf))
masked_min          min(where(mask, values, inf))
==================  ==========================================================

`masked_mean` takes a count where the batch is a part of a larger one, on one of several ranks.

Loss scale
----------
`scaling.next_scale`: halved where the scaled gradients overflow, doubled after 2,000 steps without; a step that overflows is skipped. [12]

Moments
-------
A running normaliser keeps them in float64 on the host.

==================  =====================================================================  ========================
call                result                                                                 source
==================  =====================================================================  ========================
moments.merge       count, mean and sum of squared deviations of two sets together         [8]
moments.standardise (x - mean) / sqrt(variance + epsilon), cut at -clip and clip
==================  =====================================================================  ========================

Schedules
---------
`schedules` has the factors of the base rate as functions of t, the gradient steps before this one, and one rate that follows the policy.

==================  =====================================================================  ========================
schedule            factor                                                                 source
==================  =====================================================================  ========================
constant            1
linear              1 + (end - 1) min(t / steps, 1)
cosine              end + (1 - end) (1 + cos(pi min(t / steps, 1))) / 2                    [6] equation 5
exponential         decay^t
warm_up             min((t + 1) / steps, 1)                                                [7] section 2.2
piecewise           factors[i] from boundaries[i - 1] on
KLAdaptive          no factor: rate / lr_factor, * lr_factor or as it is, by the KL        rl_games, skrl
==================  =====================================================================  ========================

Choices of the equations, where peers differ
--------------------------------------------
log_std: clipped to [-20, 2] as by the authors (also SB3, Spinning Up), with gradient 1 at both ends on every library and 0
    beyond. CleanRL bounds it smoothly, by a tanh rescaled to [-5, 2].
log(1 - tanh^2 u): from u, in the softplus form (also Spinning Up). SB3 and CleanRL take log(1 - a^2 + 1e-6) of the action,
    which cannot pass 13.8 nats where the truth at u = 20 is 38.6. skrl's Gaussian policy is not squashed.
Units of an action: the spec and the agent see (-1, 1) on every task; only `act` and `record_transition` speak the Box's units.
    The log-prob therefore has no scale inside, and the target entropy means the same everywhere (also SB3). CleanRL scores in
    the Box's units: at Humanoid's bounds of 0.4 with 17 actions this moves the log-prob by 15.6 nats against the same target.
Target entropy: -dim(A), as by the authors (also SB3, CleanRL, skrl). Brax takes -dim(A) / 2.
Temperature loss: linear in log_alpha (also SB3, skrl). The paper, CleanRL and Brax multiply by alpha itself: the same sign of the
    gradient, alpha times as long.
Critic loss: with the factor 1/2 (also SB3, skrl on torch); the agent takes the mean over the batch and the sum over critics. CleanRL,
    Spinning Up and skrl on JAX leave the 1/2 out, which doubles the gradient; Brax takes the mean over the critics too.
Minimum over critics: in the target and in the actor's loss, and critics that tie share the gradient equally on both libraries.
Truncation: a truncated transition bootstraps, a terminated one does not; `discount` says which. Stoix and rejax take a truncation
    for a termination; Brax masks truncated transitions out of the critic loss.
Target networks: two products and a sum; the `lerp` of PyTorch's recorded updates rounds differently.

Choices of the update, which the agents share
---------------------------------------------
Order: critic; actor, which sees the new critic; temperature; target networks; then the schedules (also skrl). SB3 takes the
    temperature first, Brax gives the actor the critic of before the step, CleanRL delays the actor and then steps it twice.
Alpha: one update uses one alpha, that of before its temperature step (also SB3, Brax, skrl). CleanRL's second actor step sees the new one.
Gradient clipping: by global norm in groups: the policy; all critics together; the temperature never (also skrl on torch). SB3 and
    CleanRL do not clip; rejax clips element by element.
Target networks: exact copies of the critics at construction, then one `polyak` step after every update.
Schedules: one each for the policy, all critics together, and the temperature, stepped once a gradient step, from t = 0. A factor multiplies
    the base rate; skrl's JAX agents multiply the rate by its factor again at each step, which compounds it, and its schedule of the
    temperature is accepted and ignored. optax's piecewise_constant_schedule takes factors that multiply each other.
Warm-up: the first step is taken at 1 / steps of the base rate. optax's linear warm-up begins at 0, with a step that learns nothing.
Adaptive rate: by the divergence of the whole update's batch, from the policy before the update to that after it, of the Gaussians before
    the tanh: rl_games and skrl have it for PPO, where the divergence is from the policy that collected the data. A divergence of
    exactly 0, of a policy that took no step, leaves the rate; theirs raises it.
Delay: a delayed policy's moments, count and rate wait with it, while the time of its schedule runs on.
Masks: rows that do not count enter neither value nor gradient, and the mean is over those that count in the whole batch, not first over
    each sequence: every step weighs the same.
n-step returns: the discounted sum of up to n rewards, then the value of the last successor; cut at an episode's end and at the write head.
    Rewards alone are summed: the entropy of the steps between is left out, and nothing corrects for older policies (also SB3).
Random subset of target critics: drawn for each update, one for the whole batch, as in REDQ's code [9]; `policy_value="mean"` lets the
    actor see the mean of all critics, as REDQ [9] and DroQ [10] do; without it, their minimum.
Dropout: fresh masks for the target, the critics' loss and the actor's, in the target networks too, as DroQ's code has it [10].
Sequences: the policy starts from the carry that it had when it acted [11], the critics from zeros; each warms its own up over the burn-in,
    whose steps have no loss, though gradients pass through them (R2D2 stops them). Every stored step is equally often the first that is
    learned from. skrl starts the critics from the policy's carry and the next step's pass from the current one's, and has no mask.
Normaliser: learns from what the environments produced, each observation once, when its row is recorded. An action at timestep t is chosen
    with the moments of all rows before; the update after it has those of row t, too. skrl's learns from replayed batches.
Precision: networks may be computed in bfloat16 or float16, but for their last linear layer: that, and all behind it (log-probabilities,
    targets, losses, optimizers, averages), is float32. [13] casts everything down and mends Adam and the target's average for it.
    Each optimizer has a loss scale of its own; torch.amp.GradScaler has one for all.
Ranks: gradients of the policy, the critics and the temperature are averaged before they are unscaled and clipped, so that an overflow on
    one rank skips the step on all, and the norm is that of the whole batch. skrl leaves the temperature's out.
Reward scale: before the shaper, which is before storage. The log of the returns shows the environment's own rewards.
"""

from sacref.spec.averaging import polyak
from sacref.spec.divergence import kl_divergence
from sacref.spec.losses import actor_loss, critic_loss, td_target, temperature_loss
from sacref.spec.policy import bound_log_std, log_prob, squash
from sacref.spec.reduce import masked_max, masked_mean, masked_min

__all__ = [
    "actor_loss",
    "bound_log_std",
    "critic_loss",
    "kl_divergence",
    "log_prob",
    "masked_max",
    "masked_mean",
    "masked_min",
    "polyak",
    "squash",
    "td_target",
    "temperature_loss",
]
