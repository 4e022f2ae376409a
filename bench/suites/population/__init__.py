"""Gradient steps per second of agents that learn together, beside one alone."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=60, stage_order=40)
