"""Gradient steps per second by batch and width, beside matrix products."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=50, stage_order=20)
