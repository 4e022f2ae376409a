"""Choices and mistakes of other implementations, as `sacref examine` records them."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=120)
