"""What Gymnasium's MuJoCo tasks make of their simulations, of many copies at once: observations, rewards, ends of episodes, infos.

Every number is Gymnasium's own to the bit: the same operations in the same order and precision (the cost of a float32 action is float32).
Resets are Gymnasium's own, too: see `sacref.envs.batched`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Fields: TypeAlias = Mapping[str, NDArray[Any]]
"""Field of MjData -> its values, `(envs, *field)`."""


class Outcome(NamedTuple):
    """What a step of every copy gave."""

    rewards: NDArray[Any]
    """`(envs,)`."""
    terminated: NDArray[np.bool_]
    """`(envs,)`."""
    infos: dict[str, NDArray[Any]]
    """Key -> `(envs, *value)`, arrays of their own."""


class Task(ABC):
    """One of Gymnasium's tasks, by the options of one made environment.

    Args:
        env: the task, without wrappers. version: 4 or 5.
    """

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    """What of MjData is read."""
    forces = False
    """Whether the step ends with `mj_rnePostConstraint`, which computes `cfrc_ext`."""

    def __init__(self, env: Any, version: int) -> None:
        self.version = version
        self.dt: float = env.dt

    def before(self, fields: Fields) -> NDArray[np.float64] | None:
        """What `outcome` has to know of the simulations before they are stepped. An array of its own."""
        return None

    @abstractmethod
    def observe(self, fields: Fields) -> NDArray[np.float64]:
        """`(envs, observation)`, an array of its own."""

    @abstractmethod
    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        """Of the simulations behind the step.

        Args:
            before: what `before` gave. actions: `(envs, action)`. observations: what `observe` gave.
        """


class _Runner(Task):
    """A task whose reward is the speed along x of its first joint, and that observes positions but for the first ones."""

    hidden = 1
    """Positions that are left out, unless they are asked for."""

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.forward_weight, self.control_weight = env._forward_reward_weight, env._ctrl_cost_weight
        self.skip = self.hidden if env._exclude_current_positions_from_observation else 0

    def before(self, fields: Fields) -> NDArray[np.float64]:
        return fields["qpos"][:, : self.hidden].copy()

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        return np.concatenate((fields["qpos"][:, self.skip :], fields["qvel"]), axis=1)

    def control_cost(self, actions: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self.control_weight * _sum_of_squares(actions))


class HalfCheetah(_Runner):
    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        x = fields["qpos"][:, 0].copy()
        velocity = (x - before[:, 0]) / self.dt
        forward, cost = self.forward_weight * velocity, self.control_cost(actions)
        name = "reward_run" if self.version == 4 else "reward_forward"
        return Outcome(forward - cost, _never(x), {"x_position": x, "x_velocity": velocity, name: forward, "reward_ctrl": -cost})


class Swimmer(_Runner):
    hidden = 2

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        xy = fields["qpos"][:, :2].copy()
        velocity = (xy - before) / self.dt
        forward, cost = self.forward_weight * velocity[:, 0], self.control_cost(actions)
        infos = {**_plane(xy), **_plane_velocity(velocity), "reward_forward": forward, "reward_ctrl": -cost}
        return Outcome(forward - cost, _never(forward), infos)


class _Healthy:
    """Of a task that pays for being healthy, and ends where it is not."""

    def __init__(self, env: Any, version: int) -> None:
        self.weight, self.ends, self.paid_as_float = env._healthy_reward, env._terminate_when_unhealthy, version == 4

    def reward(self, healthy: NDArray[np.bool_]) -> NDArray[Any]:
        # v4 pays in the last step of an episode, too.
        if self.paid_as_float:
            return np.asarray((healthy | self.ends).astype(np.float64) * self.weight)
        return np.asarray(healthy * self.weight)

    def terminated(self, healthy: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return ~healthy if self.ends else _never(healthy)


class Walker2d(_Runner):
    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.health = _Healthy(env, version)
        self.z_range, self.angle_range = env._healthy_z_range, env._healthy_angle_range
        self.start_z = env.init_qpos[1]

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        return np.concatenate((fields["qpos"][:, self.skip :], np.clip(fields["qvel"], -10, 10)), axis=1)

    def healthy(self, fields: Fields) -> NDArray[np.bool_]:
        qpos = fields["qpos"]
        return _within(qpos[:, 1], self.z_range) & _within(qpos[:, 2], self.angle_range)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        x, healthy = fields["qpos"][:, 0].copy(), self.healthy(fields)
        velocity = (x - before[:, 0]) / self.dt
        forward, survive, cost = self.forward_weight * velocity, self.health.reward(healthy), self.control_cost(actions)
        infos = {"x_position": x, "x_velocity": velocity}
        if self.version > 4:
            infos["z_distance_from_origin"] = fields["qpos"][:, 1] - self.start_z
            infos |= {"reward_forward": forward, "reward_ctrl": -cost, "reward_survive": survive}
        return Outcome(forward + survive - cost, self.health.terminated(healthy), infos)


class Hopper(Walker2d):
    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.state_range = env._healthy_state_range

    def healthy(self, fields: Fields) -> NDArray[np.bool_]:
        others = [_within(rows, self.state_range).all(axis=1) for rows in (fields["qpos"][:, 2:], fields["qvel"])]
        return super().healthy(fields) & others[0] & others[1]


class Ant(Task):
    fields = ("qpos", "qvel", "xpos", "cfrc_ext")
    # v4 has no use for them as a rule, but reads `xpos` before the step, too, which alone a simulation that stays in its MjData knows.
    forces = True

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.health, self.z_range = _Healthy(env, version), env._healthy_z_range
        self.control_weight, self.contact_weight = env._ctrl_cost_weight, env._contact_cost_weight
        self.force_range = env._contact_force_range
        self.skip = 2 if env._exclude_current_positions_from_observation else 0
        if version == 4:
            self.body, self.forward_weight = env.data.body("torso").id, 1.0
            self.pays_contacts = env._use_contact_forces
            self.first_force = 0 if env._use_contact_forces else None
        else:
            self.body, self.forward_weight = env.data.body(env._main_body).id, env._forward_reward_weight
            self.pays_contacts = True
            self.first_force = 1 if env._include_cfrc_ext_in_observation else None

    def before(self, fields: Fields) -> NDArray[np.float64]:
        return fields["xpos"][:, self.body, :2].copy()

    def contact_forces(self, fields: Fields) -> NDArray[np.float64]:
        low, high = self.force_range
        return np.clip(fields["cfrc_ext"], low, high)

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        parts = [fields["qpos"][:, self.skip :], fields["qvel"]]
        if self.first_force is not None:
            parts.append(_flat(self.contact_forces(fields)[:, self.first_force :]))
        return np.concatenate(parts, axis=1)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        qpos, qvel = fields["qpos"], fields["qvel"]
        xy = fields["xpos"][:, self.body, :2].copy()
        velocity = (xy - before) / self.dt
        low, high = self.z_range
        healthy = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1) & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)
        forward, survive = velocity[:, 0] * self.forward_weight, self.health.reward(healthy)
        costs = cost = self.control_weight * _sum_of_squares(actions)
        infos = {"reward_forward": forward, "reward_ctrl": -cost, "reward_survive": survive, **_plane_velocity(velocity)}
        if self.pays_contacts:
            contact = self.contact_weight * _sum_of_squares(_flat(self.contact_forces(fields)))
            costs = cost + contact
            infos["reward_ctrl" if self.version == 4 else "reward_contact"] = -contact
        if self.version == 4:
            infos |= {**_plane(xy), "forward_reward": forward.copy()}
        else:
            infos |= _plane(qpos[:, :2].copy())
        return Outcome(forward + survive - costs, self.health.terminated(healthy), infos)


class _Humanoid(Task):
    """What the two tasks of the humanoid share."""

    fields = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos", "ctrl", "ten_length", "ten_velocity")
    forces = True

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.control_weight = env._ctrl_cost_weight
        self.skip = 2 if env._exclude_current_positions_from_observation else 0
        # Of v5 without the world's body and the free joint, whose values are always 0.
        body, joint = (0, 0) if version == 4 else (1, 6)
        parts = {"cinert": body, "cvel": body, "qfrc_actuator": joint, "cfrc_ext": body}
        self.parts = {
            name: first for name, first in parts.items() if version == 4 or getattr(env, f"_include_{name}_in_observation") is True
        }

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        parts = [_flat(fields[name][:, first:]) for name, first in self.parts.items()]
        return np.concatenate((fields["qpos"][:, self.skip :], fields["qvel"], *parts), axis=1)

    def tendons(self, fields: Fields) -> dict[str, NDArray[Any]]:
        return {"tendon_length": fields["ten_length"].copy(), "tendon_velocity": fields["ten_velocity"].copy()}


class Humanoid(_Humanoid):
    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.health, self.z_range = _Healthy(env, version), env._healthy_z_range
        self.forward_weight = env._forward_reward_weight
        self.mass = env.model.body_mass.copy()
        if version > 4:
            self.contact_weight, self.contact_range = env._contact_cost_weight, env._contact_cost_range

    def before(self, fields: Fields) -> NDArray[np.float64]:
        """The centre of mass, `(envs, xy)`."""
        return np.array((np.einsum("b,nbj->nj", self.mass, fields["xipos"]) / self.mass.sum())[:, :2])

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        z, xy = fields["qpos"][:, 2], self.before(fields)
        velocity = (xy - before) / self.dt
        healthy = _within(z, self.z_range)
        forward, survive = self.forward_weight * velocity[:, 0], self.health.reward(healthy)
        costs = cost = self.control_weight * _sum_of_squares(fields["ctrl"])
        if self.version == 4:
            infos = {
                "reward_linvel": forward,
                "reward_quadctrl": -cost,
                "reward_alive": survive,
                "forward_reward": forward.copy(),
                **_plane(xy),
            }
        else:
            contact = np.clip(self.contact_weight * _sum_of_squares(_flat(fields["cfrc_ext"])), *self.contact_range)
            costs = cost + contact
            infos = {"reward_survive": survive, "reward_forward": forward, "reward_ctrl": -cost, "reward_contact": -contact}
            infos |= {**_plane(fields["qpos"][:, :2].copy()), **self.tendons(fields)}
        return Outcome(forward + survive - costs, self.health.terminated(healthy), {**infos, **_plane_velocity(velocity)})


class HumanoidStandup(_Humanoid):
    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.impact_weight, self.impact_range = env._impact_cost_weight, env._impact_cost_range
        self.timestep, self.start_z = env.model.opt.timestep, env.init_qpos[2]

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        qpos = fields["qpos"]
        up = (qpos[:, 2] - 0) / self.timestep
        cost = self.control_weight * _sum_of_squares(fields["ctrl"])
        impact = np.clip(self.impact_weight * _sum_of_squares(_flat(fields["cfrc_ext"])), *self.impact_range)
        infos = {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "z_distance_from_origin": qpos[:, 2] - self.start_z,
            **self.tendons(fields),
            "reward_linup": up,
            "reward_quadctrl": -cost,
            "reward_impact": -impact,
        }
        return Outcome(up - cost - impact + 1, _never(up), infos)


class Reacher(Task):
    fields = ("qpos", "qvel", "xpos")

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.distance_weight, self.control_weight = env._reward_dist_weight, env._reward_control_weight
        self.fingertip, self.target = env.data.body("fingertip").id, env.data.body("target").id

    def way(self, fields: Fields) -> NDArray[np.float64]:
        return fields["xpos"][:, self.fingertip] - fields["xpos"][:, self.target]

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        qpos, angles = fields["qpos"], np.ascontiguousarray(fields["qpos"][:, :2])
        return np.concatenate((np.cos(angles), np.sin(angles), qpos[:, 2:], fields["qvel"][:, :2], self.way(fields)[:, :2]), axis=1)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        distance = -_norm(self.way(fields)) * self.distance_weight
        control = -_sum_of_squares(actions) * self.control_weight
        return Outcome(distance + control, _never(distance), {"reward_dist": distance, "reward_ctrl": control})


class Pusher(Task):
    fields = ("qpos", "qvel", "xpos")

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.near_weight, self.distance_weight = env._reward_near_weight, env._reward_dist_weight
        self.control_weight = env._reward_control_weight
        self.tips, self.object, self.goal = (env.data.body(name).id for name in ("tips_arm", "object", "goal"))

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        bodies = _flat(fields["xpos"][:, (self.tips, self.object, self.goal)])
        return np.concatenate((fields["qpos"][:, :7], fields["qvel"][:, :7], bodies), axis=1)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        there = fields["xpos"][:, self.object]
        near = -_norm(there - fields["xpos"][:, self.tips]) * self.near_weight
        distance = -_norm(there - fields["xpos"][:, self.goal]) * self.distance_weight
        control = -_sum_of_squares(actions) * self.control_weight
        infos = {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}
        return Outcome(distance + control + near, _never(near), infos)


class InvertedPendulum(Task):
    def observe(self, fields: Fields) -> NDArray[np.float64]:
        return np.concatenate((fields["qpos"], fields["qvel"]), axis=1)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        terminated = ~np.isfinite(observations).all(axis=1) | (np.abs(observations[:, 1]) > 0.2)
        rewards = (~terminated).astype(int)
        return Outcome(rewards, terminated, {"reward_survive": rewards})


class InvertedDoublePendulum(Task):
    fields = ("qpos", "qvel", "site_xpos", "qfrc_constraint")

    def __init__(self, env: Any, version: int) -> None:
        super().__init__(env, version)
        self.weight = env._healthy_reward

    def observe(self, fields: Fields) -> NDArray[np.float64]:
        qpos, angles = fields["qpos"], np.ascontiguousarray(fields["qpos"][:, 1:])
        forces = np.clip(fields["qfrc_constraint"][:, :1], -10, 10)
        return np.concatenate((qpos[:, :1], np.sin(angles), np.cos(angles), np.clip(fields["qvel"], -10, 10), forces), axis=1)

    def outcome(self, fields: Fields, before: Any, actions: NDArray[Any], observations: NDArray[np.float64]) -> Outcome:
        x, y = fields["site_xpos"][:, 0, 0], fields["site_xpos"][:, 0, 2]
        terminated = y <= 1
        distance = 0.01 * _second_power(x) + _second_power(y - 2)
        speed = 0.001 * _second_power(fields["qvel"][:, 1]) + 0.005 * _second_power(fields["qvel"][:, 2])
        alive = np.asarray(self.weight * (~terminated).astype(int))
        infos = {"reward_survive": alive, "distance_penalty": -distance, "velocity_penalty": -speed}
        return Outcome(alive - distance - speed, terminated, infos)


TASKS: Mapping[str, type[Task]] = {
    **{f"half_cheetah_v{version}": HalfCheetah for version in (4, 5)},
    **{f"hopper_v{version}": Hopper for version in (4, 5)},
    **{f"walker2d_v{version}": Walker2d for version in (4, 5)},
    **{f"ant_v{version}": Ant for version in (4, 5)},
    **{f"humanoid_v{version}": Humanoid for version in (4, 5)},
    "humanoidstandup_v5": HumanoidStandup,
    "swimmer_v5": Swimmer,
    "reacher_v5": Reacher,
    "pusher_v5": Pusher,
    "inverted_pendulum_v5": InvertedPendulum,
    "inverted_double_pendulum_v5": InvertedDoublePendulum,
}
"""Module of `gymnasium.envs.mujoco` -> its task."""
NAMES = tuple(f"{task.__name__}-{module.rpartition('_')[2]}" for module, task in TASKS.items())
"""The tasks' ids."""


