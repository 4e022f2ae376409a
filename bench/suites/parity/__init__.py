"""Differences between the backends and the oracle, as `sacref parity` records them."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=110, stage_order=80)
