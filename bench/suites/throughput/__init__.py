"""Environment steps per second of the whole training loop, beside the peers."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=40, stage_order=10)
