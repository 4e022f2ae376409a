"""Memory and open files over a long run."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=150)
