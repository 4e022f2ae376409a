"""The records of a suite that the page shows."""

from pathlib import Path
from typing import Generic, NamedTuple

from bench.core import machine, record
from bench.core.page import place
from bench.core.record import Record, SamplesT


class Found(NamedTuple, Generic[SamplesT]):
    """A record that the page shows."""

    record: Record[SamplesT]
    heading: str
    """The kind of machine, the cores used, and the preset."""
    picture: Path
    """Path of its picture."""


def newest(results: Path, samples: type[SamplesT]) -> list[Found[SamplesT]]:
    """Return the newest record of each preset, kind of machine and number of cores; the newest of all first."""
    shown: dict[str, Found[SamplesT]] = {}
    suite = samples.suite
    records = (record.read(path, samples) for path in results.glob(f"{suite}/*/*.json"))
    for one in sorted(records, key=lambda one: one.date, reverse=True):
        heading = f"{place(one.hardware)}, {one.hardware.threads} of them used; preset {one.configuration['preset']}"
        heading += ", in part" if "only" in one.configuration else ""
        picture = results / suite / f"{one.run}-{machine.slug(one.hardware)}.png"
        shown.setdefault(heading, Found(one, heading, picture))
    return list(shown.values())
