"""Test of equivalence between the returns of PyTorch and JAX."""

from bench.core.suite import Suite

SUITE = Suite(package=__name__, section_order=20)
