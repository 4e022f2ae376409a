"""Scores of all tasks together, by the methods of Agarwal et al. 2021."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=30)
