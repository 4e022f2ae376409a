"""Microseconds of host work of a training step, by part, beside the environment's own step and beside peers."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=85, stage_order=15)
