"""CleanRL's sac_continuous_action.py, a path to which is in the environment variable CLEANRL_SAC."""

import ast
import hashlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.adapters import version
from sacref.examine.inject import Places, TorchAdapter, torch_dtype, torch_places
from sacref.examine.problem import Problem
from sacref.parity.networks import Floats, Named

VARIABLE = "CLEANRL_SAC"


class CleanRL(TorchAdapter):
    """Its networks and the block of its loop that trains, taken from the script as they are; layers of the problem's width in place of 256.

    Raises:
        ValueError: if the variable names no file.
    """

    name = "CleanRL"

    def make(self, problem: Problem) -> None:
        torch, given = importlib.import_module("torch"), os.environ.get(VARIABLE, "")
        path = Path(given)
        if not path.is_file():
            raise ValueError(f"cleanrl: {VARIABLE} is {given!r}, expected the path of CleanRL's sac_continuous_action.py: set it")
        source = path.read_text(encoding="utf-8")
        self._digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        self.problem, self._step = problem, 0
        names: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np}
        tree = ast.parse(source)
        networks: list[ast.stmt] = [
            part for part in tree.body if isinstance(part, ast.ClassDef | ast.Assign) and getattr(part, "name", "") != "Args"
        ]
        exec(compile(ast.Module(networks, []), str(path), "exec"), names)
        loops = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "args.learning_starts" in ast.unparse(node.test)]
        training = next(node for node in loops if "critic" not in ast.unparse(node.test) and "rb.sample" in ast.unparse(node))
        self._train = compile(ast.Module(training.body, []), str(path), "exec")
        spaces = SimpleNamespace(single_observation_space=problem.observation_space, single_action_space=problem.action_space)
        with torch_dtype(problem.dtype):
            actor = names["Actor"](spaces)
            critics = {name: names["SoftQNetwork"](spaces) for name in ("qf1", "qf2", "qf1_target", "qf2_target")}
            for module in (actor, *critics.values()):
                _resize(module, problem)
            for online in ("qf1", "qf2"):
                critics[f"{online}_target"].load_state_dict(critics[online].state_dict())
            actor.to(getattr(torch, problem.dtype))
            log_alpha = torch.zeros(1, requires_grad=True)
        adam, rate = torch.optim.Adam, problem.learning_rate
        settings = {"batch_size": problem.batch_size, "gamma": problem.discount, "tau": problem.tau}
        usual = {"policy_frequency": 2, "target_network_frequency": 1, "autotune": True}
        self._names = {
            **names,
            **critics,
            "actor": actor,
            "log_alpha": log_alpha,
            "alpha": problem.alpha,
            "target_entropy": -float(problem.action),
            "q_optimizer": adam([*critics["qf1"].parameters(), *critics["qf2"].parameters()], lr=rate),
            "actor_optimizer": adam(actor.parameters(), lr=rate),
            "a_optimizer": adam([log_alpha], lr=rate),
            "args": SimpleNamespace(**settings, **usual),
        }

    def places(self) -> Places:
        models = {"policy": "actor", "critic_1": "qf1", "critic_2": "qf2", "target_critic_1": "qf1_target", "target_critic_2": "qf2_target"}
        return torch_places({common: self._names[name] for common, name in models.items()}, self._names["log_alpha"])

    def set_weights(self, weights: Named) -> None:
        super().set_weights(weights)
        self._names["alpha"] = float(np.exp(weights["log_alpha"]))

    def learn_from(self, batch: Batch[Floats]) -> None:
        torch, cast = importlib.import_module("torch"), self.problem.cast
        columns = {"rewards": batch.rewards[:, None], "dones": cast(batch.terminated)[:, None]}
        arrays = {"observations": batch.observations, "next_observations": batch.next_observations, **columns}
        arrays["actions"] = self.problem.box(batch.actions)
        rows = SimpleNamespace(**{name: torch.as_tensor(array) for name, array in arrays.items()})
        self._step += 1  # never a multiple of 100, at which it writes to TensorBoard
        self._names |= {"rb": SimpleNamespace(sample=lambda _: rows), "global_step": self._step}
        exec(self._train, self._names)

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        torch = importlib.import_module("torch")
        with torch_dtype(self.problem.dtype), torch.no_grad():
            action, _, mean = self._names["actor"].get_action(torch.as_tensor(observations))
        return np.array(mean if deterministic else action)

    def versions(self) -> Mapping[str, str]:
        return {"sac_continuous_action.py, sha256": self._digest, **version("torch")}


def _resize(module: Any, problem: Problem) -> None:
    """Give the two hidden layers and what reads them the problem's widths."""
    linear, first, second = importlib.import_module("torch").nn.Linear, *problem.hidden
    for name, layer in list(module.named_children()):
        if name == "fc1":
            setattr(module, name, linear(layer.in_features, first))
        elif name == "fc2":
            setattr(module, name, linear(first, second))
        else:
            setattr(module, name, linear(second, layer.out_features))
