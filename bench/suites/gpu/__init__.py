"""A day on a GPU in one command: the other suites in order, within a budget of minutes."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=160)
