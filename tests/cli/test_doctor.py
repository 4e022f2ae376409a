"""What the doctor reports of this machine, and of one where something is broken."""

import importlib
import json
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import sacref
from sacref.cli import doctor


def test_reports_this_machine() -> None:
    report = doctor.examine()
    assert report["sacref"] == sacref.__version__
    assert report["versions"]["numpy"] == np.__version__
    assert all(int(count) >= 1 for name, count in report["threads"].items() if name != "OMP_NUM_THREADS")
    for backend, cpu in {"torch": "cpu: updates run traced", "jax": "cpu:0 (cpu): updates run scan"}.items():
        finding = report["backends"][backend]
        assert finding["works"] is (finding["problem"] == "")
        if finding["works"]:
            assert any(device.startswith(cpu) or "cuda" in device for device in finding["found"])
    assert report["healthy"] is any(finding["works"] for finding in report["backends"].values())
    assert json.loads(json.dumps(report)) == report


def test_names_the_extra_of_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_flax_and_mujoco(name: str) -> ModuleType:
        if name in ("flax", "mujoco"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return SimpleNamespace() if name in ("jax", "sacref.jax") else real(name)  # type: ignore[return-value]  # stands in for a module

    monkeypatch.setattr(importlib, "import_module", without_flax_and_mujoco)
    report = doctor.examine()
    assert report["backends"]["jax"] == {"works": False, "found": [], "problem": "flax is not installed: pip install 'sacref[jax]'"}
    assert report["environments"]["mujoco"]["problem"] == "mujoco is not installed: pip install 'sacref[mujoco]'"


def test_a_broken_library_is_reported_and_not_raised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    report = doctor.examine()
    assert report["healthy"] is False
    assert report["backends"]["torch"]["problem"] == "OSError: libcudart.so.13: cannot open shared object file"
    doctor.show(report)
    shown = capsys.readouterr().out
    assert "pip install 'sacref[torch]'" in shown, "the extra's brackets are not swallowed as markup"


def test_a_device_that_cannot_add_is_no_working_device(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(
        cuda=SimpleNamespace(device_count=lambda: 0), ones=lambda count, device: SimpleNamespace(sum=lambda: 3.0), get_num_threads=lambda: 1
    )
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: wrong if name in ("torch", "sacref.torch") else real(name))
    finding = doctor.examine()["backends"]["torch"]
    assert finding == {"works": False, "found": [], "problem": "RuntimeError: 1 + 1 is 3.0 on cpu: its driver or its library is broken"}
