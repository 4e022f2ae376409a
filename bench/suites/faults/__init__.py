"""Runs that are killed and resumed, against runs that are not."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=130)
