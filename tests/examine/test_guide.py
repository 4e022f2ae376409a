"""docs/examine.md: its worked example runs, and the examiner finds what the page says."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sacref.examine import examine
from sacref.examine.adapter import Adapter, record
from sacref.examine.adapters import ADAPTERS, load
from sacref.examine.choices import NEWEST, VALUES
from sacref.examine.identify import identify
from sacref.examine.problem import Problem, ordinary
from sacref.examine.report import choice_rows

GUIDE = (Path(__file__).parents[2] / "docs" / "examine.md").read_text(encoding="utf-8")


@contextmanager
def worked_example(folder: Path, guide: str) -> Iterator[Adapter]:
    """Write the guide's files to a folder, and load the adapter that they define."""
    pytest.importorskip("torch")
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", guide, re.DOTALL):
        (folder / block[0]).write_text(block[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield load("mysac_adapter:MySAC")
        for name in ("mysac", "mysac_adapter"):
            sys.modules.pop(name)


def test_the_worked_example_is_found_out(tmp_path: Path) -> None:
    with worked_example(tmp_path, GUIDE) as adapter:
        found = examine(adapter)
    rows = [row for row in choice_rows(found) if row[2]]
    assert len(rows) == 5
    for row in [*rows, *(tuple(finding) for finding in found.mistakes)]:
        assert "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" in GUIDE
    assert len(found.mistakes) == 2
    assert max(found.differences.values()) < 1e-9


def test_a_sound_update_with_choices_of_others_is_named(tmp_path: Path) -> None:
    # Two steps of the policy at every second update, the temperature with the policy's noise, and torch's own clipping.
    policy, temperature = (
        re.search(pattern, GUIDE, re.DOTALL)
        for pattern in (
            r"        sampled, log_prob = self\.sample\(observations\).*?mean\(\)\)\n",
            r"        self\.step\(self\.alpha_opt.*?\n",
        )
    )
    assert policy is not None
    assert temperature is not None
    step = policy[0].replace("alpha * log_prob", "self.log_alpha.exp().detach() * log_prob") + temperature[0].replace("- 1)", "- 3)")
    twice = "        self.updates = getattr(self, 'updates', 0) + 1\n        for _ in range(2 if self.updates % 2 == 0 else 0):\n"
    changes = {
        policy[0] + temperature[0]: twice + re.sub("^", "    ", step, flags=re.MULTILINE).rstrip(" "),
        "log_std.clamp(-5, 2)": "log_std.clamp(-10, 2)",
        "torch.log(1 - action**2 + 1e-6)": "2 * (math.log(2) - u - nn.functional.softplus(-2 * u))",
        "import torch\nfrom torch import nn": "import math\n\nimport torch\nfrom torch import nn",
        "loss.backward()\n": "loss.backward()\n"
        "        if self.clip and optimizer is not self.alpha_optimizer:\n"
        "            nn.utils.clip_grad_norm_(optimizer.param_groups[0]['params'], self.clip)\n",
        "*settings)\n": "*settings)\n            self.agent.clip = problem.clip\n",
        '    name = "my SAC"\n': '    name = "my SAC"\n    supports = ("clip",)\n',
    }
    guide = GUIDE
    for old, new in changes.items():
        assert old in guide
        guide = guide.replace(old, new)
    with worked_example(tmp_path, guide) as adapter:
        found = examine(adapter)
    assert found.identified
    assert found.mistakes == []
    assert {name: values for name, values in found.choices.items() if values and list(values) != [VALUES[name][0]]} == {
        "std": ["exp, cut to [-10, 2]"],
        "critic_actions": ["in the Box's units"],
        "critic_loss": ["(Q - y)^2, summed over critics"],
        "policy_alpha": [NEWEST],
        "policy_steps": ["every second update, two"],
    }
    assert found.choices["clipping"] == ["norm of all critics, norm of the policy"]


def test_an_actor_without_gradients_through_its_actions_is_no_variant(tmp_path: Path) -> None:
    guide = GUIDE.replace("u = normal.rsample()", "u = torch.normal(normal.mean, normal.stddev)")
    assert guide != GUIDE
    with worked_example(tmp_path, guide) as adapter:
        left = identify([record(adapter, ordinary(Problem(), updates=1))]).left
    assert left is not None
    assert left.quantity == "actor loss"


def test_the_guide_names_every_adapter() -> None:
    assert {name for name in ADAPTERS if f"`{name}`" in GUIDE} == set(ADAPTERS)
