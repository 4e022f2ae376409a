"""Gymnasium's MuJoCo tasks for many copies at once: observations, rewards, ends of episodes and infos of their simulations.

Every number is Gymnasium's own to the bit: the same operations in the same order and precision (the cost of a float32 action is float32).
Resets are Gymnasium's own, too: see `sacref.envs.batched`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sacref.spec.arrays import NumpyArray

Mask: TypeAlias = NDArray[np.bool_]
Numbers: TypeAlias = NDArray[np.float64]
MujocoEnv: TypeAlias = Any
"""A `gymnasium.envs.mujoco.MujocoEnv`; each task has its options in attributes of its own."""
Fields: TypeAlias = Mapping[str, NumpyArray]
"""Field of MjData -> its values, `(envs, *field)`."""


class Outcome(NamedTuple):
    """Results of a step of every copy."""

    rewards: NumpyArray
    """`(envs,)`."""
    terminated: Mask
    """`(envs,)`."""
    infos: dict[str, NumpyArray]
    """Key -> `(envs, *value)`, arrays of their own."""


class Step(NamedTuple):
    """A step of every copy, after the simulations have moved."""

    fields: Fields
    before: Numbers
    """What `Task.before` returned."""
    actions: NumpyArray
    """`(envs, action)`."""
    observations: Numbers
    """What `Task.observe` returned, `(envs, observation)`."""


class Task(ABC):
    """One of Gymnasium's tasks, by the options of one made environment.

    Args:
        env: the task, without wrappers. version: 4 or 5.
    """

    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    """Fields of MjData that are read."""
    forces: ClassVar[bool] = False
    """Whether the step ends with `mj_rnePostConstraint`, which computes `cfrc_ext`."""
    hidden: ClassVar[int] = 2
    """Positions that are not observed, unless the environment is told to show them."""

    def __init__(self, env: MujocoEnv, version: int) -> None:
        self.env: MujocoEnv = env
        self.version: int = version
        self.dt: float = env.dt

    def option(self, name: str) -> Any:
        """Return an option that the environment was made with."""
        return getattr(self.env, f"_{name}")

    @property
    def skip(self) -> int:
        """Positions that are not observed."""
        return self.hidden if self.option("exclude_current_positions_from_observation") else 0

    def before(self, fields: Fields) -> Numbers:
        """Copy what `outcome` needs of the simulations before they are stepped."""
        return np.zeros(0)

    @abstractmethod
    def observe(self, fields: Fields) -> Numbers:
        """Return `(envs, observation)`, an array of its own."""

    @abstractmethod
    def outcome(self, step: Step) -> Outcome:
        """Return rewards, ends of episodes and infos."""

    def control_cost(self, controls: NumpyArray) -> NumpyArray:
        return np.asarray(self.option("ctrl_cost_weight") * _sum_of_squares(controls))

    def pay_healthy(self, healthy: Mask) -> NumpyArray:
        if self.version > 4:
            return np.asarray(healthy * self.option("healthy_reward"))
        # v4 pays in the last step of an episode, too.
        return np.asarray((healthy | self.option("terminate_when_unhealthy")).astype(np.float64) * self.option("healthy_reward"))

    def end_unhealthy(self, healthy: Mask) -> Mask:
        return ~healthy if self.option("terminate_when_unhealthy") else _never(healthy)


class _Runner(Task):
    """A task whose reward is the speed along x of its first joint."""

    hidden = 1

    def before(self, fields: Fields) -> Numbers:
        return fields["qpos"][:, : self.hidden].copy()

    def observe(self, fields: Fields) -> Numbers:
        return np.concatenate((fields["qpos"][:, self.skip :], fields["qvel"]), axis=1)


class HalfCheetah(_Runner):
    def outcome(self, step: Step) -> Outcome:
        x = step.fields["qpos"][:, 0].copy()
        velocity = (x - step.before[:, 0]) / self.dt
        forward, cost = self.option("forward_reward_weight") * velocity, self.control_cost(step.actions)
        name = "reward_run" if self.version == 4 else "reward_forward"
        return Outcome(forward - cost, _never(x), {"x_position": x, "x_velocity": velocity, name: forward, "reward_ctrl": -cost})


class Swimmer(_Runner):
    hidden = 2

    def outcome(self, step: Step) -> Outcome:
        xy = step.fields["qpos"][:, :2].copy()
        velocity = (xy - step.before) / self.dt
        forward, cost = self.option("forward_reward_weight") * velocity[:, 0], self.control_cost(step.actions)
        infos = {**_plane(xy), **_plane_velocity(velocity), "reward_forward": forward, "reward_ctrl": -cost}
        return Outcome(forward - cost, _never(forward), infos)


class Walker2d(_Runner):
    def observe(self, fields: Fields) -> Numbers:
        return np.concatenate((fields["qpos"][:, self.skip :], np.clip(fields["qvel"], -10, 10)), axis=1)

    def healthy(self, fields: Fields) -> Mask:
        qpos = fields["qpos"]
        return _within(qpos[:, 1], self.option("healthy_z_range")) & _within(qpos[:, 2], self.option("healthy_angle_range"))

    def outcome(self, step: Step) -> Outcome:
        qpos = step.fields["qpos"]
        x, healthy = qpos[:, 0].copy(), self.healthy(step.fields)
        velocity = (x - step.before[:, 0]) / self.dt
        forward, survive = self.option("forward_reward_weight") * velocity, self.pay_healthy(healthy)
        cost = self.control_cost(step.actions)
        infos = {"x_position": x, "x_velocity": velocity}
        if self.version > 4:
            infos["z_distance_from_origin"] = qpos[:, 1] - self.env.init_qpos[1]
            infos |= {"reward_forward": forward, "reward_ctrl": -cost, "reward_survive": survive}
        return Outcome(forward + survive - cost, self.end_unhealthy(healthy), infos)


class Hopper(Walker2d):
    def healthy(self, fields: Fields) -> Mask:
        others = [_within(rows, self.option("healthy_state_range")).all(axis=1) for rows in (fields["qpos"][:, 2:], fields["qvel"])]
        return super().healthy(fields) & others[0] & others[1]


class Ant(Task):
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos", "cfrc_ext")
    # v4 rarely needs them, but reads `xpos` before the step, too, which only a simulation that stays in its MjData knows.
    forces = True

    def __init__(self, env: MujocoEnv, version: int) -> None:
        super().__init__(env, version)
        self.body: int = env.data.body("torso" if version == 4 else env._main_body).id
        self.pays_contacts: bool = version > 4 or env._use_contact_forces
        shown, first = (env._use_contact_forces, 0) if version == 4 else (env._include_cfrc_ext_in_observation, 1)
        self.first_force: int | None = first if shown else None

    def before(self, fields: Fields) -> Numbers:
        return fields["xpos"][:, self.body, :2].copy()

    def contact_forces(self, fields: Fields) -> Numbers:
        return _clipped(fields["cfrc_ext"], self.option("contact_force_range"))

    def observe(self, fields: Fields) -> Numbers:
        parts = [fields["qpos"][:, self.skip :], fields["qvel"]]
        if self.first_force is not None:
            parts.append(_flat(self.contact_forces(fields)[:, self.first_force :]))
        return np.concatenate(parts, axis=1)

    def outcome(self, step: Step) -> Outcome:
        qpos, qvel = step.fields["qpos"], step.fields["qvel"]
        xy = self.before(step.fields)
        velocity = (xy - step.before) / self.dt
        low, high = self.option("healthy_z_range")
        healthy = np.isfinite(qpos).all(axis=1) & np.isfinite(qvel).all(axis=1) & (low <= qpos[:, 2]) & (qpos[:, 2] <= high)
        forward = velocity[:, 0] * (1.0 if self.version == 4 else self.option("forward_reward_weight"))
        survive, costs = self.pay_healthy(healthy), self.control_cost(step.actions)
        infos = {"reward_forward": forward, "reward_ctrl": -costs, "reward_survive": survive, **_plane_velocity(velocity)}
        if self.pays_contacts:
            contact = self.option("contact_cost_weight") * _sum_of_squares(_flat(self.contact_forces(step.fields)))
            costs = costs + contact
            infos["reward_ctrl" if self.version == 4 else "reward_contact"] = -contact
        if self.version == 4:
            infos |= {**_plane(xy), "forward_reward": forward.copy()}
        else:
            infos |= _plane(qpos[:, :2].copy())
        return Outcome(forward + survive - costs, self.end_unhealthy(healthy), infos)


class _Humanoid(Task):
    """Observations that both tasks of the humanoid share."""

    fields: ClassVar[tuple[str, ...]] = (
        "qpos",
        "qvel",
        "cinert",
        "cvel",
        "qfrc_actuator",
        "cfrc_ext",
        "xipos",
        "ctrl",
        "ten_length",
        "ten_velocity",
    )
    forces = True

    def __init__(self, env: MujocoEnv, version: int) -> None:
        super().__init__(env, version)
        # v5 leaves out the world's body and the free joint, whose values are always 0.
        body, joint = (0, 0) if version == 4 else (1, 6)
        parts = {"cinert": body, "cvel": body, "qfrc_actuator": joint, "cfrc_ext": body}
        self.parts: dict[str, int] = {
            name: first for name, first in parts.items() if version == 4 or self.option(f"include_{name}_in_observation") is True
        }

    def observe(self, fields: Fields) -> Numbers:
        parts = [_flat(fields[name][:, first:]) for name, first in self.parts.items()]
        return np.concatenate((fields["qpos"][:, self.skip :], fields["qvel"], *parts), axis=1)

    def contact_cost(self, fields: Fields, name: str) -> Numbers:
        cost = self.option(f"{name}_cost_weight") * _sum_of_squares(_flat(fields["cfrc_ext"]))
        return _clipped(cost, self.option(f"{name}_cost_range"))

    def tendons(self, fields: Fields) -> dict[str, NumpyArray]:
        return {"tendon_length": fields["ten_length"].copy(), "tendon_velocity": fields["ten_velocity"].copy()}


class Humanoid(_Humanoid):
    def before(self, fields: Fields) -> Numbers:
        """Return the centre of mass, `(envs, xy)`."""
        mass = self.env.model.body_mass
        return np.array((np.einsum("b,nbj->nj", mass, fields["xipos"]) / mass.sum())[:, :2])

    def outcome(self, step: Step) -> Outcome:
        fields = step.fields
        xy = self.before(fields)
        velocity = (xy - step.before) / self.dt
        healthy = _within(fields["qpos"][:, 2], self.option("healthy_z_range"))
        forward, survive = self.option("forward_reward_weight") * velocity[:, 0], self.pay_healthy(healthy)
        costs = cost = self.control_cost(fields["ctrl"])
        if self.version == 4:
            infos = {"reward_linvel": forward, "reward_quadctrl": -cost, "reward_alive": survive, "forward_reward": forward.copy()}
            infos |= _plane(xy)
        else:
            contact = self.contact_cost(fields, "contact")
            costs = cost + contact
            infos = {"reward_survive": survive, "reward_forward": forward, "reward_ctrl": -cost, "reward_contact": -contact}
            infos |= {**_plane(fields["qpos"][:, :2].copy()), **self.tendons(fields)}
        return Outcome(forward + survive - costs, self.end_unhealthy(healthy), {**infos, **_plane_velocity(velocity)})


class HumanoidStandup(_Humanoid):
    def outcome(self, step: Step) -> Outcome:
        qpos = step.fields["qpos"]
        up = (qpos[:, 2] - 0) / self.env.model.opt.timestep
        cost, impact = self.control_cost(step.fields["ctrl"]), self.contact_cost(step.fields, "impact")
        infos = {
            "x_position": qpos[:, 0].copy(),
            "y_position": qpos[:, 1].copy(),
            "z_distance_from_origin": qpos[:, 2] - self.env.init_qpos[2],
            **self.tendons(step.fields),
            "reward_linup": up,
            "reward_quadctrl": -cost,
            "reward_impact": -impact,
        }
        return Outcome(up - cost - impact + 1, _never(up), infos)


class Reacher(Task):
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")

    def __init__(self, env: MujocoEnv, version: int) -> None:
        super().__init__(env, version)
        self.fingertip: int
        self.target: int
        self.fingertip, self.target = _bodies(env, "fingertip", "target")

    def to_target(self, fields: Fields) -> Numbers:
        return fields["xpos"][:, self.fingertip] - fields["xpos"][:, self.target]

    def observe(self, fields: Fields) -> Numbers:
        qpos, angles = fields["qpos"], np.ascontiguousarray(fields["qpos"][:, :2])
        rest = (qpos[:, 2:], fields["qvel"][:, :2], self.to_target(fields)[:, :2])
        return np.concatenate((np.cos(angles), np.sin(angles), *rest), axis=1)

    def outcome(self, step: Step) -> Outcome:
        distance = -_norm(self.to_target(step.fields)) * self.option("reward_dist_weight")
        control = -_sum_of_squares(step.actions) * self.option("reward_control_weight")
        return Outcome(distance + control, _never(distance), {"reward_dist": distance, "reward_ctrl": control})


class Pusher(Task):
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")

    def __init__(self, env: MujocoEnv, version: int) -> None:
        super().__init__(env, version)
        self.bodies: tuple[int, ...] = _bodies(env, "tips_arm", "object", "goal")

    def observe(self, fields: Fields) -> Numbers:
        return np.concatenate((fields["qpos"][:, :7], fields["qvel"][:, :7], _flat(fields["xpos"][:, self.bodies])), axis=1)

    def outcome(self, step: Step) -> Outcome:
        tips, there, goal = (step.fields["xpos"][:, body] for body in self.bodies)
        near = -_norm(there - tips) * self.option("reward_near_weight")
        distance = -_norm(there - goal) * self.option("reward_dist_weight")
        control = -_sum_of_squares(step.actions) * self.option("reward_control_weight")
        infos = {"reward_dist": distance, "reward_ctrl": control, "reward_near": near}
        return Outcome(distance + control + near, _never(near), infos)


class InvertedPendulum(Task):
    def observe(self, fields: Fields) -> Numbers:
        return np.concatenate((fields["qpos"], fields["qvel"]), axis=1)

    def outcome(self, step: Step) -> Outcome:
        terminated = ~np.isfinite(step.observations).all(axis=1) | (np.abs(step.observations[:, 1]) > 0.2)
        rewards = (~terminated).astype(int)
        return Outcome(rewards, terminated, {"reward_survive": rewards})


class InvertedDoublePendulum(Task):
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "site_xpos", "qfrc_constraint")

    def observe(self, fields: Fields) -> Numbers:
        qpos, angles = fields["qpos"], np.ascontiguousarray(fields["qpos"][:, 1:])
        forces = np.clip(fields["qfrc_constraint"][:, :1], -10, 10)
        return np.concatenate((qpos[:, :1], np.sin(angles), np.cos(angles), np.clip(fields["qvel"], -10, 10), forces), axis=1)

    def outcome(self, step: Step) -> Outcome:
        x, y = step.fields["site_xpos"][:, 0, 0], step.fields["site_xpos"][:, 0, 2]
        qvel = step.fields["qvel"]
        terminated = y <= 1
        distance = 0.01 * _second_power(x) + _second_power(y - 2)
        speed = 0.001 * _second_power(qvel[:, 1]) + 0.005 * _second_power(qvel[:, 2])
        alive = np.asarray(self.option("healthy_reward") * (~terminated).astype(int))
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
"""Ids of the tasks."""


def task_of(env: MujocoEnv) -> Task | None:
    """Return the task of an environment without wrappers; None if it is none of Gymnasium's that are known."""
    package, _, module = type(env).__module__.rpartition(".")
    if package != "gymnasium.envs.mujoco" or module not in TASKS:
        return None
    return TASKS[module](env, int(module[-1]))


