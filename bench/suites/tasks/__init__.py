"""Scores of all tasks together, by the methods of Agarwal et al. 2021."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=30)
