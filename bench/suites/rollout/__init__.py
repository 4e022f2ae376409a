"""Environments, acting, the training loop and its parts."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=80, stage_order=50)
