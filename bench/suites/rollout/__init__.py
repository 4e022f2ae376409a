"""Environments, acting, the training loop and its parts."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=80, stage_order=50)
