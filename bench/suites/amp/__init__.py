"""Gradient steps by precision: speed, memory, and error against float64."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=90, stage_order=60)
