"""An agent's border under drawn spaces, rows and configurations: what it takes is stored exactly, all else is refused by name."""

import json
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree, named_leaves
from sacref.config import ConfigError, SACConfig
from sacref.envs.scaling import as_box
from tests.backends import BACKENDS, Backend, Spaces, box, draw_row, load_backend

backend = pytest.fixture(params=BACKENDS, scope="module")(load_backend)

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]


def draw_examples(backend: Backend, check: Callable[..., None], *strategies: st.SearchStrategy[Any], torch: int, jax: int) -> None:
    """Check so many drawn examples: few on JAX, which compiles something for almost each of them."""

    @settings(max_examples=torch if backend.name == "torch" else jax, suppress_health_check=QUIET)
    @given(st.tuples(*strategies))
    def run(drawn: tuple[Any, ...]) -> None:
        check(*drawn)

    run()


# Spaces.

FLOATS = ["float16", "float32", "float64", ">f4", ">f8", np.longdouble]
INTEGERS = ["bool", "int8", "int16", "int32", "int64", ">i4", "uint8", "uint16", "uint32", "uint64"]
SHAPES = [(), (1,), (2,), (3, 1), (0,)]
BOUNDS = [0.0, 0.1, 0.7, 1.0, 1.0 + 1e-9, 2.0, 1e-50, 1e-40, 1e-36, 1e8, 1e8 + 1, 65504.0, 1e38, 3e38, 1e300, np.inf, np.nan]


@st.composite
def action_boxes(draw: st.DrawFn) -> Any:
    """A Box of floats of any bounds that Gymnasium allows."""
    dtype, shape = np.dtype(draw(st.sampled_from(FLOATS))), draw(st.sampled_from(SHAPES))
    signed = st.tuples(st.sampled_from([-1, 1]), st.sampled_from(BOUNDS)).map(lambda pair: pair[0] * pair[1])
    ends = np.array([sorted(draw(st.tuples(signed, signed))) for _ in range(int(np.prod(shape)))], np.float64).reshape(-1, 2)
    return boxed(ends[:, 0].reshape(shape), ends[:, 1].reshape(shape), dtype)


def boxed(low: NDArray[Any], high: NDArray[Any], dtype: Any) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return Box(low.astype(dtype), high.astype(dtype), low.shape, dtype)
        except (ValueError, AssertionError):
            assume(False)


@st.composite
def observation_boxes(draw: st.DrawFn) -> Any:
    """A Box of any numbers, with their widest bounds."""
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from([*FLOATS, *INTEGERS])))
    shape = draw(st.sampled_from(SHAPES))
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return box(np.full(shape, low, dtype), np.full(shape, high, dtype), dtype=dtype)


spaces_of_observations = st.recursive(
    observation_boxes(), lambda inner: st.dictionaries(st.sampled_from(["a", "b", "z", "b.c"]), inner, max_size=2).map(Dict), max_leaves=3
)


def row_of(space: Any) -> Tree:
    """One row of a space, of the largest numbers that its dtype has, as far as the agent's floats and int64 go."""
    if isinstance(space, Dict):
        return {key: row_of(inner) for key, inner in space.spaces.items()}
    kind = space.dtype
    if kind.kind == "f":
        return np.full((1, *space.shape), 0.7).astype(kind)
    most = 1 if kind.kind == "b" else min(int(np.iinfo(kind).max), 2**63 - 1)
    return np.full((1, *space.shape), most).astype(kind)


def check_space(backend: Backend, observation: Any, action: Any, dtype: str) -> None:
    """Show an agent of such spaces two rows, if there can be one."""
    try:
        agent = backend.agent(
            Spaces(observation=observation, action=action),
            capacity=4,
            hidden=(2,),
            num_critics=1,
            dtype=dtype,
            execution="plain" if backend.name == "torch" else "auto",
            random_timesteps=9,
        )
    except (TypeError, ValueError) as error:
        assert not isinstance(error, TypeCheckError)
        assert "observation" in str(error) or "action_space" in str(error), error
        return
    row = row_of(observation)
    chosen = [agent.to_numpy(agent.act(row, None, timestep=0, timesteps=9)[0]), action.low[None], action.high[None]]
    for actions in chosen:
        assert action.contains(np.asarray(actions[0])), (actions, actions.dtype)
        assert action.contains(np.asarray(as_box(actions, action)[0]))
        taken = {"observations": row, "next_observations": row, "actions": actions}
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), **taken))
        agent.init()
    arrays = agent.memory.arrays()
    low, high = (bound.astype(np.float64).reshape(-1) for bound in (action.low, action.high))
    wanted = [2 * (actions.astype(np.float64).reshape(-1) - low) / (high - low) - 1 for actions in chosen]
    np.testing.assert_allclose(arrays["actions"], wanted, atol=1 / 128)
    for kind in ("observations", "next_observations"):
        for name, given_row in named_leaves(row, kind).items():
            stored = arrays[name]
            if given_row.dtype.kind == "f":
                assert stored.dtype == (np.float16 if given_row.dtype.itemsize == 2 else dtype), name
            assert stored[0].tolist() == given_row[0].astype(stored.dtype).tolist(), name
            assert stored.dtype.kind == "f" or stored[0].tolist() == given_row[0].tolist(), name


