"""Runs that are killed and resumed, against runs that are not."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=130)