def _bodies(env: MujocoEnv, *names: str) -> tuple[int, ...]:
    return tuple(env.data.body(name).id for name in names)


def _sum_of_squares(rows: NumpyArray) -> NumpyArray:
    return np.asarray(np.sum(np.square(rows), axis=1))


def _norm(rows: Numbers) -> Numbers:
    """Return `np.linalg.norm` of each row: the root of BLAS's product, whose rounding differs from a sum's."""
    return np.asarray(np.sqrt(np.vecdot(rows, rows)))


def _second_power(values: Numbers) -> Numbers:
    # A float's `** 2` is the C library's `pow`, which rounds one of a thousand otherwise than an array's, a product.
    return np.array([value**2 for value in values])


def _within(values: Numbers, interval: tuple[float, float]) -> Mask:
    low, high = interval
    return (low < values) & (values < high)


def _clipped(values: Numbers, interval: tuple[float, float]) -> Numbers:
    return np.clip(values, *interval)


def _flat(array: NumpyArray) -> NumpyArray:
    """Reshape `(envs, ...)` to `(envs, numbers)`, contiguous: a sum over another layout adds up in another order."""
    return np.ascontiguousarray(array.reshape(len(array), -1))


def _never(like: NumpyArray) -> Mask:
    return np.zeros(len(like), np.bool_)


def _plane(xy: Numbers) -> dict[str, NumpyArray]:
    return {"x_position": xy[:, 0], "y_position": xy[:, 1], "distance_from_origin": _norm(xy)}


def _plane_velocity(velocity: Numbers) -> dict[str, NumpyArray]:
    return {"x_velocity": velocity[:, 0], "y_velocity": velocity[:, 1]}