PLAIN = [box([-0.1, 0.3], [0.1, 0.7], dtype=np.dtype(dtype)) for dtype in ("float16", ">f4", "float64")]
DRAWN = (spaces_of_observations, st.one_of(action_boxes(), st.sampled_from(PLAIN)), st.sampled_from(["float32", "float32", "float64"]))


def test_a_space_is_refused_by_name_or_its_rows_are_stored_and_it_contains_every_action(backend: Backend) -> None:
    draw_examples(backend, partial(check_space, backend), *DRAWN, torch=100, jax=25)


@pytest.mark.full
def test_spaces_are_refused_or_kept_at_length(backend: Backend) -> None:
    draw_examples(backend, partial(check_space, backend), *DRAWN, torch=1500, jax=150)


# Rows.

ACTIONS = box(-0.4, 0.8, (2,))
ROWS = Spaces(
    observation=Dict(a=box(-np.inf, np.inf, (3,)), b=box(0, 255, (2,), np.uint8), c=Dict(d=box(-np.inf, np.inf, (), np.float16))),
    state=box(-(2**31), 2**31 - 1, (2,), np.int32),
    action=ACTIONS,
)
ENVS, SLOTS = 2, 2
NUMBERS = [0.0, 0.5, 1.0, -1.0, 255.0, 256.0, 1e5, 2.0**40, 1e39, -1e300, np.inf, np.nan]
DTYPES = ["float16", "float32", "float64", ">f8", np.longdouble, "bool", "uint8", "int64", "uint64", "complex64", "object", "U4"]
ARGUMENTS = [
    *("observations.a", "observations.b", "observations.c.d", "next_observations.a", "next_observations.b", "next_observations.c.d"),
    *("states", "next_states", "actions", "rewards", "terminated", "truncated"),
]


@cache
def taker(backend: Backend) -> Any:
    """An agent that rows are shown to."""
    return backend.agent(ROWS, capacity=SLOTS * ENVS, num_envs=ENVS, num_critics=1)


