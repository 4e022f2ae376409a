"""Mistakes put into the equations and the update, and the tests that see them."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=140)
