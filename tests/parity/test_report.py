"""`sacref.parity.run`: its refusals, its record, its plot, and a process of its own in which JAX's 64-bit mode is off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import sacref
from sacref import parity
from sacref.parity.compare import KINDS, Difference, Trace, Traces
from sacref.parity.drivers import installed_backends

SMALL = parity.Problem(observation=3, action=2, hidden=(8,), batch_size=16, replay_size=64)


def test_the_record_holds_every_updates_numbers(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    seen: list[int] = []
    report = parity.run(updates=7, dtype="float32", seed=3, json=path, problem=SMALL, backends=[], on_update=lambda: seen.append(1))
    assert len(seen) == 7
    record = json.loads(path.read_text())
    assert (record["schema_version"], record["suite"], record["seed"]) == (1, "parity", 3)
    assert record["sacref_version"] == sacref.__version__
    assert record["configuration"]["dtype"] == "float32"
    assert record["configuration"]["hidden"] == [8]
    assert record["libraries"].keys() >= {"python", "numpy"}
    assert record["hardware"].keys() >= {"cpu_model", "cores"}
    assert isinstance(record["dirty"], bool)
    differences = record["samples"]["differences"]["numpy_float32 - numpy"]
    assert set(differences) == {"losses", "gradients", "parameters", "targets", "moments", "alpha"}
    assert [len(differences[kind]["relative"]) for kind in differences] == [7] * 6
    assert len(record["samples"]["metrics"]["numpy"]["q_mean"]) == 7
    largest = record["largest"]["numpy_float32 - numpy"]["parameters"]["relative"]
    # Rounding in float32 is seen, and it is no more than that.
    assert 1e-9 < largest["value"] < 1e-4
    assert largest["value"] == pytest.approx(max(differences["parameters"]["relative"]), rel=1e-2)
    assert report.largest("parameters").value == largest["value"]
    assert not report.within(1e-9)
    assert report.within(1.0)
    assert path.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(("kind", "judged"), [(kind, kind != "gradients") for kind in KINDS])
def test_every_kind_but_gradients_is_judged(kind: str, judged: bool) -> None:
    equal, apart = Difference(0.0, 0.0, "same"), Difference(1e-3, 1e-3, "somewhere")
    kinds = {name: Trace() for name in KINDS}
    for name, trace in kinds.items():
        trace.add(equal, equal)
        trace.add(apart if name == kind else equal, apart if name == kind else equal)
    report = parity.Report(SMALL, 2, Traces({("jax", "numpy"): kinds}, metrics={}))
    assert report.within(1e-9) is not judged


def test_the_table_names_pair_kind_and_place() -> None:
    report = parity.run(updates=2, dtype="float32", problem=SMALL, backends=[])
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    console.file.close()
    text = console.export_text()
    assert "2 updates in float32" in text
    assert "numpy_float32 - numpy" in text
    where = report.traces.pairs["numpy_float32", "numpy"]["gradients"].largest_relative.where
    assert "[" in where
    assert where in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": 0}, "updates is 0, expected at least 1"),
        ({"seed": -1}, "parity: seed is -1, expected at least 0"),
        ({"dtype": "float16"}, "dtype is 'float16', expected 'float32' or 'float64'"),
        ({"backends": ["tensorflow"]}, "backend is 'tensorflow', expected one of torch, jax"),
        ({"backends": []}, "nothing to compare the NumPy oracle with"),
        ({"json": "drift.png"}, "json is 'drift.png', where the plot goes"),
    ],
)
def test_what_cannot_run_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parity.run(problem=SMALL, **arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(not installed_backends(), reason="neither torch nor jax is installed")
def test_parity_is_imported_without_a_backend_and_leaves_jaxs_precision_alone() -> None:
    """In a fresh process: nothing is loaded before it is needed, and float64 on JAX needs no global flag."""
    program = """
import sys
from sacref import parity
assert not {"torch", "jax"} & set(sys.modules), "loaded by the import"
report = parity.run(updates=3, problem=parity.Problem(observation=3, action=2, hidden=(8,), batch_size=16, replay_size=64))
assert report.within(1e-12), report.largest()
print(sorted({name for pair in report.traces.pairs for name in pair}))
if "jax" in sys.modules:
    assert not sys.modules["jax"].config.jax_enable_x64
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(["numpy", *installed_backends()]))