@st.composite
def values(draw: st.DrawFn, shape: tuple[int, ...], library: str) -> Any:
    """What may stand in the place of an array of this shape."""
    shape = draw(st.sampled_from([shape, shape, shape, shape[1:], (*shape, 1), (shape[0] + 1, *shape[1:]), (0, *shape[1:])]))
    number, dtype = draw(st.sampled_from(NUMBERS)), np.dtype(draw(st.sampled_from(DTYPES)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        array = np.full(shape, number).astype(dtype)
        container = draw(st.sampled_from(["numpy", "list", "torch", "jax", None]))
        if container in BACKENDS:
            try:
                return Backend(container).array(array)
            except (TypeError, ValueError):
                assume(False)
    return {"numpy": array, "list": array.tolist(), None: None}[container]


def on_host(value: Any) -> NDArray[Any]:
    return np.asarray(value.numpy() if hasattr(value, "detach") else value)


def replaced(tree: Any, path: list[str], value: Any) -> Any:
    return value if not path else {**tree, path[0]: replaced(tree[path[0]], path[1:], value)}


def at(tree: Any, path: list[str]) -> Any:
    return tree if not path else at(tree[path[0]], path[1:])


def check_row(agent: Any, data: st.DataObject) -> None:
    """Show an agent a row in which one array is drawn."""
    agent.init()
    row = draw_row(agent, np.random.default_rng(0), terminated=np.zeros((ENVS, 1), bool))
    name = data.draw(st.sampled_from(ARGUMENTS))
    first, *rest = name.split(".")
    shape = np.shape(at(row[first], rest))
    value = data.draw(values(shape, backend.name))
    row[first] = replaced(row[first], rest, value)
    before = agent.memory.added, len(agent.memory), agent.live_state()["statistics"]
    try:
        agent.record_transition(**row)
    except (TypeError, ValueError) as error:
        assert not isinstance(error, TypeCheckError)
        assert first in str(error), error
        assert (agent.memory.added, len(agent.memory)) == before[:2]
        np.testing.assert_equal(agent.live_state()["statistics"], before[2])
        return
    assert agent.memory.added == before[0] + 1
    if agent.transitions.bad_rows is not None:
        bad, agent.transitions.bad_rows = agent.to_numpy(agent.transitions.bad_rows), None
        if bad.any():  # of the device, whose values nothing waits for: it is left out, and said later
            assert value is not None and not isinstance(value, np.ndarray | list)
            assert len(agent.memory) == before[1]
            return
    arrays = agent.memory.arrays()
    newest = (int(arrays["head"][0]) - 1) % SLOTS
    stored = {key: array[newest * ENVS : (newest + 1) * ENVS] for key, array in arrays.items() if key not in ("head", "size")}
    for argument in ARGUMENTS:
        if argument == "truncated":
            continue
        root, *branch = argument.split(".")
        came = at(row[root], branch)
        host = on_host(came)
        found = stored[argument]
        if argument == "actions":
            wanted = np.clip(2 * (host.astype(np.float64) - ACTIONS.low) / (ACTIONS.high - ACTIONS.low) - 1, -1, 1)
            np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=argument)
        else:
            assert np.isfinite(found.astype(np.float64)).all(), argument
            if argument == "terminated" and not isinstance(came, np.ndarray | list):
                host = host != 0  # of the device, whose values nothing waits for
            with np.errstate(over="ignore"):
                wanted = host.reshape(found.shape).astype(found.dtype)
            assert found.tolist() == wanted.tolist(), argument
            assert found.dtype.kind == "f" or found.tolist() == host.reshape(found.shape).tolist(), argument


def test_a_row_is_stored_exactly_or_refused_by_name_with_nothing_changed(backend: Backend) -> None:
    draw_examples(backend, partial(check_row, taker(backend)), st.data(), torch=250, jax=80)


@pytest.mark.full
def test_rows_are_stored_or_refused_at_length(backend: Backend) -> None:
    draw_examples(backend, partial(check_row, taker(backend)), st.data(), torch=5000, jax=1500)


# Configurations.

SETTINGS: list[Any] = [
    *(0, -1, 1, 2, 0.5, 1.0, 1e-300, 1e39, np.inf, np.nan, None, True, False, "x", "", "auto", (), [], {}, (1, 2), (0.1, 0.2, 0.3)),
    *(2**31, 2**63, 10**400, np.int64(3), np.float32(0.5), np.bool_(True), np.array(2.0), 1j, object(), {"x": 1}, [None] * 3, abs, int),
]


@given(st.sampled_from(sorted(SACConfig.__dataclass_fields__)), st.sampled_from(SETTINGS))
@settings(max_examples=400)
def test_a_setting_is_kept_through_json_or_refused_by_name(name: str, value: Any) -> None:
    try:
        cfg = SACConfig.from_dict({name: value})
        cfg.validate()
        written = json.loads(json.dumps(cfg.to_dict(), allow_nan=False))
    except ConfigError as error:
        assert name in str(error), error
        return
    assert SACConfig.from_dict(written).to_dict() == cfg.to_dict()


def check_setting(backend: Backend, name: str, value: Any) -> None:
    """Make an agent with a setting."""
    memory = backend.package.ReplayMemory(8, 1)
    spaces = {"observation_space": ROWS.observation, "action_space": ROWS.action}
    models = backend.package.default_models(**spaces, hidden=(2,), num_critics=1)
    try:
        agent = backend.package.SAC(models=models, memory=memory, **spaces, cfg={"batch_size": 4, name: value})
    except (TypeError, ValueError) as error:
        assert not isinstance(error, TypeCheckError)
        assert name in str(error) or "ReplayMemory" in str(error), error
        return
    assert len(agent.memory) == 0 and agent.gradient_step_count == 0


DRAWN_SETTINGS = st.sampled_from(sorted(SACConfig.__dataclass_fields__.keys() - {"experiment"})), st.sampled_from(SETTINGS)


def test_an_agent_takes_a_setting_or_refuses_it_by_name(backend: Backend) -> None:
    draw_examples(backend, partial(check_setting, backend), *DRAWN_SETTINGS, torch=80, jax=20)


@pytest.mark.full
def test_settings_are_taken_or_refused_at_length(backend: Backend) -> None:
    draw_examples(backend, partial(check_setting, backend), *DRAWN_SETTINGS, torch=1000, jax=200)


def test_rows_of_bools_on_the_device_are_stored(backend: Backend) -> None:
    """They are finite, and NaN is looked for by a difference, which bools do not have."""
    agent = backend.agent(Spaces(Box(0, 1, (2,), np.bool_)))
    row = draw_row(agent, np.random.default_rng(0))
    agent.record_transition(**{name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()})
    np.testing.assert_array_equal(agent.memory.arrays()["observations"][0], row["observations"][0])
