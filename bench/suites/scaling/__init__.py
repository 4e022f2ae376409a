"""Gradient steps per second of several ranks that train one agent."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=100, stage_order=70)
