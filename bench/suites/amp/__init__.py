"""Gradient steps by precision: speed, memory, and error against float64."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=90, stage_order=60)
