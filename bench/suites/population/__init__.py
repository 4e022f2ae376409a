"""Gradient steps per second of agents that learn together, beside one alone."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=60, stage_order=40)
