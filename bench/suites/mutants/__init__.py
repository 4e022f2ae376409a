"""Mistakes put into the equations and the update, and the tests that see them."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=140)
