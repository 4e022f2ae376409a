"""Differences between the executions that agents choose and the plain one, after a hundred updates on this device."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=115, stage_order=85)