def task_of(env: Any) -> Task | None:
    """What steps many copies of an environment without wrappers; None if it is none of Gymnasium's tasks that are known."""
    package, _, module = type(env).__module__.rpartition(".")
    if package != "gymnasium.envs.mujoco" or module not in TASKS:
        return None
    return TASKS[module](env, int(module[-1]))


def _sum_of_squares(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.sum(np.square(rows), axis=1))


def _norm(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """As `np.linalg.norm` of each row: the root of BLAS's product, whose rounding differs from a sum's."""
    return np.asarray(np.sqrt(np.vecdot(rows, rows)))


def _second_power(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A float's `** 2` is the C library's `pow`, which rounds one of a thousand otherwise than an array's, a product."""
    return np.array([value**2 for value in values])


def _within(values: NDArray[np.float64], interval: tuple[float, float]) -> NDArray[np.bool_]:
    low, high = interval
    return (low < values) & (values < high)


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """`(envs, ...)` as `(envs, numbers)`, contiguous: a sum over another layout adds up in another order."""
    return np.ascontiguousarray(array.reshape(len(array), -1))


def _never(like: NDArray[Any]) -> NDArray[np.bool_]:
    return np.zeros(len(like), np.bool_)


def _plane(xy: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    return {"x_position": xy[:, 0], "y_position": xy[:, 1], "distance_from_origin": _norm(xy)}


def _plane_velocity(velocity: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    return {"x_velocity": velocity[:, 0], "y_velocity": velocity[:, 1]}
