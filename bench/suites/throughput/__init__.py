"""Environment steps per second of the whole training loop, beside the peers."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=40, stage_order=10)
