"""Choices and mistakes of other implementations, as `sacref examine` records them."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=120)
