"""Gradient steps per second of recurrent agents, beside feed-forward ones."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=70, stage_order=30)
