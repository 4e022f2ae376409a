"""Differences between the backends and the oracle, as `sacref parity` records them."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=110, stage_order=80)
