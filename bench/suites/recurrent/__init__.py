"""Gradient steps per second of recurrent agents, beside feed-forward ones."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=70, stage_order=30)
