"""Return curves over seeds, beside published ones: `python -m bench learning PRESET`."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=10, stage_order=90)
